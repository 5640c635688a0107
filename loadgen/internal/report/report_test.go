package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/wire"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// sample is a run with one of everything.
func sample() Run {
	accuracy := 0.98
	errors := map[wire.Status]int64{}
	for _, code := range ErrorCodes() {
		errors[code] = 0
	}
	lenet := Figures{
		Sent: 3000, OK: 2990, Errors: map[wire.Status]int64{wire.Expired: 7, wire.Overloaded: 2}, Lost: 1, Duplicates: 3,
		Causes: map[wire.Status]string{wire.Expired: "could not finish in time"},
		SLOMs:  20, SLOViolations: 42, RateRPS: 300, ThroughputRPS: 299, GoodputRPS: 295.8,
		MeanMs: 2.2, P50Ms: 1.81, P90Ms: 3.4, P99Ms: 9.05, P999Ms: 24.2, MaxMs: 31,
		Labelled: 2990, Correct: 2930, Accuracy: &accuracy, Wrong: 1, WrongWhy: `output "y": missing`,
		SendLagP99Ms: 0.4, SendLagMaxMs: 2.5,
		Stages: &Stages{QueuedMs: 0.4, BatchedMs: 0.1, ExecMs: 0.6, Batch: 2.5},
	}
	bert := Figures{Sent: 100, OK: 100, Errors: errors, RateRPS: 10, ThroughputRPS: 10, GoodputRPS: 10, MeanMs: 50, P50Ms: 48, P90Ms: 60, P99Ms: 75, P999Ms: 80, MaxMs: 80}
	for i := range 10 {
		at, x := float64(i), float64(i)
		lenet.Timeline = append(lenet.Timeline, Step{AtS: at, Sent: 300, OK: 299, Violations: int64(i), P50Ms: 1.8 + math.Sin(x)/2, P99Ms: 9 + 4*math.Sin(x)})
		bert.Timeline = append(bert.Timeline, Step{AtS: at, Sent: 10, OK: 10, P50Ms: 48 + math.Cos(x), P99Ms: 70 + 5*math.Cos(x)})
	}
	for i := range 60 {
		q := 1 - math.Pow(10, -4*float64(i)/59)
		lenet.CDF = append(lenet.CDF, [2]float64{1.2 * math.Pow(25, float64(i)/59), q})
		bert.CDF = append(bert.CDF, [2]float64{35 * math.Pow(2.3, float64(i)/59), q})
	}
	total := lenet
	total.Sent, total.OK, total.CDF, total.Timeline = 3100, 3090, nil, nil
	sums := func(n int64) map[string]PhaseSums {
		return map[string]PhaseSums{"lenet": {Sent: n, OK: n - 5, Violations: 5}, "bert": {Sent: 50, OK: 50}}
	}
	return Run{
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), DurationS: 10, Via: "nats", Arrival: "poisson", Seed: 1, Scenario: "rush",
		IntervalS: 1, Models: map[string]Figures{"lenet": lenet, "bert": bert}, Total: total,
		Phases: []Phase{{Name: "calm", ToS: 5, Models: sums(1000)}, {Name: "rush", FromS: 5, ToS: 10, Models: sums(2000)}},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := sample().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", b.Bytes())
}

func TestComparison(t *testing.T) {
	before, after := sample(), sample()
	faster := after.Models["lenet"]
	faster.P99Ms /= 2
	after.Models["lenet"] = faster
	delete(after.Models, "bert")
	var b bytes.Buffer
	if err := WriteComparison(&b, []string{"before", "after"}, []Run{before, after}); err != nil {
		t.Fatal(err)
	}
	golden(t, "comparison.txt", b.Bytes())
}

func TestCSV(t *testing.T) {
	var b bytes.Buffer
	if err := sample().WriteCSV(&b); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(rows) != 4 {
		t.Fatalf("%d rows: %v", len(rows), err)
	}
	column := map[string]string{}
	for i, name := range rows[0] {
		column[name] = rows[2][i]
	}
	for name, want := range map[string]string{"model": "lenet", "sent": "3000", "p99_ms": "9.0500", "expired": "7", "poisoned": "0"} {
		if column[name] != want {
			t.Errorf("column %s: %q, expected %q", name, column[name], want)
		}
	}
}

// The names are a contract with those who script against the document.
func TestJSONHasTheFieldsThatOthersRead(t *testing.T) {
	var b bytes.Buffer
	if err := sample().WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Duration *float64                  `json:"duration_s"`
		Models   map[string]map[string]any `json:"models"`
		Total    map[string]any            `json:"total"`
	}
	if err := json.Unmarshal(b.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Duration == nil {
		t.Error("duration_s is missing")
	}
	for _, figures := range []map[string]any{doc.Models["lenet"], doc.Models["bert"], doc.Total} {
		for _, key := range []string{"sent", "ok", "lost", "duplicates", "errors", "slo_violations", "rate_rps", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"} {
			if _, ok := figures[key]; !ok {
				t.Errorf("%s is missing", key)
			}
		}
	}
	back, err := Parse("run.json", b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample(), back); d != "" {
		t.Errorf("read back:\n%s", d)
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for _, data := range []string{"", "[]", "{}", `{"models": 3}`} {
		if _, err := Parse("run.json", []byte(data)); err == nil || !strings.HasPrefix(err.Error(), "run.json: ") {
			t.Errorf("%q: error %v", data, err)
		}
	}
}

func TestFailures(t *testing.T) {
	for want, total := range map[string]Figures{
		"":           {Sent: 5, OK: 3, Errors: map[wire.Status]int64{wire.Overloaded: 2}, Duplicates: 1},
		"lost":       {Sent: 5, OK: 4, Lost: 1},
		"wrong":      {Sent: 5, OK: 5, Wrong: 1},
		"never sent": {Sent: 5, OK: 5, Unasked: 1},
	} {
		if got := (Run{Total: total}).Failure(); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%+v: %q, expected %q in it", total, got, want)
		}
	}
}

func TestAModelWithoutAnOKAnswerIsAFailure(t *testing.T) {
	ok := Figures{Sent: 5, OK: 5}
	none := Figures{
		Sent: 5, Errors: map[wire.Status]int64{wire.Overloaded: 1, wire.Failed: 4},
		Causes: map[wire.Status]string{wire.Overloaded: "queue is full", wire.Failed: "index out of range"},
	}
	run := func(b Figures) Run {
		return Run{Models: map[string]Figures{"a": ok, "b": b}, Total: Figures{Sent: 10, OK: 5}}
	}
	if got, want := run(none).Failure(), "b: none of 5 requests was answered ok: failed: index out of range"; got != want {
		t.Errorf("%q, expected %q", got, want)
	}
	if got := run(Figures{}).Failure(); got != "" {
		t.Errorf("a model that was sent nothing: %q", got)
	}
}

// The page needs nothing else, and what comes from outside cannot become markup in it.
func TestHTMLIsSelfContainedAndEscaped(t *testing.T) {
	r := sample()
	f := r.Models["lenet"]
	f.Causes = map[wire.Status]string{wire.Expired: `</script><script>alert("x")</script>`}
	r.Models["lenet"] = f
	var b bytes.Buffer
	if err := WriteHTML(&b, []string{"<b>run</b>"}, []Run{r}); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	if strings.Count(page, "<script>") != 1 || strings.Contains(page, "<b>run") {
		t.Error("text from outside became markup")
	}
	for _, outside := range []string{"src=", "href=", "url(", "import "} {
		if strings.Contains(page, outside) {
			t.Errorf("the page refers to something outside: %s", outside)
		}
	}
	if name := os.Getenv("GPULET_KEEP_HTML"); name != "" { // to look at it
		if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzParse: of whatever is accepted, everything that reports are made of can be written.
func FuzzParse(f *testing.F) {
	doc, err := json.Marshal(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(`{"models":{"a":{}},"duration_s":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		run, err := Parse("f", data)
		if err != nil {
			return
		}
		_ = run.Failure()
		for _, write := range []func(io.Writer) error{run.WriteJSON, run.WriteCSV} {
			if err := write(io.Discard); err != nil {
				t.Error(err)
			}
		}
	})
}
