package pack

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gpulet/gpulet/shared/plan"
)

// state is an assignment in the making: the parts of every device, by index into env.gpus.
type state struct {
	env    *env
	gpus   [][]part
	served []float64 // by model, samples/s
}

func newState(e *env) *state {
	return &state{env: e, gpus: make([][]part, len(e.gpus)), served: make([]float64, len(e.models))}
}

// set replaces the parts of a device by settled ones and keeps the account of what is served.
func (s *state) set(gpu int, parts []part) {
	for _, p := range s.gpus[gpu] {
		for _, sl := range p.slots {
			s.served[sl.m] -= sl.rate
		}
	}
	s.gpus[gpu] = parts
	for _, p := range parts {
		for _, sl := range p.slots {
			s.served[sl.m] += sl.rate
		}
	}
}

// missing is the part of a model's rate that nothing serves yet; sums that differ from the rate by
// rounding count as served.
func (s *state) missing(m int) float64 {
	want := s.env.models[m].rate
	if left := want - s.served[m]; left > want*1e-9 {
		return left
	}
	return 0
}

// complete reports whether every rate is served.
func (s *state) complete() bool {
	for m := range s.served {
		if s.missing(m) > 0 {
			return false
		}
	}
	return true
}

// used counts the devices with at least one part.
func (s *state) used() int {
	n := 0
	for _, parts := range s.gpus {
		if len(parts) > 0 {
			n++
		}
	}
	return n
}

// clone copies parts deeply, so that trying something cannot spoil the state.
func clone(parts []part) []part {
	out := make([]part, len(parts), len(parts)+1)
	n := 0
	for i := range parts {
		n += len(parts[i].slots)
	}
	slots := make([]slot, 0, n+2*len(parts))
	for i := range parts {
		from := len(slots)
		slots = append(slots, parts[i].slots...)
		out[i] = part{parts[i].si, slots[from:len(slots):len(slots)]}
	}
	return out
}

// rateSteps bounds the bisection for a rate: 2^-14 of the rate is left on the table at most.
const rateSteps = 14

// grow finds the highest rate up to want for slot k of part i so that the device still settles,
// and leaves parts settled with it. It returns 0, with parts in an unspecified state, when not
// even least can be had.
func (e *env) grow(c int, parts []part, i, k int, want, least float64) float64 {
	sl := &parts[i].slots[k]
	sl.rate = want
	if e.settle(c, parts) {
		return want
	}
	lo, hi := 0.0, want
	sl.rate = least
	if !(least > 0) || least >= want || !e.settle(c, parts) {
		return 0
	}
	lo = least
	for range rateSteps {
		mid := (lo + hi) / 2
		sl.rate = mid
		if e.settle(c, parts) {
			lo = mid
		} else {
			hi = mid
		}
	}
	sl.rate = lo
	e.settle(c, parts)
	return lo
}

// result turns a state into a plan. Every device settles once more, which also fills in times.
func (s *state) result(algorithm string, opt Options) Result {
	e := s.env
	p := plan.Plan{Algorithm: algorithm, Gpulets: []plan.Gpulet{}, Unserved: map[string]float64{}}
	namer := newNamer(e.in.Current)
	for i, parts := range s.gpus {
		if len(parts) == 0 {
			continue
		}
		d := e.gpus[i]
		e.settle(d.class, parts)
		p.GPUsUsed++
		p.Gpulets = append(p.Gpulets, e.gpulets(d, parts)...)
	}
	namer.name(p.Gpulets)
	slices.SortFunc(p.Gpulets, func(a, b plan.Gpulet) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.GPU, b.GPU), cmp.Compare(b.Share, a.Share), cmp.Compare(a.ID, b.ID))
	})
	rank(p.Gpulets)
	for m, mod := range e.models {
		if left := s.missing(m); left > 0 {
			p.Unserved[mod.name] = left
		}
	}
	p.DesiredGPUs = p.GPUsUsed
	res := Result{Plan: p, Reasons: s.reasons()}
	if opt.Explain {
		res.Explain = s.explain(&res.Plan)
		if b := QuickBound(*e.in); !math.IsInf(b, 0) {
			res.Bound = b
		}
	}
	return res
}

// gpulets puts the parts of a device into a plan.
func (e *env) gpulets(d device, parts []part) []plan.Gpulet {
	out := make([]plan.Gpulet, 0, len(parts))
	for _, pt := range parts {
		g := plan.Gpulet{Host: d.gpu.Host, GPU: d.gpu.Index, GPUType: d.gpu.Type, Share: e.classes[d.class].shares[pt.si]}
		duty := 0.0
		for _, sl := range pt.slots {
			duty += sl.ms
		}
		for _, sl := range pt.slots {
			g.Models = append(g.Models, plan.Assignment{
				Model: e.models[sl.m].name, Batch: sl.batch, Burst: sl.burst, RateRPS: sl.rate, DutyMs: round(duty), ExecMs: round(sl.ms),
				Layout: e.in.Layout(d.gpu.Type, e.models[sl.m].name),
			})
		}
		if e.roomy && d.bursts() && g.Share < burstLimit {
			g.Limit = burstLimit
		}
		slices.SortFunc(g.Models, func(a, b plan.Assignment) int { return cmp.Compare(a.Model, b.Model) })
		out = append(out, g)
	}
	return out
}

// round keeps nanoseconds: what is printed need not carry the noise of a sum.
func round(ms float64) float64 { return math.Round(ms*1e6) / 1e6 }

// rank numbers the gpu-lets of each model from 1, the ones with the most rate first: idle pulls of
// a low rank are answered first, which keeps batches whole.
func rank(gpulets []plan.Gpulet) {
	type ref struct{ g, a int }
	byModel := map[string][]ref{}
	for g := range gpulets {
		for a := range gpulets[g].Models {
			name := gpulets[g].Models[a].Model
			byModel[name] = append(byModel[name], ref{g, a})
		}
	}
	for _, refs := range byModel {
		slices.SortStableFunc(refs, func(x, y ref) int {
			return cmp.Compare(gpulets[y.g].Models[y.a].RateRPS, gpulets[x.g].Models[x.a].RateRPS)
		})
		for i, r := range refs {
			gpulets[r.g].Models[r.a].Rank = i + 1
		}
	}
}

// namer gives gpu-lets their ids: that of the current plan's gpu-let in the same place with the
// most models in common, else a new one.
type namer struct {
	revision uint64
	current  map[string][]plan.Gpulet // by place
	taken    map[string]bool
}

func newNamer(current *plan.Plan) *namer {
	n := &namer{current: map[string][]plan.Gpulet{}, taken: map[string]bool{}}
	if current == nil {
		return n
	}
	n.revision = current.Revision + 1
	for _, g := range current.Gpulets {
		n.current[place(g)] = append(n.current[place(g)], g)
		n.taken[g.ID] = true
	}
	return n
}

func place(g plan.Gpulet) string {
	return fmt.Sprintf("%s/%d/%d/%d", g.Host, g.GPU, g.Share, g.MaxShare())
}

func (n *namer) name(gpulets []plan.Gpulet) {
	for common := maxModels(gpulets); common >= 0; common-- {
		for i := range gpulets {
			if g := &gpulets[i]; g.ID == "" {
				g.ID = n.reuse(*g, common)
			}
		}
	}
	for i := range gpulets {
		if g := &gpulets[i]; g.ID == "" {
			g.ID = n.fresh(*g)
		}
	}
}

func maxModels(gpulets []plan.Gpulet) int {
	n := 0
	for _, g := range gpulets {
		n = max(n, len(g.Models))
	}
	return n
}

// reuse takes the id of a current gpu-let in g's place that has exactly common models in common.
func (n *namer) reuse(g plan.Gpulet, common int) string {
	list := n.current[place(g)]
	for i, old := range list {
		if inCommon(old, g) == common {
			n.current[place(g)] = slices.Delete(slices.Clone(list), i, i+1)
			return old.ID
		}
	}
	return ""
}

func inCommon(a, b plan.Gpulet) int {
	n := 0
	for _, x := range a.Models {
		if slices.ContainsFunc(b.Models, func(y plan.Assignment) bool { return x.Model == y.Model }) {
			n++
		}
	}
	return n
}

// fresh makes an id that no gpu-let has had: the revision to come is in it.
func (n *namer) fresh(g plan.Gpulet) string {
	base := fmt.Sprintf("%s-g%d-s%d-r%d", plan.HostPart(g.Host), g.GPU, g.Share, n.revision)
	id := base
	for i := 1; n.taken[id]; i++ {
		id = fmt.Sprintf("%s-%d", base, i)
	}
	n.taken[id] = true
	return id
}

// reasons says why models are not fully served.
func (s *state) reasons() map[string]string {
	out := map[string]string{}
	for m, mod := range s.env.models {
		if s.missing(m) > 0 {
			out[mod.name] = s.env.reason(m, s.missing(m))
		}
	}
	return out
}

func (e *env) reason(m int, missing float64) string {
	if len(e.gpus) == 0 {
		return "there are no GPUs"
	}
	fastest, known := math.Inf(1), false
	for c := range e.classes {
		t := e.tables[c][m]
		if t == nil {
			continue
		}
		known = true
		for _, r := range t.rows {
			if len(r.ms) > 0 {
				fastest = min(fastest, r.ms[0])
			}
		}
	}
	switch {
	case !known:
		var types []string
		for _, cl := range e.classes {
			types = append(types, cl.gpuType)
		}
		slices.Sort(types)
		return fmt.Sprintf("no profile on %s covers a share these GPUs allow", strings.Join(slices.Compact(types), ", "))
	case 2*fastest > e.models[m].slo:
		return fmt.Sprintf("SLO %.4g ms: the fastest batch of one takes %.4g ms, and a request may wait for one before its own: %.4g ms is the least SLO possible", e.models[m].slo, fastest, 2*fastest)
	}
	return fmt.Sprintf("no room for %.4g of %.4g req/s on these GPUs", missing, e.models[m].rate)
}
