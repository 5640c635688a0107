package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// arm is a way to share a GPU.
type arm struct {
	name string
	// algorithm is that of planner plan; "" where the arm knows no plan: models then run side by side,
	// each in a process of its own (apart) or all in one.
	algorithm string
	apart     bool
	planner   []string // flags of planner plan
	worker    []string // flags of worker run
}

// arms in the order of their importance: of those that another worker serves, last.
var arms = []arm{
	{name: "gpulet", algorithm: "gpulet", planner: []string{"--headroom"}},
	{name: "sbp", algorithm: "sbp"},
	{name: "elastic", algorithm: "elastic"},
	{name: "even", algorithm: "even"},
	{name: "mps", apart: true, worker: []string{"--uncapped"}},
	{name: "uncapped", algorithm: "gpulet", planner: []string{"--headroom"}, worker: []string{"--uncapped"}},
	{name: "streams", worker: []string{"--streams"}},
}

// mixes are the workloads of the gpu-let paper (Choi et al., USENIX ATC 2022), as samples for each model
// for one of the whole, and an equal one of its nine models. The stages of game and traffic are sent
// independently of each other.
var mixes = map[string]map[string]float64{
	"game":    {"lenet": 6, "resnet50": 1},
	"traffic": {"ssd-mobilenetv1": 1, "googlenet": 1, "vgg16": 1},
	"scen1":   {"googlenet": 1, "bert": 1, "mnasnet1_0": 1, "mobilenet_v2": 1},
	"scen2":   {"densenet161": 1, "vgg16": 1},
	"scen3":   {"resnet50": 1, "vgg16": 1, "mobilenet_v2": 1},
	"scen4":   {"ssd-mobilenetv1": 1, "mnasnet1_0": 1, "densenet161": 1},
	"scen5":   {"lenet": 1, "ssd-mobilenetv1": 1, "vgg16": 1, "mnasnet1_0": 1},
	"all9": {
		"googlenet": 1, "lenet": 1, "resnet50": 1, "ssd-mobilenetv1": 1, "vgg16": 1, "mnasnet1_0": 1,
		"mobilenet_v2": 1, "densenet161": 1, "bert": 1,
	},
}

// parseMix reads the name of a mix, or model=weight,..., and returns each model's part of the whole.
func parseMix(text string) (map[string]float64, error) {
	weights, known := mixes[text]
	if !known {
		weights = map[string]float64{}
		for part := range strings.SplitSeq(text, ",") {
			name, value, _ := strings.Cut(part, "=")
			w, err := strconv.ParseFloat(value, 64)
			if err != nil || name == "" || !(w > 0) {
				return nil, fmt.Errorf("mix %q: found %q: expected model=weight, or one of %v", text, part, slices.Sorted(maps.Keys(mixes)))
			}
			weights[name] = w
		}
	}
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	parts := map[string]float64{}
	for name, w := range weights {
		parts[name] = w / sum
	}
	return parts, nil
}

// pairs writes values as the programs' flags take them: model=value,...
func pairs[V any](values map[string]V, format string) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		list = append(list, fmt.Sprintf("%s="+format, name, values[name]))
	}
	return strings.Join(list, ",")
}

// scaled is a mix at a total rate.
func scaled(parts map[string]float64, total float64) map[string]float64 {
	rates := map[string]float64{}
	for name, part := range parts {
		rates[name] = part * total
	}
	return rates
}

// offline are the flags of the planner's tools for one GPU like this one.
func (s *site) offline(command string, slos map[string]time.Duration, args ...string) []string {
	return append([]string{
		command, "--gpus", s.device.GPUType + ":1", "--profiles", s.profiles, "--models", s.cfg.Models, "--slos", pairs(slos, "%v"),
		"--reserve", s.cfg.Reserve.String(), "--json",
	}, args...)
}

// planFor asks the planner's tool for a plan of one GPU that carries rates, in samples/s. complete says
// whether it carries all of it.
func (s *site) planFor(ctx context.Context, a arm, slos map[string]time.Duration, rates map[string]float64, poisson map[string]int) (p plan.Plan, complete bool, err error) {
	args := append([]string{"--algorithm", a.algorithm, "--rates", pairs(rates, "%.3f")}, a.planner...)
	if poisson != nil {
		args = append(args, "--poisson", pairs(poisson, "%d"))
	}
	out, _, err := output(ctx, nil, s.cfg.program("planner"), s.offline("plan", slos, args...)...)
	if len(out) == 0 {
		return plan.Plan{}, false, err
	}
	// What cannot be carried in full is exit 1, with a plan all the same.
	complete = err == nil
	p, err = plan.Parse("planner plan", out)
	return p, complete && len(p.Gpulets) > 0, err
}

// peak is the highest total rate of a mix, in samples/s, that has a sound plan.
func (s *site) peak(ctx context.Context, algorithm string, slos map[string]time.Duration, parts map[string]float64, poisson map[string]int) (float64, error) {
	args := []string{"--algorithms", algorithm, "--mix", pairs(parts, "%.6f")}
	if poisson != nil {
		args = append(args, "--poisson", pairs(poisson, "%d"))
	}
	out, _, err := output(ctx, nil, s.cfg.program("planner"), s.offline("peak", slos, args...)...)
	if err != nil {
		return 0, err
	}
	var r struct {
		Algorithms map[string]struct {
			TotalRPS float64 `json:"total_rps"`
		}
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, fmt.Errorf("planner peak: %w", err)
	}
	return r.Algorithms[algorithm].TotalRPS, nil
}

// sideBySide is the plan of an arm that divides nothing: every model may run the largest batch that
// would keep its SLO on the whole GPU, one batch waiting for another.
func sideBySide(set *profile.Set, gpuType string, slos map[string]time.Duration, rates map[string]float64, apart bool) (plan.Plan, error) {
	var models []plan.Assignment
	for _, name := range slices.Sorted(maps.Keys(rates)) {
		prof, ok := set.Get(gpuType, name)
		if !ok {
			return plan.Plan{}, fmt.Errorf("no profile of %s on %s", name, gpuType)
		}
		batch, ms := largestBatch(prof, 100, 1, slos[name])
		models = append(models, plan.Assignment{Model: name, Batch: batch, RateRPS: rates[name], ExecMs: ms, DutyMs: ms, Layout: prof.Layout})
	}
	if !apart {
		return plan.Plan{GPUsUsed: 1, Gpulets: []plan.Gpulet{{GPUType: gpuType, Share: 100, Models: models}}}, nil
	}
	p := plan.Plan{GPUsUsed: 1}
	for _, a := range models {
		p.Gpulets = append(p.Gpulets, plan.Gpulet{GPUType: gpuType, Share: 100 / len(models), Models: []plan.Assignment{a}})
	}
	return p, nil
}

// largestBatch is the largest profiled batch of which two, each slowed down, fit the SLO, and its time
// alone; the smallest where none does.
func largestBatch(p *profile.Profile, share int, slowdown float64, slo time.Duration) (batch int, ms float64) {
	for _, b := range p.Batches() {
		t, err := p.Latency(share, b)
		if err == nil && (batch == 0 || 2*t*slowdown <= slo.Seconds()*1000) {
			batch, ms = b, t
		}
	}
	return batch, ms
}

// place puts a plan of one GPU on this site's, under ids of its own: a gpu-let that has the share, and if
// possible the models, of one that runs is that one; others are new.
func (s *site) place(p plan.Plan) plan.Plan {
	free := slices.Clone(s.current.Gpulets)
	taken := func(g plan.Gpulet) (id string) {
		best, most := -1, -1
		for i, old := range free {
			if n := common(old, g); old.SameShares(g) && n > most {
				best, most = i, n
			}
		}
		if best < 0 {
			return ""
		}
		id = free[best].ID
		free = slices.Delete(free, best, best+1)
		return id
	}
	p.Gpulets = slices.Clone(p.Gpulets)
	for i, g := range p.Gpulets {
		g.Host, g.GPU, g.GPUType = s.host, s.device.Index, s.device.GPUType
		if g.ID = taken(g); g.ID == "" {
			s.plans++
			g.ID = fmt.Sprintf("g%d-%d", s.plans, g.Share)
		}
		p.Gpulets[i] = g
	}
	return p
}

// common counts the models that two gpu-lets share.
func common(a, b plan.Gpulet) (n int) {
	for _, m := range a.Models {
		if slices.ContainsFunc(b.Models, func(o plan.Assignment) bool { return o.Model == m.Model }) {
			n++
		}
	}
	return n
}

// admitRequests lets every assignment run a whole request.
func admitRequests(p plan.Plan, samples map[string]int) plan.Plan {
	for i := range p.Gpulets {
		models := slices.Clone(p.Gpulets[i].Models)
		for k := range models {
			a := &models[k]
			if a.Batch = max(a.Batch, samples[a.Model]); a.Burst < a.Batch {
				a.Burst = 0
			}
		}
		p.Gpulets[i].Models = models
	}
	return p
}
