package pack

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/profile"
)

// env is a problem in the form that packers compute with: names become indexes, profiles become
// dense tables, identical GPUs become one class. It is built once per call and read only.
type env struct {
	in      *problem.Input
	models  []model
	classes []class
	// gpus lists the devices in planning order: by class, then as given.
	gpus []device
	// tables holds what is known of a model on a class; nil where it cannot run there.
	tables [][]*table // [class][model]
	// roomy is true when the plan is to have headroom: gpu-lets may then use more than their share.
	roomy bool
	// emission is, by class, the largest pressure per whole GPU that any model reaches.
	emission []float64
	// pressure is true when interference has the form of problem.Pressure.
	pressure bool
	// alone is true when there is no interference at all.
	alone bool
}

type model struct {
	name  string
	slo   float64 // ms
	rate  float64 // samples/s
	worth float64

	offline bool // it bursts at no time: it waits
}

// class is a set of interchangeable GPUs.
type class struct {
	gpuType string
	mem     int64 // 0: unknown
	// shares are the candidates for a gpu-let, ascending.
	shares []int
	// measured marks the shares that some profile measured; the others are interpolated.
	measured []bool
	// unit divides every share and 100: the step of knapsacks over shares.
	unit  int
	count int
}

type device struct {
	class int
	gpu   problem.GPU
}

// table is a model on a class. Rows go by index into class.shares; a nil row is a share that the
// profile does not cover.
type table struct {
	maxBatch int
	rows     []row
	mem      []int64 // by batch-1: memory of the loaded model
}

// row is a model on one share: everything by batch-1.
type row struct {
	ms       []float64 // inflated by the buffer, not by interference
	coupling []problem.Coupling
}

// maxPlannedBatch bounds the batches considered where neither model nor profile does.
const maxPlannedBatch = 256

func newEnv(in *problem.Input) *env {
	e := &env{in: in, alone: in.Interference == nil}
	p, ok := in.Interference.(problem.Pressure)
	e.pressure = ok
	for _, m := range in.Models {
		rate := m.Rate
		if !(rate > 0) || math.IsInf(rate, 0) {
			rate = 0
		}
		e.models = append(e.models, model{m.Name, float64(m.SLO) / float64(time.Millisecond), rate, m.Worth(), m.Offline})
	}
	e.addGPUs(in)
	for c := range e.classes {
		e.tables = append(e.tables, make([]*table, len(e.models)))
		for m := range in.Models {
			e.tables[c][m] = e.table(c, in.Models[m], p)
		}
		e.emission = append(e.emission, e.worstEmission(c))
	}
	return e
}

// addGPUs sorts the devices into classes.
func (e *env) addGPUs(in *problem.Input) {
	index := map[string]int{}
	for _, g := range in.GPUs {
		key := fmt.Sprint(g.Type, g.MemBytes, g.Shares)
		c, ok := index[key]
		if !ok {
			c = len(e.classes)
			index[key] = c
			shares := e.candidates(g)
			e.classes = append(e.classes, class{gpuType: g.Type, mem: g.MemBytes, shares: shares, measured: e.measured(g, shares), unit: unit(shares)})
		}
		e.classes[c].count++
		e.gpus = append(e.gpus, device{c, g})
	}
	sort.SliceStable(e.gpus, func(i, j int) bool { return e.gpus[i].class < e.gpus[j].class })
}

// shareStep is the step of candidate shares, percent, on devices that allow any share.
const shareStep = 5

// candidates lists the shares worth planning on a device: those it allows, or else multiples of
// shareStep and what was measured.
func (e *env) candidates(g problem.GPU) []int {
	if len(g.Shares) > 0 {
		out := slices.Clone(g.Shares)
		slices.Sort(out)
		return slices.Compact(out)
	}
	var out []int
	for s := shareStep; s <= 100; s += shareStep {
		out = append(out, s)
	}
	for _, m := range e.models {
		if prof, ok := e.in.Profiles.Get(g.Type, m.name); ok {
			for _, s := range prof.Shares() {
				if s%shareStep == 0 {
					continue
				}
				out = append(out, s)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// measured says of shares which were measured for some model, or are the only ones that the device
// allows.
func (e *env) measured(g problem.GPU, shares []int) []bool {
	out := make([]bool, len(shares))
	for si := range shares {
		out[si] = len(g.Shares) > 0
	}
	for _, m := range e.models {
		prof, ok := e.in.Profiles.Get(g.Type, m.name)
		if !ok {
			continue
		}
		for _, q := range prof.Points {
			if si, found := slices.BinarySearch(shares, q.Share); found {
				out[si] = true
			}
		}
	}
	return out
}

func unit(shares []int) int {
	u := 100
	for _, s := range shares {
		for a, b := u, s; ; a, b = b, a%b {
			if b == 0 {
				u = a
				break
			}
		}
	}
	return u
}

// table tabulates a model on a class, nil when it has no profile there.
func (e *env) table(c int, m problem.Model, p problem.Pressure) *table {
	cl := e.classes[c]
	prof, ok := e.in.Profiles.Get(cl.gpuType, m.Name)
	if !ok || len(prof.Points) == 0 {
		return nil
	}
	t := &table{maxBatch: maxPlannedBatch, rows: make([]row, len(cl.shares))}
	if m.MaxBatch > 0 {
		t.maxBatch = min(t.maxBatch, m.MaxBatch)
	}
	grid := newGrid(prof)
	t.maxBatch = min(t.maxBatch, grid.maxBatch)
	buffer := e.in.BufferFactor()
	usable := false
	for i, s := range cl.shares {
		ms := grid.row(s, t.maxBatch, buffer)
		if ms == nil {
			continue
		}
		usable = true
		t.rows[i].ms = ms
		if p != nil {
			t.rows[i].coupling = p.Couplings(cl.gpuType, m.Name, s, t.maxBatch)
		}
	}
	if !usable {
		return nil
	}
	t.mem = make([]int64, t.maxBatch)
	if cl.mem > 0 {
		for b := range t.mem {
			t.mem[b] = prof.MemBytes(b + 1)
		}
	}
	return t
}

// grid is a profile as a table: for every measured share, latencies of batches 1..maxBatch.
type grid struct {
	maxBatch int
	shares   []int
	ms       [][]float64 // by share, then batch-1; NaN where the share does not cover the batch
}

func newGrid(p *profile.Profile) *grid {
	pts := slices.Clone(p.Points)
	slices.SortFunc(pts, func(a, b profile.Point) int {
		if a.Share != b.Share {
			return a.Share - b.Share
		}
		return a.Batch - b.Batch
	})
	g := &grid{maxBatch: min(pts[len(pts)-1].Batch, maxPlannedBatch)}
	for _, q := range pts {
		g.maxBatch = max(g.maxBatch, min(q.Batch, maxPlannedBatch))
	}
	for from := 0; from < len(pts); {
		to := from
		for to < len(pts) && pts[to].Share == pts[from].Share {
			to++
		}
		g.shares = append(g.shares, pts[from].Share)
		g.ms = append(g.ms, interpolate(pts[from:to], g.maxBatch))
		from = to
	}
	return g
}

// interpolate fills batches 1..maxBatch from the points of one share, ascending in batch.
func interpolate(pts []profile.Point, maxBatch int) []float64 {
	out := make([]float64, maxBatch)
	for b := range out {
		out[b] = math.NaN()
	}
	for i, q := range pts {
		if q.Batch <= maxBatch {
			out[q.Batch-1] = pointMs(q)
		}
		if i == 0 {
			continue
		}
		lo := pts[i-1]
		for b := lo.Batch + 1; b < q.Batch && b <= maxBatch; b++ {
			t := float64(b-lo.Batch) / float64(q.Batch-lo.Batch)
			out[b-1] = pointMs(lo) + t*(pointMs(q)-pointMs(lo))
		}
	}
	return out
}

func pointMs(q profile.Point) float64 {
	if q.P95Ms > 0 {
		return q.P95Ms
	}
	return q.P50Ms
}

// row gives the latencies of a share, interpolated between the measured ones, times buffer. It is
// as long as the covered batches from 1 on; nil when there is none.
func (g *grid) row(share, maxBatch int, buffer float64) []float64 {
	hi := sort.SearchInts(g.shares, share)
	if hi == len(g.shares) {
		return nil
	}
	lo := hi
	if g.shares[hi] != share {
		if hi == 0 {
			return nil
		}
		lo = hi - 1
	}
	t := 0.0
	if lo != hi {
		t = float64(share-g.shares[lo]) / float64(g.shares[hi]-g.shares[lo])
	}
	out := make([]float64, 0, maxBatch)
	for b := range maxBatch {
		v := g.ms[lo][b] + t*(g.ms[hi][b]-g.ms[lo][b])
		if math.IsNaN(v) {
			break
		}
		out = append(out, v*buffer)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
