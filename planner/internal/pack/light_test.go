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

// spiky is a problem of light models and one that fills the GPU.
func spiky(t *testing.T) problem.Input {
	t.Helper()
	in := bursty(t, 500)
	in.Models = append(in.Models, problem.Model{Name: "vgg16", SLO: 12 * time.Millisecond, Rate: 300})
	return in
}

func TestLightGpuletsMayUseMoreThanTheirShare(t *testing.T) {
	in := spiky(t)
	p := Gpulet(in, Options{Headroom: true}).Plan
	light := 0
	for _, g := range p.Gpulets {
		a := g.Models[0]
		if len(g.Models) == 1 && a.Model == "mnasnet1_0" && a.Batch <= 2 && g.Share < lightLimit {
			light++
			if g.Limit != lightLimit {
				t.Errorf("%s on %d %% in batches of %d: a limit of %d %%: expected %d", a.Model, g.Share, a.Batch, g.Limit, lightLimit)
			}
		}
		if heavy := a.Model == "vgg16"; heavy && g.Limit != 0 {
			t.Errorf("vgg16, whose batches of %d fill the GPU, has a limit of %d %%: expected its share, %d", a.Batch, g.Limit, g.Share)
		}
	}
	if light == 0 {
		t.Fatalf("no gpu-let of mnasnet1_0 alone in %v: expected one", p.Gpulets)
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
			if g.Share < lightLimit {
				narrow++
			}
			if g.Limit != 0 {
				t.Errorf("%s: %s has a limit of %d %%: expected none", why, g.ID, g.Limit)
			}
		}
		if narrow == 0 {
			t.Errorf("%s: no gpu-let under %d %% in %v: expected one", why, lightLimit, p.Gpulets)
		}
	}
}

// TestAnotherLimitIsAnotherGpulet: a process keeps its limit, so an id does.
func TestAnotherLimitIsAnotherGpulet(t *testing.T) {
	in := spiky(t)
	with := Gpulet(in, Options{Headroom: true}).Plan
	with.Revision = 1
	in.Current = &with
	if diff := plan.Diff(with, Gpulet(in, Options{Headroom: true}).Plan); !diff.Empty() {
		t.Errorf("nothing changed, and yet:\n%s", diff)
	}
	without := with
	without.Gpulets = slices.Clone(with.Gpulets)
	was, light := map[string]int{}, 0
	for i := range without.Gpulets {
		g := &without.Gpulets[i]
		if g.Limit > 0 {
			light++
		}
		g.Limit = 0
		was[g.ID] = g.MaxShare()
	}
	in.Current = &without
	kept := 0
	for _, g := range Gpulet(in, Options{Headroom: true}).Plan.Gpulets {
		before, known := was[g.ID]
		if known && before != g.MaxShare() {
			t.Errorf("%s may use %d %% and then %d", g.ID, before, g.MaxShare())
		}
		if known {
			kept++
		}
	}
	if light == 0 || kept == 0 {
		t.Errorf("%d light gpu-lets, %d that stay: expected some of each", light, kept)
	}
}

// TestALightGpuletStaysOne: a limit that goes is a new process.
func TestALightGpuletStaysOne(t *testing.T) {
	prof := &profile.Profile{Model: "m", GPUType: "box"}
	for batch, on40 := range map[int]float64{1: 1, 2: 1.1, 3: 1.25, 4: 1.35} { // times as long as on 100 %
		for share, ms := range map[int]float64{20: 2, 40: on40, 100: 1} {
			prof.Points = append(prof.Points, profile.Point{Share: share, Batch: batch, P50Ms: ms})
		}
	}
	set := &profile.Set{}
	set.Add(prof)
	in := problem.Input{Profiles: set}
	g := plan.Gpulet{Host: "h", GPUType: "box", Share: 20, Models: []plan.Assignment{{Model: "m"}}}
	before := g
	before.Limit = lightLimit
	for _, c := range []struct {
		batch       int
		fresh, kept bool
	}{{1, true, true}, {2, true, true}, {3, false, true}, {4, false, false}, {5, false, false}} {
		g.Models = []plan.Assignment{{Model: "m", Batch: c.batch}}
		in.Current = nil
		if got := newEnv(&in).light(g); got != c.fresh {
			t.Errorf("batches of %d: light %v: expected %v", c.batch, got, c.fresh)
		}
		in.Current = &plan.Plan{Gpulets: []plan.Gpulet{before}}
		if got := newEnv(&in).light(g); got != c.kept {
			t.Errorf("batches of %d, light before: light %v: expected %v", c.batch, got, c.kept)
		}
		before := before
		before.Models = []plan.Assignment{{Model: "other"}}
		in.Current = &plan.Plan{Gpulets: []plan.Gpulet{before}}
		if got := newEnv(&in).light(g); got != c.fresh {
			t.Errorf("batches of %d, another light before: light %v: expected %v", c.batch, got, c.fresh)
		}
	}
	g.Models = []plan.Assignment{{Model: "m", Batch: 1}}
	for share, want := range map[int]bool{39: true, 40: false, 50: false} {
		if g.Share = share; newEnv(&in).light(g) != want {
			t.Errorf("share of %d %%: light %v: expected %v", share, !want, want)
		}
	}
}
