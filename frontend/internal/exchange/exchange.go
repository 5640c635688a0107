// Package exchange takes inference requests through the frontend, whatever protocol they came by.
//
// A protocol's package decodes a request and encodes its answer. What lies between is here: which model
// is meant, whether the request may enter the queue, what it may take of memory, sending it, waiting for
// its answer, and counting how it ended. It neither queues nor batches, and it knows of NATS only what
// the errors of shared/bus say.
package exchange

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/inbox"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// Fleet is what there is to know of the system.
type Fleet interface {
	Models() []model.Model
	Model(name string) (*model.Model, bool)
	// Listed reports whether the registered models are known.
	Listed() bool
	Ready() error
	ModelReady(name string) error
	// Backlog is what waits for the model's gpu-lets.
	Backlog(name string) admit.Backlog
}

// Sender puts a request into its model's queue, and takes it out again. *inbox.Inbox is one.
type Sender interface {
	Send(m *bus.Message) (*inbox.Call, error)
	Answered(ctx context.Context, model, requestID string) *inbox.Call
	Cancel(model, requestID string) error
}

// Options bound what is taken, over all protocols together.
type Options struct {
	Version     string       // of this build, for clients that ask
	MaxBody     int64        // bytes of a request body
	MaxBodies   int64        // bytes of all request bodies held at once
	MaxPayload  func() int64 // bytes of a message on the bus
	MaxInFlight int64        // requests at once
}

// Exchange is safe for concurrent use.
type Exchange struct {
	Fleet
	Options
	Room *Room // for bodies that are being read or sent

	sender   Sender
	metrics  *Metrics
	log      *slog.Logger
	inFlight atomic.Int64
	full     admit.Full
}

// New returns an exchange; it counts in metrics.
func New(f Fleet, s Sender, opts Options, m *Metrics, log *slog.Logger) *Exchange {
	return &Exchange{Fleet: f, Options: opts, Room: NewRoom(opts.MaxBodies), sender: s, metrics: m, log: log}
}

// Lookup finds a model, and its version where one is asked for. Which models there are is not known right
// after a start: that is no reason to call one unknown.
func (x *Exchange) Lookup(name, version string) (*model.Model, *admit.Refusal) {
	m, ok := x.Model(name)
	if !ok && !x.Listed() {
		return nil, &admit.Refusal{Status: wire.Unavailable, Retry: time.Second, Detail: "the registered models have not been read yet"}
	}
	if !ok {
		return nil, admit.Refusef(wire.UnknownModel, "unknown model %q", name)
	}
	if version != "" && version != strconv.Itoa(m.Version) {
		return nil, admit.Refusef(wire.UnknownModel, "model %s has no version %q: expected %d", name, version, m.Version)
	}
	return m, nil
}

// Cancel gives up the request of an id that a client, this one or another, waits for. That it is done is
// told there.
func (x *Exchange) Cancel(m *model.Model, id string) *admit.Refusal {
	if err := bus.CheckToken("request id", id); err != nil {
		return admit.BadRequest(err)
	}
	if err := x.sender.Cancel(m.Name, id); err != nil {
		return admit.Refusef(wire.Unavailable, "%v", err)
	}
	x.metrics.cancels.WithLabelValues(m.Name).Inc()
	return nil
}

// Visit is one request on its way through. Its owner calls Leave exactly once.
type Visit struct {
	x     *Exchange
	start time.Time
	n     int64  // requests in flight when it came, itself among them
	label string // what it is counted under
}

// Enter begins a visit.
func (x *Exchange) Enter() *Visit {
	x.metrics.inFlight.Inc()
	return &Visit{x: x, start: time.Now(), n: x.inFlight.Add(1), label: unknownModel}
}

// Took is how long the visit has taken so far.
func (v *Visit) Took() time.Duration { return time.Since(v.start) }

// Admit refuses the visit where too many requests are in flight.
func (v *Visit) Admit() error { return admit.InFlight(v.n, v.x.MaxInFlight) }

// Model is Lookup of the model that the request is for.
func (v *Visit) Model(name, version string) (*model.Model, error) {
	m, refusal := v.x.Lookup(name, version)
	if refusal != nil {
		return nil, refusal
	}
	v.label = m.Name
	return m, nil
}

// Leave ends a visit and counts how: err is why there is no answer. It returns what to tell the client;
// nil where the request was answered.
func (v *Visit) Leave(ctx context.Context, err error) *admit.Refusal {
	x := v.x
	x.inFlight.Add(-1)
	x.metrics.inFlight.Dec()
	if err == nil {
		x.metrics.observe(v.label, wire.StatusOK, v.Took())
		return nil
	}
	var ref *admit.Refusal
	if !errors.As(err, &ref) {
		x.log.Error("request failed", "model", v.label, "error", err)
		ref = &admit.Refusal{Status: wire.Failed, Detail: err.Error()}
	}
	x.log.LogAttrs(ctx, slog.LevelDebug, "request refused",
		slog.String("model", v.label), slog.String("status", string(ref.Status)), slog.String("detail", ref.Detail))
	x.metrics.observe(v.label, ref.Status, v.Took())
	return ref
}
