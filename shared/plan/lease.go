package plan

import "time"

// Lease says which planner leads. It is one document, replaced by compare-and-set alone.
type Lease struct {
	// Holder is the planner that leads: host and process id. Empty: it gave the lease back.
	Holder string `json:"holder"`
	// ID differs for every process that ever asked for the lease: names repeat.
	ID string `json:"id"`
	// Term grows with every change of the holder, and never falls. Plans carry the term of the
	// planner that wrote them.
	Term uint64 `json:"term"`
	// TTLMs is for how long the lease holds after it was written. Others take it when they have
	// seen it unchanged for as long, by their own clock.
	TTLMs int64 `json:"ttl_ms"`
	// Since is when the term began, by the holder's clock. For people.
	Since time.Time `json:"since"`
}

// StandbyReport is what a planner says of itself that does not lead.
type StandbyReport struct {
	Planner string    `json:"planner"`
	Time    time.Time `json:"time"`
}
