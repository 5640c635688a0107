package plan

// Capacities returns what the plan can carry of each model, in samples/s: a batch per duty cycle and
// gpu-let, which may be more than was asked when it was made.
func (p Plan) Capacities() map[string]float64 {
	sum := map[string]float64{}
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			switch {
			case a.RateRPS <= 0: // a guest carries nothing for sure
			case a.DutyMs > 0:
				sum[a.Model] += max(a.RateRPS, float64(a.Batch)*1000/a.DutyMs)
			default:
				sum[a.Model] += a.RateRPS
			}
		}
	}
	return sum
}

// Peaks returns what the plan's gpu-lets can answer of each model at most, in samples/s: one full batch
// after the other, of no other model, by guests as well. It is infinite where the time of a batch is not known.
func (p Plan) Peaks() map[string]float64 {
	sum := map[string]float64{}
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			sum[a.Model] += float64(a.Batch) * 1000 / a.ExecMs
		}
	}
	return sum
}
