package epoch

import (
	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/shared/plan"
)

// Check judges a plan that somebody else made, at the rates that it carries itself: every rule that
// it breaks with the hosts, models and profiles of s. Guests, which carry nothing, are left out.
func Check(c Config, s State, p plan.Plan) []check.Violation {
	in := assemble(c, s).in
	p = withoutGuests(p)
	p.Unserved = nil
	return check.Plan(in.Input, p)
}
