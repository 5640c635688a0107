package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// TestSearchEndsNearTheBorder also shows how few rates it takes when the answer is near the start.
func TestOutputsAreAskedOfModelsThatAreSentRequests(t *testing.T) {
	list := "a=x,b=y+z,c=x"
	for want, requests := range map[string]map[string]float64{
		"": {"d": 1}, "b=y+z": {"b": 1, "d": 1}, "a=x,c=x": {"c": 1, "a": 2},
	} {
		if got := of(requests, list); got != want {
			t.Errorf("%v: %q: expected %q", requests, got, want)
		}
	}
	if got := of(map[string]float64{"a": 1}, ""); got != "" {
		t.Errorf("nothing is asked for: %q", got)
	}
}

func TestSearchEndsNearTheBorder(t *testing.T) {
	for _, c := range []struct {
		first, border float64
		most          int
	}{{1.2, 100, 4}, {1.2, 110, 4}, {1.2, 95, 4}, {1.2, 150, 7}, {1.2, 50, 8}, {1.2, 30, 9}, {1.2, 5, 13}, {1.04, 101, 2}, {1.04, 98, 2}, {1.04, 50, 11}} {
		s, tries := search{rate: 100, first: c.first}, 0
		for ; !s.done(); tries++ {
			s.tell(s.rate <= c.border)
		}
		if s.good > c.border || s.bad <= c.border || s.bad > s.good*searchPrecision || tries > c.most {
			t.Errorf("ratio %v, border %v: good %.1f, bad %.1f after %d tries: expected the border between them after at most %d", c.first, c.border, s.good, s.bad, tries, c.most)
		}
	}
}

func TestRequestsCarryMoreSamplesWhereThereWouldBeTooMany(t *testing.T) {
	for _, c := range []struct {
		rates map[string]float64
		want  map[string]int
	}{
		{map[string]float64{"a": 3000, "b": 3000}, map[string]int{"a": 1, "b": 1}},
		{map[string]float64{"a": 30000, "b": 3000}, map[string]int{"a": 8, "b": 1}},
		{map[string]float64{"a": 9000, "single": 20000}, map[string]int{"a": 16, "single": 1}}, // one picture is one request
		{map[string]float64{"a": 1e9, "b": 1}, map[string]int{"a": 16, "b": 16}},               // as far as it goes
	} {
		if d := cmp.Diff(c.want, samplesFor(c.rates, 8000, 16, map[string]bool{"single": true})); d != "" {
			t.Errorf("%v: %s", c.rates, d)
		}
	}
}

// TestEachFormOfRequestsIsSentByItself: JPEGs are for models that take pictures.
func TestEachFormOfRequestsIsSentByItself(t *testing.T) {
	l := load{rates: map[string]float64{"net": 100, "lenet": 800, "bert": 50}, samples: map[string]int{"lenet": 8}, pictures: map[string]bool{"net": true}}
	for body, want := range map[string]map[form]map[string]float64{
		bodyJPEG:   {{bodyJPEG, 1}: {"net": 100}, {bodyRandom, 8}: {"lenet": 100}, {bodyRandom, 1}: {"bert": 50}},
		bodyRandom: {{bodyRandom, 1}: {"net": 100, "bert": 50}, {bodyRandom, 8}: {"lenet": 100}},
		"":         {{"", 1}: {"net": 100, "bert": 50}, {bodyRandom, 8}: {"lenet": 100}},
	} {
		l.body = body
		if d := cmp.Diff(want, l.forms(), cmp.AllowUnexported(form{})); d != "" {
			t.Errorf("%q: %s", body, d)
		}
	}
}

func TestPicturesAreBytesOfThreeColours(t *testing.T) {
	dir := t.TempDir()
	for name, in := range map[string]string{
		"net":   "{name: x, dtype: FP32, shape: [3, 8, 8]}]\npreprocess: {x: {accept: [UINT8], scale: 0.1}}",
		"float": "{name: x, dtype: FP32, shape: [3, 8, 8]}]", "grey": "{name: x, dtype: UINT8, shape: [1, 8, 8]}]", "bytes": "{name: x, dtype: UINT8, shape: [3, 8, 8]}]",
	} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		yaml := "name: " + name + "\nslo: 5ms\nmax_batch: 8\noutputs: [{name: y, dtype: FP32, shape: [1]}]\ninputs: [" + in + "\n"
		if err := os.WriteFile(filepath.Join(dir, name, "model.yaml"), []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := pictures(dir, []string{"net", "float", "grey", "bytes"})
	if err != nil || !got["net"] || got["float"] || got["grey"] || !got["bytes"] {
		t.Errorf("%v, %v: expected net and bytes", got, err)
	}
}

func TestMixesAreParts(t *testing.T) {
	for name := range mixes {
		parts, err := parseMix(name)
		sum := 0.0
		for _, p := range parts {
			sum += p
		}
		if err != nil || math.Abs(sum-1) > 1e-9 {
			t.Errorf("%s: %v, %v: expected parts of 1", name, parts, err)
		}
	}
	if parts, err := parseMix("a=3,b=1"); err != nil || parts["a"] != 0.75 {
		t.Errorf("%v, %v", parts, err)
	}
	for _, bad := range []string{"scen9", "a=", "a=0", "=1", "a=x", "a=NaN"} {
		if parts, err := parseMix(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, parts)
		}
	}
}

// prof is a profile whose latency is perSample per sample and percent of the GPU that it lacks.
func prof(name string, perSample float64) *profile.Profile {
	p := &profile.Profile{Model: name, GPUType: "g"}
	for _, share := range []int{20, 30, 40, 50, 80, 100} {
		for _, batch := range []int{1, 4, 8, 16, 32} {
			p.Points = append(p.Points, profile.Point{Share: share, Batch: batch, P50Ms: float64(batch) * perSample * 100 / float64(share)})
		}
	}
	return p
}

func TestBatchesFitTheSLO(t *testing.T) {
	p := prof("a", 1) // a batch of 8 takes 8 ms on the whole GPU
	for _, c := range []struct {
		share, want int
		slowdown    float64
		slo         time.Duration
	}{
		{100, 8, 1, 16 * time.Millisecond},
		{100, 4, 1, 15 * time.Millisecond},
		{50, 4, 1, 16 * time.Millisecond},
		{100, 4, 1.3, 16 * time.Millisecond},
		{100, 1, 1, time.Microsecond},
	} {
		if got, _ := largestBatch(p, c.share, c.slowdown, c.slo); got != c.want {
			t.Errorf("share %d, slowdown %v, SLO %v: batch %d: expected %d", c.share, c.slowdown, c.slo, got, c.want)
		}
	}
	if best, _ := bestBatch(p, 100, 16*time.Millisecond); best != 1 { // all have the same rate: the first
		t.Errorf("best batch %d: expected 1", best)
	}
}

func TestArmsWithoutAPlannerRunSideBySide(t *testing.T) {
	set := &profile.Set{}
	set.Add(prof("a", 1))
	set.Add(prof("b", 0.1))
	slos := map[string]time.Duration{"a": 16 * time.Millisecond, "b": 16 * time.Millisecond}
	rates := map[string]float64{"a": 10, "b": 20}
	apart, err := sideBySide(set, "g", slos, rates, true)
	if err != nil || len(apart.Gpulets) != 2 || apart.Gpulets[0].Share != 50 {
		t.Fatalf("%+v, %v: expected a gpu-let for each", apart, err)
	}
	one, err := sideBySide(set, "g", slos, rates, false)
	if err != nil || len(one.Gpulets) != 1 || len(one.Gpulets[0].Models) != 2 || one.Gpulets[0].Models[1].Batch != 32 {
		t.Fatalf("%+v, %v: expected one gpu-let with both", one, err)
	}
	s := site{host: "h"}
	for _, p := range []plan.Plan{apart, one} {
		if err := s.place(p).Validate(); err != nil {
			t.Errorf("placed: %v", err)
		}
	}
	if _, err := sideBySide(set, "g", slos, map[string]float64{"c": 1}, true); err == nil {
		t.Error("a model without a profile was planned")
	}
}

func lets(specs ...string) (p plan.Plan) {
	for i, spec := range specs {
		f := strings.Fields(spec)
		g := plan.Gpulet{ID: fmt.Sprint("offline-", i)}
		_, _ = fmt.Sscan(f[0], &g.Share)
		for _, m := range f[1:] {
			g.Models = append(g.Models, plan.Assignment{Model: m, Batch: 1})
		}
		p.Gpulets = append(p.Gpulets, g)
	}
	return p
}

// TestGpuletsStayWhereTheyCan: an id stands for a place and a share for ever.
func TestGpuletsStayWhereTheyCan(t *testing.T) {
	s := site{host: "h", device: plan.Device{Index: 3, GPUType: "g"}}
	s.current = s.place(lets("50 a", "50 b"))
	first := s.current
	next := s.place(lets("50 b", "20 a", "30 a"))
	if next.Gpulets[0].ID != first.Gpulets[1].ID {
		t.Errorf("50%% of b is %s: expected %s, which has b", next.Gpulets[0].ID, first.Gpulets[1].ID)
	}
	seen := map[string]int{}
	for _, g := range append(first.Gpulets, next.Gpulets...) {
		if share, known := seen[g.ID]; known && share != g.Share || g.GPU != 3 || g.Host != "h" || g.GPUType != "g" {
			t.Errorf("%+v: an id with two shares, or another GPU", g)
		}
		seen[g.ID] = g.Share
	}
	if len(seen) != 4 {
		t.Errorf("%d ids: expected 4", len(seen))
	}
	s.current = next
	light := lets("50 b", "20 a", "30 a")
	light.Gpulets[1].Limit = 40
	if got := s.place(light).Gpulets; got[1].ID == next.Gpulets[1].ID || got[2].ID != next.Gpulets[2].ID {
		t.Errorf("%v after %v: expected another id for another limit, and no other", got, next.Gpulets)
	}
}

// TestPlansAreSoughtNearWhatIsKnownToBeCarried, also where only one of the two peaks was found.
func TestPlansAreSoughtNearWhatIsKnownToBeCarried(t *testing.T) {
	for _, c := range []struct{ promised, most, total, want float64 }{{400, 900, 500, 500}, {400, 900, 1000, 900}, {400, 0, 500, 400}} {
		x := attempt{promised: c.promised, most: c.most}
		if got := x.carried(c.total); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestEveryAssignmentTakesAWholeRequest(t *testing.T) {
	got := admitRequests(lets("50 a", "50 b"), map[string]int{"a": 8})
	if a, b := got.Gpulets[0].Models[0].Batch, got.Gpulets[1].Models[0].Batch; a != 8 || b != 1 {
		t.Errorf("batches %d and %d: expected 8 and 1", a, b)
	}
	for _, c := range []struct{ burst, want int }{{4, 0}, {8, 8}, {16, 16}} {
		p := lets("50 a")
		p.Gpulets[0].Models[0].Burst = c.burst
		if got := admitRequests(p, map[string]int{"a": 8}); got.Gpulets[0].Models[0].Burst != c.want {
			t.Errorf("bursts of %d and requests of 8 samples: %d: expected %d", c.burst, got.Gpulets[0].Models[0].Burst, c.want)
		}
	}
}

func TestRatesAreJudged(t *testing.T) {
	figures := func(sent, missed, lost int64) loadReport {
		f := loadFigures{Sent: sent, Violations: missed, Lost: lost, GoodputRPS: float64(sent-missed) / 2, RateRPS: float64(sent) / 2}
		return loadReport{Models: map[string]loadFigures{"a": f}, Total: f}
	}
	for _, c := range []struct {
		report loadReport
		good   bool
	}{{figures(1000, 10, 0), true}, {figures(1000, 11, 0), false}, {figures(1000, 1, 1), false}, {figures(0, 0, 0), false}} {
		var got try
		got.judge(c.report, map[string]int{"a": 4})
		if got.Good != c.good {
			t.Errorf("%+v: good %v: %s", c.report.Total, got.Good, got.Why)
		}
		if want := 4 * c.report.Total.GoodputRPS; got.Goodput != want {
			t.Errorf("goodput %v: expected %v samples/s, 4 a request", got.Goodput, want)
		}
	}
}

// TestASampleCountsAsARequest: where requests of one model carry several samples, the mix stays the mix.
func TestASampleCountsAsARequest(t *testing.T) {
	r := loadReport{Models: map[string]loadFigures{"a": {Sent: 100, Violations: 0}, "b": {Sent: 100, Violations: 9}}, Total: loadFigures{Sent: 200, Violations: 9}}
	var got try
	if got.judge(r, map[string]int{"a": 9, "b": 1}); got.Violations != 0.009 || !got.Good || got.WorstModel != "b" {
		t.Errorf("%+v: expected 9 of 1000 samples", got)
	}
}

func TestATrySaysWhichErrorsThereWere(t *testing.T) {
	f := loadFigures{Sent: 10, Errors: map[string]int64{"expired": 3, "overloaded": 0}}
	var got try
	got.judge(loadReport{Models: map[string]loadFigures{"a": f}, Total: f}, nil)
	if d := cmp.Diff(map[string]int64{"expired": 3}, got.Models["a"].Errors); d != "" {
		t.Error(d)
	}
}

func TestFirstRatesAreReadByMix(t *testing.T) {
	got, err := parseStarts("game=38000 resnet50=1,vgg16=2=900.5")
	if d := cmp.Diff(map[string]float64{"game": 38000, "resnet50=1,vgg16=2": 900.5}, got); d != "" || err != nil {
		t.Error(err, d)
	}
	for _, text := range []string{"game", "game=", "game=-1", "game=0", "game=Inf", "game=NaN", "=5", "chess=5"} {
		if _, err := parseStarts(text); err == nil {
			t.Errorf("%q was read: expected an error", text)
		}
	}
}

func TestRulesGoBeyondThePlan(t *testing.T) {
	p := plan.Plan{Gpulets: []plan.Gpulet{
		{Share: 30, Limit: 40, Models: []plan.Assignment{{Model: "a", Batch: 2, Burst: 4}, {Model: "b", Batch: 8}}},
		{Share: 90, Models: []plan.Assignment{{Model: "a", Batch: 3}}},
	}}
	for text, want := range map[string][5]int{ // limits, then bursts
		"plan":        {40, 0, 4, 0, 0},
		"mps":         {40, 0, 4, 0, 0},
		"none":        {0, 0, 0, 0, 0},
		"50/1":        {50, 0, 0, 0, 0},
		"30/6":        {0, 0, 6, 0, 6},
		"0+20/4":      {50, 100, 4, 0, 4},
		"60+5/1x1.3":  {60, 95, 3, 11, 4},
		"100/16x1.01": {100, 100, 16, 16, 16},
	} {
		r, err := parseRule(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		g := r.apply(p).Gpulets
		got := [5]int{g[0].Limit, g[1].Limit, g[0].Models[0].Burst, g[0].Models[1].Burst, g[1].Models[0].Burst}
		if got != want {
			t.Errorf("%s: limits and bursts %v: expected %v", text, got, want)
		}
		if was := p.Gpulets[0]; was.Limit != 40 || was.Models[0].Burst != 4 {
			t.Fatalf("%s changed the plan it was given: %+v", text, was)
		}
	}
	for _, text := range []string{"all", "40", "40/", "40/-1", "+5/1", "-5/1", "40/4x", "x/1", "/"} {
		if r, err := parseRule(text); err == nil || !strings.Contains(err.Error(), "expected plan, none, mps, or LIMIT/BATCH") {
			t.Errorf("rule %q: %+v, %v: expected an error that says what is expected", text, r, err)
		}
	}
}

func TestWhatMattersMostIsMeasuredFirst(t *testing.T) {
	var order []string
	for _, group := range rounds(arms) {
		for _, a := range group {
			order = append(order, a.name)
		}
	}
	if d := cmp.Diff([]string{"gpulet", "sbp", "elastic", "even", "mps", "uncapped", "streams"}, order); d != "" {
		t.Error(d)
	}
	if n := affordable(time.Minute, 10, 2*time.Second, 5); n != 3 {
		t.Errorf("a minute for 10 cells of 2 s a try: %d tries: expected 3", n)
	}
	if n := affordable(time.Second, 10, 2*time.Second, 5); n != 2 {
		t.Errorf("too little time: %d tries: expected the least, 2", n)
	}
}

// TestStagesAddUp: the times of the log and of the program are parts of the whole.
func TestStagesAddUp(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	log := func(ms int, msg string, more map[string]any) event {
		more["msg"], more["gpulet"] = msg, "g1"
		return event{at: at(ms), text: more}
	}
	events := []event{
		{at: at(5), text: map[string]any{"msg": "serving", "gpulet": "another"}},
		log(10, "gpu-let: start", map[string]any{}),
		log(300, "serving", map[string]any{"engine_took": 200e6, "connect_took": 20e6}),
		log(900, "model loaded", map[string]any{}),
	}
	var got startTime
	got.AnswerS = 0.95
	if err := got.stages(events, "g1", at(0), at(950)); err != nil {
		t.Fatal(err)
	}
	want := startTime{AnswerS: 0.95, NoticedS: 0.01, ProcessS: 0.07, EngineS: 0.2, ConnectS: 0.02, LoadS: 0.6, FirstS: 0.05}
	sum := got.NoticedS + got.ProcessS + got.EngineS + got.ConnectS + got.LoadS + got.FirstS
	if math.Abs(sum-got.AnswerS) > 1e-9 || math.Abs(got.ProcessS-want.ProcessS) > 1e-9 || math.Abs(got.LoadS-want.LoadS) > 1e-9 {
		t.Errorf("got %+v, expected %+v", got, want)
	}
	if err := got.stages(events[:2], "g1", at(0), at(950)); err == nil {
		t.Error("a log without the loading was taken")
	}
}

func TestEventsAreReadAsTheyCome(t *testing.T) {
	p, err := startProcess(t.TempDir(), "echo", "sh", "-c", `printf '{"time":"2026-01-02T03:04:05Z","msg":"a","n":5}\nnot JSON\n{"ms' >&2; printf 'g":"b"}\n' >&2`)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.await(t.Context(), "b")
	if err != nil || b.msg() != "b" || p.count() != 2 {
		t.Fatalf("%+v, %v, %d events: expected a and b", b, err, p.count())
	}
	a, _ := p.since(0)
	if a[0].duration("n") != 5 || a[0].at.Year() != 2026 {
		t.Errorf("a: %+v", a[0])
	}
	if _, err := p.await(t.Context(), "c"); err == nil || !strings.Contains(err.Error(), `echo has ended while it was waited for "c"`) {
		t.Errorf("error %v: expected that the program has ended", err)
	}
	p.stop() // it has ended: nothing to do
}

// TestCombinationsAreNewAndProfiled: none was fitted to, and each has a median to be compared with.
func TestCombinationsAreNewAndProfiled(t *testing.T) {
	set := &profile.Set{}
	for i, name := range []string{"a", "b", "c"} {
		set.Add(prof(name, float64(i+1)))
	}
	all := combinations(set, "g", set.Models("g"))
	if len(all) < 8 {
		t.Fatalf("%d combinations: expected more", len(all))
	}
	for _, runs := range all {
		sum := 0
		for _, r := range runs {
			p, _ := set.Get("g", r.Model)
			if sum += r.Share; median(p, r.Share, r.Batch) == 0 {
				t.Errorf("%+v is not profiled", r)
			}
		}
		if sum > 100 || len(runs) < 2 {
			t.Errorf("%+v: expected at least two on one GPU", runs)
		}
	}
	first := all[0]
	set.AddCorun(&profile.Corun{GPUType: "g", Runs: []profile.Measurement{{Self: first[1].running(), Others: []profile.Running{first[0].running()}, Slowdown: 1}}})
	if again := combinations(set, "g", set.Models("g")); cmp.Equal(first, again[0], cmp.AllowUnexported(execRun{})) {
		t.Errorf("%+v was measured before, and is measured again", first)
	}
}

// TestSlowdownIsOverTheMedianAlone, which comes first and is measured once a load.
func TestSlowdownIsOverTheMedianAlone(t *testing.T) {
	var ran []string
	s := session{span: time.Second, alone: map[execRun]float64{}, together: func(_ context.Context, runs []execRun, span time.Duration) ([]execResult, error) {
		words := ""
		results := make([]execResult, len(runs))
		for i, r := range runs {
			words += r.Model
			results[i].P50Ms = float64(r.Batch) * (1 + 0.25*float64(len(runs)-1))
		}
		if ran = append(ran, words); span != time.Second {
			t.Errorf("%s ran for %v", words, span)
		}
		return results, nil
	}}
	a, b, c := execRun{Model: "a", Share: 50, Batch: 4}, execRun{Model: "b", Share: 50, Batch: 8}, execRun{Model: "c", Share: 50, Batch: 1}
	if got, want := s.takes([]execRun{a, b}), 3*(time.Second+loadTime); got != want {
		t.Errorf("the first combination may take %v: expected %v", got, want)
	}
	got, err := s.measure(t.Context(), []execRun{a, b})
	want := []profile.Measurement{
		{Self: a.running(), Others: []profile.Running{b.running()}, Slowdown: 1.25, AloneMs: 4},
		{Self: b.running(), Others: []profile.Running{a.running()}, Slowdown: 1.25, AloneMs: 8},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
	if got, want := s.takes([]execRun{c, a, c}), 2*(time.Second+loadTime); got != want {
		t.Errorf("the second combination may take %v: expected %v", got, want)
	}
	if _, err := s.measure(t.Context(), []execRun{c, a, c}); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"a", "b", "ab", "c", "cac"}, ran); d != "" {
		t.Errorf("ran %q\n%s", ran, d)
	}
	if _, err := s.measure(t.Context(), []execRun{{Model: "d", Share: 10}}); err == nil || !strings.Contains(err.Error(), "d 10% b0 alone: found a median of 0 ms") {
		t.Errorf("error %v: expected that a median of 0 is no base", err)
	}
}

// standIn is a bench whose worker is a script. It loads model, batch and share from its arguments, and
// reports how many processes had loaded when its runs began, as sms.
func standIn(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("LOADED", t.TempDir())
	script := `#!/bin/sh
trap 'stop=1' INT
case $2 in broken) echo "worker: no such model" >&2; exit 1 ;; esac
touch "$LOADED/$$"
echo "$2 is on cpu" >&2
cat >/dev/null
loaded=$(ls "$LOADED" | wc -l)
while [ -z "$stop" ]; do sleep 0.01; done
echo "{\"count\": 1, \"p50_ms\": $4, \"sms\": $loaded}"
`
	if err := os.WriteFile(filepath.Join(dir, "worker"), []byte(script), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	return &bench{cfg: &config{Bin: dir, Device: "cpu"}}
}

func TestNoneRunsBeforeAllHaveLoaded(t *testing.T) {
	b := standIn(t)
	results, err := b.together(t.Context(), []execRun{{Model: "a", Batch: 4}, {Model: "b", Batch: 8}, {Model: "c", Batch: 1}}, time.Millisecond)
	want := []execResult{{Count: 1, P50Ms: 4, SMs: 3}, {Count: 1, P50Ms: 8, SMs: 3}, {Count: 1, P50Ms: 1, SMs: 3}}
	if d := cmp.Diff(want, results); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
}

// TestOneThatCannotLoadEndsTheOthers, which are held and would wait for ever.
func TestOneThatCannotLoadEndsTheOthers(t *testing.T) {
	b := standIn(t)
	_, err := b.together(t.Context(), []execRun{{Model: "a"}, {Model: "broken"}}, time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "no such model") {
		t.Errorf("error %v: expected the process's last words", err)
	}
}

func TestAPartIsMeasuredOnce(t *testing.T) {
	cfg := &config{Out: t.TempDir(), deadline: time.Now().Add(time.Minute)}
	calls := 0
	measure := func(_ context.Context, r *sharesResult) error {
		calls++
		r.Shares = []shareSMs{{Share: 10, SMs: 12}}
		return nil
	}
	for range 2 {
		if err := once(t.Context(), cfg, "shares.json", measure); err != nil {
			t.Fatal(err)
		}
	}
	var got sharesResult
	if there, err := cfg.read("shares.json", &got); !there || err != nil || calls != 1 || got.Shares[0].SMs != 12 {
		t.Errorf("%+v after %d calls, %v", got, calls, err)
	}
	failed := errors.New("no GPU")
	if err := once(t.Context(), cfg, "other.json", func(context.Context, *sharesResult) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error %v: expected that of the part", err)
	}
	if there, _ := cfg.read("other.json", &got); there {
		t.Error("a part that failed has left a result")
	}
}

// everyPart are results as the parts write them, of a GPU that does not exist.
func everyPart(sim bool) map[string]any {
	a := about{Date: "2026-01-02", Command: "evaluate x", Device: "cuda:0", GPU: "Test GPU", Cores: 4, Version: "v0", Sim: sim}
	one := func(arm string, goodput float64) cell {
		return cell{
			About: a, Mix: "game", Arm: arm, SLOsMs: map[string]float64{"lenet": 5}, Samples: map[string]int{"lenet": 8}, StepS: 3, Expected: 1000, Goodput: goodput,
			Tries: []try{{Rate: goodput, Good: true, WorstModel: "lenet", Models: map[string]tryModel{"lenet": {P99Ms: 4}}, Cores: map[string]float64{"loadgen": 1}}},
		}
	}
	m := map[string]tryModel{"a": {P99Ms: 2}, "b": {P99Ms: 3}}
	harmed := harmResult{About: a, Victim: "a", Share: 20, Rates: map[string]float64{"a": 1}, Times: []harm{
		{Happened: "1 of 2 gpu-lets were restarted", WholeS: 0.9, Restarts: 1, Before: m, During: m, After: m, NeighboursP99: 1.2},
	}}
	running := profile.Running{Model: "a", Share: 50, Batch: 8}
	return map[string]any{
		"goodput/game.gpulet.json": one("gpulet", 1800), "goodput/game.sbp.json": one("sbp", 1000), "goodput/game.mps.json": one("mps", 1900),
		"goodput-old/game.even.json": one("even", 700),
		"goodput/scen1.sbp.json":     cell{About: a, Mix: "scen1", Arm: "sbp", Skipped: "no profile of bert"},
		"start.json":                 startResult{About: a, Starts: []startTime{{Model: "a", Share: 50, AnswerS: 1.1}}, MedianS: 1.1},
		"kill.json":                  harmed, "fault.json": harmed,
		"shares.json": sharesResult{About: a, Shares: []shareSMs{{Share: 10, SMs: 12}}},
		"graphs.json": graphsResult{About: a, Rows: []graphRow{{Model: "a", Share: 10, EagerMs: 3, GraphMs: 2}}},
		"splits.json": splitsResult{About: a, Rows: []splitRow{{Model: "a", Gpulets: 1, Share: 100, SamplesPerSec: 100}, {Model: "a", Gpulets: 2, Share: 50, SamplesPerSec: 150}}},
		"judged.json": map[string]any{
			"about": a, "kind": "pairwise", "margin": 1.05, "above": 0, "error": profile.FitError{Pairs: 1, P90: 0.04},
			"runs": []any{map[string]any{"self": running, "others": []profile.Running{running}, "slowdown": 1.25, "predicted": 1.3}},
		},
	}
}

// results runs the page's generator.
func results(t *testing.T, args ...string) (string, error) {
	t.Helper()
	_, _, err := output(t.Context(), nil, "python3", append([]string{"../results.py"}, args...)...)
	if err != nil {
		return err.Error(), err
	}
	return "", nil
}

func writeParts(t *testing.T, parts map[string]any) string {
	t.Helper()
	dir := t.TempDir()
	for name, part := range parts {
		if err := profile.WriteJSON(filepath.Join(dir, name), part); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestThePageSaysWhatWasMeasured(t *testing.T) {
	dir := writeParts(t, everyPart(false))
	page := filepath.Join(dir, "page.md")
	if words, err := results(t, "--results", dir, "--page", page); err != nil {
		t.Fatal(words)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| game | 1000 (1000) | 1900 (1000) | – | – | – | – | 1800 (1000) | 1.80 |",
		"It is 1.80 times over 1 mixes, those of 2 on which `sbp` had any goodput: met", "**not met**, behind mps on game (1900 against 1800)",
		"scen1, sbp: not measured: no profile of bert", "8 samples of lenet",
		"### Earlier: Test GPU", "| game | – | – | – | – | 700 (1000) | – | – | – |",
		"It is 1.10 s over 1: met", "it is 1.20: met", "it is 0.90 s: met", "The least is 1.50: **not met**",
		"2 x 50 %", "| 150 | 1.50 |", "over the profiled medians", "+4.0 %", "It is 4.0 % over 1", "Test GPU",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(string(text), "their own alone") {
		t.Error("the page takes the profile's medians for medians alone")
	}
	if strings.Contains(string(text), "Not measured yet") {
		t.Error("the page says that something is missing")
	}
	if words, err := results(t, "--results", dir, "--page", page, "--check"); err != nil {
		t.Errorf("the page that was just written is refused: %s", words)
	}
	if err := os.WriteFile(page, append(text, "better\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if words, err := results(t, "--results", dir, "--page", page, "--check"); err == nil || !strings.Contains(words, "run scripts/gpu/results.py") {
		t.Errorf("a page that was changed by hand passes: %s", words)
	}
}

func TestThePageSaysWhatSlowdownIsOver(t *testing.T) {
	parts := everyPart(false)
	for _, run := range parts["judged.json"].(map[string]any)["runs"].([]any) { //nolint:forcetypeassert // made above
		run.(map[string]any)["alone_ms"] = 2.5 //nolint:forcetypeassert // made above
	}
	dir := writeParts(t, parts)
	page := filepath.Join(dir, "page.md")
	if words, err := results(t, "--results", dir, "--page", page); err != nil {
		t.Fatal(words)
	}
	if text, err := os.ReadFile(page); err != nil || !strings.Contains(string(text), "over their own alone, measured just before;") {
		t.Errorf("%v: the page does not say what the slowdown is over", err)
	}
}

func TestSimulatedFiguresStayOffThePage(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(everyPart(true))) {
		dir := writeParts(t, map[string]any{name: everyPart(true)[name]})
		if words, err := results(t, "--results", dir, "--page", filepath.Join(dir, "page.md")); err == nil || !strings.Contains(words, "expected figures of a real GPU") {
			t.Errorf("%s of a simulated GPU is taken: %s", name, words)
		}
	}
}

func TestThePageIsWhatTheResultsMakeOfIt(t *testing.T) {
	if words, err := results(t, "--check"); err != nil {
		t.Error(words)
	}
}

// TestSLOsFollowTheProfiles runs scripts/gpu/slos.py on a repository.
func TestSLOsFollowTheProfiles(t *testing.T) {
	dir := t.TempDir()
	for name, points := range map[string][]profile.Point{
		"slow":    {{Share: 50, Batch: 32, P50Ms: 99}, {Share: 100, Batch: 32, P50Ms: 12.5}},
		"fast":    {{Share: 100, Batch: 32, P50Ms: 0.1}},
		"between": {{Share: 100, Batch: 16, P50Ms: 10}, {Share: 100, Batch: 64, P50Ms: 40}},
	} {
		p := &profile.Profile{Model: name, GPUType: "g", Points: points}
		if err := profile.Save(filepath.Join(dir, "profiles"), p); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"slow", "fast", "between", "unknown"} {
		file := filepath.Join(dir, "models", name, "model.yaml")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		yaml := "name: " + name + "\nslo: 77ms\ntimeout: 5s\nmax_batch: 8\ninputs: [{name: x, dtype: FP32, shape: [1]}]\noutputs: [{name: y, dtype: FP32, shape: [1]}]\n"
		if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := output(t.Context(), nil, "python3", "../slos.py", filepath.Join(dir, "profiles", "g"), filepath.Join(dir, "models")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]time.Duration{"slow": 25 * time.Millisecond, "fast": 5 * time.Millisecond, "between": 40 * time.Millisecond, "unknown": 77 * time.Millisecond} {
		if got, err := sloOf(filepath.Join(dir, "models"), name); err != nil || got != want {
			t.Errorf("%s: SLO %v, %v: expected %v", name, got, err, want)
		}
	}
}

func TestCellsSurviveTheirFile(t *testing.T) {
	cfg := &config{Out: t.TempDir()}
	want := everyPart(false)["goodput/game.gpulet.json"].(cell) //nolint:forcetypeassert // made above
	name := cellFile("lenet=6,resnet50=1", "gpulet")
	if err := cfg.write(name, want); err != nil {
		t.Fatal(err)
	}
	var got cell
	if there, err := cfg.read(name, &got); !there || err != nil {
		t.Fatal(there, err)
	}
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if d := cmp.Diff(string(a), string(b)); d != "" {
		t.Error(d)
	}
}

func TestMissesAreCountedByStepOverAllModels(t *testing.T) {
	var r loadReport
	if err := json.Unmarshal([]byte(`{"models": {
		"a": {"timeline": [{"sent": 6, "violations": 3}, {"sent": 4}]},
		"b": {"timeline": [{"sent": 4, "violations": 1}, {"sent": 6}, {"sent": 0}]}}}`), &r); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]float64{0.4, 0, 0}, r.missedBy()); diff != "" {
		t.Error(diff)
	}
}

func TestStolenTimeIsRead(t *testing.T) {
	for stat, want := range map[string]time.Duration{
		"cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 2 3 4 5 6 7 8 9 10\n": 800 * time.Millisecond,
		"cpu  10 20\n": 0,
		"":             0,
	} {
		if got := stealOf([]byte(stat)); got != want {
			t.Errorf("%q: %v: expected %v", stat, got, want)
		}
	}
}

func TestBurstsWantRatesAndRules(t *testing.T) {
	for _, c := range []struct{ rates, rules, want string }{
		{"", "plan", `rates "": expected mix=samples/s`},
		{"game=0", "plan", `rates: found "game=0"`},
		{"game=1 nothing=1", "plan", "rates: "},
		{"game=1", " ", `rules " ": expected plan, none, mps, or LIMIT/BATCH`},
		{"game=1", "plan 40", `rule "40"`},
	} {
		cfg := &burstsConfig{Rates: c.rates, Rules: c.rules}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("rates %q, rules %q: %v: expected %s", c.rates, c.rules, err, c.want)
		}
	}
}
