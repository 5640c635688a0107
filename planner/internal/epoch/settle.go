package epoch

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
)

// settle turns a packed plan into the successor of the current one: GPUs of one kind change places
// so that the least moves, gpu-lets that stay keep their ids, new ones get ids that were never used,
// and the gpu-lets of a model are ranked.
func settle(p plan.Plan, s State) plan.Plan {
	p.Gpulets = slices.Clone(p.Gpulets)
	for i := range p.Gpulets {
		p.Gpulets[i].Models = slices.Clone(p.Gpulets[i].Models)
	}
	gpus, _ := devices(s.Hosts)
	permute(&p, s.Current, gpus)
	sortGpulets(p.Gpulets)
	p.Revision = nextRevision(s)
	identify(&p, s.Current)
	rank(&p)
	p.GPUsUsed = used(p)
	return p
}

// nextRevision is above the current plan's and above every revision that a worker has seen: if the
// plans were lost, workers still take the next one for newer.
func nextRevision(s State) uint64 {
	last := s.Current.Revision
	for _, h := range s.Hosts {
		last = max(last, h.Revision)
	}
	for _, g := range s.Gpulets {
		last = max(last, g.Revision)
	}
	return last + 1
}

func sortGpulets(gs []plan.Gpulet) {
	sort.SliceStable(gs, func(i, j int) bool {
		a, b := gs[i], gs[j]
		if c := cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.GPU, b.GPU), cmp.Compare(b.Share, a.Share)); c != 0 {
			return c < 0
		}
		return modelNames(a) < modelNames(b)
	})
}

func modelNames(g plan.Gpulet) string {
	names := make([]string, len(g.Models))
	for i, a := range g.Models {
		names[i] = a.Model
	}
	return strings.Join(names, " ")
}

// tenancy is a (share, model) on a GPU: what stays when it is there before and after.
type tenancy struct {
	share int
	model string
}

// permute moves the contents of whole GPUs to GPUs of the same kind, if that keeps more models where
// they are. GPUs of one kind are equal for a plan's soundness.
func permute(p *plan.Plan, current plan.Plan, gpus []problem.GPU) {
	was, is := byDevice(current), byDevice(*p)
	kinds := map[string][]problem.GPU{}
	var order []string
	for _, g := range gpus {
		k := fmt.Sprintf("%s %d %v", g.Type, g.MemBytes, g.Shares)
		if kinds[k] == nil {
			order = append(order, k)
		}
		kinds[k] = append(kinds[k], g)
	}
	target := map[string]problem.GPU{}
	for _, k := range order {
		for from, to := range reseat(kinds[k], was, is) {
			target[from] = to
		}
	}
	for i := range p.Gpulets {
		if to, ok := target[p.Gpulets[i].Device()]; ok {
			p.Gpulets[i].Host, p.Gpulets[i].GPU = to.Host, to.Index
		}
	}
}

func byDevice(p plan.Plan) map[string][]plan.Gpulet {
	m := map[string][]plan.Gpulet{}
	for _, g := range p.Gpulets {
		m[g.Device()] = append(m[g.Device()], g)
	}
	return m
}

// reseat pairs the contents that GPUs of one kind get with the GPUs, most in common first. It
// returns nothing when leaving everything in place keeps as much.
func reseat(gpus []problem.GPU, was, is map[string][]plan.Gpulet) map[string]problem.GPU {
	holders := map[tenancy][]int{} // GPUs that have it now
	for i, g := range gpus {
		for t := range tenancies(was[g.Name()]) {
			holders[t] = append(holders[t], i)
		}
	}
	var pairs []pair
	kept := 0
	for i, g := range gpus {
		common := map[int]int{}
		for t := range tenancies(is[g.Name()]) {
			for _, j := range holders[t] {
				common[j]++
			}
		}
		kept += common[i]
		for j, n := range common {
			pairs = append(pairs, pair{i, j, n})
		}
	}
	to, gained := match(pairs, len(gpus))
	if gained <= kept {
		return nil
	}
	return seats(gpus, is, to)
}

// pair says that content from and GPU to have common tenancies.
type pair struct{ from, to, common int }

// match pairs greedily, most in common first, staying before moving, lower indices first. It returns
// the GPU of each content, -1 for those without a pair, and the sum of what they have in common.
func match(pairs []pair, n int) (to []int, sum int) {
	slices.SortFunc(pairs, func(a, b pair) int {
		stays := func(p pair) int {
			if p.from == p.to {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.common, a.common), cmp.Compare(stays(a), stays(b)),
			cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	to = slices.Repeat([]int{-1}, n)
	taken := make([]bool, n)
	for _, p := range pairs {
		if to[p.from] < 0 && !taken[p.to] {
			to[p.from], taken[p.to] = p.to, true
			sum += p.common
		}
	}
	return to, sum
}

// seats completes a matching: contents without a pair stay where they are if nobody took the place,
// else take the first free GPU.
func seats(gpus []problem.GPU, is map[string][]plan.Gpulet, to []int) map[string]problem.GPU {
	taken := make([]bool, len(gpus))
	for _, j := range to {
		if j >= 0 {
			taken[j] = true
		}
	}
	out := map[string]problem.GPU{}
	free := 0
	for i, g := range gpus {
		if len(is[g.Name()]) == 0 {
			continue
		}
		j := to[i]
		if j < 0 && !taken[i] {
			j = i
		}
		for j < 0 {
			if !taken[free] {
				j = free
			}
			free++
		}
		taken[j] = true
		out[g.Name()] = gpus[j]
	}
	return out
}

func tenancies(gs []plan.Gpulet) map[tenancy]bool {
	m := map[tenancy]bool{}
	for _, g := range gs {
		for _, a := range g.Models {
			m[tenancy{g.Share, a.Model}] = true
		}
	}
	return m
}

// identify gives every gpu-let its id: that of the running gpu-let on the same GPU with the same
// share and the most models in common, or a new one.
func identify(p *plan.Plan, current plan.Plan) {
	running := byDevice(current)
	byPlace := map[string][]int{}
	for i, g := range p.Gpulets {
		p.Gpulets[i].ID = ""
		byPlace[g.Device()] = append(byPlace[g.Device()], i)
	}
	for _, device := range sortedDevices(*p) {
		inherit(p.Gpulets, byPlace[device], running[device])
	}
	k := 0
	for i := range p.Gpulets {
		if g := &p.Gpulets[i]; g.ID == "" {
			k++
			g.ID = fmt.Sprintf("%s-gpu%d-r%d-%d", plan.HostPart(g.Host), g.GPU, p.Revision, k)
		}
	}
}

func inherit(gs []plan.Gpulet, here []int, running []plan.Gpulet) {
	var pairs []pair
	for a, i := range here {
		for b, r := range running {
			if gs[i].SameShares(r) && gs[i].GPUType == r.GPUType {
				pairs = append(pairs, pair{a, b, overlap(gs[i], r)})
			}
		}
	}
	to, _ := match(pairs, max(len(here), len(running)))
	for a, i := range here {
		if to[a] >= 0 {
			gs[i].ID = running[to[a]].ID
		}
	}
}

func overlap(a, b plan.Gpulet) int {
	n := 0
	for _, x := range a.Models {
		for _, y := range b.Models {
			if x.Model == y.Model {
				n++
			}
		}
	}
	return n
}

// lastRank is the lowest priority that an idle pull can have on the bus.
const lastRank = 9

// rank orders the gpu-lets of each model: the one that carries most of it is asked first, which
// keeps its batches full and the others idle for their own models.
func rank(p *plan.Plan) {
	byModel := map[string][]*plan.Assignment{}
	for i := range p.Gpulets {
		for j := range p.Gpulets[i].Models {
			a := &p.Gpulets[i].Models[j]
			byModel[a.Model] = append(byModel[a.Model], a)
		}
	}
	for _, as := range byModel {
		slices.SortStableFunc(as, func(a, b *plan.Assignment) int { return cmp.Compare(b.RateRPS, a.RateRPS) })
		for i, a := range as {
			a.Rank = min(i+1, lastRank)
		}
	}
}
