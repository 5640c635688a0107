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
