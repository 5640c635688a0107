package control

import (
	"context"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// fenced is the bus of a planner that may be deposed at any moment: what changes anything fails with
// errDeposed once its term is over.
//
// A process that is stopped between the question and the message still sends the message when it goes
// on. Of a plan the bus refuses it then, by its revision. The rest is what every leader makes in the
// same way from the same repository and the same plan.
type fenced struct {
	Bus
	leads func() bool
}

func (f fenced) check() error {
	if !f.leads() {
		return errDeposed
	}
	return nil
}

func (f fenced) EnsureBase(ctx context.Context) error {
	if err := f.check(); err != nil {
		return err
	}
	return f.Bus.EnsureBase(ctx)
}

func (f fenced) EnsureQueue(ctx context.Context, q bus.Queue) error {
	if err := f.check(); err != nil {
		return err
	}
	return f.Bus.EnsureQueue(ctx, q)
}

func (f fenced) DeleteQueue(ctx context.Context, model string) error {
	if err := f.check(); err != nil {
		return err
	}
	return f.Bus.DeleteQueue(ctx, model)
}

func (f fenced) PutPlan(ctx context.Context, p plan.Plan, rev uint64) (uint64, error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	return f.Bus.PutPlan(ctx, p, rev)
}

func (f fenced) FencePlan(ctx context.Context, rev uint64) (uint64, error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	return f.Bus.FencePlan(ctx, rev)
}

func (f fenced) PutModel(ctx context.Context, m model.Model) error {
	if err := f.check(); err != nil {
		return err
	}
	return f.Bus.PutModel(ctx, m)
}

func (f fenced) DeleteModel(ctx context.Context, name string) error {
	if err := f.check(); err != nil {
		return err
	}
	return f.Bus.DeleteModel(ctx, name)
}

func (f fenced) PutPlanner(ctx context.Context, r plan.PlannerReport) error {
	if err := f.check(); err != nil {
		return err
	}
	return f.Bus.PutPlanner(ctx, r)
}
