package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/shared/model"
)

// paperSLOs are the objectives of the ATC'22 paper's nine models.
var paperSLOs = []struct {
	name string
	slo  time.Duration
}{
	{"bert", 22 * time.Millisecond},
	{"densenet161", 202 * time.Millisecond},
	{"googlenet", 66 * time.Millisecond},
	{"lenet", 5 * time.Millisecond},
	{"mnasnet1_0", 62 * time.Millisecond},
	{"mobilenet_v2", 64 * time.Millisecond},
	{"resnet50", 108 * time.Millisecond},
	{"ssd-mobilenetv1", 202 * time.Millisecond},
	{"vgg16", 142 * time.Millisecond},
}

func paperModel(name string) model.Model {
	for _, p := range paperSLOs {
		if p.name == name {
			return model.Model{Config: model.Config{Name: name, SLO: p.slo, Timeout: 2 * p.slo, Weight: 1}}
		}
	}
	panic("no such model in the paper: " + name)
}

// randomConfig draws one to six models at random rates on one to four GPUs.
func randomConfig(rng *rand.Rand, b bench, algorithm string) Config {
	hosts, err := ParseGPUs(fmt.Sprintf("rtx2080ti:%d", 1+rng.IntN(4)))
	if err != nil {
		panic(err)
	}
	c := Config{
		Hosts: hosts, Profiles: b.profiles, Interference: b.interference, Traffic: map[string]Traffic{},
		Duration: time.Minute, Seed: rng.Uint64(),
	}
	for _, i := range rng.Perm(len(paperSLOs))[:1+rng.IntN(6)] {
		m := paperModel(paperSLOs[i].name)
		c.Models = append(c.Models, m)
		c.Traffic[m.Name] = Constant(1 + 300*rng.Float64()*rng.Float64())
	}
	st := DefaultSteering(10 * time.Second)
	st.Decide.AlgorithmName, st.Interference = algorithm, b.interference
	if st.Decide.Algorithm, err = pack.ByName(algorithm); err != nil {
		panic(err)
	}
	c.Steering = &st
	return c
}

// TestAcceptedPlansKeepTheirSLOs: a plan is made for rates with the margin of package demand; at
// the rates without it, Poisson arrivals miss at most 1 % of their SLOs, whatever the plan, and
// whatever the model.
func TestAcceptedPlansKeepTheirSLOs(t *testing.T) {
	plans := 200
	if shortened || testing.Short() {
		plans = 50
	}
	b := loadBench(t)
	rng := rand.New(rand.NewPCG(14, 0))
	worst, worstModel := 0.0, 0.0
	for n := 0; n < plans; {
		algorithm := []string{"elastic", "gpulet", "sbp", "greedy"}[n%4]
		c := randomConfig(rng, b, algorithm)
		p := FirstPlan(c)
		if !check.Complete(p) || len(p.Gpulets) == 0 {
			continue // refused
		}
		n++
		c.Plan, c.Steering = p, nil
		r, err := Run(c)
		if err != nil {
			t.Fatal(err)
		}
		v := r.Total.Violations()
		worst = max(worst, v)
		for _, m := range r.Models {
			worstModel = max(worstModel, m.Violations())
		}
		if v > 0.01 || worstModel > 0.01 {
			t.Fatalf("plan %d (%s): %.2f %% violations, at most 1 %% expected\n%v\n%+v", n, algorithm, 100*v, r, p.Gpulets)
		}
	}
	t.Logf("%d plans at most %.3f %% violations, one model at most %.3f %%, target %v", plans, 100*worst, 100*worstModel, demand.DefaultConfig(time.Second).Violations)
}
