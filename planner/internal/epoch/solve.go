package epoch

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// relaxRounds is how often the SLO of a model without a place is doubled. 64 times its SLO is
// beyond any use; what has no place then lacks memory or GPUs, not time.
const relaxRounds = 6

// relaxKeeps is the part of the goodput that has to remain when a model is added with a longer SLO.
const relaxKeeps = 0.99

// solution is a plan for a problem, whose SLOs may have been relaxed.
type solution struct {
	in       input
	plan     plan.Plan
	problems []string
	unsound  string // why the plan must not be used; empty: it is sound
}

func (s solution) complete() bool { return s.unsound == "" && check.Complete(s.plan) }

// solve packs the problem, checks the plan, and finds a place for models that got none.
func (c Config) solve(in input) solution {
	s := c.fill(in)
	relaxed := map[string]bool{}
	for range relaxRounds {
		left := homeless(s.in.only(false), s.plan)
		if s.unsound != "" || len(left) == 0 {
			break
		}
		next := c.fill(s.in.relax(left, c.WarmRPS))
		if next.unsound != "" || goodput(in, next.plan) < relaxKeeps*goodput(in, s.plan) {
			break
		}
		s = next
		for name := range left {
			relaxed[name] = true
		}
	}
	if s.unsound != "" {
		return s
	}
	if !check.Complete(s.plan) && s.plan.DesiredGPUs <= s.plan.GPUsUsed {
		s.plan.DesiredGPUs = c.desired(s)
	}
	s.report(in, relaxed)
	c.attach(&s)
	s.weigh()
	return s
}

// weigh notes the device memory that every gpu-let is planned to take.
func (s *solution) weigh() {
	for i := range s.plan.Gpulets {
		g := &s.plan.Gpulets[i]
		g.MemBytes = s.in.ContextBytes
		for _, a := range g.Models {
			g.MemBytes += memBytes(s.in.Profiles, g.GPUType, a)
		}
	}
}

// Bounds of desired: fleets up to desiredExactly are planned with more GPUs, up to desiredFactor
// times as many; beyond, the ratio of what is asked to what is served has to do.
const (
	desiredExactly = 64
	desiredFactor  = 16
)

// desired is how many GPUs would serve everything that s leaves out, if there were more of the
// kinds that there are, in equal parts. Models that more GPUs do not help are left aside.
func (c Config) desired(s solution) int {
	in := s.in.only(false)
	c.Options.Headroom = false // how many GPUs would do is asked, not how they are cut
	left := homeless(in, s.plan)
	in.Models = slices.DeleteFunc(slices.Clone(in.Models), func(m problem.Model) bool { return left[m.Name] })
	asked, have := 0.0, 0.0
	for _, m := range in.Models {
		asked += m.Worth() * m.Rate
		have += m.Worth() * math.Min(m.Rate, served(s.plan, m.Name))
	}
	if have > 0 && len(in.GPUs) <= desiredExactly {
		for factor := 2; factor <= desiredFactor; factor *= 2 {
			if more := c.pack(in.multiplied(factor)); more.complete() {
				return more.plan.GPUsUsed
			}
		}
	}
	if have <= 0 {
		return len(s.in.GPUs) + 1
	}
	return max(len(s.in.GPUs)+1, int(math.Ceil(float64(s.plan.GPUsUsed)*asked/have)))
}

// multiplied has every GPU so many times, the copies on hosts of their own.
func (in input) multiplied(factor int) input {
	gpus := in.GPUs
	in.GPUs = slices.Clone(gpus)
	for k := 1; k < factor; k++ {
		for _, g := range gpus {
			g.Host = fmt.Sprintf("%s+%d", g.Host, k)
			in.GPUs = append(in.GPUs, g)
		}
	}
	return in
}

// pack runs the algorithm and the checker.
func (c Config) pack(in input) solution {
	p := c.Algorithm(in.Input, c.Options).Plan
	p.Algorithm = c.AlgorithmName
	s := solution{in: in, plan: p}
	if v := check.Plan(in.Input, p); len(v) > 0 {
		s.unsound = fmt.Sprintf("algorithm %s made an unsound plan, which is not used: %v (%d violations)", c.AlgorithmName, v[0], len(v))
	}
	return s
}

// homeless returns the models that should run and have no gpu-let.
func homeless(in input, p plan.Plan) map[string]bool {
	left := map[string]bool{}
	for _, m := range in.Models {
		if m.Rate > 0 {
			left[m.Name] = true
		}
	}
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			delete(left, a.Model)
		}
	}
	return left
}

// relax doubles the SLOs of the named models and asks for no more than the warm minimum of them.
func (in input) relax(names map[string]bool, warmRPS float64) input {
	out := in
	out.Models = append([]problem.Model(nil), in.Models...)
	for i := range out.Models {
		if m := &out.Models[i]; names[m.Name] {
			m.SLO *= 2
			m.Rate = math.Min(m.Rate, math.Max(warmRPS, 1))
		}
	}
	return out
}

// report says what the plan does not do of what the original problem asked.
func (s *solution) report(asked input, relaxed map[string]bool) {
	unserved := map[string]float64{}
	for i, m := range asked.Models {
		short := m.Rate - served(s.plan, m.Name)
		lacks := short > 1e-6*(1+m.Rate) && !m.Offline
		if lacks {
			unserved[m.Name] = short
		}
		least, known := asked.LeastSLOMs(m.Name)
		switch {
		case known && least > m.SLO.Seconds()*1000 && m.Rate > 0: // which more GPUs would not change
			s.problems = append(s.problems, fmt.Sprintf("model %s: its SLO of %v cannot be met: the fastest possible is %.3g ms, since a request may wait for a batch before its own", m.Name, m.SLO, least))
		case lacks:
			s.problems = append(s.problems, fmt.Sprintf("model %s: %.4g of %.4g samples/s have no place: %s would serve all", m.Name, short, m.Rate, problem.Count(s.plan.DesiredGPUs, "GPU")))
		}
		if relaxed[m.Name] && !homeless(s.in, s.plan)[m.Name] {
			s.problems = append(s.problems, fmt.Sprintf("model %s: no sound place within its SLO of %v: planned for %v", m.Name, m.SLO, s.in.Models[i].SLO))
		}
	}
	s.plan.Unserved = unserved
}

// served is the planned rate of a model over all gpu-lets.
func served(p plan.Plan, model string) float64 {
	var sum float64
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			if a.Model == model {
				sum += a.RateRPS
			}
		}
	}
	return sum
}

// goodput is the worth of what a plan serves of the problem's rates.
func goodput(in input, p plan.Plan) float64 {
	capacity := p.Capacities()
	var sum float64
	for _, m := range in.Models {
		sum += m.Worth() * math.Min(m.Rate, capacity[m.Name])
	}
	return sum
}

// attach gives every model that still has no place one beside others, as a guest: with rate 0,
// which promises nothing, and batches of one, so that it harms its neighbours least. It is better
// to answer late than not at all.
func (c Config) attach(s *solution) {
	left := homeless(s.in, s.plan)
	for _, m := range s.in.Models {
		if !left[m.Name] {
			continue
		}
		if i, ok := c.host(s, m); ok {
			g := &s.plan.Gpulets[i]
			prof, _ := s.in.Profiles.Get(g.GPUType, m.Name)
			ms, _ := prof.Latency(g.Share, 1)
			g.Models = append(g.Models, plan.Assignment{Model: m.Name, Batch: 1, DutyMs: duty(*g), ExecMs: ms, Layout: s.in.Layout(g.GPUType, m.Name)})
			s.problems = append(s.problems, fmt.Sprintf("model %s: no sound place: a guest on %d %% of %s, served when it can be", m.Name, g.Share, g.Device()))
			continue
		}
		s.problems = append(s.problems, fmt.Sprintf("model %s: no place at all: not loaded anywhere", m.Name))
	}
	s.plan.GPUsUsed = used(s.plan)
}

// host finds the gpu-let that suffers least from m as a guest: a new one on free shares of a GPU
// that is in use or free, else the one with the fewest models and the largest share.
func (c Config) host(s *solution, m problem.Model) (int, bool) {
	if g, ok := c.vacancy(s, m); ok {
		s.plan.Gpulets = append(s.plan.Gpulets, g)
		return len(s.plan.Gpulets) - 1, true
	}
	best := -1
	for i, g := range s.plan.Gpulets {
		if _, ok := c.guestFits(s, g, m, 0); !ok {
			continue
		}
		if best < 0 || less(g, s.plan.Gpulets[best]) {
			best = i
		}
	}
	return best, best >= 0
}

func less(a, b plan.Gpulet) bool {
	if len(a.Models) != len(b.Models) {
		return len(a.Models) < len(b.Models)
	}
	return a.Share > b.Share
}

// vacancy returns a new gpu-let for m in the largest free share of any GPU.
func (c Config) vacancy(s *solution, m problem.Model) (plan.Gpulet, bool) {
	free := map[string]int{}
	for _, g := range s.plan.Gpulets {
		free[g.Device()] -= g.Share
	}
	var best plan.Gpulet
	for _, gpu := range s.in.GPUs {
		share := largest(gpu, 100+free[gpu.Name()])
		if share <= best.Share || m.Offline && s.occupied(gpu.Name()) {
			continue
		}
		g := plan.Gpulet{ID: fmt.Sprintf("guest-%s", m.Name), Host: gpu.Host, GPU: gpu.Index, GPUType: gpu.Type, Share: share}
		if _, ok := c.guestFits(s, g, m, s.in.ContextBytes); ok {
			best = g
		}
	}
	return best, best.Share > 0
}

// largest returns the largest share of at most free percent that the GPU allows, 0 if none.
func largest(gpu problem.GPU, free int) int {
	for share := free; share >= 1; share-- {
		if gpu.Allows(share) {
			return share
		}
	}
	return 0
}

// guestFits reports whether a batch of one of m is profiled at g's share and fits the memory that
// the GPU has left, with extra bytes beside the model.
func (c Config) guestFits(s *solution, g plan.Gpulet, m problem.Model, extra int64) (time.Duration, bool) {
	prof, ok := s.in.Profiles.Get(g.GPUType, m.Name)
	if !ok {
		return 0, false
	}
	ms, err := prof.Latency(g.Share, 1)
	if err != nil {
		return 0, false
	}
	total, taken := c.memory(s, g.Device())
	if total > 0 && taken+extra+prof.MemBytes(1) > total {
		return 0, false
	}
	return time.Duration(ms * float64(time.Millisecond)), true
}

// memory returns the memory of a GPU (0: unknown) and what the plan takes of it.
func (c Config) memory(s *solution, device string) (total, taken int64) {
	for _, gpu := range s.in.GPUs {
		if gpu.Name() == device {
			total = gpu.MemBytes
		}
	}
	for _, g := range s.plan.Gpulets {
		if g.Device() != device {
			continue
		}
		taken += s.in.ContextBytes
		for _, a := range g.Models {
			taken += memBytes(s.in.Profiles, g.GPUType, a)
		}
	}
	return total, taken
}

func memBytes(from problem.Profiles, gpuType string, a plan.Assignment) int64 {
	var prof *profile.Profile
	prof, ok := from.Get(gpuType, a.Model)
	if !ok {
		return 0
	}
	return prof.MemBytes(a.MaxBatch())
}

// duty is the duty cycle that the gpu-let was planned with, 0 for a gpu-let of guests.
func duty(g plan.Gpulet) float64 {
	for _, a := range g.Models {
		if a.DutyMs > 0 {
			return a.DutyMs
		}
	}
	return 0
}

// used counts the GPUs that a plan touches.
func used(p plan.Plan) int {
	devices := map[string]bool{}
	for _, g := range p.Gpulets {
		devices[g.Device()] = true
	}
	return len(devices)
}

// sortedDevices lists the GPUs that a plan touches.
func sortedDevices(p plan.Plan) []string {
	seen := map[string]bool{}
	var names []string
	for _, g := range p.Gpulets {
		if name := g.Device(); !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}
