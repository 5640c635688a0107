package interference

import "github.com/gpulet/gpulet/shared/profile"

// DemandOf is what a model asks of the GPU's shared parts at a share and batch, as fractions of the
// whole GPU: linear between the measured batches of a share, and between measured shares, no share
// making no demand. A batch beyond the measured ones counts as the nearest.
func DemandOf(p *profile.Profile, share, batch int) profile.Demand {
	lo, hi := 0, 0
	for _, d := range p.Demand {
		if d.Share <= share && d.Share > lo {
			lo = d.Share
		}
		if d.Share >= share && (hi == 0 || d.Share < hi) {
			hi = d.Share
		}
	}
	switch {
	case lo == hi:
		return demandAt(p, lo, batch)
	case hi == 0:
		return demandAt(p, lo, batch)
	}
	var a profile.Demand
	if lo > 0 {
		a = demandAt(p, lo, batch)
	}
	return mix(a, demandAt(p, hi, batch), float64(share-lo)/float64(hi-lo))
}

// demandAt interpolates over the batches of one measured share.
func demandAt(p *profile.Profile, share, batch int) profile.Demand {
	var lo, hi *profile.Demand
	for i := range p.Demand {
		d := &p.Demand[i]
		if d.Share != share {
			continue
		}
		if d.Batch <= batch && (lo == nil || d.Batch > lo.Batch) {
			lo = d
		}
		if d.Batch >= batch && (hi == nil || d.Batch < hi.Batch) {
			hi = d
		}
	}
	switch {
	case lo == nil:
		return *hi
	case hi == nil || lo.Batch == hi.Batch:
		return *lo
	}
	return mix(*lo, *hi, float64(batch-lo.Batch)/float64(hi.Batch-lo.Batch))
}

func mix(a, b profile.Demand, t float64) profile.Demand {
	at := func(x, y float64) float64 { return x + t*(y-x) }
	return profile.Demand{
		SM: at(a.SM, b.SM), Occupancy: at(a.Occupancy, b.Occupancy), Tensor: at(a.Tensor, b.Tensor),
		L2: at(a.L2, b.L2), DRAM: at(a.DRAM, b.DRAM),
	}
}
