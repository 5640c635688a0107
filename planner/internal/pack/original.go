package pack

import (
	"cmp"
	"math"
	"slices"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
)

// The prototype of the ATC 2022 paper, reproduced: what its scheduler does differently from the
// paper is part of the comparison. It cuts a GPU at most once, into shares of a fixed set; a batch
// gathers for a whole duty cycle; a rest of up to 15 requests/s is left out; a rate counts as
// served when 85 % of it is; and its interference check looks at one neighbour and lets SLOs slip
// by 5 %. So its plans may be unsound, which the checker then says.

// originalParts is the prototype's partition set where the devices do not give one.
var originalParts = []int{20, 40, 50, 60, 80, 100}

const (
	originalSlack    = 15.0 // requests/s that count as nothing
	originalKneeGain = 1.05 // least relative gain in rate of a knee
	originalServed   = 0.85 // of a rate that counts as all
	originalGrace    = 1.05 // on an SLO, for gpu-lets that are not full
)

// onode is a gpu-let of the prototype. Times are float32, as there.
type onode struct {
	gpu, si  int
	share    int
	duty     float32 // ms
	occupied float32 // of the duty cycle
	tasks    []otask
}

type otask struct {
	m, batch   int
	rate       float64 // asked of this gpu-let
	throughput float64
}

type original struct {
	*env
	nodes []*onode
	parts [][]int // [class]: indexes of shares, descending
}

func originalElastic(in problem.Input, _ Options) Result {
	e := newEnv(&in)
	o := &original{env: e}
	for c := range e.classes {
		var parts []int
		for si := len(e.classes[c].shares) - 1; si >= 0; si-- {
			if share := e.classes[c].shares[si]; len(e.gpus[0].gpu.Shares) > 0 || slices.Contains(originalParts, share) {
				parts = append(parts, si)
			}
		}
		o.parts = append(o.parts, parts)
	}
	for gpu := range e.gpus {
		if si := slices.Index(e.classes[e.gpus[gpu].class].shares, 100); si >= 0 {
			o.nodes = append(o.nodes, &onode{gpu: gpu, si: si, share: 100})
		}
	}
	order := e.byDemand()
	slices.Reverse(order)
	for _, m := range order {
		if e.models[m].rate > 0 && !o.place(m) {
			break
		}
	}
	return o.result()
}

// place schedules one model: whole estimate where it fits best, else squeezed into what is empty,
// else shared in time.
func (o *original) place(m int) bool {
	rate := o.models[m].rate
	estimate := o.estimate(o.bestClass(m, rate), m, rate)
	slices.SortStableFunc(estimate, func(a, b *onode) int { return cmp.Compare(b.share, a.share) })
	if o.fits(estimate) {
		rate = o.allocate(estimate, m, rate)
	}
	if rate > originalSlack {
		rate = o.squeeze(m, rate)
	}
	return rate <= originalSlack || o.share(m, rate)
}

// bestClass is the class on which the estimate takes the least share.
func (o *original) bestClass(m int, rate float64) int {
	best, least := 0, math.MaxInt
	for c := range o.classes {
		sum := 0
		for _, n := range o.estimate(c, m, rate) {
			sum += n.share
		}
		if sum > 0 && sum < least {
			best, least = c, sum
		}
	}
	return best
}

// latency of a batch, alone; +Inf where the profile ends.
func (o *original) latency(c, m, batch, si int) float32 {
	t := o.tables[c][m]
	if t == nil || batch < 1 || batch > len(t.rows[si].ms) {
		return float32(math.Inf(1))
	}
	return float32(t.rows[si].ms[batch-1])
}

// crowdedLatency is latency beside the worst single task of the GPU's other gpu-let.
func (o *original) crowdedLatency(n *onode, m, batch int) float32 {
	c := o.gpus[n.gpu].class
	worst := 1.0
	for _, other := range o.nodes {
		if other == n || other.gpu != n.gpu {
			continue
		}
		for _, t := range other.tasks {
			self := problem.Load{Model: o.models[m].name, Share: n.share, Batch: batch}
			load := problem.Load{Model: o.models[t.m].name, Share: other.share, Batch: t.batch}
			worst = max(worst, o.in.Slowdown(o.classes[c].gpuType, self, [][]problem.Load{{load}}))
		}
	}
	return o.latency(c, m, batch, n.si) * float32(worst)
}

// largest is the largest batch that meets the SLO: while gathering at rate if that is positive,
// else back to back.
func (o *original) largest(m int, rate float64, latency func(batch int) float32) int {
	slo := float32(o.models[m].slo)
	best := 0
	for batch := 1; batch <= 32; batch++ {
		l := latency(batch)
		wait := l
		if rate > 0 {
			wait = 1000 * float32(batch) / float32(rate)
		}
		if l+wait <= slo {
			best = batch
		}
	}
	return best
}

// saturated is the batch and the rate with which a share is full.
func (o *original) saturated(c, m, si int) (batch int, rate float64) {
	alone := func(b int) float32 { return o.latency(c, m, b, si) }
	batch = max(1, o.largest(m, 0, alone))
	return batch, float64(batch) * 1000 / float64(alone(batch))
}

// kneePart is the share after the steepest rise of the saturated rate; the whole GPU is no candidate.
func (o *original) kneePart(c, m int) int {
	parts := o.parts[c]
	knee, steepest := parts[len(parts)-1], 0.0
	for i := len(parts) - 1; i > 1; i-- {
		_, low := o.saturated(c, m, parts[i])
		_, high := o.saturated(c, m, parts[i-1])
		rise := (high - low) / float64(o.classes[c].shares[parts[i-1]]-o.classes[c].shares[parts[i]])
		if high >= low*originalKneeGain && rise > steepest {
			knee, steepest = parts[i-1], rise
		}
	}
	return knee
}

// estimate is the gpu-lets that a rate needs: full ones at the knee, and the smallest that carries
// the rest.
func (o *original) estimate(c, m int, rate float64) []*onode {
	var out []*onode
	if len(o.parts[c]) == 0 || o.tables[c][m] == nil {
		return nil
	}
	knee := o.kneePart(c, m)
	for rate > originalSlack {
		batch, full := o.saturated(c, m, knee)
		if !(full > 0) || len(out) > 4*len(o.gpus) {
			return out
		}
		if full >= rate {
			return append(out, o.residue(c, m, knee, rate))
		}
		n := o.node(c, knee)
		n.duty, n.occupied = o.latency(c, m, batch, knee), 1
		n.tasks = []otask{{m, batch, rate, full}}
		out = append(out, n)
		rate = math.Floor(rate - full)
	}
	return out
}

func (o *original) node(c, si int) *onode {
	return &onode{gpu: -1 - c, si: si, share: o.classes[c].shares[si]}
}

// residue is the smallest gpu-let that carries what is left of a rate, at the batch that the knee
// would take.
func (o *original) residue(c, m, knee int, rate float64) *onode {
	batch := max(1, o.largest(m, rate, func(b int) float32 { return o.latency(c, m, b, knee) }))
	gather := float32(batch) * (1000 / float32(rate))
	smallest := knee
	for _, si := range o.parts[c] {
		if si > knee {
			continue
		}
		if l := o.latency(c, m, batch, si); gather < l || float32(o.models[m].slo) < l+gather {
			break
		}
		smallest = si
	}
	n := o.node(c, smallest)
	l := o.latency(c, m, batch, smallest)
	n.duty = max(gather, l)
	n.occupied = l / n.duty
	n.tasks = []otask{{m, batch, rate, float64(batch) * 1000 / float64(n.duty)}}
	return n
}

// fits tries the estimate on the empty gpu-lets without placing it.
func (o *original) fits(estimate []*onode) bool {
	if len(estimate) == 0 {
		return false
	}
	used := map[*onode]int{}
	for _, n := range estimate {
		at := o.bestFit(n, used)
		if at == nil {
			return false
		}
		if used[at] == 0 && at.share == 100 {
			used[at] = n.share
		} else {
			used[at] = 100
		}
	}
	return true
}

// bestFit is the empty gpu-let for an estimated one: a whole GPU, the last such, else the tightest.
func (o *original) bestFit(want *onode, used map[*onode]int) *onode {
	var best *onode
	tightest := 200
	for _, n := range o.nodes {
		if o.gpus[n.gpu].class != -1-want.gpu || len(n.tasks) > 0 || n.share-used[n] < want.share {
			continue
		}
		t := want.tasks[0]
		if o.crowdedLatency(n, t.m, t.batch)+want.duty > float32(o.models[t.m].slo) || !o.neighbourBears(n, want) || !o.remembers(n, t.m) {
			continue
		}
		if n.share == 100 {
			best, tightest = n, 0
		} else if d := n.share - want.share; tightest >= d {
			best, tightest = n, d
		}
	}
	return best
}

// neighbourBears checks the tasks beside n if want's were put there.
func (o *original) neighbourBears(n, want *onode) bool {
	for _, other := range o.nodes {
		if other == n || other.gpu != n.gpu {
			continue
		}
		n.tasks = want.tasks
		for _, t := range other.tasks {
			if o.crowdedLatency(other, t.m, t.batch)+other.duty > float32(o.models[t.m].slo) {
				n.tasks = nil
				return false
			}
		}
		n.tasks = nil
	}
	return true
}

// remembers checks memory.
func (o *original) remembers(n *onode, m int) bool {
	c := o.gpus[n.gpu].class
	if o.classes[c].mem <= 0 {
		return true
	}
	used := o.tables[c][m].mem[len(o.tables[c][m].mem)-1] + o.in.ContextBytes
	for _, other := range o.nodes {
		if other.gpu != n.gpu || len(other.tasks) == 0 {
			continue
		}
		used += o.in.ContextBytes
		for _, t := range other.tasks {
			used += o.tables[c][t.m].mem[len(o.tables[c][t.m].mem)-1]
		}
	}
	return used <= o.classes[c].mem
}

// allocate places an estimate and returns what is left of the rate.
func (o *original) allocate(estimate []*onode, m int, rate float64) float64 {
	for _, want := range estimate {
		n := o.bestFit(want, nil)
		if n == nil {
			break
		}
		if n.share == 100 && want.share < 100 {
			o.cut(n, want.si)
		}
		n.tasks, n.duty, n.occupied = want.tasks, want.duty, want.occupied
		if n.share != want.share { // a larger one: its batch can grow
			o.refit(n, m, rate)
		}
		rate -= n.tasks[0].throughput
	}
	return max(0, rate)
}

func (o *original) refit(n *onode, m int, rate float64) {
	batch := max(1, o.largest(m, rate, func(b int) float32 { return o.crowdedLatency(n, m, b) }))
	l := o.crowdedLatency(n, m, batch)
	n.duty = max(float32(batch)*1000/float32(rate), l)
	n.occupied = l / n.duty
	n.tasks = []otask{{m, batch, rate, float64(batch) * 1000 / float64(n.duty)}}
}

// cut splits an empty whole GPU into share si and the rest.
func (o *original) cut(n *onode, si int) {
	c := o.gpus[n.gpu].class
	rest := slices.Index(o.classes[c].shares, 100-o.classes[c].shares[si])
	n.si, n.share = si, o.classes[c].shares[si]
	if rest >= 0 {
		o.nodes = append(o.nodes, &onode{gpu: n.gpu, si: rest, share: 100 - n.share})
	}
}

// squeeze puts a rate into empty gpu-lets, the largest first, and returns what is left.
func (o *original) squeeze(m int, rate float64) float64 {
	tried := map[*onode]bool{}
	for rate > originalSlack {
		n := o.largestEmpty(tried)
		if n == nil {
			break
		}
		tried[n] = true
		c := o.gpus[n.gpu].class
		if !o.remembers(n, m) || o.tables[c][m] == nil {
			continue
		}
		if n.share == 100 {
			if estimate := o.estimate(c, m, rate); len(estimate) > 0 && estimate[0].share < 100 {
				o.cut(n, estimate[0].si)
			}
		}
		crowded := func(b int) float32 { return o.crowdedLatency(n, m, b) }
		batch := max(1, o.largest(m, 0, crowded))
		duty := crowded(batch)
		if float64(batch)*1000/float64(duty) > rate {
			if batch = o.largest(m, rate, crowded); batch == 0 {
				return rate
			}
			duty = float32(batch) * 1000 / float32(rate)
		}
		n.tasks = []otask{{m, batch, rate, float64(batch) * 1000 / float64(duty)}}
		n.duty, n.occupied = duty, crowded(batch)/duty
		if o.breaks(n) {
			n.tasks, n.duty, n.occupied = nil, 0, 0
			continue
		}
		rate = max(0, rate-n.tasks[0].throughput)
	}
	return rate
}

func (o *original) largestEmpty(tried map[*onode]bool) *onode {
	var best *onode
	for _, n := range o.nodes {
		if len(n.tasks) == 0 && !tried[n] && (best == nil || n.share > best.share) {
			best = n
		}
	}
	return best
}

// breaks checks n's neighbours with the prototype's grace.
func (o *original) breaks(n *onode) bool {
	for _, other := range o.nodes {
		if other == n || other.gpu != n.gpu {
			continue
		}
		sum := float32(0)
		for _, t := range other.tasks {
			sum += o.crowdedLatency(other, t.m, t.batch)
		}
		for _, t := range other.tasks {
			if sum+other.duty > float32(o.models[t.m].slo)*originalGrace {
				return true
			}
		}
	}
	return false
}

// share puts a rate into gpu-lets that have time left, the fullest first; false when some is left.
func (o *original) share(m int, rate float64) bool {
	for rate > originalSlack {
		nodes := slices.Clone(o.nodes)
		slices.SortStableFunc(nodes, func(a, b *onode) int { return cmp.Compare(b.occupied, a.occupied) })
		got := 0.0
		for _, n := range nodes {
			if got = o.shareNode(n, m, rate); got > 0 {
				break
			}
		}
		if got == 0 {
			return false
		}
		rate -= got
	}
	return true
}

// shareNode adds m to a gpu-let at the shorter of both duty cycles and returns the rate it carries.
func (o *original) shareNode(n *onode, m int, rate float64) float64 {
	full := o.in.MaxModels > 0 && len(n.tasks) >= o.in.MaxModels
	if n.occupied >= 1 || full || n.duty == 0 || slices.ContainsFunc(n.tasks, func(t otask) bool { return t.m == m }) || !o.remembers(n, m) {
		return 0
	}
	slo := float32(o.models[m].slo)
	for batch := min(32, int(float64(n.duty)*rate/1000)); batch > 0; batch-- {
		duty := float32(math.Floor(float64(batch) * 1000 / rate))
		l := o.crowdedLatency(n, m, batch)
		if duty <= 0 || duty > n.duty || duty+l >= slo || l/duty >= 1-n.occupied {
			continue
		}
		if got := o.joined(n, m, batch, duty, rate); got > 0 {
			return got
		}
		return 0
	}
	return 0
}

func (o *original) joined(n *onode, m, batch int, duty float32, rate float64) float64 {
	tasks := append(slices.Clone(n.tasks), otask{m, batch, rate, float64(batch) * 1000 / float64(duty)})
	sum := float32(0)
	for i := range tasks {
		t := &tasks[i]
		if t.m != m {
			t.batch = min(32, max(1, int(float64(duty)*t.rate/1000)))
			t.throughput = float64(t.batch) * 1000 / float64(duty)
		}
		sum += o.crowdedLatency(n, t.m, t.batch)
	}
	for _, t := range tasks {
		if sum+duty > float32(o.models[t.m].slo) {
			return 0
		}
	}
	if sum > duty {
		return 0
	}
	n.tasks, n.duty, n.occupied = tasks, duty, sum/duty
	return tasks[len(tasks)-1].throughput
}

// result writes the prototype's plan down as it stands. It claims what the prototype claims: a rate
// of which 85 % is covered is served, spread over its gpu-lets in proportion.
func (o *original) result() Result {
	p := plan.Plan{Algorithm: "elastic", Gpulets: []plan.Gpulet{}, Unserved: map[string]float64{}}
	covered := make([]float64, len(o.models))
	for _, n := range o.nodes {
		for _, t := range n.tasks {
			covered[t.m] += t.throughput
		}
	}
	used := map[int]bool{}
	for _, n := range o.nodes {
		if len(n.tasks) == 0 {
			continue
		}
		used[n.gpu] = true
		d := o.gpus[n.gpu]
		g := plan.Gpulet{Host: d.gpu.Host, GPU: d.gpu.Index, GPUType: d.gpu.Type, Share: n.share}
		for _, t := range n.tasks {
			rate := min(t.throughput, t.throughput*o.models[t.m].rate/covered[t.m])
			if covered[t.m] >= o.models[t.m].rate*originalServed || covered[t.m]+originalSlack >= o.models[t.m].rate {
				rate = t.throughput * o.models[t.m].rate / covered[t.m]
			}
			g.Models = append(g.Models, plan.Assignment{Model: o.models[t.m].name, Batch: t.batch, RateRPS: rate, DutyMs: float64(n.duty), ExecMs: float64(o.crowdedLatency(n, t.m, t.batch)), Layout: o.in.Layout(d.gpu.Type, o.models[t.m].name)})
		}
		p.Gpulets = append(p.Gpulets, g)
	}
	newNamer(o.in.Current).name(p.Gpulets)
	slices.SortStableFunc(p.Gpulets, func(a, b plan.Gpulet) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.GPU, b.GPU))
	})
	rank(p.Gpulets)
	p.GPUsUsed, p.DesiredGPUs = len(used), len(used)
	reasons := map[string]string{}
	for m := range o.models {
		rate := o.models[m].rate
		if rate > 0 && covered[m] < rate*originalServed && covered[m]+originalSlack < rate {
			p.Unserved[o.models[m].name] = rate - covered[m]
			reasons[o.models[m].name] = o.reason(m, rate-covered[m])
		}
	}
	return Result{Plan: p, Reasons: reasons}
}
