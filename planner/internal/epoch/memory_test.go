package epoch

import (
	"strings"
	"testing"
	"time"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// report has every gpu-let of the current plan report a model.
func (f *fleet) report(r plan.ModelReport) {
	f.state.Gpulets = nil
	for _, g := range f.state.Current.Gpulets {
		f.state.Gpulets = append(f.state.Gpulets, plan.GpuletReport{ID: g.ID, Host: g.Host, GPU: g.GPU, Models: []plan.ModelReport{r}})
	}
}

// shrinkGPU leaves a GPU of the first host so much memory.
func (f *fleet) shrinkGPU(index int, bytes int64) { f.state.Hosts[0].Devices[index].MemBytes = bytes }

func TestAModelThatDoesNotFitIsPlannedElsewhereForGood(t *testing.T) {
	f := newFleet(t, "gpulet")
	f.host("h", 2)
	f.model("vgg16", 142*time.Millisecond, 50)
	prof, _ := f.state.Files.Get("rtx2080ti", "vgg16")
	thought := prof.MemBytes(32)
	f.shrinkGPU(0, thought+1) // just enough, by the profile
	f.shrinkGPU(1, 4*thought)
	d := f.expect(First, 1)
	if d.Plan.Gpulets[0].GPU != 0 {
		t.Fatalf("the first plan is on GPU %d: expected the first that it fits", d.Plan.Gpulets[0].GPU)
	}
	f.report(plan.ModelReport{Model: "vgg16", OutOfMemory: true, Error: "out of memory"})
	d = f.expect(Unsound, 1)
	if len(d.Plan.Gpulets) != 1 || d.Plan.Gpulets[0].GPU != 1 {
		t.Fatalf("plan %+v: expected the GPU with more memory", d.Plan.Gpulets)
	}
	f.report(plan.ModelReport{Model: "vgg16", Loaded: true, MemBytes: thought})
	for range 10 {
		if d := f.epoch(); d.Publish {
			t.Fatalf("moved again: %s, %s", d.Cause, d.Reason)
		}
	}
}

func TestPlansWithTheMemoryThatModelsTake(t *testing.T) {
	f := newFleet(t, "gpulet")
	f.host("h", 1)
	f.state.Contexts = map[string]int64{"rtx2080ti": 1 << 20}
	f.model("lenet", 5*time.Millisecond, 100)
	first := f.expect(First, 1).Plan.Gpulets[0]
	prof, _ := f.state.Files.Get("rtx2080ti", "lenet")
	if want := 1<<20 + prof.MemBytes(first.Models[0].Batch); first.MemBytes != want {
		t.Errorf("planned with %d bytes: expected %d, its context and its model", first.MemBytes, want)
	}
	f.report(plan.ModelReport{Model: "lenet", Loaded: true, MemBytes: 5 << 30})
	f.rate("lenet", 4000)
	second := f.expect(Demand, 3).Plan.Gpulets[0]
	if want := int64(1<<20 + 5<<30); second.MemBytes != want {
		t.Errorf("planned with %d bytes: expected %d, as reported", second.MemBytes, want)
	}
}

func TestLearnsOncePerDecision(t *testing.T) {
	key := profileKey{"t", "m"}
	known := profiles{key: {Memory: []profile.Memory{{Batch: 8, Bytes: 100}}}}
	host := plan.HostReport{Host: "h", Devices: []plan.Device{{Index: 3, GPUType: "t"}}}
	short := plan.GpuletReport{Host: "h", GPU: 3, Models: []plan.ModelReport{{Model: "m", OutOfMemory: true}}}
	s := State{Hosts: []plan.HostReport{host}, Gpulets: []plan.GpuletReport{short, short, short}}
	before := memory{}
	first := before.learn(s, known)
	second := first.learn(s, known)
	if first[key] != 150 || second[key] != 225 || len(before) > 0 {
		t.Errorf("learned %d, then %d, from %v: expected 150 and 225, and nothing changed in place", first[key], second[key], before)
	}
	if got := second.correct(known)[key].MemBytes(1); got != 225 {
		t.Errorf("planned with %d bytes", got)
	}
	if got := known[key].MemBytes(1); got != 100 {
		t.Errorf("the profile itself was changed to %d bytes", got)
	}
}

func TestSaysWhenAProfileIsOfAnotherPrecision(t *testing.T) {
	for _, c := range []struct {
		served, measured string
		told             bool
	}{
		{"stored", "fp32", false},
		{"", "", false},
		{"fp16", "fp16", false},
		{"fp16", "", false},
		{"stored", "fp16", true},
		{"fp16", "fp32", true},
		{"fp32", "bf16", true},
	} {
		f := newFleet(t, "gpulet")
		f.host("h", 1)
		f.model("lenet", 5*time.Millisecond, 100)
		f.state.Models[0].Precision = c.served
		prof, _ := f.state.Files.Get("rtx2080ti", "lenet")
		other := *prof
		other.Precision = c.measured
		f.state.Measured = []profile.Profile{other}
		d := f.expect(First, 1)
		if told := strings.Contains(strings.Join(d.Problems, "\n"), "was measured in"); told != c.told {
			t.Errorf("served in %q, measured in %q: problems %q", c.served, c.measured, d.Problems)
		}
	}
}

func TestKeepsTheReserveOfEverySLO(t *testing.T) {
	f := newFleet(t, "gpulet")
	f.host("h", 1)
	f.model("lenet", 5*time.Millisecond, 100)
	f.cfg.Reserve = 2 * time.Millisecond
	for _, g := range f.expect(First, 1).Plan.Gpulets {
		for _, a := range g.Models {
			if worst := a.DutyMs + a.ExecMs; worst > 3 {
				t.Errorf("worst case %.2f ms: expected at most 3 of the 5", worst)
			}
		}
	}
	if got := problem.Net(time.Millisecond, 2*time.Millisecond); got != time.Millisecond/2 {
		t.Errorf("an SLO below the reserve leaves %v: expected half of it", got)
	}
}

// TestMemoryIsThatOfBursts: what a gpu-let takes, and is thought to have lacked, is for its largest batches.
func TestMemoryIsThatOfBursts(t *testing.T) {
	a := plan.Assignment{Model: "m", Batch: 1, Burst: 4}
	set := &profile.Set{}
	set.Add(&profile.Profile{Model: "m", GPUType: "g", Memory: []profile.Memory{{Batch: 1, Bytes: 10}, {Batch: 4, Bytes: 40}}})
	if got := memBytes(set, "g", a); got != 40 {
		t.Errorf("%d bytes: expected the 40 of its bursts", got)
	}
	p := plan.Plan{Gpulets: []plan.Gpulet{{ID: "x", Models: []plan.Assignment{a}}}}
	if got := batchOf(p, "x", "m"); got != 4 {
		t.Errorf("batches of %d: expected the 4 of its bursts", got)
	}
}
