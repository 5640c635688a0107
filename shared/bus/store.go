package bus

import (
	"context"
	"errors"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// GetPlan reads the current plan and the revision to give to PutPlan. Before the first plan it
// returns a zero plan and revision 0.
func (b *Bus) GetPlan(ctx context.Context) (plan.Plan, uint64, error) {
	return plan.Plan{}, 0, errors.ErrUnsupported
}

// PutPlan publishes p if the current plan still has revision rev (0: there is none) and returns
// the new revision. ErrConflict means that somebody else published meanwhile: read again.
// rev is the document's revision on the bus; p.Revision is written as it is.
func (b *Bus) PutPlan(ctx context.Context, p plan.Plan, rev uint64) (uint64, error) {
	return 0, errors.ErrUnsupported
}

// WatchPlan sends the current plan and then every newer one. A slow reader gets only the newest.
// The plan is also read again every 5 s. The channel is closed when ctx ends.
func (b *Bus) WatchPlan(ctx context.Context) (<-chan plan.Plan, error) {
	return nil, errors.ErrUnsupported
}

// PlanHistory reads the last plans, at most 16, oldest first; the last one is the current one.
func (b *Bus) PlanHistory(ctx context.Context) ([]plan.Plan, error) {
	return nil, errors.ErrUnsupported
}

// PutHost repeats a host's report; it disappears StateTTL after the last one.
func (b *Bus) PutHost(ctx context.Context, r plan.HostReport) error { return errors.ErrUnsupported }

// PutGpulet repeats a gpu-let's report; it disappears StateTTL after the last one.
func (b *Bus) PutGpulet(ctx context.Context, r plan.GpuletReport) error {
	return errors.ErrUnsupported
}

// DeleteHost takes a host's report back.
func (b *Bus) DeleteHost(ctx context.Context, host string) error { return errors.ErrUnsupported }

// DeleteGpulet takes a gpu-let's report back.
func (b *Bus) DeleteGpulet(ctx context.Context, id string) error { return errors.ErrUnsupported }

// Hosts reads the reports of all live hosts, sorted by host.
func (b *Bus) Hosts(ctx context.Context) ([]plan.HostReport, error) {
	return nil, errors.ErrUnsupported
}

// Gpulets reads the reports of all live gpu-lets, sorted by id.
func (b *Bus) Gpulets(ctx context.Context) ([]plan.GpuletReport, error) {
	return nil, errors.ErrUnsupported
}

// WatchHosts sends what Hosts returns, at first and whenever a report comes or goes.
func (b *Bus) WatchHosts(ctx context.Context) (<-chan []plan.HostReport, error) {
	return nil, errors.ErrUnsupported
}

// PutModel registers a model. Planner only.
func (b *Bus) PutModel(ctx context.Context, m model.Model) error { return errors.ErrUnsupported }

// DeleteModel takes a registered model back; none is fine. Planner only.
func (b *Bus) DeleteModel(ctx context.Context, name string) error { return errors.ErrUnsupported }

// Models reads the registered models, sorted by name. Their Path is empty: it is not carried.
func (b *Bus) Models(ctx context.Context) ([]model.Model, error) { return nil, errors.ErrUnsupported }

// WatchModels sends what Models returns, at first and whenever it changes. A slow reader gets only
// the newest. The channel is closed when ctx ends.
func (b *Bus) WatchModels(ctx context.Context) (<-chan []model.Model, error) {
	return nil, errors.ErrUnsupported
}

// PutProfile publishes what an agent measured on its own hardware.
func (b *Bus) PutProfile(ctx context.Context, p profile.Profile) error { return errors.ErrUnsupported }

// Profiles reads the published profiles, sorted by GPU type and model.
func (b *Bus) Profiles(ctx context.Context) ([]profile.Profile, error) {
	return nil, errors.ErrUnsupported
}

// WatchProfiles sends what Profiles returns, at first and whenever it changes.
func (b *Bus) WatchProfiles(ctx context.Context) (<-chan []profile.Profile, error) {
	return nil, errors.ErrUnsupported
}
