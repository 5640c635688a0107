package plannercmd

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/shared/cli"
)

// peakConfig is the configuration of planner peak.
type peakConfig struct {
	Problem    problemConfig
	Models     string  `env:"MODELS" usage:"folder of a model repository; without it the paper's nine models have the paper's SLOs"`
	Mix        string  `env:"MIX" usage:"game, traffic, scen1..scen5, all of them (paper), or model=parts,..."`
	Algorithms string  `env:"ALGORITHMS" envDefault:"sbp,even,greedy,elastic,ideal,gpulet" usage:"algorithms to compare"`
	Step       float64 `env:"STEP" envDefault:"1" usage:"resolution of the rate, req/s"`
	JSON       bool    `env:"JSON" envDefault:"false" usage:"print JSON"`
}

// Validate names the first setting that is out of range.
func (c *peakConfig) Validate() error {
	if err := c.Problem.validate(); err != nil {
		return err
	}
	if c.Mix == "" {
		return errors.New("--mix: found none: expected " + strings.Join(sortedNames(paperMixes), ", ") + ", paper, or model=parts,...")
	}
	if _, err := parseAlgorithms(c.Algorithms); err != nil {
		return err
	}
	if !(c.Step > 0) || math.IsInf(c.Step, 0) {
		return fmt.Errorf("--step: found %v: expected more than 0", c.Step)
	}
	return nil
}

// mix is an application or scenario: how many requests of each model one unit of rate makes.
type mix struct {
	parts map[string]float64
	slos  map[string]time.Duration
	// perUnit is how many requests a unit counts as in total_rps: an application's request is one
	// however many models it fans out to.
	perUnit float64
}

// paperMixes are the applications and scenarios of Choi et al., USENIX ATC 2022. The applications'
// SLOs per stage are those of github.com/casys-kaist/glet, scripts/createMultiModelAppConfigs.py.
var paperMixes = map[string]mix{
	"game": {map[string]float64{"lenet": 6, "resnet50": 1}, map[string]time.Duration{
		"lenet": 108 * time.Millisecond, "resnet50": 108 * time.Millisecond,
	}, 1},
	"traffic": {map[string]float64{"ssd-mobilenetv1": 1, "googlenet": 1, "vgg16": 1}, map[string]time.Duration{
		"ssd-mobilenetv1": 90 * time.Millisecond, "googlenet": 112 * time.Millisecond, "vgg16": 112 * time.Millisecond,
	}, 1},
	"scen1": equalRates("googlenet", "bert", "mnasnet1_0", "mobilenet_v2"),
	"scen2": equalRates("densenet161", "vgg16"),
	"scen3": equalRates("resnet50", "vgg16", "mobilenet_v2"),
	"scen4": equalRates("ssd-mobilenetv1", "mnasnet1_0", "densenet161"),
	"scen5": equalRates("lenet", "ssd-mobilenetv1", "vgg16", "mnasnet1_0"),
}

func equalRates(names ...string) mix {
	m := mix{parts: map[string]float64{}, perUnit: float64(len(names))}
	for _, name := range names {
		m.parts[name] = 1
	}
	return m
}

func newPeakCommand() *cobra.Command {
	cfg := &peakConfig{}
	cmd := &cobra.Command{
		Use:   "peak",
		Short: "Find the highest rate of a mix of models that still has a sound plan",
		Long: `Raises the rate of a mix until no plan is found that serves all of it and that the independent
checker accepts. total_rps counts requests: of an application (game, traffic) one per call,
however many models it fans out to; of a scenario the sum over its models.

The bound is what no sound plan can exceed, by a linear relaxation.`,
		Example: `  planner peak --gpus rtx2080ti:4 --mix scen3
  planner peak --gpus rtx2080ti:4 --mix paper --json
  planner peak --gpus h100:1 --mix resnet50=2,vgg16=1 --algorithms gpulet --slos resnet50=50ms,vgg16=50ms`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return peak(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

// peakResult is the command's output for one mix.
type peakResult struct {
	Mix        string                `json:"mix"`
	Algorithms map[string]peakTotals `json:"algorithms"`
	BoundRPS   float64               `json:"bound_rps"`
}

type peakTotals struct {
	TotalRPS float64 `json:"total_rps"`
}

func peak(cmd *cobra.Command, cfg *peakConfig) error {
	mixes, err := cfg.mixes()
	if err != nil {
		return err
	}
	algorithms, err := parseAlgorithms(cfg.Algorithms)
	if err != nil {
		return err
	}
	var results []peakResult
	for _, name := range sortedNames(mixes) {
		r, err := cfg.search(cmd.ErrOrStderr(), name, mixes[name], algorithms)
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	switch {
	case cfg.JSON && len(results) == 1:
		return cli.PrintJSON(cmd.OutOrStdout(), results[0])
	case cfg.JSON:
		return cli.PrintJSON(cmd.OutOrStdout(), results)
	}
	return printPeaks(cmd.OutOrStdout(), results, algorithms)
}

// mixes resolves --mix.
func (c *peakConfig) mixes() (map[string]mix, error) {
	if c.Mix == "paper" {
		return paperMixes, nil
	}
	if m, ok := paperMixes[c.Mix]; ok {
		return map[string]mix{c.Mix: m}, nil
	}
	parts, err := parseAssignments("mix", c.Mix, parseRate)
	if err != nil {
		return nil, cli.Usagef("%v, or one of %s, paper", err, strings.Join(sortedNames(paperMixes), ", "))
	}
	m := mix{parts: parts}
	for _, v := range parts {
		m.perUnit += v
	}
	if m.perUnit == 0 {
		return nil, cli.Usagef("--mix: found only zeros: expected a part above 0")
	}
	return map[string]mix{c.Mix: m}, nil
}

func (c *peakConfig) search(w io.Writer, name string, m mix, algorithms []string) (peakResult, error) {
	problemCfg := c.Problem
	if problemCfg.SLOs == "" {
		var slos []string
		for _, model := range sortedNames(m.slos) {
			slos = append(slos, model+"="+m.slos[model].String())
		}
		problemCfg.SLOs = strings.Join(slos, ",")
	}
	p, err := problemCfg.load(c.Models, sortedNames(m.parts), w)
	if err != nil {
		return peakResult{}, err
	}
	r := peakResult{Mix: name, Algorithms: map[string]peakTotals{}}
	unit := p.withRates(m.parts)
	limit := float64(len(unit.GPUs)) / pack.Bound(unit)
	r.BoundRPS = math.Floor(limit * m.perUnit)
	for _, alg := range algorithms {
		algorithm, err := pack.ByName(alg)
		if err != nil {
			return r, err
		}
		accepts := func(units float64) bool {
			rates := map[string]float64{}
			for model, part := range m.parts {
				rates[model] = part * units
			}
			in := p.withRates(p.needs(rates))
			res := algorithm(in, pack.Options{Steps: c.Problem.Steps})
			return check.Complete(res.Plan) && len(check.Plan(in, res.Plan)) == 0
		}
		r.Algorithms[alg] = peakTotals{TotalRPS: highest(accepts, c.Step, limit) * m.perUnit}
	}
	return r, nil
}

// highest is the largest multiple of step up to limit that is accepted, found by bisection.
func highest(accepts func(float64) bool, step, limit float64) float64 {
	lo, hi := 0, int(limit/step)+1
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		if accepts(float64(mid) * step) {
			lo = mid
		} else {
			hi = mid
		}
	}
	return float64(lo) * step
}

func printPeaks(out io.Writer, results []peakResult, algorithms []string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "mix\t%s\tbound\t\n", strings.Join(algorithms, "\t"))
	for _, r := range results {
		fmt.Fprintf(w, "%s", r.Mix)
		for _, a := range algorithms {
			fmt.Fprintf(w, "\t%.0f", r.Algorithms[a].TotalRPS)
		}
		fmt.Fprintf(w, "\t%.0f\t\n", r.BoundRPS)
	}
	if len(results) > 1 && slices.Contains(algorithms, "gpulet") {
		fmt.Fprint(w, "gpulet is, on average, x")
		for _, a := range algorithms {
			fmt.Fprintf(w, "\t%.3f", meanRatio(results, a, gpuletReaches))
		}
		fmt.Fprint(w, "\t\t\nany sound plan is, on average, at most x")
		for _, a := range algorithms {
			fmt.Fprintf(w, "\t%.3f", meanRatio(results, a, func(r peakResult) float64 { return r.BoundRPS }))
		}
		fmt.Fprint(w, "\t\t\n")
	}
	return w.Flush()
}

func gpuletReaches(r peakResult) float64 { return r.Algorithms["gpulet"].TotalRPS }

// meanRatio is how much more of is than another algorithm reaches, on average over the mixes.
func meanRatio(results []peakResult, other string, of func(peakResult) float64) float64 {
	sum := 0.0
	for _, r := range results {
		sum += of(r) / max(1, r.Algorithms[other].TotalRPS)
	}
	return sum / float64(len(results))
}
