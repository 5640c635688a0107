// Package check judges plans. It restates the rules of a sound plan from the problem alone and
// shares no code with the packers, so that a packer's mistake cannot hide itself.
//
// Every plan passes through it before it is printed or published.
package check

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
)

// Rule names a condition of a sound plan.
type Rule string

// The rules, in the order in which they are reported.
const (
	RuleForm     Rule = "form"     // the document is well-formed (plan.Validate)
	RuleDevice   Rule = "device"   // every gpu-let is on a GPU of the problem, of its type, with a share it allows
	RuleCapacity Rule = "capacity" // the shares of a GPU sum to at most 100
	RuleModels   Rule = "models"   // no gpu-let serves more models than allowed
	RuleMemory   Rule = "memory"   // what is loaded on a GPU fits its memory
	RuleProfile  Rule = "profile"  // the profile covers every planned share and batch
	RuleRate     Rule = "rate"     // within a gpu-let a batch per duty cycle carries each model's rate
	RuleSLO      Rule = "slo"      // the worst case of a request fits its model's SLO
	RuleCoverage Rule = "coverage" // planned and unserved rates of a model cover its rate
)

// Violation is one broken rule.
type Violation struct {
	Rule   Rule
	Gpulet string // id, where one gpu-let is to blame
	Model  string // where one model is concerned
	GPU    string // where one device is concerned
	Detail string // what was found and what was allowed, with numbers
}

func (v Violation) String() string {
	s := string(v.Rule) + ":"
	for _, part := range []string{v.Gpulet, v.Model, v.GPU} {
		if part != "" {
			s += " " + part
		}
	}
	return s + ": " + v.Detail
}

// tolerance is the relative slack granted to floating-point sums, nothing more.
const tolerance = 1e-6

// Plan returns every rule that p breaks for in, none when p is sound. A plan that openly leaves
// rates unserved is sound if it serves the rest; see Complete.
//
// For a gpu-let with share s and models i at batch b_i, let t_i = L_i(b_i, s) x slowdown_i x buffer
// and D = sum of t_i, its duty cycle. A request that just missed its batch waits for one whole
// cycle and then for its own batch, so soundness asks for
//
//	b_i >= rate_i x D      (a batch per cycle carries the rate)
//	D + t_i <= SLO_i       (the worst case)
//
// with slowdown_i taken beside the worst load of every other gpu-let of the GPU.
func Plan(in problem.Input, p plan.Plan) []Violation {
	if err := p.Validate(); err != nil {
		return []Violation{{Rule: RuleForm, Detail: err.Error()}}
	}
	c := newChecker(in, p)
	c.devices()
	c.timing()
	c.coverage()
	return c.found
}

// Complete reports whether p says that it serves everything.
func Complete(p plan.Plan) bool {
	for _, rate := range p.Unserved {
		if rate > 0 {
			return false
		}
	}
	return true
}

type checker struct {
	in     problem.Input
	plan   plan.Plan
	gpus   map[string]problem.GPU
	models map[string]problem.Model
	// onGPU holds the indexes of the plan's gpu-lets by device name.
	onGPU map[string][]int
	found []Violation
}

func newChecker(in problem.Input, p plan.Plan) *checker {
	c := &checker{
		in: in, plan: p,
		gpus:   make(map[string]problem.GPU, len(in.GPUs)),
		models: make(map[string]problem.Model, len(in.Models)),
		onGPU:  map[string][]int{},
	}
	for _, g := range in.GPUs {
		c.gpus[fmt.Sprintf("%s/%d", g.Host, g.Index)] = g
	}
	for _, m := range in.Models {
		c.models[m.Name] = m
	}
	for i, g := range p.Gpulets {
		c.onGPU[g.Device()] = append(c.onGPU[g.Device()], i)
	}
	return c
}

func (c *checker) add(v Violation, format string, args ...any) {
	v.Detail = fmt.Sprintf(format, args...)
	c.found = append(c.found, v)
}

// devices checks what gpu-lets claim of their GPU: place, type, share, capacity, memory.
func (c *checker) devices() {
	names := make([]string, 0, len(c.onGPU))
	for name := range c.onGPU {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		gpu, ok := c.gpus[name]
		total := 0
		for _, i := range c.onGPU[name] {
			g := c.plan.Gpulets[i]
			total += g.Share
			if c.in.MaxModels > 0 && len(g.Models) > c.in.MaxModels {
				c.add(Violation{Rule: RuleModels, Gpulet: g.ID, GPU: name}, "%d models share it, at most %d may", len(g.Models), c.in.MaxModels)
			}
			switch {
			case !ok:
				c.add(Violation{Rule: RuleDevice, Gpulet: g.ID, GPU: name}, "no such GPU in the problem")
			case g.GPUType != gpu.Type:
				c.add(Violation{Rule: RuleDevice, Gpulet: g.ID, GPU: name}, "planned for type %q, the GPU is a %q", g.GPUType, gpu.Type)
			case len(gpu.Shares) > 0 && !slices.Contains(gpu.Shares, g.Share):
				c.add(Violation{Rule: RuleDevice, Gpulet: g.ID, GPU: name}, "share %d %%, the GPU allows %v", g.Share, gpu.Shares)
			}
		}
		if total > 100 {
			c.add(Violation{Rule: RuleCapacity, GPU: name}, "shares sum to %d %%, at most 100 fit", total)
		}
		if ok {
			c.memory(name, gpu)
		}
	}
}

func (c *checker) memory(name string, gpu problem.GPU) {
	if gpu.MemBytes <= 0 {
		return
	}
	var used int64
	for _, i := range c.onGPU[name] {
		used += c.in.ContextBytes
		for _, a := range c.plan.Gpulets[i].Models {
			if prof, ok := c.in.Profiles.Get(gpu.Type, a.Model); ok {
				used += prof.MemBytes(a.MaxBatch())
			}
		}
	}
	if used > gpu.MemBytes {
		c.add(Violation{Rule: RuleMemory, GPU: name}, "%d MiB for models and contexts, the GPU has %d MiB", used>>20, gpu.MemBytes>>20)
	}
}

// timing checks profile, rate and SLO of every assignment.
func (c *checker) timing() {
	for i, g := range c.plan.Gpulets {
		neighbours := c.neighbours(i)
		duty := 0.0
		batchMs := make([]float64, len(g.Models))
		complete := true
		for k, a := range g.Models {
			ms, err := c.batchMs(g, a, neighbours)
			if err != nil {
				c.add(Violation{Rule: RuleProfile, Gpulet: g.ID, Model: a.Model}, "%v", err)
				complete = false
				continue
			}
			batchMs[k] = ms
			duty += ms
		}
		if !complete {
			continue
		}
		for k, a := range g.Models {
			c.assignment(g, a, batchMs[k], duty)
		}
	}
}

func (c *checker) assignment(g plan.Gpulet, a plan.Assignment, batchMs, duty float64) {
	m := c.models[a.Model] // batchMs has refused unknown models
	v := Violation{Gpulet: g.ID, Model: a.Model}
	if need := a.RateRPS * duty / 1000; need > float64(a.Batch)*(1+tolerance) {
		v.Rule = RuleRate
		c.add(v, "%.6g requests arrive in a duty cycle of %.6g ms at %.6g/s, the batch takes %d", need, duty, a.RateRPS, a.Batch)
	}
	slo := float64(m.SLO) / float64(time.Millisecond)
	if worst := duty + batchMs; worst > slo*(1+tolerance) {
		v.Rule = RuleSLO
		c.add(v, "worst case %.6g ms (duty cycle %.6g + batch %.6g), SLO %.6g ms", worst, duty, batchMs, slo)
	}
}

// batchMs is the inflated time of a full batch.
func (c *checker) batchMs(g plan.Gpulet, a plan.Assignment, neighbours [][]problem.Load) (float64, error) {
	m, ok := c.models[a.Model]
	if !ok {
		return 0, fmt.Errorf("no such model with a profile")
	}
	if most := a.MaxBatch(); m.MaxBatch > 0 && most > m.MaxBatch {
		return 0, fmt.Errorf("batch %d, the model takes at most %d", most, m.MaxBatch)
	}
	prof, ok := c.in.Profiles.Get(g.GPUType, a.Model)
	if !ok {
		return 0, fmt.Errorf("no profile on %s", g.GPUType)
	}
	ms, err := prof.Latency(g.Share, a.Batch)
	if err != nil {
		return 0, err
	}
	slowdown := 1.0
	if c.in.Interference != nil && len(neighbours) > 0 {
		slowdown = math.Max(1, c.in.Interference.Slowdown(g.GPUType, problem.Load{Model: a.Model, Share: g.Share, Batch: a.Batch}, neighbours))
	}
	buffer := c.in.Buffer
	if buffer <= 0 {
		buffer = 1
	}
	return ms * slowdown * buffer, nil
}

// neighbours lists what the other gpu-lets of gpu-let i's GPU may be running.
func (c *checker) neighbours(i int) [][]problem.Load {
	var out [][]problem.Load
	for _, k := range c.onGPU[c.plan.Gpulets[i].Device()] {
		g := c.plan.Gpulets[k]
		if k == i || len(g.Models) == 0 {
			continue
		}
		loads := make([]problem.Load, 0, len(g.Models))
		for _, a := range g.Models {
			loads = append(loads, problem.Load{Model: a.Model, Share: g.Share, Batch: a.Batch})
		}
		out = append(out, loads)
	}
	return out
}

// coverage checks that planned and unserved rates add up to what is asked.
func (c *checker) coverage() {
	planned := map[string]float64{}
	for _, g := range c.plan.Gpulets {
		for _, a := range g.Models {
			planned[a.Model] += a.RateRPS
		}
	}
	for _, m := range c.in.Models {
		unserved := c.plan.Unserved[m.Name]
		if got := planned[m.Name] + unserved; got < m.Rate*(1-tolerance) {
			c.add(Violation{Rule: RuleCoverage, Model: m.Name}, "%.6g/s planned and %.6g/s unserved, %.6g/s asked", planned[m.Name], unserved, m.Rate)
		}
	}
}
