package check

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// byShare slows every batch down by a tenth per 10 % of neighbours.
type byShare struct{}

func (byShare) Slowdown(_ string, _ problem.Load, neighbours [][]problem.Load) float64 {
	sum := 1.0
	for _, n := range neighbours {
		worst := 0.0
		for _, l := range n {
			worst = max(worst, float64(l.Share)/100)
		}
		sum += worst
	}
	return sum
}

// input has one GPU of 1000 bytes; a takes 10 ms at batch 1 and 16 at batch 4, b 4 ms and 8, on any
// half, and each needs 300 bytes.
func input() problem.Input {
	set := &profile.Set{}
	for name, ms := range map[string][2]float64{"a": {10, 16}, "b": {4, 8}} {
		p := &profile.Profile{Model: name, GPUType: "g", Memory: []profile.Memory{{Batch: 4, Bytes: 300 << 20}}}
		for _, share := range []int{40, 100} {
			p.Points = append(p.Points, profile.Point{Share: share, Batch: 1, P50Ms: ms[0]}, profile.Point{Share: share, Batch: 4, P50Ms: ms[1]})
		}
		set.Add(p)
	}
	return problem.Input{
		GPUs:     []problem.GPU{{Host: "h", Type: "g", MemBytes: 1000 << 20, Shares: []int{40, 50, 60, 100}}},
		Models:   []problem.Model{{Name: "a", SLO: 40 * time.Millisecond, Rate: 100}, {Name: "b", SLO: 30 * time.Millisecond, Rate: 100}},
		Profiles: set,
	}
}

func let(id string, share int, models ...plan.Assignment) plan.Gpulet {
	return plan.Gpulet{ID: id, Host: "h", GPUType: "g", Share: share, Models: models}
}

func serve(model string, batch int, rate float64) plan.Assignment {
	return plan.Assignment{Model: model, Batch: batch, RateRPS: rate}
}

func sound() plan.Plan {
	return plan.Plan{Gpulets: []plan.Gpulet{let("x", 40, serve("a", 2, 100)), let("y", 60, serve("b", 1, 100))}}
}

func texts(list []Violation) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// TestBurstsNeedMemoryAndAreNoPromise: a burst has to fit into memory and the model, whatever its time.
func TestBurstsNeedMemoryAndAreNoPromise(t *testing.T) {
	for _, c := range []struct {
		burst, most int
		want        string // "": sound
	}{{0, 0, ""}, {4, 0, ""}, {8, 0, "1340 MiB for models and contexts"}, {4, 3, "batch 4, the model takes at most 3"}} {
		in, p := input(), sound()
		a, _ := in.Profiles.Get("g", "a")
		a.Memory = append(a.Memory, profile.Memory{Batch: 8, Bytes: 1040 << 20})
		in.Models[0].MaxBatch = c.most
		p.Gpulets[0].Models[0].Burst = c.burst
		got := texts(Plan(in, p))
		if (c.want == "") != (len(got) == 0) || !strings.Contains(strings.Join(got, "\n"), c.want) {
			t.Errorf("burst %d of a model that takes %d: %q: expected %q", c.burst, c.most, got, c.want)
		}
	}
}

func TestAcceptsASoundPlan(t *testing.T) {
	if got := texts(Plan(input(), sound())); got != nil {
		t.Errorf("%q", got)
	}
}

func TestNamesEveryBrokenRuleWithNumbers(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*problem.Input, *plan.Plan)
		want []string
	}{
		{"form", func(_ *problem.Input, p *plan.Plan) { p.Gpulets[1].ID = "x" }, []string{`form:: key "gpulets[1].id": found "x" again: expected ids to differ`}},
		{"no such GPU", func(_ *problem.Input, p *plan.Plan) { p.Gpulets[1].GPU = 3 }, []string{"device: y h/3: no such GPU in the problem"}},
		{"other type", func(_ *problem.Input, p *plan.Plan) { p.Gpulets[1].GPUType = "G2" }, []string{
			`device: y h/0: planned for type "G2", the GPU is a "g"`, "profile: y b: no profile on G2",
		}},
		{"share not allowed", func(_ *problem.Input, p *plan.Plan) { p.Gpulets[1].Share = 55 }, []string{"device: y h/0: share 55 %, the GPU allows [40 50 60 100]"}},
		{"memory", func(in *problem.Input, _ *plan.Plan) { in.ContextBytes = 250 << 20 }, []string{"memory: h/0: 1100 MiB for models and contexts, the GPU has 1000 MiB"}},
		{"models", func(in *problem.Input, p *plan.Plan) {
			in.MaxModels = 1
			p.Gpulets = []plan.Gpulet{let("x", 100, serve("a", 2, 100), serve("b", 2, 100))}
		}, []string{"models: x h/0: 2 models share it, at most 1 may"}},
		{"batch not profiled", func(_ *problem.Input, p *plan.Plan) { p.Gpulets[1].Models[0].Batch = 9 }, []string{
			"profile: y b: profile of b on g: share 40: batch 9: outside the profiled range: expected 1..4",
		}},
		{"batch above the model's", func(in *problem.Input, p *plan.Plan) { in.Models[0].MaxBatch = 1 }, []string{"profile: x a: batch 2, the model takes at most 1"}},
		{"unknown model", func(_ *problem.Input, p *plan.Plan) { p.Gpulets[1].Models[0].Model = "c" }, []string{
			"profile: y c: no such model with a profile", "coverage: b: 0/s planned and 0/s unserved, 100/s asked",
		}},
		{"rate", func(_ *problem.Input, p *plan.Plan) {
			p.Gpulets[0].Models[0].Batch = 1
			p.Gpulets[0].Models[0].RateRPS = 101
		}, []string{
			"rate: x a: 1.01 requests arrive in a duty cycle of 10 ms at 101/s, the batch takes 1",
		}},
		{"SLO", func(in *problem.Input, _ *plan.Plan) { in.Models[0].SLO = 20 * time.Millisecond }, []string{
			"slo: x a: worst case 24 ms (duty cycle 12 + batch 12), SLO 20 ms",
		}},
		{"SLO with neighbours", func(in *problem.Input, _ *plan.Plan) {
			in.Interference = byShare{}
			in.Models[0].SLO = 30 * time.Millisecond
		}, []string{
			"slo: x a: worst case 38.4 ms (duty cycle 19.2 + batch 19.2), SLO 30 ms",
		}},
		{"SLO with buffer", func(in *problem.Input, _ *plan.Plan) { in.Buffer = 2; in.Models[0].SLO = 47 * time.Millisecond }, []string{
			"rate: x a: 2.4 requests arrive", "slo: x a: worst case 48 ms",
		}},
		{"duty of two models", func(_ *problem.Input, p *plan.Plan) {
			p.Gpulets = []plan.Gpulet{let("x", 100, serve("a", 4, 100), serve("b", 4, 100))}
		}, []string{"slo: x b: worst case 32 ms (duty cycle 24 + batch 8), SLO 30 ms"}},
		{"coverage", func(_ *problem.Input, p *plan.Plan) {
			p.Gpulets[0].Models[0].RateRPS = 90
			p.Unserved = map[string]float64{"a": 9}
		}, []string{"coverage: a: 90/s planned and 9/s unserved, 100/s asked"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, p := input(), sound()
			c.edit(&in, &p)
			got := texts(Plan(in, p))
			if len(got) != len(c.want) && c.name != "SLO with buffer" {
				t.Fatal(cmp.Diff(c.want, got))
			}
			for i, want := range c.want {
				if i >= len(got) || !strings.HasPrefix(got[i], want) && got[i] != want {
					t.Errorf("violations %q\nexpected %q", got, want)
				}
			}
		})
	}
}

func TestUnservedRatesAreNoViolation(t *testing.T) {
	p := sound()
	p.Gpulets[0].Models[0].RateRPS = 60
	p.Unserved = map[string]float64{"a": 40}
	if got := texts(Plan(input(), p)); got != nil {
		t.Errorf("%q", got)
	}
	if Complete(p) {
		t.Error("complete, with 40/s not served")
	}
}
