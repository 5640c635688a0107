package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/tensor"
)

type harmConfig struct {
	Common   config
	On       string        `env:"HARM_ON" envDefault:"resnet50 bert googlenet mobilenet_v2 vgg16" usage:"models, separated by spaces: each gets a gpu-let of its own"`
	Load     float64       `env:"HARM_LOAD" envDefault:"0.7" usage:"load on each gpu-let, as a fraction of what it can carry"`
	Requests float64       `env:"REQUESTS" envDefault:"4000" usage:"requests/s of all models together from which on requests carry more samples"`
	Most     int           `env:"MOST_SAMPLES" envDefault:"16" usage:"most samples per request"`
	Body     string        `env:"BODY" usage:"what is sent, as for goodput"`
	Span     time.Duration `env:"HARM_SPAN" envDefault:"4s" usage:"time that load is measured before, during and after"`
	Repeat   int           `env:"HARM_REPEAT" envDefault:"1" usage:"how often to do harm"`
}

// harmResult is what harm to one gpu-let does to the service of its GPU.
type harmResult struct {
	About  about              `json:"about"`
	Victim string             `json:"victim"` // model
	Share  int                `json:"share"`  // of every gpu-let, percent
	Rates  map[string]float64 `json:"rates_rps"`
	Times  []harm             `json:"times"`
}

type harm struct {
	// Happened says what was seen.
	Happened string `json:"happened"`
	// NoticedS and WholeS count from the harm: until the first gpu-let was seen to be down, and until
	// all of the GPU's gpu-lets were ready again.
	NoticedS float64 `json:"noticed_s"`
	WholeS   float64 `json:"whole_s"`
	Restarts int     `json:"restarts"` // gpu-lets whose process is another one
	// By model: in the time before, in that in which it happened, and after everything was whole.
	Before map[string]tryModel `json:"before"`
	During map[string]tryModel `json:"during"`
	After  map[string]tryModel `json:"after"`
	Lost   int64               `json:"lost"`
	// NeighboursP99 is the largest ratio of a neighbour's p99 during to that before.
	NeighboursP99 float64 `json:"neighbours_p99_ratio"`
}

func newKillCommand() *cobra.Command {
	cfg := &harmConfig{}
	return experiment(&cobra.Command{
		Use:     "kill",
		Short:   "SIGKILL a gpu-let under load: what its neighbours notice, and how soon all serve again",
		Example: `  evaluate kill --device cuda:0 --harm-repeat 3`,
	}, cfg, &cfg.Common, func(ctx context.Context) error {
		return once(ctx, &cfg.Common, "kill.json", func(ctx context.Context, r *harmResult) error { return harmed(ctx, cfg, r, killing) })
	})
}

func newFaultCommand() *cobra.Command {
	cfg := &harmConfig{}
	return experiment(&cobra.Command{
		Use:   "fault",
		Short: "Provoke a device fault in a gpu-let under load: how soon all of its GPU serve again",
		Long: `Sends one request whose token ids are beyond the vocabulary to the first model of --harm-on that takes
INT64. On a GPU the look-up reads out of bounds: the device faults, and with it every gpu-let
of that GPU. On a CPU the request fails, and that is all.`,
		Example: `  evaluate fault --device cuda:0`,
	}, cfg, &cfg.Common, func(ctx context.Context) error {
		return once(ctx, &cfg.Common, "fault.json", func(ctx context.Context, r *harmResult) error { return harmed(ctx, cfg, r, poisoning) })
	})
}

// harming is a way to do harm: whether it works on a model's gpu-let, and how it is done.
type harming struct {
	works func(model.Model) bool
	do    func(ctx context.Context, s *site, model string) error
}

var (
	killing   = harming{func(model.Model) bool { return true }, kill}
	poisoning = harming{takesTokens, poison}
)

// takesTokens reports whether a model looks something up by the numbers it is given.
func takesTokens(m model.Model) bool {
	return slices.ContainsFunc(m.Inputs, func(s tensor.Spec) bool { return s.DType == tensor.INT64 })
}

// victim is the first model whose gpu-let can be harmed so.
func (s *site) victim(ctx context.Context, models []string, way harming) (string, error) {
	for _, name := range models {
		if m, err := s.model(ctx, name); err != nil || way.works(m) {
			return name, err
		}
	}
	return "", fmt.Errorf("none of %v can be harmed so", models)
}

func kill(ctx context.Context, s *site, model string) error {
	reports, err := s.bus.Gpulets(ctx)
	if err != nil {
		return err
	}
	for _, r := range reports {
		if r.PID > 0 && slices.ContainsFunc(r.Models, func(m plan.ModelReport) bool { return m.Model == model }) {
			return syscall.Kill(r.PID, syscall.SIGKILL)
		}
	}
	return fmt.Errorf("no gpu-let serves %s", model)
}

// poisonTimeout is shorter than the queue takes to deliver a request again: the fault happens once.
const poisonTimeout = 500 * time.Millisecond

// beyond is a token id that no vocabulary has.
const beyond = 1 << 40

func poison(ctx context.Context, s *site, name string) error {
	m, err := s.model(ctx, name)
	if err != nil {
		return err
	}
	body, err := bodyOf(m, beyond)
	if err != nil {
		return err
	}
	p, err := s.newProbe()
	if err != nil {
		return err
	}
	defer p.close()
	_, err = p.send(ctx, name, body, poisonTimeout)
	return err
}

func harmed(ctx context.Context, cfg *harmConfig, r *harmResult, way harming) error {
	r.About = cfg.Common.about(ctx)
	s, models, err := startSiteWith(ctx, &cfg.Common, names(cfg.On))
	if err != nil {
		return err
	}
	defer s.stop()
	if r.Victim, err = s.victim(ctx, models, way); err != nil {
		return err
	}
	p, rates, err := s.equalShares(models, cfg.Load)
	if err != nil {
		return err
	}
	r.Share, r.Rates = p.Gpulets[0].Share, rates
	takes, err := pictures(cfg.Common.Models, models)
	if err != nil {
		return err
	}
	l := load{
		rates: rates, samples: samplesFor(rates, cfg.Requests, cfg.Most, singles(cfg.Body, takes)), warmup: 500 * time.Millisecond,
		duration: cfg.Span, body: cfg.Body, pictures: takes, seed: cfg.Common.Seed,
	}
	if _, _, err := s.serve(ctx, admitRequests(p, l.samples)); err != nil {
		return err
	}
	for i := range cfg.Repeat {
		if cfg.Common.left() < 5*cfg.Span && i > 0 {
			say("the budget ends after %d times", i)
			break
		}
		h, err := s.harm(ctx, l, r.Victim, way)
		if err != nil {
			return err
		}
		say("%s: whole after %.2f s, neighbours' p99 x%.2f", h.Happened, h.WholeS, h.NeighboursP99)
		r.Times = append(r.Times, h)
	}
	return nil
}

// assumedSlowdown is what beside full neighbours is planned for in equal shares.
const assumedSlowdown = 1.3

// equalShares gives every model a gpu-let of the same share, and a fraction of what it can carry.
func (s *site) equalShares(models []string, fraction float64) (plan.Plan, map[string]float64, error) {
	set, _ := profile.LoadDir(s.profiles)
	share := 100 / len(models)
	if allowed := s.device.Shares; len(allowed) > 0 { // a CPU has shares in steps of a core
		if share < allowed[0] {
			return plan.Plan{}, nil, fmt.Errorf("%d models: the least share is %d%%", len(models), allowed[0])
		}
		i, _ := slices.BinarySearch(allowed, share+1)
		share = allowed[i-1]
	}
	p, rates := plan.Plan{GPUsUsed: 1}, map[string]float64{}
	for _, name := range models {
		prof, ok := set.Get(s.device.GPUType, name)
		if !ok {
			return p, nil, fmt.Errorf("no profile of %s on %s", name, s.device.GPUType)
		}
		slo, err := sloOf(s.cfg.Models, name)
		if err != nil {
			return p, nil, err
		}
		batch, ms := largestBatch(prof, share, assumedSlowdown, slo)
		if batch == 0 {
			return p, nil, fmt.Errorf("%s is not profiled at %d%%", name, share)
		}
		ms *= assumedSlowdown
		rates[name] = fraction * float64(batch) * 1000 / ms
		p.Gpulets = append(p.Gpulets, plan.Gpulet{Share: share, Models: []plan.Assignment{{Model: name, Batch: batch, RateRPS: rates[name], ExecMs: ms, DutyMs: ms, Layout: prof.Layout}}})
	}
	return p, rates, nil
}

// harm measures load before, while harm is done, and after.
func (s *site) harm(ctx context.Context, l load, victim string, way harming) (h harm, err error) {
	before, _, err := s.send(ctx, l)
	if err != nil {
		return h, err
	}
	pids, err := s.pids(ctx)
	if err != nil {
		return h, err
	}
	type outcome struct {
		report loadReport
		err    error
	}
	during := make(chan outcome, 1)
	go func() {
		r, _, err := s.send(ctx, l)
		during <- outcome{r, err}
	}()
	err = s.poll(ctx, "load has begun", 10*time.Second, func() (bool, error) {
		lag, err := s.bus.Lag(ctx, victim)
		return lag.Pending+lag.AckPending > 0, err
	})
	if err == nil {
		select {
		case <-time.After(l.warmup + l.duration/4): // into the measured part
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err == nil {
		err = s.watchHarm(ctx, &h, pids, func() error { return way.do(ctx, s, victim) })
	}
	got := <-during
	if err = errors.Join(err, got.err); err != nil {
		return h, err
	}
	after, _, err := s.send(ctx, l)
	h.judge(before, got.report, after, l.samples, victim)
	return h, err
}

// pids are the processes of the gpu-lets, by id.
func (s *site) pids(ctx context.Context) (map[string]int, error) {
	reports, err := s.bus.Gpulets(ctx)
	pids := map[string]int{}
	for _, r := range reports {
		pids[r.ID] = r.PID
	}
	return pids, err
}

// unharmed is how long harm may take to show.
const unharmed = 5 * time.Second

// watchHarm does harm and waits until it has shown and everything is whole again.
func (s *site) watchHarm(ctx context.Context, h *harm, before map[string]int, do func() error) error {
	begin := time.Now()
	if err := do(); err != nil {
		return err
	}
	changed := func() (bool, error) {
		now, err := s.pids(ctx)
		return !maps.Equal(now, before), err
	}
	if err := s.poll(ctx, "a gpu-let has gone", unharmed, changed); err != nil {
		if ctx.Err() != nil || !time.Now().After(begin.Add(unharmed)) {
			return err
		}
		h.Happened = "nothing"
		return nil
	}
	h.NoticedS = time.Since(begin).Seconds()
	reports, err := s.ready(ctx, 60*time.Second)
	if err != nil {
		return err
	}
	h.WholeS = time.Since(begin).Seconds()
	for _, r := range reports {
		if r.PID != before[r.ID] {
			h.Restarts++
		}
	}
	h.Happened = fmt.Sprintf("%d of %d gpu-lets were restarted", h.Restarts, len(reports))
	return nil
}

// judge fills in what the load says.
func (h *harm) judge(before, during, after loadReport, samples map[string]int, victim string) {
	figures := func(r loadReport) map[string]tryModel {
		var t try
		t.judge(r, samples)
		return t.Models
	}
	h.Before, h.During, h.After = figures(before), figures(during), figures(after)
	h.Lost = before.Total.Lost + during.Total.Lost + after.Total.Lost
	for name, m := range h.During {
		if was := h.Before[name].P99Ms; name != victim && was > 0 {
			h.NeighboursP99 = max(h.NeighboursP99, m.P99Ms/was)
		}
	}
}
