package agent

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
)

// measuring has models measured on the host's own device and publishes their profiles. All models
// that are known together are measured before the first of their profiles is published: the
// planner would otherwise put load on the device while the others are being measured.
type measuring struct {
	problems chan map[string]string // by model
	models   chan map[string]resolved
	again    chan struct{}
	done     chan struct{}
}

func startMeasuring(ctx context.Context, cfg Config, b Bus) *measuring {
	m := &measuring{
		problems: make(chan map[string]string),
		models:   make(chan map[string]resolved, 1),
		again:    make(chan struct{}, 1),
		done:     make(chan struct{}),
	}
	// A bus that comes back may have lost what was published.
	b.OnReconnect(func() {
		select {
		case m.again <- struct{}{}:
		default:
		}
	})
	w := &measurer{profile: cfg.Profile, bus: b, log: cfg.Log, measured: map[measured]*profile.Profile{}, published: map[measured]bool{}}
	go func() {
		defer close(m.done)
		m.loop(ctx, w)
	}()
	return m
}

// measure sees to it that the models are measured; only the newest set counts.
func (m *measuring) measure(models map[string]resolved) {
	for {
		select {
		case m.models <- models:
			return
		default:
		}
		select {
		case <-m.models:
		default:
		}
	}
}

func (m *measuring) wait() { <-m.done }

// loop measures what it is given, and publishes what could not be published before.
func (m *measuring) loop(ctx context.Context, w *measurer) {
	var models map[string]resolved
	backoff := lifecycle.Backoff{Min: time.Second, Max: 30 * time.Second}
	retry := (<-chan time.Time)(nil)
	for {
		select {
		case models = <-m.models:
		case <-m.again:
			clear(w.published)
		case <-retry:
		case <-ctx.Done():
			return
		}
		if w.profile == nil {
			continue
		}
		problems := w.measure(ctx, models)
		retry = nil
		if err := w.publish(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("profiles not published, trying again", "error", err)
			retry = time.After(backoff.Next())
		} else {
			backoff.Reset()
		}
		select {
		case m.problems <- problems:
		case <-ctx.Done():
			return
		}
	}
}

// measurer is the state of the measuring goroutine.
type measurer struct {
	profile   func(context.Context, model.Model) (*profile.Profile, error)
	bus       Bus
	log       *slog.Logger
	measured  map[measured]*profile.Profile
	published map[measured]bool
}

// measured is what a profile is of: two models may have the same archive.
type measured struct{ model, hash string }

// measure measures what has not been, and returns why some could not be.
func (w *measurer) measure(ctx context.Context, models map[string]resolved) map[string]string {
	problems := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(models)) {
		r := models[name]
		key := measured{name, r.model.Hash}
		if r.problem != "" || w.measured[key] != nil || ctx.Err() != nil {
			continue
		}
		m := r.model
		m.Path = r.archive
		start := time.Now()
		p, err := w.profile(ctx, m)
		if err != nil {
			if ctx.Err() == nil {
				problems[name] = err.Error()
			}
			continue
		}
		w.measured[key] = p
		w.log.Info("profile", "model", name, "gpu_type", p.GPUType, "points", len(p.Points), "took", time.Since(start).Round(time.Millisecond))
	}
	return problems
}

func (w *measurer) publish(ctx context.Context) error {
	for key, p := range w.measured {
		if w.published[key] {
			continue
		}
		if err := w.bus.PutProfile(ctx, *p); err != nil {
			return err
		}
		w.published[key] = true
	}
	return nil
}
