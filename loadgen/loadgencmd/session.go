package loadgencmd

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
	"github.com/gpulet/gpulet/loadgen/internal/drive"
	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/loadgen/internal/scenario"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/model"
)

// session is a connection to a system under test and what is known of its models. Its runs share
// the models' inputs.
type session struct {
	cfg     loadConfig
	log     *slog.Logger
	arrival arrival.Spec
	bus     *bus.Bus // nil unless requests go over it
	catalog catalog
	traces  map[string]arrival.Trace
	items   map[string][]payload.Item
	meter   *meter // nil without --metrics-addr
	unserve func() // ends serving metrics
}

// newSession reads what cfg names.
func newSession(cfg loadConfig, log *slog.Logger) (*session, error) {
	s := &session{cfg: cfg, log: log, traces: map[string]arrival.Trace{}, items: map[string][]payload.Item{}, unserve: func() {}}
	var err error
	if s.arrival, err = arrival.ParseSpec(cfg.Arrival); err != nil {
		return nil, cli.Usagef("--%w", err)
	}
	if _, err := s.trace(s.arrival); err != nil {
		return nil, err
	}
	return s, nil
}

// connect connects to the system under test.
func (s *session) connect(ctx context.Context) (err error) {
	cfg := s.cfg
	if cfg.MetricsAddr != "" {
		if s.meter, s.unserve, err = serveMetrics(cfg.MetricsAddr, s.log); err != nil {
			return err
		}
	}
	switch cfg.Via {
	case viaHTTP:
		s.catalog = httpCatalog{cfg.HTTPURL}
		return nil
	case viaGRPC:
		s.catalog = grpcCatalog{cfg.GRPCURL}
		return nil
	}
	limited, cancel := context.WithTimeoutCause(ctx, cfg.ConnectTimeout, fmt.Errorf("not reached within %v", cfg.ConnectTimeout))
	defer cancel()
	if s.bus, err = bus.Connect(limited, cfg.Bus, bus.RoleClient, "loadgen", s.log); err != nil {
		s.unserve()
		return err
	}
	s.catalog = busCatalog{s.bus}
	return nil
}

func (s *session) close() {
	s.unserve()
	if s.bus != nil {
		s.bus.Close()
	}
}

// trace reads the trace of spec, once; nil for other kinds.
func (s *session) trace(spec arrival.Spec) (arrival.Trace, error) {
	if spec.Kind != arrival.KindTrace {
		return nil, nil
	}
	if tr, ok := s.traces[spec.Trace]; ok {
		return tr, nil
	}
	data, err := os.ReadFile(spec.Trace)
	if err != nil {
		return nil, cli.Usagef("--arrival: %w", err)
	}
	tr, err := arrival.ParseTrace(spec.Trace, data)
	if err != nil {
		return nil, cli.Usagef("--arrival: %w", err)
	}
	s.traces[spec.Trace] = tr
	return tr, nil
}

// settings are those of one run.
type settings struct {
	scenario scenario.Scenario
	warmup   time.Duration
	watch    func(*drive.Run) (stop func()) // shows progress; nil: none
}

// run sends a scenario and returns what came of it. When ctx ends it stops sending and still waits
// for what is outstanding.
func (s *session) run(ctx context.Context, set settings) (report.Run, error) {
	streams, err := s.streams(ctx, set.scenario)
	if err != nil {
		return report.Run{}, err
	}
	opts := drive.Options{
		Duration: set.scenario.Duration(), Warmup: set.warmup,
		Timeout: s.cfg.Timeout, Grace: s.cfg.Grace, Linger: linger,
		Interval: interval(set.scenario.Duration()),
	}
	run, err := drive.New(streams, opts)
	if err != nil {
		return report.Run{}, cli.Usagef("%w", err)
	}
	if s.meter != nil {
		s.meter.show(run)
	}
	sender, err := s.sender(streams, run)
	if err != nil {
		return report.Run{}, err
	}
	drain, abort, stop := lifecycle.Context(ctx, longest(streams)+s.cfg.Grace)
	defer stop()
	unwatch := func() {}
	if set.watch != nil {
		unwatch = set.watch(run)
	}
	started := time.Now()
	sending := run.Do(drain, abort, sender)
	unwatch()
	return s.document(run, set, opts, started, sending, ctx.Err() != nil), nil
}

// linger is how long late duplicates are listened for.
const linger = 100 * time.Millisecond

// interval gives timelines steps of a second, longer in runs of more than ten minutes.
func interval(d time.Duration) time.Duration {
	const steps = 600
	return max(time.Second, (d / steps).Round(time.Second))
}

func longest(streams []drive.Stream) time.Duration {
	var d time.Duration
	for _, st := range streams {
		d = max(d, st.Timeout)
	}
	return d
}

func (s *session) sender(streams []drive.Stream, sink drive.Sink) (drive.Sender, error) {
	run := "lg" + strings.ToLower(rand.Text()[:10])
	switch s.cfg.Via {
	case viaHTTP:
		return drive.HTTP(drive.HTTPOptions{URL: s.cfg.HTTPURL, Connections: s.cfg.Connections, Timeout: s.cfg.Timeout}, streams, sink)
	case viaGRPC:
		return drive.GRPC(drive.GRPCOptions{Addr: s.cfg.GRPCURL, Calls: s.cfg.Connections, Timeout: s.cfg.Timeout}, streams, sink)
	}
	return drive.NATS(s.bus, run, streams, sink)
}

// streams looks every model of sc up and prepares its requests and send times.
func (s *session) streams(ctx context.Context, sc scenario.Scenario) ([]drive.Stream, error) {
	models, err := s.catalog.lookup(ctx, sc.Names())
	if err != nil {
		return nil, err
	}
	for _, set := range []struct {
		flag   string
		models []string
	}{{"--slo", slices.Sorted(maps.Keys(s.cfg.slos))}, {"--outputs", slices.Sorted(maps.Keys(s.cfg.outputs))}} {
		for _, name := range set.models {
			if !slices.Contains(sc.Names(), name) {
				return nil, cli.Usagef("%s %s: no requests are sent to that model", set.flag, name)
			}
		}
	}
	var streams []drive.Stream
	for _, name := range sc.Names() {
		st, err := s.stream(models[name], sc)
		if err != nil {
			return nil, err
		}
		streams = append(streams, st)
	}
	return streams, s.checkBody(streams)
}

func (s *session) stream(m model.Config, sc scenario.Scenario) (drive.Stream, error) {
	items, err := s.inputs(m)
	if err != nil {
		return drive.Stream{}, err
	}
	arrivals, err := s.arrivals(m.Name, sc)
	if err != nil {
		return drive.Stream{}, err
	}
	st := drive.Stream{
		Model: m.Name, Items: items, Arrivals: arrivals, Tolerance: s.cfg.Tolerance,
		SLO: m.SLO, Timeout: m.Timeout,
	}
	if slo := sc.Models[m.Name].SLO; slo > 0 {
		st.SLO = slo
	}
	if slo := s.cfg.slos[m.Name]; slo > 0 {
		st.SLO = slo
	}
	if s.cfg.Timeout > 0 {
		if s.bus != nil && s.cfg.Timeout > m.MaxWait() { // a frontend refuses it itself; the queue would drop it in silence
			return drive.Stream{}, cli.Usagef("--timeout %v: model %s: expected at most %v, the model's timeout plus %v", s.cfg.Timeout, m.Name, m.MaxWait(), model.QueueGrace)
		}
		st.Timeout = s.cfg.Timeout
	}
	return st, nil
}

func (s *session) arrivals(name string, sc scenario.Scenario) (arrival.Process, error) {
	spec := s.arrival
	for _, override := range []*arrival.Spec{sc.Arrival, sc.Models[name].Arrival} {
		if override != nil {
			spec = *override
		}
	}
	seed := s.cfg.Seed
	if sc.Seed != nil {
		seed = *sc.Seed
	}
	tr, err := s.trace(spec)
	if err != nil {
		return nil, err
	}
	rate := sc.Rate(name)
	if tr == nil {
		return spec.New(rate, seed, name), nil
	}
	times, ok := tr[name]
	if !ok {
		times, ok = tr[""]
	}
	if !ok {
		return nil, cli.Usagef("%s: no arrivals for %s: expected one of %s", spec, name, strings.Join(tr.Models(), ", "))
	}
	return arrival.Replay(times, rate.Expected()/rate.End().Seconds(), sc.Duration()), nil
}

// document puts a finished run's figures together.
func (s *session) document(run *drive.Run, set settings, opts drive.Options, started time.Time, sending time.Duration, interrupted bool) report.Run {
	doc := report.Run{
		Started:     started.UTC().Truncate(time.Millisecond),
		DurationS:   max(sending-set.warmup, 0).Seconds(),
		WarmupS:     set.warmup.Seconds(),
		Via:         s.cfg.Via,
		Arrival:     s.arrival.String(),
		Seed:        s.cfg.Seed,
		Body:        s.cfg.Body,
		Samples:     s.cfg.Samples,
		Scenario:    set.scenario.Name,
		Interrupted: interrupted,
		IntervalS:   opts.Interval.Seconds(),
	}
	if set.scenario.Arrival != nil {
		doc.Arrival = set.scenario.Arrival.String()
	}
	if set.scenario.Seed != nil {
		doc.Seed = *set.scenario.Seed
	}
	doc.Models, doc.Total = run.Figures(sending)
	doc.Phases = phases(set, doc)
	return doc
}

// phases sums the timelines over the scenario's phases; a step counts where it begins.
func phases(set settings, doc report.Run) []report.Phase {
	var out []report.Phase
	from := -set.warmup
	for _, p := range set.scenario.Phases {
		ph := report.Phase{Name: p.Name, FromS: from.Seconds(), ToS: (from + p.Duration).Seconds(), Models: map[string]report.PhaseSums{}}
		for name, f := range doc.Models {
			var sums report.PhaseSums
			for _, step := range f.Timeline {
				if step.AtS >= ph.FromS && step.AtS < ph.ToS {
					sums.Sent += step.Sent
					sums.OK += step.OK
					sums.Violations += step.Violations
				}
			}
			ph.Models[name] = sums
		}
		out = append(out, ph)
		from += p.Duration
	}
	return out
}
