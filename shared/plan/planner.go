package plan

import "time"

// PlannerReport is what the leading planner says of itself, at every look at the system.
type PlannerReport struct {
	Planner  string    `json:"planner"`  // which process: host and process id
	Term     uint64    `json:"term"`     // that it leads
	Revision uint64    `json:"revision"` // of the plan it follows
	Time     time.Time `json:"time"`
	// Models holds what it observes of every registered model, sorted by name.
	Models []ModelDemand `json:"models"`
	// Problems are things an operator should see, sorted.
	Problems []string `json:"problems,omitempty"`
}

// ModelDemand is the traffic of one model as the planner sees it.
type ModelDemand struct {
	Model string  `json:"model"`
	SLOMs float64 `json:"slo_ms"`
	// RateRPS is the smoothed rate of arriving requests per second.
	RateRPS float64 `json:"rate_rps"`
	// NeedRPS is what a plan is asked to carry (samples per second): RateRPS with trend, margin and
	// drain, or the warm minimum.
	NeedRPS float64 `json:"need_rps"`
	// PlannedRPS is what the current plan carries (samples per second).
	PlannedRPS float64 `json:"planned_rps"`
	// Pending and InFlight are the requests stored and not fetched, and fetched and not answered.
	Pending  uint64 `json:"pending"`
	InFlight uint64 `json:"in_flight"`
	// OldestMs is the age of the oldest unanswered request, 0 when there is none.
	OldestMs float64 `json:"oldest_ms"`
}
