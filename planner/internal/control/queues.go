package control

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// queues holds the limits that the queue of each model has.
type queues map[string]epoch.Queue

// ensureQueue makes the queue of a model, or raises its limits to what the plan asks for.
func (p *Planner) ensureQueue(ctx context.Context, m model.Model, next plan.Plan) error {
	rate := p.state.Loads[m.Name].Estimate.RateRPS
	has, ok := p.queues[m.Name]
	want := has.Grow(epoch.QueueFor(m, next, rate, p.bus.MaxPayload()))
	if ok && want == has {
		return nil
	}
	err := p.bus.EnsureQueue(ctx, bus.Queue{
		Model: m.Name, File: m.Class == "offline",
		MaxMsgs: want.MaxMsgs, MaxBytes: want.MaxBytes, MaxAge: want.MaxAge,
		AckWait: want.AckWait, MaxAckPending: want.MaxAckPending,
	})
	if err != nil {
		return fmt.Errorf("queue of %s: %w", m.Name, err)
	}
	p.queues[m.Name] = want
	return nil
}

// makeRoom raises the limits of all queues to what a plan asks for, be it one that somebody else
// published.
func (p *Planner) makeRoom(ctx context.Context, next plan.Plan) error {
	for _, m := range p.state.Models {
		if err := p.ensureQueue(ctx, m, next); err != nil {
			return err
		}
	}
	return nil
}

// encode is a model as it is registered.
func encode(m model.Model) string {
	data, err := json.Marshal(m)
	if err != nil { // a model holds nothing that JSON cannot
		panic(fmt.Sprintf("encode model %s: %v", m.Name, err))
	}
	return string(data)
}
