package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// queues holds what the queue of each model was made with.
type queues map[string]queue

type queue struct {
	epoch.Queue
	storage string // that the model asked for
}

// ensureQueue makes the queue of a model, or raises its limits to what the plan asks for.
func (p *Planner) ensureQueue(ctx context.Context, m model.Model, next plan.Plan) error {
	has, ok := p.queues[m.Name]
	want := queue{has.Grow(epoch.QueueFor(m, next, p.state.Loads[m.Name], p.bus.MaxPayload())), m.Storage}
	delete(p.cramped, m.Name)
	if ok && want == has {
		return nil
	}
	q := bus.Queue{
		Model: m.Name, File: m.Storage == "file",
		MaxMsgs: want.MaxMsgs, MaxBytes: want.MaxBytes, MaxAge: want.MaxAge,
		AckWait: want.AckWait, MaxAckPending: want.MaxAckPending,
	}
	err := p.bus.EnsureQueue(ctx, q)
	delete(p.fixed, m.Name)
	if errors.Is(err, bus.ErrFixed) {
		// The queue may hold requests: it stays where it is until an operator decides.
		p.fixed[m.Name] = fmt.Errorf("model %s: the queue stays where it is: %w", m.Name, err)
		q.File = !q.File
		err = p.bus.EnsureQueue(ctx, q)
	}
	if errors.Is(err, bus.ErrOverloaded) && ok {
		// The server has no room for a larger one. Plans are made all the same; it is tried again.
		p.cramped[m.Name] = fmt.Errorf("model %s: the queue stays at %d messages and %d bytes, wanted %d and %d: %w",
			m.Name, has.MaxMsgs, has.MaxBytes, want.MaxMsgs, want.MaxBytes, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("queue of %s: %w", m.Name, err)
	}
	p.queues[m.Name] = want
	return nil
}

// makeRoom makes the limits of all queues what a plan asks for, be it one that somebody else published.
func (p *Planner) makeRoom(ctx context.Context, next plan.Plan) error {
	for _, m := range p.state.Models {
		if err := p.ensureQueue(ctx, m, next); err != nil {
			return err
		}
	}
	p.flooded = p.traffic.full()
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
