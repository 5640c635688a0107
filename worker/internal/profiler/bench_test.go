package profiler

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

func TestABatchHasASegmentForEachSample(t *testing.T) {
	m := &loaded{config: rigModelOf("m", 8), inputs: map[int][]engine.Input{}}
	for _, n := range []int{1, 3, 4, 7, 8} {
		in, err := m.batch(n)
		if err != nil {
			t.Fatal(err)
		}
		if in[0].DType != tensor.UINT8 || in[0].Shape[0] != int64(n) || len(in[0].Segments) != n {
			t.Errorf("batch of %d: %s%v in %d segments", n, in[0].DType, in[0].Shape, len(in[0].Segments))
		}
		for i, s := range in[0].Segments {
			if len(s) != 3*2*2 {
				t.Errorf("batch of %d: segment %d has %d bytes: expected a sample", n, i, len(s))
			}
			if i > 0 && i < distinct && bytes.Equal(s, in[0].Segments[i-1]) {
				t.Errorf("batch of %d: samples %d and %d are the same", n, i-1, i)
			}
		}
		again, _ := m.batch(n)
		if &again[0] != &in[0] {
			t.Errorf("batch of %d was made twice", n)
		}
	}
}

// served gives a bench requests and returns its answers after the hello, and how it ended.
func served(t *testing.T, r *rig, requests ...Request) ([]Answer, error) {
	t.Helper()
	var in, out bytes.Buffer
	for _, q := range requests {
		if err := json.NewEncoder(&in).Encode(q); err != nil {
			t.Fatal(err)
		}
	}
	e := &rigEngine{rig: r, share: 50, die: func() {}}
	ended := (&Bench{Engine: e, Device: "cuda:0", Share: 50}).Serve(t.Context(), &in, &out)
	var answers []Answer
	for dec := json.NewDecoder(&out); ; {
		var a Answer
		if err := dec.Decode(&a); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	if len(answers) == 0 || answers[0].Hello == nil || answers[0].Hello.SMs != 50 {
		t.Fatalf("answers %+v: expected a hello first", answers)
	}
	return answers[1:], ended
}

func TestBenchAnswersEveryRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ string, _, batch int) time.Duration { return time.Duration(batch) * time.Millisecond })
		m := rigModelOf("m", 8)
		load := Request{Op: opLoad, Model: "m", Config: &m, Batches: []int{1, 8}}
		answers, err := served(t, r,
			load,
			Request{Op: opMeasure, Model: "m", Batch: 8, Rule: Rule{MinRuns: 3, Enough: 5, MaxRuns: 7}},
			Request{Op: opLoop, Model: "m", Batch: 2, Settle: 10 * time.Millisecond, Window: 100 * time.Millisecond},
			Request{Op: opLoop, Model: "m", Batch: 8, Window: time.Millisecond},
			Request{Op: opMeasure, Model: "other", Batch: 1},
			Request{Op: opMeasure, Model: "m", Batch: 9},
			Request{Op: "dance", Model: "m"},
			Request{Op: opUnload, Model: "m"},
			Request{Op: opMeasure, Model: "m", Batch: 1},
			Request{Op: opLoad, Model: "m"},
		)
		if err != nil || len(answers) != 10 {
			t.Fatalf("%d answers, %v: %+v", len(answers), err, answers)
		}
		if l := answers[0].Loaded; l == nil || l.MemBytes != 18<<20 {
			t.Errorf("loaded %+v", l)
		}
		for i, want := range map[int]struct {
			ms float64
			n  int
		}{1: {8, 3}, 2: {2, 50}, 3: {8, 1}} {
			if q := answers[i].Point; q == nil || q.P50Ms != want.ms || q.N != want.n || q.Share != 50 || q.CIMs != 0 {
				t.Errorf("answer %d: %+v: expected %d runs of %v ms", i, q, want.n, want.ms)
			}
		}
		for i, want := range map[int]string{
			4: `model "other" is not loaded`, 5: "9 samples: expected at most 8", 6: `op "dance": expected load`, 8: `model "m" is not loaded`, 9: "no config",
		} {
			if !strings.Contains(answers[i].Error, want) || answers[i].Fatal {
				t.Errorf("answer %d: %+v: expected %q", i, answers[i], want)
			}
		}
	})
}

func TestBenchEndsWithABrokenDevice(t *testing.T) {
	r := newRig(t, func(string, int, int) time.Duration { return 0 })
	r.crash = func(string, int, int) bool { return true }
	m := rigModelOf("m", 8)
	answers, err := served(t, r,
		Request{Op: opLoad, Model: "m", Config: &m, Batches: []int{1}},
		Request{Op: opMeasure, Model: "m", Batch: 1, Rule: Quick},
		Request{Op: opUnload, Model: "m"},
	)
	if engine.CodeOf(err) != engine.EDEVICE || len(answers) != 2 || !answers[1].Fatal {
		t.Errorf("error %v, answers %+v: expected the end after the second", err, answers)
	}
}
