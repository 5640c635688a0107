package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/wire"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

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
