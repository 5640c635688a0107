package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// loadConfig is the configuration of experiments that send a mix of requests.
type loadConfig struct {
	Common config
	Body   string `env:"BODY" usage:"what is sent: jpeg (to models that take pictures, random tensors to others) or random; default: as loadgen does"`
	// Requests bounds what CPU and queue have to carry, which otherwise would be measured, not the GPU.
	Requests float64       `env:"REQUESTS" envDefault:"8000" usage:"requests/s of all models together from which on requests carry more samples"`
	Samples  string        `env:"SAMPLES" usage:"samples per request, model=N,...; default: as --requests asks for"`
	Most     int           `env:"MOST_SAMPLES" envDefault:"16" usage:"most samples per request"`
	Warmup   time.Duration `env:"WARMUP" envDefault:"1500ms" usage:"load at each rate before it is measured"`
	Step     time.Duration `env:"STEP" envDefault:"3s" usage:"time that each rate is measured"`

	samples map[string]int
}

// Validate reports the first setting that makes no sense.
func (c *loadConfig) Validate() error {
	if c.Samples != "" {
		var err error
		if c.samples, err = parseSamples(c.Samples); err != nil {
			return fmt.Errorf("samples: %w", err)
		}
	}
	switch {
	case c.Body != "" && c.Body != bodyJPEG && c.Body != bodyRandom:
		return fmt.Errorf("body %q: expected %s or %s", c.Body, bodyJPEG, bodyRandom)
	case !(c.Requests > 0):
		return fmt.Errorf("requests %v: expected more than 0", c.Requests)
	case c.Most < 1:
		return fmt.Errorf("most samples %d: expected at least 1", c.Most)
	case c.Warmup < 0 || c.Step <= 0:
		return fmt.Errorf("warmup %v, step %v: expected at least 0, and more than 0", c.Warmup, c.Step)
	}
	return nil
}

// goodputConfig is the configuration of evaluate goodput.
type goodputConfig struct {
	Load  loadConfig
	Arms  string  `env:"ARMS" usage:"ways to share the GPU, separated by spaces (default: all): gpulet sbp elastic even mps uncapped (the plans of gpulet, without MPS shares) streams"`
	Mixes string  `env:"MIXES" usage:"mixes, separated by spaces (default: all): game traffic scen1..scen5 all9, or model=weight,..."`
	Start string  `env:"START" usage:"first rates to try, mix=samples/s separated by spaces (default: what the planner promises, or a part of what any plan carries)"`
	Ratio float64 `env:"RATIO" envDefault:"1.2" usage:"ratio of the first rates to try: the smaller, the nearer the start has to be"`
	Tries int     `env:"TRIES" envDefault:"5" usage:"most rates to try per cell; fewer when the budget is short"`

	arms   []arm
	mixes  []string
	starts map[string]float64 // samples/s, by mix
}

// Validate reports the first setting that makes no sense.
func (c *goodputConfig) Validate() error {
	if c.Arms == "" {
		c.arms = arms
	}
	for name := range strings.FieldsSeq(c.Arms) {
		i := slices.IndexFunc(arms, func(a arm) bool { return a.name == name })
		if i < 0 {
			return fmt.Errorf("arm %q: expected gpulet, sbp, elastic, even, mps, uncapped or streams", name)
		}
		c.arms = append(c.arms, arms[i])
	}
	c.mixes = strings.Fields(cmp.Or(c.Mixes, "game traffic scen1 scen2 scen3 scen4 scen5 all9"))
	for _, name := range c.mixes {
		if _, err := parseMix(name); err != nil {
			return err
		}
	}
	var err error
	if c.starts, err = parseStarts(c.Start); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	switch {
	case !(c.Ratio > 1) || c.Ratio > 10:
		return fmt.Errorf("ratio %v: expected more than 1, at most 10", c.Ratio)
	case c.Tries < 2:
		return fmt.Errorf("tries %d: expected at least 2", c.Tries)
	}
	return c.Load.Validate()
}

// parseStarts reads mix=samples/s separated by spaces. A mix may have = in it.
func parseStarts(text string) (map[string]float64, error) {
	out := map[string]float64{}
	for part := range strings.FieldsSeq(text) {
		i := max(0, strings.LastIndexByte(part, '='))
		rate, err := strconv.ParseFloat(strings.TrimPrefix(part[i:], "="), 64)
		if err != nil || !(rate > 0) || math.IsInf(rate, 0) {
			return nil, fmt.Errorf("found %q: expected mix=samples/s", part)
		}
		if _, err := parseMix(part[:i]); err != nil {
			return nil, err
		}
		out[part[:i]] = rate
	}
	return out, nil
}

func newGoodputCommand() *cobra.Command {
	cfg := &goodputConfig{}
	return experiment(&cobra.Command{
		Use:   "goodput",
		Short: "Find the highest goodput of every arm on every mix",
		Long: `For every mix and arm, the highest rate of Poisson load at which at most 1 % of the samples miss their
SLO and no request is lost. Each rate gets a plan of its own, made for it by the arm's algorithm with the
margin that planner run adds, and published with planner apply; beyond what the algorithm can carry,
the plan is that of the most it can. The programs stay up between rates; only the plan changes.`,
		Example: `  evaluate goodput --device cuda:0 --mixes "game scen1" --budget 4m
  evaluate goodput --device sim:h100 --mixes "resnet50=1,vgg16=1" --arms "gpulet sbp" --out build/gpu/dry`,
	}, cfg, &cfg.Load.Common, func(ctx context.Context) error { return goodput(ctx, cfg) })
}

// cell is what was found for one arm on one mix.
type cell struct {
	About    about              `json:"about"`
	Mix      string             `json:"mix"`
	Arm      string             `json:"arm"`
	GPUType  string             `json:"gpu_type"`
	Parts    map[string]float64 `json:"parts"` // of the whole, by model
	SLOsMs   map[string]float64 `json:"slos_ms"`
	Samples  map[string]int     `json:"samples"` // per request, by model
	Body     string             `json:"body,omitempty"`
	StepS    float64            `json:"step_s"`
	Reserve  float64            `json:"reserve_ms"`        // of every SLO, kept for what happens outside the engine
	Skipped  string             `json:"skipped,omitempty"` // why nothing was measured
	Expected float64            `json:"expected_rps"`      // highest rate that the planner promises; 0: it promises nothing
	Goodput  float64            `json:"goodput_rps"`       // samples/s within their SLO at the highest good rate; 0: none was
	Rate     float64            `json:"rate_rps"`          // that rate, samples/s
	TooHigh  float64            `json:"too_high_rps"`      // the lowest bad rate, 0: none was
	Notes    []string           `json:"notes,omitempty"`
	Tries    []try              `json:"tries"`
}

// try is one rate.
type try struct {
	Rate       float64  `json:"rate_rps"`
	Good       bool     `json:"good"`
	Why        string   `json:"why"`
	Violations float64  `json:"violations"` // share of all samples, as if each had been a request
	Goodput    float64  `json:"goodput_rps"`
	WorstModel string   `json:"worst_model"`
	Worst      float64  `json:"worst_violations"`
	Predicted  *float64 `json:"predicted_violations,omitempty"` // by planner simulate
	Unsound    []string `json:"unsound,omitempty"`              // what the checker has against the plan
	ReadyS     float64  `json:"ready_s"`                        // from publishing the plan until all of it was served
	// MissedBy is the share of requests that missed their SLO in each step of the timeline of loadgen: it tells
	// what a change of plan still did to them.
	MissedBy    []float64           `json:"missed_by_step,omitempty"`
	Models      map[string]tryModel `json:"models"`
	Cores       map[string]float64  `json:"cores"`        // busy, by program
	Stolen      float64             `json:"stolen_cores"` // that the host of a virtual machine gave to others
	Utilisation *float64            `json:"gpu_utilisation_percent,omitempty"`
	Plan        plan.Plan           `json:"plan"`
}

type tryModel struct {
	Rate       float64 `json:"rate_rps"` // samples/s
	Requests   int64   `json:"requests"`
	Violations float64 `json:"violations"`
	P50Ms      float64 `json:"p50_ms"`
	P99Ms      float64 `json:"p99_ms"`
	QueuedMs   float64 `json:"queued_ms"`
	BatchedMs  float64 `json:"batched_ms"`
	ExecMs     float64 `json:"exec_ms"`
	Batch      float64 `json:"batch"` // samples that ran together
	// Errors counts the requests that were answered with an error, by its code.
	Errors map[string]int64 `json:"errors,omitempty"`
}

// evaluation is a run of an experiment that sends a mix of requests.
type evaluation struct {
	cfg   *loadConfig
	site  *site
	set   *profile.Set
	about about
	smi   *sampler
}

func goodput(ctx context.Context, cfg *goodputConfig) error {
	ctx, cancel := context.WithDeadlineCause(ctx, cfg.Load.Common.deadline, errBudget)
	defer cancel()
	e, stop, err := newEvaluation(ctx, &cfg.Load, cfg.mixes)
	if err != nil {
		return err
	}
	defer stop()
	err = e.cells(ctx, cfg)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// newEvaluation starts the programs and waits for the models of the mixes.
func newEvaluation(ctx context.Context, cfg *loadConfig, mixes []string) (e *evaluation, stop func(), err error) {
	s, err := startSite(ctx, &cfg.Common)
	if err != nil {
		return nil, nil, err
	}
	e = &evaluation{cfg: cfg, site: s, about: cfg.Common.about(ctx), smi: startSampler(&cfg.Common)}
	stop = func() {
		e.smi.stop()
		s.stop()
	}
	if err := s.registered(ctx, e.served(mixes)); err != nil {
		stop()
		return nil, nil, err
	}
	e.set, _ = profile.LoadDir(s.profiles)
	return e, stop, nil
}

// served are the models of the mixes that the repository has.
func (e *evaluation) served(mixes []string) (names []string) {
	for _, name := range mixes {
		parts, _ := parseMix(name) // Validate has read it
		for m := range parts {
			if _, err := os.Stat(filepath.Join(e.cfg.Common.Models, m, model.ConfigFile)); err == nil && !slices.Contains(names, m) {
				names = append(names, m)
			}
		}
	}
	return names
}

// rounds groups the arms so that what matters most is measured first and the worker seldom restarts.
func rounds(all []arm) (groups [][]arm) {
	for _, names := range [][]string{{"gpulet", "sbp"}, {"elastic", "even"}, {"mps", "uncapped"}, {"streams"}} {
		var group []arm
		for _, a := range all {
			if slices.Contains(names, a.name) {
				group = append(group, a)
			}
		}
		groups = append(groups, group)
	}
	return groups
}

// cells measures every cell that is not there yet.
func (e *evaluation) cells(ctx context.Context, cfg *goodputConfig) error {
	type job struct {
		mix string
		arm arm
	}
	var todo []job
	for _, group := range rounds(cfg.arms) {
		for _, mix := range cfg.mixes {
			for _, a := range group {
				if there, err := e.cfg.Common.read(cellFile(mix, a.name), &cell{}); err != nil {
					return err
				} else if !there {
					todo = append(todo, job{mix, a})
				}
			}
		}
	}
	for i, j := range todo {
		tries := affordable(e.cfg.Common.left(), len(todo)-i, e.cfg.Warmup+e.cfg.Step+switchTime, cfg.Tries)
		find := search{rate: cfg.starts[j.mix], first: cfg.Ratio}
		c, err := e.cell(ctx, j.mix, j.arm, find, tries)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil // a cell that was cut short is measured again
		case err != nil:
			say("%s %s: %v", j.mix, j.arm.name, err)
			c.Skipped = err.Error()
		}
		if err := e.cfg.Common.write(cellFile(j.mix, j.arm.name), c); err != nil {
			return err
		}
		if c.Skipped == "" {
			say("%s %s: %.0f samples/s within their SLO (expected %.0f)", j.mix, j.arm.name, c.Goodput, c.Expected)
		}
	}
	return nil
}

// switchTime is about what a change of plan takes.
const switchTime = 2 * time.Second

// affordable is how many rates may be tried in a cell when n cells share what is left.
func affordable(left time.Duration, n int, each time.Duration, most int) int {
	return min(most, max(2, int(left/(time.Duration(n)*each))))
}

func cellFile(mix, arm string) string { return filepath.Join("goodput", fileName(mix)+"."+arm+".json") }

// fileName is a mix as part of a file's name.
func fileName(mix string) string {
	return strings.NewReplacer("=", "-", ",", "_", "/", "-").Replace(mix)
}

// cell finds the highest good rate of an arm on a mix, from the first of find on, or the planner's. An error
// is why there is none.
func (e *evaluation) cell(ctx context.Context, mix string, a arm, find search, tries int) (cell, error) {
	parts, _ := parseMix(mix) // Validate has read it
	c := cell{
		About: e.about, Mix: mix, Arm: a.name, GPUType: e.site.device.GPUType, Parts: parts, SLOsMs: map[string]float64{},
		Body: e.cfg.Body, StepS: e.cfg.Step.Seconds(), Reserve: e.cfg.Common.Reserve.Seconds() * 1000, Tries: []try{},
	}
	slos, err := e.slos(parts)
	if err != nil {
		return c, err
	}
	for name, slo := range slos {
		c.SLOsMs[name] = slo.Seconds() * 1000
	}
	x := &attempt{evaluation: e, arm: a, parts: parts, slos: slos}
	if err := x.prepare(ctx); err != nil {
		return c, err
	}
	c.Samples, c.Expected = x.samples, x.promised
	if x.turns {
		c.Notes = append(c.Notes, "the algorithm finds no sound plan at any rate: all models take turns on the whole GPU")
	}
	if err := e.site.serveWith(ctx, a.worker); err != nil {
		return c, err
	}
	find.rate = cmp.Or(find.rate, x.start)
	for len(c.Tries) < tries && !find.done() {
		t, err := x.try(ctx, find.rate)
		if err != nil && len(c.Tries) > 0 && ctx.Err() == nil {
			c.Notes = append(c.Notes, fmt.Sprintf("%.0f samples/s were not tried: %v", find.rate, err))
			break
		}
		if err != nil {
			return c, err
		}
		say("%s %s %8.0f samples/s: %s", mix, a.name, t.Rate, t.Why)
		c.add(t)
		find.tell(t.Good)
	}
	c.TooHigh = find.bad
	return c, nil
}

// slos reads the models' SLOs, and reports the model that cannot be served.
func (e *evaluation) slos(parts map[string]float64) (map[string]time.Duration, error) {
	slos := map[string]time.Duration{}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		if _, ok := e.set.Get(e.site.device.GPUType, name); !ok {
			return nil, fmt.Errorf("no profile of %s on %s", name, e.site.device.GPUType)
		}
		var err error
		if slos[name], err = sloOf(e.cfg.Common.Models, name); err != nil {
			return nil, err
		}
	}
	return slos, nil
}

// add notes a rate that was tried, and keeps the best.
func (c *cell) add(t try) {
	c.Tries = append(c.Tries, t)
	if t.Good && t.Rate > c.Rate {
		c.Rate, c.Goodput = t.Rate, t.Goodput
	}
	busy := 0.0
	for _, n := range t.Cores {
		busy += n
	}
	if note := fmt.Sprintf("all but a tenth of the %d cores were busy", runtime.NumCPU()); busy > 0.9*float64(runtime.NumCPU()) && !slices.Contains(c.Notes, note) {
		c.Notes = append(c.Notes, note)
	}
}

// attempt is the search of one cell.
type attempt struct {
	*evaluation
	arm      arm
	parts    map[string]float64
	slos     map[string]time.Duration
	samples  map[string]int
	pictures map[string]bool
	promised float64                   // highest rate with the margin of planner run
	most     float64                   // highest rate that has a sound plan at all
	start    float64                   // first rate to try
	change   func(plan.Plan) plan.Plan // of every plan, before it is served; nil: none
	turns    bool                      // the algorithm has no plan: all models take turns on the whole GPU
}

// prepare asks the planner what to expect.
func (x *attempt) prepare(ctx context.Context) error {
	bare, err := x.site.peak(ctx, "gpulet", x.slos, x.parts, nil)
	if err != nil {
		return err
	}
	if x.pictures, err = pictures(x.cfg.Common.Models, slices.Collect(maps.Keys(x.parts))); err != nil {
		return err
	}
	if x.samples = x.cfg.samples; x.samples == nil {
		x.samples = samplesFor(scaled(x.parts, bare), x.cfg.Requests, x.cfg.Most, singles(x.cfg.Body, x.pictures))
	}
	if x.arm.algorithm == "" {
		x.start = max(1, bare*sideBySidePart)
		return nil
	}
	var errPromised, errMost error
	var both sync.WaitGroup
	both.Go(func() { x.promised, errPromised = x.site.peak(ctx, x.arm.algorithm, x.slos, x.parts, x.samples) })
	both.Go(func() { x.most, errMost = x.site.peak(ctx, x.arm.algorithm, x.slos, x.parts, nil) })
	both.Wait()
	if err := errors.Join(errPromised, errMost); err != nil {
		return err
	}
	x.start = max(x.promised, x.most/2)
	switch {
	case x.start > 0:
	case x.arm.algorithm == timeSharing:
		x.turns, x.start = true, max(1, bare*takingTurnsPart)
	default:
		return errors.New("the algorithm finds no plan at any rate")
	}
	return nil
}

// timeSharing is the algorithm whose plans are always possible, be they ever so unsound.
const timeSharing = "sbp"

// takingTurnsPart is sideBySidePart where models take turns.
const takingTurnsPart = 0.3

// sideBySidePart of the most that any plan carries is where the search begins for arms without plans.
const sideBySidePart = 0.6

// singles are the models whose requests have one sample whatever the rate: a JPEG is one picture.
func singles(body string, pictures map[string]bool) map[string]bool {
	if body == bodyJPEG {
		return pictures
	}
	return nil
}

// plan is the arm's plan for a total rate: with the margin that planner run adds as long as there is one,
// then without, then for the most that the algorithm can carry.
func (x *attempt) plan(ctx context.Context, total float64) (plan.Plan, error) {
	rates := scaled(x.parts, total)
	if x.arm.algorithm == "" || x.turns {
		return sideBySide(x.set, x.site.device.GPUType, x.slos, rates, x.arm.apart)
	}
	if total <= x.promised {
		if p, complete, err := x.site.planFor(ctx, x.arm, x.slos, rates, x.samples); complete || err != nil {
			return p, err
		}
	}
	// Algorithms need not carry less whenever they carry more: the most that is found near it.
	most := x.carried(total)
	for part := 1.0; part > 0.3; part -= 0.05 {
		p, complete, err := x.site.planFor(ctx, x.arm, x.slos, scaled(x.parts, part*most), nil)
		if complete || err != nil {
			return p, err
		}
	}
	return plan.Plan{}, fmt.Errorf("no plan of %s carries a third of %.0f samples/s", x.arm.algorithm, most)
}

// carried is what may be carried of a total rate: no more than the algorithm is known to, with the
// planner's margin or without, whichever is more.
func (x *attempt) carried(total float64) float64 { return min(total, max(x.promised, x.most)) }

// try measures one total rate, in samples/s.
func (x *attempt) try(ctx context.Context, total float64) (try, error) {
	t := try{Rate: total}
	p, err := x.plan(ctx, total)
	if err != nil {
		return t, err
	}
	if x.change != nil {
		p = x.change(p)
	}
	problems, took, err := x.site.serve(ctx, admitRequests(p, x.samples))
	if err != nil {
		return t, err
	}
	t.Plan, t.ReadyS = x.site.current, took.Seconds()
	if x.arm.algorithm != "" && !x.turns {
		t.Unsound = problems
	}
	x.smi.take()
	before, stolenBefore, begin := x.site.cpu(), stolen(), time.Now()
	r, client, err := x.site.send(ctx, load{
		rates: scaled(x.parts, total), samples: x.samples, warmup: x.cfg.Warmup, duration: x.cfg.Step, body: x.cfg.Body, pictures: x.pictures, seed: x.cfg.Common.Seed,
	})
	if err != nil {
		return t, err
	}
	after := x.site.cpu()
	after["loadgen"] = client
	t.Stolen = (stolen() - stolenBefore).Seconds() / time.Since(begin).Seconds()
	t.Cores, t.Utilisation = after.cores(before, time.Since(begin)), x.smi.take()
	t.judge(r, x.samples)
	return t, nil
}

// allowed is the share of requests that may miss their SLO.
const allowed = 0.01

// judge fills in what came of the load.
func (t *try) judge(r loadReport, samples map[string]int) {
	t.Models = map[string]tryModel{}
	t.WorstModel, t.Worst = r.worst()
	sent, missed := 0.0, 0.0 // samples
	for name, f := range r.Models {
		n := float64(max(1, samples[name]))
		m := tryModel{Rate: f.RateRPS * n, Requests: f.Sent, Violations: f.missed(), P50Ms: f.P50Ms, P99Ms: f.P99Ms}
		m.Errors = maps.Clone(f.Errors)
		maps.DeleteFunc(m.Errors, func(_ string, count int64) bool { return count == 0 })
		if f.Stages != nil {
			m.QueuedMs, m.BatchedMs, m.ExecMs, m.Batch = f.Stages.QueuedMs, f.Stages.BatchedMs, f.Stages.ExecMs, f.Stages.Batch
		}
		t.Models[name] = m
		t.Goodput += f.GoodputRPS * n
		sent += float64(f.Sent) * n
		missed += float64(f.Violations) * n
	}
	t.MissedBy = r.missedBy()
	t.Violations = missed / max(1, sent)
	t.Good = t.Violations <= allowed && r.Total.Lost == 0 && r.Total.Sent > 0
	t.Why = fmt.Sprintf("%.2f%% of %.0f samples missed their SLO, %s %.2f%%", 100*t.Violations, sent, t.WorstModel, 100*t.Worst)
	if r.Total.Lost > 0 {
		t.Why += fmt.Sprintf("; %d were lost", r.Total.Lost)
	}
	if late := float64(r.Total.Late) / math.Max(1, float64(r.Total.Sent)); late > 0.05 {
		t.Why += fmt.Sprintf("; the client sent %.0f%% late", 100*late)
	}
}
