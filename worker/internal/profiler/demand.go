package profiler

import (
	"cmp"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/profile"
)

// Counters are a device's own counters: of all that runs on it, so they say something of a model
// only while it runs alone.
type Counters interface {
	// Used is the device memory in use, in bytes.
	Used() (int64, error)
	// Begin starts an interval, and End returns what the device did in it: shares and batch unset.
	Begin() error
	End() (profile.Demand, error)
}

// Counters are read over a window in which a model runs without a pause.
const (
	counterSettle = 20 * time.Millisecond
	counterWindow = 150 * time.Millisecond
	counterRuns   = 3 // at least so many runs of a slow batch
)

// demand reads the device's counters while a few batches run.
func (s *Survey) demand(p *Process, sub *subject, points []profile.Point) error {
	if len(points) == 0 {
		return nil
	}
	few := []profile.Point{points[0], points[len(points)/2], points[len(points)-1]}
	few = slices.CompactFunc(few, func(a, b profile.Point) bool { return a.Batch == b.Batch })
	for _, q := range few {
		window := max(counterWindow, time.Duration(counterRuns*q.P50Ms*float64(time.Millisecond)))
		end := make(chan error, 1)
		go func() {
			_, err := p.timed(Request{Op: opLoop, Model: sub.Name, Batch: q.Batch, Settle: counterSettle, Window: window})
			end <- err
		}()
		d, counted := s.count(window)
		if err := <-end; err != nil {
			return err
		}
		if counted != nil {
			s.note("no counters: %v", counted)
			s.Counters = nil
			return nil
		}
		d.Share, d.Batch = q.Share, q.Batch
		sub.profile.Demand = slices.DeleteFunc(sub.profile.Demand, func(o profile.Demand) bool { return o.Share == d.Share && o.Batch == d.Batch })
		sub.profile.Demand = append(sub.profile.Demand, d)
	}
	slices.SortFunc(sub.profile.Demand, func(a, b profile.Demand) int {
		return cmp.Or(cmp.Compare(a.Share, b.Share), cmp.Compare(a.Batch, b.Batch))
	})
	return nil
}

// count reads the counters over a window that begins when the model has settled.
func (s *Survey) count(window time.Duration) (profile.Demand, error) {
	time.Sleep(counterSettle)
	if err := s.Counters.Begin(); err != nil {
		return profile.Demand{}, err
	}
	time.Sleep(window)
	return s.Counters.End()
}
