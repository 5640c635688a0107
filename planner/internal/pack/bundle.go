package pack

import (
	"cmp"
	"slices"
)

// smallPiece is the fraction of its smallest gpu-let below which a demand is better shared in time.
const smallPiece = 0.6

// smallest returns the index of the smallest share with which m meets its SLO on class c at level
// l, and the rate that it gives; -1 when there is none.
func (f *filler) smallest(c, l, m int) (si int, rate float64) {
	if f.env.tables[c][m] == nil {
		return -1, 0
	}
	for si := range f.env.classes[c].shares {
		if rate := f.pieceOf(c, l, m, si); rate > 0 {
			return si, rate
		}
	}
	return -1, 0
}

// bundle takes the small demands out of d and returns them made up into gpu-lets of class c, first
// fit, those that occupy most first. A bundle is worth the share it takes: what is small has to be
// placed too.
func (f *filler) bundle(c int, d demand) demand {
	type small struct {
		m, si int
		rate  float64
		load  float64 // part of its gpu-let that it occupies
	}
	l := len(f.levels) - 1
	rest := demand{}
	var smalls []small
	for k, m := range d.models {
		si, rate := f.smallest(c, l, m)
		if si >= 0 && d.left[k] < smallPiece*rate {
			smalls = append(smalls, small{m, si, d.left[k], d.left[k] / rate})
			continue
		}
		rest.models = append(rest.models, m)
		rest.left = append(rest.left, d.left[k])
		rest.price = append(rest.price, d.price[k])
	}
	slices.SortStableFunc(smalls, func(a, b small) int { return cmp.Compare(b.load, a.load) })
	for _, sm := range smalls {
		if !f.join(c, l, rest.bundles, slot{m: sm.m, rate: sm.rate}) {
			p := part{sm.si, []slot{{m: sm.m, rate: sm.rate}}}
			share := f.env.classes[c].shares[sm.si]
			rest.bundles = append(rest.bundles, bundle{c, p, float64(share) / 100})
		}
	}
	return rest
}

// join adds a slot to the first bundle that still settles with it at the assumed pressure, and whose
// models fit the memory of a GPU.
func (f *filler) join(c, l int, bundles []bundle, sl slot) bool {
	for i := range bundles {
		p := &bundles[i].part
		trial := []part{{p.si, append(slices.Clone(p.slots), sl)}}
		share := f.env.classes[c].shares[p.si]
		if f.env.settleUnder(c, trial, f.assumed(c, l, share), share < 100) && f.env.fits(c, trial) {
			p.slots = trial[0].slots
			return true
		}
	}
	return false
}
