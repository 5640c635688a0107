package profiler

import (
	"context"
	"errors"
	"fmt"

	"github.com/gpulet/gpulet/shared/profile"
)

// share measures a group of models in one process, and those during which it ends once more, each in
// a process of its own.
func (s *Survey) share(ctx context.Context, share int, group []*subject, done func(*subject, []profile.Point)) {
	var p *Process
	defer func() {
		if p != nil {
			_ = p.Close()
		}
	}()
	for i, sub := range group {
		points, err := s.attempt(ctx, &p, sub, share)
		if errors.Is(err, errGone) && ctx.Err() == nil {
			s.note("%s on %d %%: %v: trying again in a process of its own", sub.Name, share, err)
			points, err = s.attempt(ctx, &p, sub, share)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errStart): // so it would for the others
			for _, rest := range group[i:] {
				rest.failed = err
			}
			return
		}
		s.settle(sub, share, points, err)
		done(sub, points)
	}
}

// errStart: no process could be started on a share.
var errStart = errors.New("start a measuring process")

// attempt measures a model on a share, in the process at p or a new one; p is empty after it ended.
func (s *Survey) attempt(ctx context.Context, p **Process, sub *subject, share int) ([]profile.Point, error) {
	if *p == nil {
		started, err := s.start(ctx, share)
		if err != nil {
			return nil, fmt.Errorf("%w on %d %%: %w", errStart, share, err)
		}
		*p = started
	}
	points, err := s.model(ctx, *p, sub, share)
	if errors.Is(err, errGone) {
		*p = nil
	}
	return points, err
}

// settle keeps what was measured of a model on a share, or why it was not.
func (s *Survey) settle(sub *subject, share int, points []profile.Point, err error) {
	sub.tried[share] = true
	switch {
	case err == nil:
	case errors.Is(err, errMemory), errors.Is(err, errGone):
		s.note("%s on %d %%: left out: %v", sub.Name, share, err)
		if len(sub.tried) == len(s.Shares) && len(sub.profile.Points)+len(points) == 0 {
			sub.failed = err
		}
	default:
		sub.failed = fmt.Errorf("share %d%%: %w", share, err)
	}
	if len(points) == 0 {
		return
	}
	Merge(sub.profile, points, nil)
	if err := s.Save(sub.profile); err != nil {
		sub.failed = err
	}
}

// start starts a process on a share, alone on the device. The first is joined by another for a moment,
// which shows what a process takes of the device's memory.
func (s *Survey) start(ctx context.Context, share int) (*Process, error) {
	p, err := s.held(ctx, share)
	if err != nil || s.context > 0 || s.Counters == nil {
		return p, err
	}
	before, err := s.Counters.Used()
	if err != nil {
		s.note("memory of a process: %v", err)
		return p, nil
	}
	other, err := s.held(ctx, share)
	if err != nil {
		_ = p.Close()
		return nil, err
	}
	if after, err := s.Counters.Used(); err == nil && after > before {
		s.context = after - before
	}
	_ = other.Close() // it has served its purpose, however it ends
	return p, nil
}

// held starts a process and sees to it that it is held to its share.
func (s *Survey) held(ctx context.Context, share int) (*Process, error) {
	p, err := s.Start(ctx, Place{Share: share})
	if err != nil || s.Check == nil {
		return p, err
	}
	if err := s.Check(p.Hello, share); err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}
