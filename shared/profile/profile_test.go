package profile

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func parse(t *testing.T, text string) *Profile {
	t.Helper()
	p, err := Parse("m.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLatencyIsMeasuredOrBetween(t *testing.T) {
	p := parse(t, sample)
	for _, c := range []struct {
		share, batch int
		want         float64
	}{{20, 1, 10}, {20, 4, 40}, {20, 2, 20}, {40, 4, 20}, {30, 1, 8}, {30, 2, (20 + 32.0/3) / 2}, {25, 4, 35}} {
		if got, err := p.Latency(c.share, c.batch); err != nil || math.Abs(got-c.want) > 1e-9 {
			t.Errorf("Latency(%d, %d) = %v, %v: expected %v", c.share, c.batch, got, err, c.want)
		}
	}
}

func TestLatencyDoesNotExtrapolate(t *testing.T) {
	p := parse(t, sample)
	for _, c := range []struct {
		share, batch int
		want         string
	}{
		{10, 1, "profile of m on g: share 10: outside the profiled range: expected 20..40"},
		{41, 1, "share 41: outside the profiled range: expected 20..40"},
		{20, 5, "share 20: batch 5: outside the profiled range: expected 1..4"},
		{30, 0, "share 20: batch 0: outside"},
	} {
		if _, err := p.Latency(c.share, c.batch); !errors.Is(err, ErrOutOfRange) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Latency(%d, %d): %v: expected %s", c.share, c.batch, err, c.want)
		}
	}
}

func TestPropertyLatencyLiesBetweenItsCorners(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &Profile{Model: "m", GPUType: "g"}
		lo, hi := math.Inf(1), 0.0
		for _, share := range []int{10, 50, 100} {
			for _, batch := range []int{1, 8, 32} {
				ms := rapid.Float64Range(0.1, 100).Draw(t, "ms")
				lo, hi = min(lo, ms), max(hi, ms)
				p.Points = append(p.Points, Point{Share: share, Batch: batch, P50Ms: ms})
			}
		}
		got, err := p.Latency(rapid.IntRange(10, 100).Draw(t, "share"), rapid.IntRange(1, 32).Draw(t, "batch"))
		if err != nil || got < lo-1e-9 || got > hi+1e-9 {
			t.Errorf("%v, %v: expected %v..%v", got, err, lo, hi)
		}
	})
}

func TestMemBytesCoversTheBatch(t *testing.T) {
	p := parse(t, sample)
	for batch, want := range map[int]int64{1: 100, 2: 300, 4: 300, 9: 300} {
		if got := p.MemBytes(batch); got != want {
			t.Errorf("MemBytes(%d) = %d: expected %d", batch, got, want)
		}
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{"model": "m", "gpu_type": "g", "point": []}`, `unknown field "point"`},
		{`{"model": "m", "gpu_type": "g"}`, `key "points": found none`},
		{`{"gpu_type": "g"}`, `key "model": found ""`},
		{"{\n\"model\": 3}", `line 2: key "model": found a JSON number: expected string`},
		{"{\n\n]", "line 3: not readable as JSON"},
		{``, "found the end of the file"},
		{sample + "x", "found more after the document"},
		{strings.Replace(sample, `"p50_ms": 10`, `"p50_ms": 0`, 1), `key "points[0].p50_ms": found 0: expected a time above 0`},
		{strings.Replace(sample, `"share": 20`, `"share": 200`, 1), `key "points[0].share": found 200: expected 1..100 percent`},
		{strings.Replace(sample, `"batch": 4, "p50_ms": 40`, `"batch": 1, "p50_ms": 40`, 1), `found share 20 batch 1 again, after points[0]`},
		{strings.Replace(sample, `"p95_ms": 20`, `"p95_ms": 2`, 1), `key "points[3].p95_ms": found 2: expected at least p50_ms, 18`},
		{strings.Replace(sample, `"p99_ms": 30`, `"p99_ms": 30, "ci_ms": -1`, 1), `key "points[3].ci_ms": found -1: expected a time from 0`},
		{strings.Replace(sample, `"model"`, `"layout": "NHWC", "model"`, 1), `key "layout": found "NHWC": expected "channels_last", or none`},
		{strings.Replace(sample, `"bytes": 100`, `"bytes": -1`, 1), `key "memory[0]"`},
	} {
		_, err := Parse("m.json", []byte(c.text))
		if err == nil || !strings.HasPrefix(err.Error(), "m.json: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v\nexpected %q", err, c.want)
		}
	}
}

func TestSaveAndLoadDirAgree(t *testing.T) {
	dir := t.TempDir()
	p := parse(t, sample)
	if err := Save(dir, p); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "g", "bad.json"), []byte(strings.Replace(sample, `"m"`, `"other"`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	set, problems := LoadDir(dir)
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), `key "model": found "other": expected the file's name, "bad"`) {
		t.Errorf("problems %v", problems)
	}
	got, ok := set.Get("g", "m")
	if !ok {
		t.Fatal("not found again")
	}
	if diff := cmp.Diff(p, got); diff != "" {
		t.Error(diff)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "g", ".*")); len(files) > 0 {
		t.Errorf("left behind %v", files)
	}
}

func TestShippedProfilesAreSound(t *testing.T) {
	set, problems := LoadDir("../../profiles")
	for _, err := range problems {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"h100", "rtx2080ti"}, set.Types()); diff != "" {
		t.Error(diff)
	}
	synthetic := 0
	for _, gpu := range set.Types() {
		if _, ok := set.Device(gpu); !ok {
			t.Errorf("%s: no device.json", gpu)
		}
		if _, ok := set.Interference(gpu); !ok {
			t.Errorf("%s: no interference.json", gpu)
		}
		for _, name := range set.Models(gpu) {
			p, _ := set.Get(gpu, name)
			if p.Source == "" {
				t.Errorf("%s/%s: no source", gpu, name)
			}
			if p.Synthetic {
				synthetic++
			}
		}
	}
	if synthetic != 5 {
		t.Errorf("%d profiles marked synthetic: expected 5", synthetic)
	}
}

func TestKneeIsAfterTheSteepestRise(t *testing.T) {
	for _, c := range []struct {
		rates []RateAt
		want  int
	}{
		{nil, -1},
		{[]RateAt{{10, 0}, {20, 0}}, -1},
		{[]RateAt{{10, 0}, {20, 50}, {40, 51}}, 1},       // nothing gains 5 %
		{[]RateAt{{10, 100}, {20, 190}, {50, 250}}, 1},   // 9 a point, then 2
		{[]RateAt{{10, 100}, {20, 110}, {30, 200}}, 2},   // convex: the last
		{[]RateAt{{20, 100}, {40, 0}, {60, 300}}, 2},     // a gap is skipped
		{[]RateAt{{10, 100}, {20, 104}, {30, 108.9}}, 0}, // 4 % and 4.7 %
	} {
		if got := Knee(c.rates); got != c.want {
			t.Errorf("Knee(%v) = %d: expected %d", c.rates, got, c.want)
		}
	}
}

func TestBestRateKeepsToItsLimit(t *testing.T) {
	p := parse(t, sample)
	for _, c := range []struct {
		share    int
		limit    float64
		maxBatch int
		rps      float64
		batch    int
	}{
		{20, 100, 0, 100, 1}, // 10 ms a sample at any batch: the smallest
		{40, 100, 0, 200, 4}, // 20 ms for four
		{40, 100, 2, 2000 / (32.0 / 3), 2},
		{40, 5, 0, 0, 0},
		{90, 100, 0, 0, 0},
	} {
		rps, batch := p.BestRate(c.share, c.limit, c.maxBatch)
		if math.Abs(rps-c.rps) > 1e-9 || batch != c.batch {
			t.Errorf("BestRate(%d, %v, %d) = %v, %d: expected %v, %d", c.share, c.limit, c.maxBatch, rps, batch, c.rps, c.batch)
		}
	}
	if rps, batch := (&Profile{}).BestRate(50, 1, 0); rps != 0 || batch != 0 {
		t.Errorf("an empty profile carries %v with %d", rps, batch)
	}
}
