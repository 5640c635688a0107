package profile

// RateAt is what a share of a GPU carries of a model.
type RateAt struct {
	Share int     // percent
	RPS   float64 // samples/s
}

// kneeGain is the least relative gain in rate for which a larger share may be the knee.
const kneeGain = 1.05

// Knee returns the index of the share after the steepest rise of the rate over the share, -1 without
// any rate: what Choi et al., USENIX ATC 2022, call the most efficient partition. Shares ascend; those
// that carry nothing are skipped, and the first that carries something is the knee unless a later one
// carries at least 5 % more than the one before it.
func Knee(rates []RateAt) int {
	knee, last, steepest := -1, -1, 0.0
	for i, r := range rates {
		if r.RPS <= 0 {
			continue
		}
		if knee < 0 {
			knee = i
		} else if b := rates[last]; r.RPS >= b.RPS*kneeGain {
			if rise := (r.RPS - b.RPS) / float64(r.Share-b.Share); rise > steepest {
				knee, steepest = i, rise
			}
		}
		last = i
	}
	return knee
}

// BestRate is the highest rate in samples/s that batches of one size carry back to back on a share,
// and that size, among sizes from 1 to maxBatch (0: all that were measured) whose time is at most
// limitMs; 0, 0 where there is none. With half the SLO as the limit a request may wait for the batch
// before its own.
func (p *Profile) BestRate(share int, limitMs float64, maxBatch int) (rps float64, batch int) {
	batches := p.Batches()
	if len(batches) == 0 {
		return 0, 0
	}
	most := batches[len(batches)-1]
	if maxBatch > 0 {
		most = min(most, maxBatch)
	}
	for b := batches[0]; b <= most; b++ {
		ms, err := p.Latency(share, b)
		if err != nil || ms > limitMs {
			continue
		}
		if v := float64(b) / ms * 1000; v > rps {
			rps, batch = v, b
		}
	}
	return rps, batch
}
