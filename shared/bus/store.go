package bus

import (
	"cmp"
	"context"
	"slices"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// everything matches all keys of a bucket.
const everything = ">"

// PutHost repeats a host's report; it disappears StateTTL after the last one.
func (b *Bus) PutHost(ctx context.Context, r plan.HostReport) error {
	_, err := b.put(ctx, BucketState, hostKey(r.Host), r, anyRevision)
	return err
}

// PutGpulet repeats a gpu-let's report; it disappears StateTTL after the last one.
func (b *Bus) PutGpulet(ctx context.Context, r plan.GpuletReport) error {
	_, err := b.put(ctx, BucketState, gpuletKey(r.ID), r, anyRevision)
	return err
}

// DeleteHost takes a host's report back; none is fine.
func (b *Bus) DeleteHost(ctx context.Context, host string) error {
	return b.remove(ctx, BucketState, hostKey(host))
}

// DeleteGpulet takes a gpu-let's report back; none is fine.
func (b *Bus) DeleteGpulet(ctx context.Context, id string) error {
	return b.remove(ctx, BucketState, gpuletKey(id))
}

// Hosts reads the reports of all live hosts, sorted by host.
func (b *Bus) Hosts(ctx context.Context) ([]plan.HostReport, error) {
	list, err := listOf[plan.HostReport](ctx, b, BucketState, hostKey(everything))
	slices.SortFunc(list, func(x, y plan.HostReport) int { return cmp.Compare(x.Host, y.Host) })
	return list, err
}

// WatchHosts sends what Hosts returns, at first and whenever a report comes or goes. A slow reader
// gets only the newest. The channel is closed when ctx ends.
func (b *Bus) WatchHosts(ctx context.Context) (<-chan []plan.HostReport, error) {
	return watch(ctx, b, BucketState, hostKey(everything), b.Hosts)
}

// Gpulets reads the reports of all live gpu-lets, sorted by id.
func (b *Bus) Gpulets(ctx context.Context) ([]plan.GpuletReport, error) {
	list, err := listOf[plan.GpuletReport](ctx, b, BucketState, gpuletKey(everything))
	slices.SortFunc(list, func(x, y plan.GpuletReport) int { return cmp.Compare(x.ID, y.ID) })
	return list, err
}

// Gpulet reads the report of one gpu-let; ErrNotFound when there is none.
func (b *Bus) Gpulet(ctx context.Context, id string) (plan.GpuletReport, error) {
	return getOf[plan.GpuletReport](ctx, b, BucketState, gpuletKey(id))
}

// PutPlanner repeats the leading planner's report; it disappears StateTTL after the last one.
func (b *Bus) PutPlanner(ctx context.Context, r plan.PlannerReport) error {
	_, err := b.put(ctx, BucketState, KeyPlanner, r, anyRevision)
	return err
}

// Planner reads the leading planner's report; ErrNotFound when none leads.
func (b *Bus) Planner(ctx context.Context) (plan.PlannerReport, error) {
	return getOf[plan.PlannerReport](ctx, b, BucketState, KeyPlanner)
}

// PutStandby repeats the report of a planner that does not lead; it disappears StateTTL after the
// last one.
func (b *Bus) PutStandby(ctx context.Context, r plan.StandbyReport) error {
	_, err := b.put(ctx, BucketState, standbyKey(r.Planner), r, anyRevision)
	return err
}

// DeleteStandby takes the report of a standby planner back; none is fine.
func (b *Bus) DeleteStandby(ctx context.Context, planner string) error {
	return b.remove(ctx, BucketState, standbyKey(planner))
}

// Standbys reads the reports of the planners that do not lead, sorted by name.
func (b *Bus) Standbys(ctx context.Context) ([]plan.StandbyReport, error) {
	list, err := listOf[plan.StandbyReport](ctx, b, BucketState, standbyKey(everything))
	slices.SortFunc(list, func(x, y plan.StandbyReport) int { return cmp.Compare(x.Planner, y.Planner) })
	return list, err
}

// PutModel registers a model. Planner only.
func (b *Bus) PutModel(ctx context.Context, m model.Model) error {
	if err := CheckModel(m.Name); err != nil {
		return err
	}
	_, err := b.put(ctx, BucketModels, m.Name, m, anyRevision)
	return err
}

// DeleteModel takes a registered model back; none is fine. Planner only.
func (b *Bus) DeleteModel(ctx context.Context, name string) error {
	if err := CheckModel(name); err != nil {
		return err
	}
	return b.remove(ctx, BucketModels, name)
}

// Models reads the registered models, sorted by name. Their Path is empty: it is not carried.
func (b *Bus) Models(ctx context.Context) ([]model.Model, error) {
	list, err := listOf[model.Model](ctx, b, BucketModels, everything)
	slices.SortFunc(list, func(x, y model.Model) int { return cmp.Compare(x.Name, y.Name) })
	return list, err
}

// WatchModels sends what Models returns, at first and whenever it changes. A slow reader gets only
// the newest. The channel is closed when ctx ends.
func (b *Bus) WatchModels(ctx context.Context) (<-chan []model.Model, error) {
	return watch(ctx, b, BucketModels, everything, b.Models)
}

// PutProfile publishes what an agent measured on its own hardware.
func (b *Bus) PutProfile(ctx context.Context, p profile.Profile) error {
	_, err := b.put(ctx, BucketProfiles, profileKey(p.GPUType, p.Model), p, anyRevision)
	return err
}

// Profiles reads the published profiles, sorted by GPU type and model.
func (b *Bus) Profiles(ctx context.Context) ([]profile.Profile, error) {
	list, err := listOf[profile.Profile](ctx, b, BucketProfiles, everything)
	slices.SortFunc(list, func(x, y profile.Profile) int {
		return cmp.Or(cmp.Compare(x.GPUType, y.GPUType), cmp.Compare(x.Model, y.Model))
	})
	return list, err
}

// WatchProfiles sends what Profiles returns, at first and whenever it changes. A slow reader gets
// only the newest. The channel is closed when ctx ends.
func (b *Bus) WatchProfiles(ctx context.Context) (<-chan []profile.Profile, error) {
	return watch(ctx, b, BucketProfiles, everything, b.Profiles)
}
