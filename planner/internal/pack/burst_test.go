package pack

import (
	"slices"
	"testing"
	"time"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// spiky is a problem of models of small batches and one that fills the GPU.
func spiky(t *testing.T) problem.Input {
	t.Helper()
	in := bursty(t, 500)
	in.Models = append(in.Models, problem.Model{Name: "vgg16", SLO: 12 * time.Millisecond, Rate: 300})
	return in
}

func TestGpuletsOfARoomyPlanMayBurst(t *testing.T) {
	in := spiky(t)
	p := Gpulet(in, Options{Headroom: true}).Plan
	bursts := 0
	for _, g := range p.Gpulets {
		if want := max(g.Share, burstLimit); g.MaxShare() != want {
			t.Errorf("%s may use %d %%: expected %d", g.ID, g.MaxShare(), want)
		}
		for _, a := range g.Models {
			if a.Batch < burstBatch {
				bursts++
			}
			if want := max(a.Batch, burstBatch); len(g.Models) == 1 && a.MaxBatch() != want {
				t.Errorf("%s in batches of %d: up to %d: expected %d", a.Model, a.Batch, a.MaxBatch(), want)
			}
		}
	}
	if bursts == 0 {
		t.Fatalf("no batch under %d in %v: expected one", burstBatch, p.Gpulets)
	}
	if v := check.Plan(in, p); len(v) > 0 {
		t.Error(v)
	}
	cores := spiky(t)
	cores.GPUs[0].Shares = []int{5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100}
	for why, p := range map[string]plan.Plan{
		"without headroom":                         Gpulet(in, Options{}).Plan,
		"with another algorithm":                   Elastic(in, Options{Headroom: true}).Plan,
		"on a device that allows only some shares": Gpulet(cores, Options{Headroom: true}).Plan,
	} {
		narrow := 0
		for _, g := range p.Gpulets {
			if g.Share < burstLimit && g.Models[0].Batch < burstBatch {
				narrow++
			}
			if g.Limit != 0 || slices.ContainsFunc(g.Models, func(a plan.Assignment) bool { return a.Burst != 0 }) {
				t.Errorf("%s: a limit or a burst in %+v: expected none", why, g)
			}
		}
		if narrow == 0 {
			t.Errorf("%s: no narrow gpu-let of small batches in %v: expected one", why, p.Gpulets)
		}
	}
}

// TestBurstsKeepSLOsAndMemory: of a model that takes a millisecond per sample on what its gpu-let may use,
// and twice that on its share.
func TestBurstsKeepSLOsAndMemory(t *testing.T) {
	prof := func(name string) *profile.Profile {
		p := &profile.Profile{Model: name, GPUType: "box"}
		for batch := 1; batch <= 8; batch++ {
			p.Points = append(p.Points,
				profile.Point{Share: 20, Batch: batch, P50Ms: 2 * float64(batch)}, profile.Point{Share: 40, Batch: batch, P50Ms: float64(batch)},
				profile.Point{Share: 100, Batch: batch, P50Ms: float64(batch)})
			p.Memory = append(p.Memory, profile.Memory{Batch: batch, Bytes: int64(batch)})
		}
		return p
	}
	set := &profile.Set{}
	set.Add(prof("m"))
	set.Add(prof("other"))
	for _, c := range []struct {
		why      string
		slo      time.Duration
		mem      int64
		maxBatch int
		batches  []int // of m and other
		want     int   // burst of m
	}{
		{"all of it", 8 * time.Millisecond, 0, 0, []int{1}, burstBatch},
		{"as far as the SLO allows", 7 * time.Millisecond, 0, 0, []int{1}, 3},
		{"no further than the batch", 5 * time.Millisecond, 0, 0, []int{2}, 0},
		{"as far as memory goes", 8 * time.Millisecond, 3, 0, []int{1}, 3},
		{"as far as the model goes", 8 * time.Millisecond, 0, 2, []int{1}, 2},
		{"beside batches of 2 of another", 8 * time.Millisecond, 0, 0, []int{1, 2}, 3},
		{"not a batch that is larger", 20 * time.Millisecond, 0, 0, []int{5}, 0},
	} {
		in := problem.Input{
			GPUs: []problem.GPU{{Host: "h", Type: "box", MemBytes: c.mem}}, Profiles: set,
			Models: []problem.Model{{Name: "m", SLO: c.slo, MaxBatch: c.maxBatch}, {Name: "other", SLO: time.Second}},
		}
		e := newEnv(&in)
		s := newState(e)
		p := part{si: slices.Index(e.classes[0].shares, 20)}
		for m, batch := range c.batches {
			p.slots = append(p.slots, slot{m: m, batch: batch})
		}
		s.gpus[0] = []part{p}
		s.burst()
		if got := s.gpus[0][0].slots[0].burst; got != c.want {
			t.Errorf("%s: bursts of %d: expected %d", c.why, got, c.want)
		}
	}
}

// TestWideGpuletsBurstOnTheirShare: what is wider than the limit needs none, and its batches may take all of its share.
func TestWideGpuletsBurstOnTheirShare(t *testing.T) {
	set := &profile.Set{}
	p := &profile.Profile{Model: "m", GPUType: "box"}
	for batch := 1; batch <= 4; batch++ {
		for share, ms := range map[int]float64{20: 4, 40: 2, 80: 1, 100: 1} {
			p.Points = append(p.Points, profile.Point{Share: share, Batch: batch, P50Ms: ms * float64(batch)})
		}
	}
	set.Add(p)
	in := problem.Input{
		GPUs: []problem.GPU{{Host: "h", Type: "box"}}, Profiles: set, Models: []problem.Model{{Name: "m", SLO: 8 * time.Millisecond}},
	}
	for share, want := range map[int][2]int{20: {40, 2}, 40: {0, 2}, 80: {0, 4}} {
		e := newEnv(&in)
		e.roomy = true
		s := newState(e)
		s.gpus[0] = []part{{si: slices.Index(e.classes[0].shares, share), slots: []slot{{batch: 1}}}}
		s.burst()
		g := e.gpulets(e.gpus[0], s.gpus[0])[0]
		if got := [2]int{g.Limit, g.Models[0].Burst}; got != want {
			t.Errorf("%d %%: limit and burst %v: expected %v", share, got, want)
		}
	}
}

// TestBurstsMoveNothing: the same problem again, and from a plan without limits, whose processes keep theirs.
func TestBurstsMoveNothing(t *testing.T) {
	in := spiky(t)
	with := Gpulet(in, Options{Headroom: true}).Plan
	with.Revision = 1
	in.Current = &with
	if diff := plan.Diff(with, Gpulet(in, Options{Headroom: true}).Plan); !diff.Empty() {
		t.Errorf("nothing changed, and yet:\n%s", diff)
	}
	without := with
	without.Gpulets = slices.Clone(with.Gpulets)
	was, limited := map[string]int{}, 0
	for i := range without.Gpulets {
		g := &without.Gpulets[i]
		if g.Limit > 0 {
			limited++
		}
		g.Limit = 0
		was[g.ID] = g.MaxShare()
	}
	in.Current = &without
	for _, g := range Gpulet(in, Options{Headroom: true}).Plan.Gpulets {
		if before, known := was[g.ID]; known && before != g.MaxShare() {
			t.Errorf("%s may use %d %% and then %d: expected another id", g.ID, before, g.MaxShare())
		}
	}
	if limited == 0 {
		t.Error("no gpu-let has a limit: expected some")
	}
}
