// Package epoch decides, once per epoch, whether the plan that runs is still good and what should
// replace it.
//
// Decide is a pure function: what was observed goes in, a plan and the reason for it come out. It
// reads no clock, does no I/O and logs nothing, so that the planner and the simulator run the same
// code. How a plan is found is the business of pack; whether it is sound is judged by check.
//
// The steps of one epoch:
//
//  1. the devices of all live hosts, the registered models with a usable profile and the need of
//     each model (package demand) make one problem;
//  2. the problem is packed for the highest need within the hold time, so that noise does not move
//     models; models that cannot meet their SLO on this hardware are planned for a longer one, and
//     what still has no place shares a gpu-let as best it can, so that every model answers;
//  3. the plan that runs is judged: does everything it refers to exist, is it sound, can it carry
//     what is needed now;
//  4. it is replaced if it is broken, if it falls short and the new one serves more, or if the new
//     one saves GPUs for longer than the move costs.
package epoch

import (
	"fmt"
	"sort"
	"time"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// Config is how decisions are made. It does not change between epochs.
type Config struct {
	// Algorithm packs; AlgorithmName is written into its plans.
	Algorithm     pack.Algorithm
	AlgorithmName string
	Options       pack.Options
	// Buffer multiplies every predicted latency; 0 means 1.
	Buffer float64
	// Reserve is the part of every SLO that is spent outside the engine.
	Reserve time.Duration
	// ContextBytes is the least device memory of a gpu-let beside its models, whatever State says.
	ContextBytes int64
	Demand       demand.Config
	// WarmRPS is the least rate every model is planned for, so that a first request finds it
	// loaded. Samples per second.
	WarmRPS float64
	// IdleAfter takes a model off the GPUs when nothing arrived for so long; 0 keeps it warm.
	IdleAfter time.Duration
	// Hold is for how long fewer GPUs must have sufficed before GPUs are given back.
	Hold time.Duration
	// MoveSeconds is what moving one model to another gpu-let is worth, in GPU seconds. A plan that
	// saves g GPUs has to earn its moves within Hold: g x Hold > moves x MoveSeconds.
	MoveSeconds float64
}

// State is everything a decision looks at.
type State struct {
	Now     time.Time
	Hosts   []plan.HostReport
	Gpulets []plan.GpuletReport
	Models  []model.Model // registered
	// Files finds profiles that were shipped or written by hand; nil means none.
	Files problem.Profiles
	// Measured holds the profiles that agents published of their own hardware. They win.
	Measured []profile.Profile
	// Contexts is the device memory of a gpu-let beside its models, by type of GPU.
	Contexts map[string]int64
	// Interference predicts the slowdown by neighbours; nil: none.
	Interference problem.Interference
	// Loads holds what is observed of each model; a model that is missing was not observed yet.
	Loads   map[string]Load
	Current plan.Plan // revision 0: none
	// History is what the decision before this one returned.
	History History
}

// Load is the observed traffic of one model.
type Load struct {
	Estimate demand.Estimate // requests
	// Backlog counts requests stored or fetched and not answered.
	Backlog uint64
	// SamplesPerRequest is the mean size of a request; 0 means 1.
	SamplesPerRequest float64
	// Full: the queue has had no room for a while. What it refuses is part of no other figure.
	Full bool
	// Idle is for how long nothing has arrived.
	Idle time.Duration
}

// Decision is what to do and why.
type Decision struct {
	// Publish says that Plan should replace the current one. Its revision and ids are set, its
	// creation time is not.
	Publish bool
	// Plan is the plan to follow from now on: the new one, or the current one.
	Plan plan.Plan
	// Cause is the kind of reason in one word, for metrics: first, hosts, models, unsound, demand,
	// idle, shrink; steady, stuck, pinned, nothing when Publish is false.
	Cause string
	// Reason is the same in a sentence.
	Reason string
	// Problems are what an operator should see, sorted.
	Problems []string
	// Needs is what each planned model asks for now, without history: samples per second.
	Needs map[string]float64
	// DesiredGPUs is how many GPUs the need of now would take.
	DesiredGPUs int
	// Moves counts the models that the new plan loads somewhere.
	Moves   int
	History History
}

// Causes of decisions. The first group publishes a plan, the second keeps the one there is.
const (
	First   = "first"   // there was no plan
	Hosts   = "hosts"   // the plan uses a device that is gone or changed
	Models  = "models"  // the plan has a model too many, or lacks one
	Unsound = "unsound" // what is known of models or devices changed: the plan breaks its rules
	Demand  = "demand"  // the plan cannot carry what is needed
	Idle    = "idle"    // a model has had no request for long
	Shrink  = "shrink"  // fewer GPUs will do

	Steady  = "steady"  // the plan is good
	Stuck   = "stuck"   // the plan is not good, and nothing better was found
	Pinned  = "pinned"  // somebody keeps the plan in place
	Nothing = "nothing" // there is nothing to plan, or nothing to plan on
)

// Decide makes the decision of one epoch.
func Decide(c Config, s State) Decision {
	a := assemble(c, s)
	d := Decision{Plan: s.Current, Needs: a.needs, History: s.History.next(c, s, a.needs, a.memory)}
	d.Problems = a.problems
	switch {
	case s.Current.Pinned:
		d.keep(Pinned, fmt.Sprintf("revision %d is pinned", s.Current.Revision))
		d.Problems = append(d.Problems, d.Reason+": planner rollback --resume lets planning go on")
		d.DesiredGPUs = s.Current.DesiredGPUs
	case len(a.in.GPUs) == 0:
		d.keep(Nothing, "no host reports a device")
		d.Problems = append(d.Problems, d.Reason+": start worker run on a host")
		d.DesiredGPUs = s.Current.DesiredGPUs
	default:
		d.plan(c, s, a)
	}
	sort.Strings(d.Problems)
	return d
}

// plan packs, judges the current plan and fills in the decision.
func (d *Decision) plan(c Config, s State, a assembly) {
	best := c.solve(a.in.withRates(d.History.peaks(a.needs)))
	if !best.complete() {
		best = c.solve(a.in.withRates(a.needs))
	}
	d.DesiredGPUs = best.plan.DesiredGPUs
	d.Problems = append(d.Problems, best.problems...)
	if best.unsound != "" {
		d.keep(Stuck, best.unsound)
		d.Problems = append(d.Problems, best.unsound)
		return
	}
	fresh := settle(best.plan, s)
	v := judge(best.in.withRates(a.needs), s.Current)
	switch cause, reason := v.cause, v.reason; {
	case cause == "" && fresh.GPUsUsed >= s.Current.GPUsUsed:
		d.keep(Steady, "the plan carries what is needed")
	case cause == "" && !d.History.seasoned(c, s.Now):
		d.keep(Steady, fmt.Sprintf("%d instead of %s would do, but not yet for %v", fresh.GPUsUsed, problem.Count(s.Current.GPUsUsed, "GPU"), c.Hold))
	case cause == "":
		d.shrink(c, s, fresh)
	case cause == Demand && !serves(best.in.withRates(a.needs), fresh, s.Current):
		d.keep(Stuck, reason+"; no plan serves more")
	default:
		d.replace(s, fresh, cause, reason)
	}
}

func (d *Decision) keep(cause, reason string) { d.Cause, d.Reason = cause, reason }

// replace publishes fresh, unless it is the plan that runs.
func (d *Decision) replace(s State, fresh plan.Plan, cause, reason string) {
	change := plan.Diff(s.Current, fresh)
	if s.Current.Revision > 0 && change.Empty() && len(change.Retune) == 0 {
		d.keep(Stuck, reason+"; the new plan is the same")
		return
	}
	fresh.Reason = reason
	d.Publish, d.Plan, d.Moves = true, fresh, change.Moves()
	d.keep(cause, reason)
}

// shrink publishes fresh, which uses fewer GPUs, if that earns the moves.
func (d *Decision) shrink(c Config, s State, fresh plan.Plan) {
	moves := plan.Diff(s.Current, fresh).Moves()
	saved := float64(s.Current.GPUsUsed-fresh.GPUsUsed) * c.Hold.Seconds()
	cost := float64(moves) * c.MoveSeconds
	reason := fmt.Sprintf("%d instead of %s have sufficed for %v", fresh.GPUsUsed, problem.Count(s.Current.GPUsUsed, "GPU"), c.Hold)
	if saved <= cost {
		d.keep(Steady, fmt.Sprintf("%s, but %d moves cost %.0f GPU s and save %.0f", reason, moves, cost, saved))
		return
	}
	d.replace(s, fresh, Shrink, reason)
}
