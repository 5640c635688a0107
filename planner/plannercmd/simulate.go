package plannercmd

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/planner/internal/sim"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// simulateConfig is the configuration of planner simulate.
type simulateConfig struct {
	Steer    steerConfig
	Models   string `env:"MODELS" envDefault:"models" usage:"folder of the model repository; the paper's nine models need none"`
	Profiles string `env:"PROFILES" envDefault:"profiles" usage:"folder of profiles, by GPU type"`
	Plan     string `env:"PLAN" usage:"plan document to simulate as it is"`
	Trace    string `env:"TRACE" usage:"CSV of rates over time (t_sec,model,...) to plan for epoch by epoch"`
	Scenario string `env:"SCENARIO" usage:"text file that describes GPUs, models, traffic and planning"`
	GPUs     string `env:"GPUS" usage:"GPUs to plan on, type:count,..."`
	Rates    string `env:"RATES" usage:"constant rates, model=req/s,... (with --plan: default what the plan carries)"`
	SLOs     string `env:"SLOS" usage:"SLOs that differ from the repository's, model=duration,..."`

	Duration time.Duration `env:"DURATION" envDefault:"0" usage:"time to simulate (default: the trace's length, else 60s)"`
	Arrival  string        `env:"ARRIVAL" envDefault:"poisson" usage:"spacing of arrivals: poisson, uniform or mmpp"`
	Burst    float64       `env:"BURST" envDefault:"1.5" usage:"mmpp: factor on the rate in the high state, at most 2"`
	Sojourn  time.Duration `env:"SOJOURN" envDefault:"5s" usage:"mmpp: mean time in a state"`
	Start    time.Duration `env:"START" envDefault:"500ms" usage:"time of a new gpu-let until it loads models"`
	Load     time.Duration `env:"LOAD" envDefault:"200ms" usage:"time of loading a model"`
	Overhead time.Duration `env:"OVERHEAD" envDefault:"0" usage:"time per batch outside the engine"`
	Row      time.Duration `env:"ROW" envDefault:"0" usage:"time of a row of the table (default: an epoch, at least a 40th of the time)"`
	Seed     uint64        `env:"SEED" envDefault:"1" usage:"seed of all chance"`
	Limit    float64       `env:"LIMIT" envDefault:"1" usage:"exit 1 if more than this share of requests misses its SLO"`
	JSON     bool          `env:"JSON" envDefault:"false" usage:"print JSON"`
}

// Validate names the first setting that is out of range.
func (c *simulateConfig) Validate() error {
	if err := c.Steer.Validate(); err != nil {
		return err
	}
	sources := 0
	for _, s := range []string{c.Plan, c.Trace, c.Scenario} {
		if s != "" {
			sources++
		}
	}
	switch {
	case sources > 1:
		return errors.New("expected one of --plan, --trace and --scenario")
	case sources == 0 && c.Rates == "":
		return errors.New("nothing to simulate: expected --plan, --trace, --scenario, or --rates with --gpus")
	case c.Plan == "" && c.Scenario == "" && c.GPUs == "":
		return errors.New("no GPUs: expected --gpus type:count")
	case c.Trace != "" && c.Rates != "":
		return errors.New("found --trace and --rates: expected one of them")
	case c.Duration < 0 || c.Start < 0 || c.Load < 0 || c.Overhead < 0 || c.Row < 0:
		return fmt.Errorf("--duration %v, --start %v, --load %v, --overhead %v, --row %v: must not be negative", c.Duration, c.Start, c.Load, c.Overhead, c.Row)
	case !slices.Contains([]sim.Pattern{sim.Poisson, sim.Uniform, sim.MMPP}, sim.Pattern(c.Arrival)):
		return fmt.Errorf("--arrival: found %q: expected poisson, uniform or mmpp", c.Arrival)
	case !(c.Burst > 1 && c.Burst <= 2):
		return fmt.Errorf("--burst: found %v: expected a factor above 1, at most 2", c.Burst)
	case c.Sojourn <= 0:
		return fmt.Errorf("--sojourn: found %v: expected a positive time", c.Sojourn)
	case !(c.Limit >= 0):
		return fmt.Errorf("limit %v: must not be negative", c.Limit)
	}
	return nil
}

func newSimulateCommand() *cobra.Command {
	cfg := &simulateConfig{}
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Run a plan, or epochs of planning, in virtual time",
		Long: `Simulates requests, queues, batches and interference with the batcher of the gpu-lets and the
decisions of planner run, in virtual time: violations, goodput, GPUs and moves.

A plan document is simulated as it is, by default at the rates it carries: those to which planner
run adds its margin. A trace, constant rates or a scenario are planned for epoch by epoch.`,
		Example: `  planner simulate --trace planner/traces/atc22-fig14a.csv --gpus rtx2080ti:8 --algorithm gpulet
  planner simulate --rates resnet50=300,vgg16=100 --gpus rtx2080ti:2 --arrival mmpp --duration 5m
  planner simulate --plan plan.json --rates resnet50=150,vgg16=80 --limit 0.01`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return simulate(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

func simulate(cmd *cobra.Command, cfg *simulateConfig) error {
	set, problems := profile.LoadDir(cfg.Profiles)
	for _, p := range problems {
		fmt.Fprintf(cmd.ErrOrStderr(), "left out: %v\n", p)
	}
	predict, err := interference.New(set)
	if err != nil {
		return err
	}
	c, err := cfg.build(set, predict)
	if err != nil {
		return err
	}
	if err := possible(c, set, cfg.Profiles, problems); err != nil {
		return err
	}
	begin := time.Now()
	r, err := sim.Run(c)
	if err != nil {
		return err
	}
	if cfg.JSON {
		err = cli.PrintJSON(cmd.OutOrStdout(), simulated(c, r, time.Since(begin)))
	} else {
		_, err = fmt.Fprint(cmd.OutOrStdout(), r)
	}
	if err != nil {
		return err
	}
	if v := r.Total.Violations(); v > cfg.Limit {
		return fmt.Errorf("%.3f %% of the requests missed their SLO: expected at most %.3f %%", 100*v, 100*cfg.Limit)
	}
	return nil
}

// build makes the simulation that the flags describe.
func (c *simulateConfig) build(set *profile.Set, predict *interference.Set) (sim.Config, error) {
	if c.Scenario != "" {
		text, err := os.ReadFile(c.Scenario)
		if err != nil {
			return sim.Config{}, err
		}
		return sim.ParseScenario(c.Scenario, string(text), set, predict)
	}
	out := sim.Config{
		Profiles: set, Traffic: map[string]sim.Traffic{}, Duration: c.Duration, Row: c.Row,
		Start: c.Start, Load: c.Load, Overhead: c.Overhead, Seed: c.Seed,
	}
	if c.Steer.Interference {
		out.Interference = predict
	}
	var err error
	switch {
	case c.Plan != "":
		err = c.fromPlan(&out)
	case c.Trace != "":
		err = c.fromTrace(&out)
	default:
		err = c.fromRates(&out)
	}
	if err != nil {
		return out, err
	}
	if out.Duration == 0 {
		out.Duration = time.Minute
	}
	if out.Row == 0 {
		out.Row = max(c.Steer.Epoch, out.Duration/40/c.Steer.Epoch*c.Steer.Epoch)
	}
	for name, t := range out.Traffic {
		t.Pattern, t.Burst, t.Sojourn = sim.Pattern(c.Arrival), c.Burst, c.Sojourn
		out.Traffic[name] = t
	}
	return out, out.Validate()
}

// possible refuses what no planning could serve: a type of GPU without profiles in dir, and SLOs
// below the fastest possible. A plan that is simulated as it is names its own GPUs: no hosts.
func possible(c sim.Config, set *profile.Set, dir string, problems []error) error {
	var gpus []problem.GPU
	for _, h := range c.Hosts {
		for _, d := range h.Devices {
			if !slices.Contains(set.Types(), d.GPUType) {
				return unknownType(d.GPUType, dir, set)
			}
			gpus = append(gpus, problem.GPU{Host: h.Host, Index: d.Index, Type: d.GPUType, Shares: d.Shares})
		}
	}
	buffer := 1.0
	if c.Steering != nil {
		buffer = max(buffer, c.Steering.Decide.Buffer)
	}
	for _, m := range c.Models {
		if len(gpus) == 0 {
			break
		}
		if err := servable(set, gpus, m.Name, m.SLO, buffer); err != nil {
			return leftOut(err, m.Name, gpus, problems)
		}
	}
	return nil
}

// steered lets the simulation plan for itself on the GPUs of the flags.
func (c *simulateConfig) steered(out *sim.Config, names []string) error {
	slos, err := parseAssignments("slos", c.SLOs, parseSLO)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	if out.Models, err = catalog(c.Models, names, slos); err != nil {
		return err
	}
	if out.Hosts, err = sim.ParseGPUs(c.GPUs); err != nil {
		return cli.Usagef("--gpus: %w", err)
	}
	out.Steering = &sim.Steering{
		Decide: c.Steer.decide(), Interference: out.Interference,
		Epoch: c.Steer.Epoch, Observe: time.Second, MinGap: 2 * time.Second,
	}
	return nil
}

func (c *simulateConfig) fromTrace(out *sim.Config) error {
	data, err := os.ReadFile(c.Trace)
	if err != nil {
		return err
	}
	traffic, length, err := sim.ParseTrace(c.Trace, data)
	if err != nil {
		return err
	}
	out.Traffic = traffic
	if out.Duration == 0 {
		out.Duration = length
	}
	return c.steered(out, slices.Sorted(maps.Keys(traffic)))
}

func (c *simulateConfig) fromRates(out *sim.Config) error {
	rates, err := parseAssignments("rates", c.Rates, parseRate)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	for name, rate := range rates {
		out.Traffic[name] = sim.Constant(rate)
	}
	return c.steered(out, slices.Sorted(maps.Keys(rates)))
}

// fromPlan simulates a document on the GPUs that it names.
func (c *simulateConfig) fromPlan(out *sim.Config) error {
	data, err := os.ReadFile(c.Plan)
	if err != nil {
		return err
	}
	if out.Plan, err = plan.Parse(c.Plan, data); err != nil {
		return err
	}
	rates, err := parseAssignments("rates", c.Rates, parseRate)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	slos, err := parseAssignments("slos", c.SLOs, parseSLO)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	capacity := out.Plan.Capacities()
	for _, g := range out.Plan.Gpulets {
		for _, a := range g.Models {
			capacity[a.Model] += 0 // a guest carries nothing, and is known all the same
		}
	}
	if out.Models, err = catalog(c.Models, slices.Sorted(maps.Keys(capacity)), slos); err != nil {
		return err
	}
	for _, m := range out.Models {
		rate, given := rates[m.Name]
		if !given && c.Rates == "" {
			rate = demand.Carries(served(out.Plan, m.Name), m.SLO, c.Steer.Epoch, c.Steer.Violations)
		}
		out.Traffic[m.Name] = sim.Constant(rate)
		delete(rates, m.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(rates)) {
		return cli.Usagef("--rates: model %q is not in %s", name, c.Plan)
	}
	return nil
}

// served is the planned rate of a model over all gpu-lets.
func served(p plan.Plan, model string) float64 {
	var sum float64
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			if a.Model == model {
				sum += a.RateRPS
			}
		}
	}
	return sum
}

// simulation is the machine-readable result.
type simulation struct {
	DurationS  float64                   `json:"duration_s"`
	WallS      float64                   `json:"wall_s"`
	Total      outcome                   `json:"total"`
	Models     map[string]simulatedModel `json:"models"`
	GPUSeconds float64                   `json:"gpu_seconds"`
	GPUsMean   float64                   `json:"gpus_mean"`
	Plans      int                       `json:"plans"`
	Moves      int                       `json:"moves"`
	Rows       []simulatedRow            `json:"rows"`
	Problems   []string                  `json:"problems"`
}

type outcome struct {
	Requests   uint64  `json:"requests"`
	OK         uint64  `json:"ok"`
	Late       uint64  `json:"late"`
	Expired    uint64  `json:"expired"`
	Violations float64 `json:"violations"`
	GoodputRPS float64 `json:"goodput_rps"`
}

type simulatedModel struct {
	outcome
	P50Ms float64 `json:"p50_ms"`
	P99Ms float64 `json:"p99_ms"`
}

type simulatedRow struct {
	BeginS float64 `json:"begin_s"`
	EndS   float64 `json:"end_s"`
	outcome
	GPUs   float64  `json:"gpus"`
	Moves  int      `json:"moves"`
	Causes []string `json:"causes"`
}

func outcomeOf(c sim.Counts, span time.Duration) outcome {
	return outcome{
		Requests: c.Arrived, OK: c.OK, Late: c.Late, Expired: c.Expired,
		Violations: c.Violations(), GoodputRPS: float64(c.OK) / span.Seconds(),
	}
}

func simulated(c sim.Config, r sim.Result, took time.Duration) simulation {
	out := simulation{
		DurationS: c.Duration.Seconds(), WallS: took.Seconds(), Total: outcomeOf(r.Total, c.Duration), Models: map[string]simulatedModel{},
		GPUSeconds: r.GPUSeconds, GPUsMean: r.GPUSeconds / c.Duration.Seconds(), Plans: r.Plans, Moves: r.Moves, Problems: r.Problems,
	}
	for _, m := range r.Models {
		out.Models[m.Model] = simulatedModel{outcomeOf(m.Counts, c.Duration), m.P50.Seconds() * 1000, m.P99.Seconds() * 1000}
	}
	for _, row := range r.Rows {
		out.Rows = append(out.Rows, simulatedRow{
			row.Begin.Seconds(), row.End.Seconds(), outcomeOf(row.Counts, row.End-row.Begin), row.GPUs, row.Moves, row.Causes,
		})
	}
	return out
}
