package epoch

import (
	"fmt"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/shared/plan"
)

// verdict is what is wrong with the plan that runs; an empty cause means nothing.
type verdict struct{ cause, reason string }

// slack forgives rounding when a capacity is compared with a need.
const slack = 1e-6

// judge looks at the current plan p with the eyes of now. in has the rates that are needed now and
// the SLOs that can be had.
func judge(in input, p plan.Plan) verdict {
	if p.Revision == 0 {
		return verdict{First, "there is no plan yet"}
	}
	for _, find := range []func(input, plan.Plan) verdict{missingDevice, strayModel, missingModel, broken, short} {
		if v := find(in, p); v.cause != "" {
			return v
		}
	}
	return verdict{}
}

// missingDevice finds a gpu-let on a device that is gone or became another.
func missingDevice(in input, p plan.Plan) verdict {
	types := map[string]string{}
	for _, g := range in.GPUs {
		types[g.Name()] = g.Type
	}
	for _, g := range p.Gpulets {
		switch now, ok := types[g.Device()]; {
		case !ok:
			return verdict{Hosts, fmt.Sprintf("GPU %s of gpu-let %s is gone", g.Device(), g.ID)}
		case now != g.GPUType:
			return verdict{Hosts, fmt.Sprintf("GPU %s of gpu-let %s is now a %s, not a %s", g.Device(), g.ID, now, g.GPUType)}
		}
	}
	return verdict{}
}

// strayModel finds a planned model that is not there any more or should not be loaded.
func strayModel(in input, p plan.Plan) verdict {
	rates := map[string]float64{}
	for _, m := range in.Models {
		rates[m.Name] = m.Rate
	}
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			switch rate, ok := rates[a.Model]; {
			case !ok:
				return verdict{Models, fmt.Sprintf("model %s was removed or has lost its profile", a.Model)}
			case rate == 0:
				return verdict{Idle, fmt.Sprintf("model %s has had no request for long", a.Model)}
			}
		}
	}
	return verdict{}
}

// missingModel finds a model that should run and does not. Whether it can run is another question:
// the cause is that of a rate that is not carried.
func missingModel(in input, p plan.Plan) verdict {
	left := homeless(in, p)
	for _, m := range in.Models {
		if left[m.Name] {
			return verdict{Demand, fmt.Sprintf("model %s is not loaded anywhere", m.Name)}
		}
	}
	return verdict{}
}

// broken finds a rule that the plan breaks at its own planned rates, guests aside.
func broken(in input, p plan.Plan) verdict {
	p = withoutGuests(p)
	rates := map[string]float64{}
	for _, m := range in.Models {
		rates[m.Name] = served(p, m.Name)
	}
	p.Unserved = nil
	if v := check.Plan(in.withRates(rates).Input, p); len(v) > 0 {
		return verdict{Unsound, fmt.Sprintf("by what is known now, the plan is not sound: %v", v[0])}
	}
	return verdict{}
}

// short finds a model that needs more than its gpu-lets can carry.
func short(in input, p plan.Plan) verdict {
	capacity := p.Capacities()
	for _, m := range in.Models {
		if can := capacity[m.Name]; m.Rate > can*(1+slack) {
			return verdict{Demand, fmt.Sprintf("model %s needs %.4g samples/s, the plan carries %.4g", m.Name, m.Rate, can)}
		}
	}
	return verdict{}
}

// withoutGuests returns the part of a plan that promises something.
func withoutGuests(p plan.Plan) plan.Plan {
	var gpulets []plan.Gpulet
	for _, g := range p.Gpulets {
		var own []plan.Assignment
		for _, a := range g.Models {
			if a.RateRPS > 0 {
				own = append(own, a)
			}
		}
		if len(own) > 0 {
			g.Models = own
			gpulets = append(gpulets, g)
		}
	}
	p.Gpulets = gpulets
	p.GPUsUsed = used(p)
	return p
}

// serves reports whether fresh is worth having instead of current when current falls short: it
// loads more of the models, or as many and serves more; more of the offline ones only if it serves as much
// of the others.
func serves(in input, fresh, current plan.Plan) bool {
	if a, b := len(homeless(in, fresh)), len(homeless(in, current)); a != b {
		return a < b
	}
	live, offline := in.only(false), in.only(true)
	was, is := goodput(live, current), goodput(live, fresh)
	return is > 1.005*was || is >= was*(1-slack) && goodput(offline, fresh) > 1.005*goodput(offline, current)
}
