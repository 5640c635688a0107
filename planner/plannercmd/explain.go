package plannercmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/ask"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

type explainConfig struct {
	Online   ask.Config
	Steer    steerConfig
	Way      wayConfig
	Profiles string `env:"PROFILES" envDefault:"profiles" usage:"folder of shipped profiles, as planner run has it"`
}

// Validate names the first setting that is out of range.
func (c *explainConfig) Validate() error { return errors.Join(c.Steer.Validate(), c.Way.validate()) }

func newExplainCommand() *cobra.Command {
	cfg := &explainConfig{}
	return ask.Command(&cobra.Command{
		Use:   "explain [MODEL...]",
		Short: "Explain the plan that runs: what each model asked for, what it got, and why",
		Long: `Shows for every model (or the named ones) its traffic, the need that was planned, and each of its
gpu-lets with its limits; then what the algorithm says of its choices when it plans the same need
again. Give the flags that planner run was started with.`,
		Example: `  planner explain
  planner explain resnet50`,
		Args: cobra.ArbitraryArgs,
	}, bus.RolePlanner, cfg, &cfg.Online, func(ctx context.Context, b *bus.Bus, args []string, out io.Writer) error {
		x, err := explain(ctx, b, cfg, args)
		if err != nil {
			return err
		}
		if cfg.Online.JSON {
			return cli.PrintJSON(out, x)
		}
		_, err = io.WriteString(out, x.text())
		return err
	})
}

// explained is the command's output.
type explained struct {
	Revision  uint64            `json:"revision"`
	Reason    string            `json:"reason"`
	Verdict   string            `json:"verdict"` // what is wrong with the plan now; empty: nothing
	Algorithm string            `json:"algorithm"`
	Models    []explainedModel  `json:"models"`
	Notes     []explainedNote   `json:"notes"`
	Reasons   map[string]string `json:"reasons"`
	GPUsUsed  int               `json:"gpus_used"`
	FreshGPUs int               `json:"fresh_gpus"`
	Bound     float64           `json:"bound"`
	Problems  []string          `json:"problems"`
}

type explainedModel struct {
	plan.ModelDemand
	Places []explainedPlace `json:"places"`
}

type explainedPlace struct {
	Gpulet  string  `json:"gpulet"`
	Share   int     `json:"share"`
	Batch   int     `json:"batch"`
	RateRPS float64 `json:"rate_rps"`
	MaxRPS  float64 `json:"max_rps"`
	ExecMs  float64 `json:"exec_ms"`
	DutyMs  float64 `json:"duty_ms"`
	WorstMs float64 `json:"worst_ms"`
}

type explainedNote struct {
	Model    string   `json:"model"`
	Where    string   `json:"where"`
	Chosen   string   `json:"chosen"`
	Rejected []string `json:"rejected"`
	Load     []string `json:"load"`
}

// explain reads the running system and asks package epoch about it.
func explain(ctx context.Context, b *bus.Bus, cfg *explainConfig, only []string) (explained, error) {
	s, report, err := readState(ctx, b)
	if err != nil {
		return explained{}, fmt.Errorf("read the system's state: %w", err)
	}
	if s.Current.Revision == 0 {
		return explained{}, errors.New("there is no plan yet (planner status shows what is missing)")
	}
	for _, name := range only {
		if !slices.ContainsFunc(report, func(d plan.ModelDemand) bool { return d.Model == name }) {
			return explained{}, fmt.Errorf("model %q: not registered", name)
		}
	}
	set, problems := profile.LoadDir(cfg.Profiles)
	s.Files, s.Contexts = set, set.Contexts()
	if cfg.Steer.Interference {
		if predict, err := interference.New(set); err == nil {
			s.Interference = predict
		} else {
			problems = append(problems, err)
		}
	}
	needs := map[string]float64{}
	for _, d := range report {
		needs[d.Model] = d.NeedRPS
	}
	e := epoch.Explain(cfg.Way.reserve(cfg.Steer.decide()), s, needs)
	for _, p := range problems {
		e.Problems = append(e.Problems, p.Error())
	}
	return newExplained(s.Current, report, e, cfg.Steer.Algorithm, only), nil
}

// readState reads what planner run reads, and what it reports.
func readState(ctx context.Context, b *bus.Bus) (epoch.State, []plan.ModelDemand, error) {
	s := epoch.State{Now: time.Now()}
	var err error
	if s.Current, _, err = b.GetPlan(ctx); err != nil {
		return s, nil, err
	}
	if s.Hosts, err = b.Hosts(ctx); err != nil {
		return s, nil, err
	}
	if s.Models, err = b.Models(ctx); err != nil {
		return s, nil, err
	}
	if s.Measured, err = b.Profiles(ctx); err != nil {
		return s, nil, err
	}
	r, err := b.Planner(ctx)
	if errors.Is(err, bus.ErrNotFound) {
		return s, fromPlan(s), nil
	}
	return s, r.Models, err
}

// fromPlan stands in for the report of a planner that does not run: what was planned was needed.
func fromPlan(s epoch.State) []plan.ModelDemand {
	var list []plan.ModelDemand
	for _, m := range s.Models {
		rate := served(s.Current, m.Name)
		list = append(list, plan.ModelDemand{Model: m.Name, SLOMs: m.SLO.Seconds() * 1000, NeedRPS: rate, PlannedRPS: rate})
	}
	return list
}

func newExplained(current plan.Plan, report []plan.ModelDemand, e epoch.Explanation, algorithm string, only []string) explained {
	wanted := func(model string) bool { return len(only) == 0 || slices.Contains(only, model) }
	x := explained{
		Revision: current.Revision, Reason: current.Reason, Verdict: e.Verdict, Algorithm: algorithm, Reasons: map[string]string{},
		GPUsUsed: current.GPUsUsed, FreshGPUs: e.Fresh.GPUsUsed, Bound: e.Bound, Problems: e.Problems,
	}
	for _, d := range report {
		if !wanted(d.Model) {
			continue
		}
		m := explainedModel{ModelDemand: d}
		for _, f := range e.Facts {
			if f.Model == d.Model {
				m.Places = append(m.Places, explainedPlace{
					f.Gpulet.ID, f.Gpulet.Share, f.Batch, f.RateRPS, f.MaxRPS, f.ExecMs, f.DutyMs, f.WorstMs,
				})
			}
		}
		x.Models = append(x.Models, m)
	}
	places := map[string]string{}
	for _, g := range e.Fresh.Gpulets {
		places[g.ID] = fmt.Sprintf("%d%% of %s", g.Share, g.Device())
	}
	for _, n := range e.Notes {
		if wanted(n.Model) {
			x.Notes = append(x.Notes, explainedNote{n.Model, places[n.Gpulet], n.Chosen, n.Rejected, n.Load})
		}
	}
	for model, reason := range e.Reasons {
		if wanted(model) {
			x.Reasons[model] = reason
		}
	}
	return x
}

// text shows the explanation for people.
func (x explained) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plan %d: %s\n", x.Revision, x.Reason)
	if x.Verdict == "" {
		fmt.Fprintln(&b, "it carries what is needed now")
	} else {
		fmt.Fprintf(&b, "now: %s\n", x.Verdict)
	}
	for _, m := range x.Models {
		fmt.Fprintf(&b, "\n%s: SLO %.4g ms; %.4g req/s arrive, %.4g/s asked for, %.4g/s planned\n", m.Model, m.SLOMs, m.RateRPS, m.NeedRPS, m.PlannedRPS)
		x.places(&b, m)
		if reason := x.Reasons[m.Model]; reason != "" {
			fmt.Fprintf(&b, "  not fully served: %s\n", reason)
		}
	}
	x.fresh(&b)
	if len(x.Problems) > 0 {
		fmt.Fprintf(&b, "\nproblems:\n  %s\n", strings.Join(x.Problems, "\n  "))
	}
	return b.String()
}

func (x explained) places(b *strings.Builder, m explainedModel) {
	if len(m.Places) == 0 {
		fmt.Fprintln(b, "  on no gpu-let")
		return
	}
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, p := range m.Places {
		fmt.Fprintf(w, "  %s\t%d%%\tbatch %d in %.4g ms\tduty cycle %.4g ms\tworst case %.4g of %.4g ms\t%.4g of at most %.4g/s\n",
			p.Gpulet, p.Share, p.Batch, p.ExecMs, p.DutyMs, p.WorstMs, m.SLOMs, p.RateRPS, p.MaxRPS)
	}
	w.Flush()
}

func (x explained) fresh(b *strings.Builder) {
	fmt.Fprintf(b, "\nplanned again now, %s would use %s (in use: %d", x.Algorithm, problem.Count(x.FreshGPUs, "GPU"), x.GPUsUsed)
	if x.Bound > 0 {
		fmt.Fprintf(b, "; no plan needs fewer than %.2f", x.Bound)
	}
	fmt.Fprintln(b, ")")
	for _, n := range x.Notes {
		fmt.Fprintf(b, "  %s on %s: %s\n", n.Model, n.Where, n.Chosen)
		for _, r := range n.Rejected {
			fmt.Fprintf(b, "    not %s\n", r)
		}
		for _, l := range n.Load {
			fmt.Fprintf(b, "    %s\n", l)
		}
	}
}
