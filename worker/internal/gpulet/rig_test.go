package gpulet_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/gpulet"
	"github.com/gpulet/gpulet/worker/internal/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a queue for each model, a client, and gpu-lets with a small engine.
type rig struct {
	t        testing.TB
	srv      *embedded.Server
	planner  *bus.Bus
	client   *bus.Bus
	inbox    *bus.Inbox
	engine   *doubler
	options  rigOptions
	onReply  func(bus.Reply)
	unstored sync.WaitGroup // requests on their way to the queue

	gpulets []*served

	mu      sync.Mutex // guards the fields below
	replies map[string][]wire.Reply
	changed chan struct{} // closed when a reply comes
}

type rigOptions struct {
	models  []string
	batch   int
	timeout time.Duration // of the models
	ackWait time.Duration
	null    bool          // the engine returns zeros at once
	none    bool          // start no gpu-let
	execMs  float64       // of a batch, by the plan; 0: 1
	grace   time.Duration // for draining
	images  bool          // the models take grey images of 4 x 4
	tap     *tap          // between the gpu-lets and the server; nil: none
	serving engine.Engine // nil: the doubler
	archive string        // of models, for that engine
	verbose bool
	box     *blackbox.Recorder
	hang    time.Duration // of Config.HangAfter
}

// served is a running gpu-let.
type served struct {
	rig      *rig
	commands chan link.Command
	cancel   context.CancelFunc
	err      chan error

	mu      sync.Mutex // guards the fields below
	last    plan.GpuletReport
	changed chan struct{} // closed at every report
}

func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	if o.batch == 0 {
		o.batch = 4
	}
	if o.timeout == 0 {
		o.timeout = 10 * time.Second
	}
	if o.execMs == 0 {
		o.execMs = 1
	}
	if o.grace == 0 {
		o.grace = 10 * time.Second
	}
	if o.ackWait == 0 {
		o.ackWait = time.Second
	}
	r := &rig{t: t, options: o, engine: newDoubler(o.null), replies: map[string][]wire.Reply{}, changed: make(chan struct{})}
	r.srv = embeddedtest.StartTest(t)
	r.planner = embeddedtest.Connect(t, r.srv, bus.RolePlanner)
	if err := r.planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range o.models {
		r.ensure(m)
	}
	r.client = embeddedtest.Connect(t, r.srv, bus.RoleClient)
	var err error
	if r.inbox, err = r.client.NewInbox(r.receive); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.inbox.Close)
	t.Cleanup(r.unstored.Wait) // before the connection is closed: the server may have answered the request first
	if !o.none {
		r.start(o.models...)
	}
	return r
}

// ensure makes the queue of a model.
func (r *rig) ensure(mdl string) {
	r.t.Helper()
	q := bus.Queue{Model: mdl, MaxMsgs: 100_000, MaxBytes: 1 << 30, MaxAge: time.Minute, AckWait: r.options.ackWait, MaxAckPending: 10_000}
	if err := r.planner.EnsureQueue(r.t.Context(), q); err != nil {
		r.t.Fatal(err)
	}
}

// waitEmpty waits until everything that was sent to a queue has been acknowledged.
func (r *rig) waitEmpty(mdl string) {
	r.t.Helper()
	r.unstored.Wait()
	// The server counts for a consumer a moment after it has stored; what is stored is counted at once.
	r.waitLag(mdl, func(l bus.Lag) bool { return l.Pending == 0 && l.AckPending == 0 && l.Bytes == 0 })
}

// waitLag asks for a queue's state until it satisfies ok.
func (r *rig) waitLag(mdl string, ok func(bus.Lag) bool) {
	r.t.Helper()
	for limit := time.Now().Add(30 * time.Second); ; {
		lag, err := r.planner.Lag(r.t.Context(), mdl)
		if err != nil {
			r.t.Fatal(err)
		}
		if ok(lag) {
			return
		}
		if time.Now().After(limit) {
			r.t.Fatalf("waited 30s for the queue of %s: %+v", mdl, lag)
		}
	}
}

// start starts a gpu-let and has it serve the models.
func (r *rig) start(models ...string) *served {
	r.t.Helper()
	s := &served{rig: r, commands: make(chan link.Command, 16), err: make(chan error, 1), changed: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	var worker *bus.Bus
	if r.options.tap != nil {
		worker = r.options.tap.connect(r.t, r.srv)
	} else {
		worker = embeddedtest.Connect(r.t, r.srv, bus.RoleWorker)
	}
	out := io.Discard
	if r.options.verbose {
		out = os.Stderr
	}
	eng := engine.Engine(r.engine)
	if r.options.serving != nil {
		eng = r.options.serving
	}
	cfg := gpulet.Config{
		ID: "g" + strconv.Itoa(len(r.gpulets)), Host: "h", Share: 50, Device: "cpu", Engine: eng, Bus: worker,
		Commands: s.commands, Report: s.reported, Grace: r.options.grace, HangAfter: r.options.hang, Box: r.options.box,
		Log: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	go func() { s.err <- gpulet.Run(ctx, cfg) }()
	r.gpulets = append(r.gpulets, s)
	r.t.Cleanup(func() { _ = s.stop() })
	s.assign(1, models...)
	return s
}

// stop drains the gpu-let and returns what Run returned. Stopping twice returns the same.
func (s *served) stop() error {
	s.cancel()
	err := <-s.err
	s.err <- err
	return err
}

// ended returns what Run returned, once it has.
func (s *served) ended() error {
	err := <-s.err
	s.err <- err
	return err
}

func (s *served) assign(rev uint64, models ...string) {
	c := link.Command{Op: link.Assign, Revision: rev}
	for _, m := range models {
		c.Models = append(c.Models, s.rig.assignment(m))
	}
	s.commands <- c
}

// assignment is what a gpu-let is told of a model: "bulk" is of class offline, and "guest" is promised
// nothing.
func (r *rig) assignment(name string) link.Assignment {
	shape := []int64{-1}
	if r.options.images {
		shape = []int64{1, 4, 4}
	}
	class, rate := "interactive", 1.0
	switch name {
	case "bulk":
		class = "offline"
	case "guest":
		rate = 0
	}
	return link.Assignment{
		Assignment: plan.Assignment{Model: name, Batch: r.options.batch, ExecMs: r.options.execMs, RateRPS: rate},
		Config: model.Model{
			Config: model.Config{
				Name: name, Class: class, SLO: r.options.timeout / 2, Timeout: r.options.timeout, MaxBatch: 2 * r.options.batch,
				Inputs:     []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: shape}},
				Outputs:    []tensor.Spec{{Name: "y", DType: tensor.FP32, Shape: shape}, {Name: "n", DType: tensor.INT32, Shape: []int64{}}},
				Preprocess: map[string]model.Preprocess{"x": {Accept: []tensor.DType{tensor.UINT8}}},
			},
			Version: 7, Hash: "hash of " + name,
		},
		Archive: cmp.Or(r.options.archive, "/models/"+name),
	}
}

func (s *served) reported(r plan.GpuletReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = r
	close(s.changed)
	s.changed = make(chan struct{})
}

// waitFor waits for a report that satisfies ok.
func (s *served) waitFor(what string, ok func(plan.GpuletReport) bool) plan.GpuletReport {
	s.rig.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		last, changed := s.last, s.changed
		s.mu.Unlock()
		if ok(last) {
			return last
		}
		select {
		case <-changed:
		case <-limit:
			s.rig.t.Fatalf("waited 30s for %s: last report %+v", what, last)
		}
	}
}

// waitReady waits until the first gpu-let serves revision rev.
func (r *rig) waitReady(rev uint64) plan.GpuletReport {
	r.t.Helper()
	return r.gpulets[0].waitFor(fmt.Sprintf("revision %d", rev), func(p plan.GpuletReport) bool {
		return p.State == plan.Ready && p.Revision == rev
	})
}

// report asks for a report that is at least as new as now.
func (r *rig) report() plan.GpuletReport {
	now := time.Now()
	return r.gpulets[0].waitFor("a new report", func(p plan.GpuletReport) bool { return p.Time.After(now) })
}

func (r *rig) receive(rep bus.Reply) {
	if r.onReply != nil {
		r.onReply(rep)
		return
	}
	got, err := wire.DecodeReply(rep.Get, rep.Body)
	if err != nil {
		r.t.Errorf("reply %s: %v", rep.Token, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replies[rep.Token] = append(r.replies[rep.Token], got)
	close(r.changed)
	r.changed = make(chan struct{})
}

// wait returns the first reply to each of the requests.
func (r *rig) wait(ids ...string) []wire.Reply {
	r.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		r.mu.Lock()
		var got []wire.Reply
		missing := ""
		for _, id := range ids {
			if len(r.replies[id]) > 0 {
				got = append(got, r.replies[id][0])
				continue
			}
			missing = id
		}
		changed := r.changed
		r.mu.Unlock()
		if missing == "" {
			return got
		}
		select {
		case <-changed:
		case <-limit:
			r.t.Fatalf("waited 30s for %d replies, %d came; %s is missing", len(ids), len(got), missing)
		}
	}
}

// publish sends a request without waiting for the queue to have it.
func (r *rig) publish(m *bus.Message) {
	r.t.Helper()
	r.unstored.Add(1)
	if err := r.client.PublishAsync(m, func(_ bus.Receipt, err error) {
		defer r.unstored.Done()
		if err != nil {
			r.t.Errorf("publish %s: %v", m.RequestID, err)
		}
	}); err != nil {
		r.t.Fatal(err)
	}
}

// send sends a request of id with one sample per value, each of one element.
func (r *rig) send(mdl, id string, values ...float32) {
	r.t.Helper()
	r.publish(&bus.Message{Model: mdl, RequestID: id, ReplyTo: r.inbox.Address(id), Body: body(r.t, len(values), values...)})
}

// body is a request of n samples, which share the values.
func body(t testing.TB, n int, values ...float32) []byte {
	t.Helper()
	req := wire.Request{Inputs: []tensor.Tensor{{
		Name: "x", DType: tensor.FP32, Shape: []int64{int64(n), int64(len(values) / n)}, Data: floats(values...),
	}}}
	data, err := wire.EncodeRequest(wire.TypeMsgpack, req)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (r *rig) body(n int) []byte { return body(r.t, n, make([]float32, n)...) }

func floats(values ...float32) []byte {
	var data []byte
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return data
}

// doubler is an engine whose models return twice their input, and how many samples ran together.
type doubler struct {
	null  bool
	takes time.Duration // of a run
	gate  gate
	// jpegs lets images through to being decoded.
	jpegs gate

	loading   gate // of Load
	staging   gate // of Stage
	preparing gate // of Prepare
	stall     gate // of a run with the value stalls

	mu       sync.Mutex // guards the fields below
	broken   map[string]error
	cramped  error // why nothing can be prepared; nil: it can
	loads    map[string]int
	specs    []engine.Spec // of loads
	prepared [][]int       // by Prepare
	open     int           // models loaded and not closed
	staged   int           // batches staged
	held     int           // of these, not freed
	ahead    int           // of these, run
	worst    int           // most samples of a run
	runs     int
}

// prepares makes preparing models fail from now on; nil mends it.
func (d *doubler) prepares(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cramped = err
}

// count adds n to one of the counters.
func (d *doubler) count(counter *int, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*counter += n
}

// gate lets runs through while it is open and tells when one waits.
type gate struct {
	mu      sync.Mutex // guards the fields below
	closed  chan struct{}
	waiting chan struct{}
}

// shut makes runs wait and returns a channel that a waiting run writes to, and the opener.
func (g *gate) shut() (waiting <-chan struct{}, open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed, g.waiting = make(chan struct{}), make(chan struct{}, 1024)
	return g.waiting, sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(g.closed)
		g.closed = nil
	})
}

func (g *gate) pass() {
	g.mu.Lock()
	closed, waiting := g.closed, g.waiting
	g.mu.Unlock()
	if closed != nil {
		waiting <- struct{}{}
		<-closed
	}
}

func newDoubler(null bool) *doubler {
	return &doubler{null: null, broken: map[string]error{}, loads: map[string]int{}}
}

// breaks makes loading a model fail from now on; nil mends it.
func (d *doubler) breaks(model string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken[model] = err
}

func (d *doubler) counts(model string) (loads, open int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.loads[model], d.open
}

func (d *doubler) Info() engine.Info                    { return engine.Info{Name: "doubler", JPEG: true} }
func (d *doubler) Device(string) (engine.Device, error) { return engine.Device{}, nil }
func (d *doubler) Close() error                         { return nil }

// DecodeJPEG makes a picture that is flat, its colour a byte of the JPEG's last.
func (d *doubler) DecodeJPEG(pixels, data []byte, _, _, _ int) error {
	d.jpegs.pass()
	for i := range pixels {
		pixels[i] = data[len(data)-1]
	}
	return nil
}

func (d *doubler) Load(_ context.Context, s engine.Spec) (engine.Model, error) {
	d.loading.pass()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.loads[s.Model.Name]++
	if err := d.broken[s.Model.Name]; err != nil {
		return nil, err
	}
	d.open++
	d.specs = append(d.specs, s)
	return &doubling{d: d}, nil
}

type doubling struct {
	d      *doubler
	closed bool
	zeros  []byte
}

// Values that make a run fail.
const (
	poison  = float32(-1)
	lost    = float32(-2) // the device breaks
	tooMany = float32(-3) // the output has too many samples
	// unstageable makes staging fail where it comes first; it runs all the same.
	unstageable = float32(-4)
	stalls      = float32(-5) // waits at the gate of its name
)

func (m *doubling) Run(in []engine.Input) (engine.Result, error) {
	if m.closed {
		return nil, errors.New("closed model")
	}
	n := in[0].Shape[0]
	if !m.d.null {
		m.d.mu.Lock()
		m.d.worst = max(m.d.worst, int(n))
		m.d.runs++
		m.d.mu.Unlock()
	}
	if m.d.null {
		if len(m.zeros) < int(4*n) {
			m.zeros = make([]byte, 4*n)
		}
		return result{
			{Name: "y", DType: tensor.FP32, Shape: []int64{n, 1}, Data: m.zeros[:4*n]},
			{Name: "n", DType: tensor.INT32, Shape: []int64{n}, Data: m.zeros[:4*n]},
		}, nil
	}
	m.d.gate.pass()
	for start := time.Now(); time.Since(start) < m.d.takes; { // a sleep would take a millisecond
	}
	y := tensor.Tensor{Name: "y", DType: tensor.FP32, Shape: append([]int64{}, in[0].Shape...)}
	for _, segment := range in[0].Segments {
		for ; len(segment) > 0; segment = segment[in[0].DType.Size():] {
			v := float32(segment[0])
			if in[0].DType == tensor.FP32 {
				v = math.Float32frombits(binary.LittleEndian.Uint32(segment))
			}
			switch v {
			case poison:
				return nil, &engine.Error{Code: engine.ERUN, Msg: "poisoned sample"}
			case lost:
				return nil, &engine.Error{Code: engine.EDEVICE, Msg: "device lost"}
			case stalls:
				m.d.stall.pass()
			case tooMany:
				y.Shape[0]++
			}
			y.Data = append(y.Data, floats(2*v)...)
		}
	}
	count := tensor.Tensor{Name: "n", DType: tensor.INT32, Shape: []int64{n}}
	for range n {
		count.Data = binary.LittleEndian.AppendUint32(count.Data, uint32(n))
	}
	return result{y, count}, nil
}

func (m *doubling) MemBytes() int64 { return 1 }
func (m *doubling) Notes() []string { return nil }

func (m *doubling) Stage(in []engine.Input) (engine.Staged, error) {
	m.d.staging.pass()
	if m.d.null {
		return &doubled{m: m, in: in}, nil
	}
	if v := math.Float32frombits(binary.LittleEndian.Uint32(in[0].Segments[0])); v == unstageable {
		return nil, &engine.Error{Code: engine.EOOM, Msg: "no memory to stage in"}
	}
	m.d.count(&m.d.staged, 1)
	m.d.count(&m.d.held, 1)
	return &doubled{m: m, in: in}, nil
}

func (m *doubling) Prepare(_ context.Context, batches []int) error {
	m.d.preparing.pass()
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if m.closed {
		return errors.New("closed model")
	}
	if m.d.cramped != nil {
		return m.d.cramped
	}
	m.d.prepared = append(m.d.prepared, batches)
	return nil
}

// doubled is a staged batch.
type doubled struct {
	m  *doubling
	in []engine.Input
}

func (s *doubled) Run() (engine.Result, error) {
	if !s.m.d.null {
		s.m.d.count(&s.m.d.ahead, 1)
	}
	return s.m.Run(s.in)
}

func (s *doubled) Free() {
	if !s.m.d.null {
		s.m.d.count(&s.m.d.held, -1)
	}
}

func (m *doubling) Close() error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	m.d.open--
	m.closed = true
	return nil
}

type result []tensor.Tensor

func (r result) Outputs() []tensor.Tensor { return r }
func (r result) Timing() engine.Timing    { return engine.Timing{} }
func (r result) Free()                    {}
