// Package sim runs a fleet in virtual time: requests arrive, queues hold them, gpu-lets batch and
// run them beside their neighbours, and once per epoch the planner decides.
//
// It is a discrete-event simulation of the system, not a second opinion about it: the batcher is
// shared/batch, as in a gpu-let; the decisions are those of package epoch, as in planner run; a plan
// takes effect as an agent would make it do (make before break, host by host). What it models by
// itself is time: how long a batch takes (profile times interference, re-evaluated whenever a
// neighbour starts or stops), how long a gpu-let takes to start, how far apart requests arrive.
//
// It is a pure function of its Config: no clock, no I/O, one seed.
package sim

import (
	"fmt"
	"time"

	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// Config is a system and what happens to it.
type Config struct {
	Hosts    []plan.HostReport
	Models   []model.Model
	Profiles problem.Profiles
	// Interference is how neighbours really slow each other down; nil: not at all.
	Interference problem.Interference
	// Traffic holds the arrivals of each model; a model without gets none.
	Traffic map[string]Traffic
	// Plan is the plan at the beginning, whose gpu-lets are ready. Without Steering it stays.
	Plan plan.Plan
	// Steering plans as the system runs; nil leaves the plan alone. If Plan is empty, the first
	// decision knows the rates of the beginning and its gpu-lets are ready at once: the simulation
	// starts with a warm system, not with an empty one.
	Steering *Steering
	Duration time.Duration
	// Row is the time that one row of the result covers; 0: an epoch, or the whole duration.
	Row time.Duration
	// Start is how long a new gpu-let takes until it loads, Load how long each model then takes.
	Start, Load time.Duration
	// Overhead is time per batch that the engine is not busy and runs nothing else either.
	Overhead time.Duration
	Seed     uint64
}

// Steering is how the planner of the simulation decides.
type Steering struct {
	Decide                 epoch.Config
	Interference           problem.Interference // what the planner believes; nil: none
	Epoch, Observe, MinGap time.Duration
}

// Result is what happened.
type Result struct {
	Rows   []Row
	Models []ModelResult // sorted by name
	Total  Counts
	// GPUSeconds integrates the GPUs that hold at least one gpu-let.
	GPUSeconds float64
	Plans      int // published
	Moves      int // models loaded by plans after the first
	// Problems are those of the last decision.
	Problems []string
}

// Counts are requests by what became of them.
type Counts struct {
	Arrived uint64
	OK      uint64 // answered within their SLO
	Late    uint64 // answered after it
	Expired uint64 // given up
}

// Violations is the share of finished requests that missed their SLO.
func (c Counts) Violations() float64 {
	done := c.OK + c.Late + c.Expired
	if done == 0 {
		return 0
	}
	return float64(c.Late+c.Expired) / float64(done)
}

// Add sums.
func (c *Counts) Add(o Counts) {
	c.Arrived += o.Arrived
	c.OK += o.OK
	c.Late += o.Late
	c.Expired += o.Expired
}

// Row is a stretch of time. Requests count where they finished.
type Row struct {
	Begin, End time.Duration
	Counts
	GPUs   float64 // mean in use
	Moves  int
	Causes []string // of the plans published
}

// ModelResult is one model over the whole time.
type ModelResult struct {
	Model string
	Counts
	P50, P99 time.Duration // of answered requests
}

// maxArrivals bounds the requests of a simulation: some minutes of computing, and what their queues
// take in memory if nothing serves them.
const maxArrivals = 1e8

// Validate names the first thing that cannot be simulated.
func (c *Config) Validate() error {
	switch {
	case c.Duration <= 0:
		return fmt.Errorf("duration %v: must be positive", c.Duration)
	case c.Start < 0 || c.Load < 0 || c.Overhead < 0 || c.Row < 0:
		return fmt.Errorf("start %v, load %v, overhead %v, row %v: must not be negative", c.Start, c.Load, c.Overhead, c.Row)
	case c.Profiles == nil:
		return fmt.Errorf("profiles: none given")
	}
	known, arrivals := map[string]bool{}, 0.0
	for _, m := range c.Models {
		if m.SLO <= 0 {
			return fmt.Errorf("model %s: slo %v: must be positive", m.Name, m.SLO)
		}
		known[m.Name] = true
	}
	for name, t := range c.Traffic {
		if !known[name] {
			return fmt.Errorf("traffic for model %s: there is no such model", name)
		}
		if err := t.Validate(); err != nil {
			return fmt.Errorf("traffic for model %s: %w", name, err)
		}
		arrivals += t.expected(c.Duration)
	}
	if !(arrivals <= maxArrivals) {
		return fmt.Errorf("found about %.3g requests, the rates over %v: expected at most %.0e", arrivals, c.Duration, maxArrivals)
	}
	if s := c.Steering; s != nil && (s.Epoch <= 0 || s.Observe <= 0 || s.Observe > s.Epoch) {
		return fmt.Errorf("epoch %v, observe %v: expected an epoch of at least one look", s.Epoch, s.Observe)
	}
	return nil
}

// Run simulates. After Duration nothing arrives any more, and what is held is still finished.
func Run(c Config) (Result, error) {
	if err := c.Validate(); err != nil {
		return Result{}, err
	}
	w, err := newWorld(c)
	if err != nil {
		return Result{}, err
	}
	w.run()
	return w.result(), w.err
}
