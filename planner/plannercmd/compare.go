package plannercmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/shared/cli"
)

// compareConfig is the configuration of planner compare.
type compareConfig struct {
	Problem    problemConfig
	Models     string `env:"MODELS" usage:"folder of a model repository; without it the paper's nine models have the paper's SLOs"`
	Over       string `env:"OVER" usage:"models to combine, comma-separated"`
	Grid       string `env:"GRID" envDefault:"0,100,200" usage:"rates that every model takes in turn, req/s"`
	Algorithms string `env:"ALGORITHMS" envDefault:"sbp,even,greedy,elastic,ideal,gpulet" usage:"algorithms to compare"`
	Bound      bool   `env:"BOUND" envDefault:"true" usage:"bound from above how many scenarios any plan could serve"`
	Missed     bool   `env:"MISSED" envDefault:"false" usage:"list the scenarios that gpulet does not serve"`
	Workers    int    `env:"WORKERS" envDefault:"0" usage:"scenarios planned at once; 0: one per CPU"`
	JSON       bool   `env:"JSON" envDefault:"false" usage:"print JSON"`
}

// closeCall is from which part of the GPUs on a scenario's bound is computed with full effort.
const closeCall = 0.8

// maxScenarios bounds a grid.
const maxScenarios = 10_000_000

// Validate names the first setting that is out of range.
func (c *compareConfig) Validate() error {
	if err := c.Problem.validate(); err != nil {
		return err
	}
	if c.Over == "" {
		return errors.New("--over: found none: expected models, comma-separated")
	}
	if _, err := parseNames("over", c.Over); err != nil {
		return err
	}
	if _, err := parseAlgorithms(c.Algorithms); err != nil {
		return err
	}
	if c.Workers < 0 {
		return fmt.Errorf("--workers: found %d: expected 0 or more", c.Workers)
	}
	grid, err := c.grid()
	if err != nil {
		return err
	}
	if slices.Max(grid) == 0 {
		return errors.New("--grid: found only zeros: expected a rate above 0")
	}
	if n := math.Pow(float64(len(grid)), float64(len(strings.Split(c.Over, ",")))); n > maxScenarios {
		return fmt.Errorf("--grid: found %.0f scenarios: expected at most %d", n, maxScenarios)
	}
	return nil
}

func (c *compareConfig) grid() ([]float64, error) {
	var grid []float64
	for _, text := range strings.Split(c.Grid, ",") {
		rate, err := parseRate(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("--grid: %w", err)
		}
		if slices.Contains(grid, rate) {
			return nil, fmt.Errorf("--grid: found %v again: expected each rate once", rate)
		}
		grid = append(grid, rate)
	}
	return grid, nil
}

func newCompareCommand() *cobra.Command {
	cfg := &compareConfig{}
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Count the scenarios that each algorithm can serve",
		Long: `Plans every combination of the grid's rates over the models, except all zero, with every algorithm,
and passes every plan through the independent checker: how many scenarios are served soundly, how
many plans are unsound, GPUs used, and the time a plan takes. A linear relaxation bounds how many
scenarios any sound plan could serve.`,
		Example: `  planner compare --gpus rtx2080ti:4 --over googlenet,lenet,resnet50,ssd-mobilenetv1,vgg16 --grid 0,200,400,600
  planner compare --gpus rtx2080ti:4 --over googlenet,vgg16 --grid 0,500,1000 --algorithms sbp,gpulet --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return compare(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

// comparison is the command's output.
type comparison struct {
	Scenarios  int               `json:"scenarios"`
	Algorithms map[string]*tally `json:"algorithms"`
	Bound      *int              `json:"bound,omitempty"` // scenarios that a relaxation serves
	GPUsBound  float64           `json:"gpus_bound_mean,omitempty"`
	BeyondBest []string          `json:"missed_by_gpulet_only,omitempty"`
	Missed     []string          `json:"missed,omitempty"`
}

// tally is what one algorithm did. gpus_mean is over the scenarios it serves.
type tally struct {
	Schedulable int     `json:"schedulable"`
	Unsound     int     `json:"unsound"`
	GPUsMean    float64 `json:"gpus_mean"`
	PlanMsP50   float64 `json:"plan_ms_p50"`
	PlanMsMax   float64 `json:"plan_ms_max"`
	// GapToBound is how many more GPUs it uses than the lower bound, over what it serves.
	GapToBound float64 `json:"gap_to_bound,omitempty"`

	ms          []float64
	gpus, bound float64
}

// scenarioOutcome is one scenario planned by all algorithms.
type scenarioOutcome struct {
	served, unsound []bool
	gpus            []int
	ms              []float64
	bound           float64
	name            string
}

func compare(cmd *cobra.Command, cfg *compareConfig) error {
	names, err := parseNames("over", cfg.Over)
	if err != nil {
		return err
	}
	p, err := cfg.Problem.load(cfg.Models, names, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	grid, err := cfg.grid()
	if err != nil {
		return err
	}
	algorithms, err := parseAlgorithms(cfg.Algorithms)
	if err != nil {
		return err
	}
	outcomes, err := cfg.runAll(cmd.Context(), p, names, grid, algorithms, progressTo(cmd.ErrOrStderr()))
	if err != nil {
		return err
	}
	c := summarise(outcomes, algorithms, len(p.input.GPUs), cfg)
	if cfg.JSON {
		return cli.PrintJSON(cmd.OutOrStdout(), c)
	}
	return c.print(cmd.OutOrStdout(), algorithms)
}

// runAll plans all scenarios, several at once; the result is in the order of the grid.
func (c *compareConfig) runAll(ctx context.Context, p *offlineProblem, names []string, grid []float64, algorithms []string, progress func(done, all int)) ([]scenarioOutcome, error) {
	total := 1
	for range names {
		total *= len(grid)
	}
	outcomes := make([]scenarioOutcome, total)
	workers := c.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	next := make(chan int)
	done := make(chan int, workers)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for i := range next {
				outcomes[i] = c.runOne(p, ratesOf(i, names, grid), algorithms)
				done <- i
			}
		})
	}
	go func() {
		defer close(done)
		group.Wait()
	}()
	go func() {
		defer close(next)
		for i := range total {
			if len(ratesOf(i, names, grid)) == 0 {
				continue
			}
			select {
			case next <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	n := 0
	for range done {
		n++
		progress(n, total)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return slices.DeleteFunc(outcomes, func(o scenarioOutcome) bool { return o.name == "" }), nil
}

// ratesOf is scenario i of the grid, models at rate 0 left out.
func ratesOf(i int, names []string, grid []float64) map[string]float64 {
	rates := map[string]float64{}
	for _, name := range names {
		if rate := grid[i%len(grid)]; rate > 0 {
			rates[name] = rate
		}
		i /= len(grid)
	}
	return rates
}

func (c *compareConfig) runOne(p *offlineProblem, rates map[string]float64, algorithms []string) scenarioOutcome {
	in := p.withRates(p.needs(rates))
	var o scenarioOutcome
	for _, name := range sortedNames(rates) {
		o.name += fmt.Sprintf("%s=%g ", name, rates[name])
	}
	for _, name := range algorithms {
		algorithm, err := pack.ByName(name)
		if err != nil {
			panic(err) // Validate has looked
		}
		begin := time.Now()
		res := algorithm(in, pack.Options{Steps: c.Problem.Steps})
		o.ms = append(o.ms, float64(time.Since(begin).Microseconds())/1000)
		sound := len(check.Plan(in, res.Plan)) == 0
		o.served = append(o.served, sound && check.Complete(res.Plan))
		o.unsound = append(o.unsound, !sound)
		o.gpus = append(o.gpus, res.Plan.GPUsUsed)
	}
	if c.Bound {
		if o.bound = pack.QuickBound(in); o.bound > closeCall*float64(len(in.GPUs)) {
			o.bound = pack.Bound(in)
		}
	}
	return o
}

func summarise(outcomes []scenarioOutcome, algorithms []string, gpus int, cfg *compareConfig) *comparison {
	c := &comparison{Scenarios: len(outcomes), Algorithms: map[string]*tally{}}
	ours := slices.Index(algorithms, "gpulet")
	bound := 0
	for _, o := range outcomes {
		if o.bound <= float64(gpus)*(1+1e-9) {
			bound++
		}
		c.GPUsBound += o.bound / float64(len(outcomes))
		for a, name := range algorithms {
			t := c.Algorithms[name]
			if t == nil {
				t = &tally{}
				c.Algorithms[name] = t
			}
			t.add(o, a)
		}
		if ours >= 0 && !o.served[ours] {
			if slices.Contains(o.served, true) {
				c.BeyondBest = append(c.BeyondBest, o.name)
			}
			if cfg.Missed {
				c.Missed = append(c.Missed, fmt.Sprintf("%s(bound %.3f GPUs)", o.name, o.bound))
			}
		}
	}
	for _, t := range c.Algorithms {
		t.finish(cfg.Bound)
	}
	if cfg.Bound {
		c.Bound = &bound
	}
	return c
}

func (t *tally) add(o scenarioOutcome, a int) {
	t.ms = append(t.ms, o.ms[a])
	if o.unsound[a] {
		t.Unsound++
	}
	if o.served[a] {
		t.Schedulable++
		t.gpus += float64(o.gpus[a])
		t.bound += o.bound
	}
}

func (t *tally) finish(bounded bool) {
	slices.Sort(t.ms)
	if len(t.ms) > 0 {
		t.PlanMsP50, t.PlanMsMax = t.ms[len(t.ms)/2], t.ms[len(t.ms)-1]
	}
	if t.Schedulable > 0 {
		t.GPUsMean = t.gpus / float64(t.Schedulable)
		if bounded && t.bound > 0 {
			t.GapToBound = t.gpus/t.bound - 1
		}
	}
}

func (c *comparison) print(out io.Writer, algorithms []string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%d scenarios\tserved\tunsound\tGPUs\tplan ms p50\tmax\t\n", c.Scenarios)
	for _, name := range algorithms {
		t := c.Algorithms[name]
		fmt.Fprintf(w, "%s\t%d\t%d\t%.2f\t%.2f\t%.1f\t\n", name, t.Schedulable, t.Unsound, t.GPUsMean, t.PlanMsP50, t.PlanMsMax)
	}
	if c.Bound != nil {
		fmt.Fprintf(w, "upper bound\t%d\t\t%.2f\t\t\t\n", *c.Bound, c.GPUsBound)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, list := range []struct {
		title string
		names []string
	}{{"served by another, not by gpulet", c.BeyondBest}, {"not served by gpulet", c.Missed}} {
		if len(list.names) > 0 {
			fmt.Fprintf(out, "%s:\n  %s\n", list.title, strings.Join(list.names, "\n  "))
		}
	}
	return nil
}

// progressTo prints every tenth of the work on one line each.
func progressTo(w io.Writer) func(done, all int) {
	last := 0
	return func(done, all int) {
		if tenth := done * 10 / max(1, all); tenth > last && all > 2000 {
			last = tenth
			fmt.Fprintf(w, "%d %% of %d scenarios\n", tenth*10, all)
		}
	}
}
