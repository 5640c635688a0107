package loadgencmd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
	"github.com/gpulet/gpulet/loadgen/internal/drive"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/loadgen/internal/scenario"
	"github.com/gpulet/gpulet/loadgen/internal/search"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/telemetry"
)

// searchConfig is the configuration of loadgen search.
type searchConfig struct {
	Load loadConfig
	// Mix is the proportion of the models' rates.
	Mix string `env:"MIX" usage:"weights by model, as in resnet50=2,vgg16=1, or one of game, traffic, scen1 to scen5"`
	// Violations is the share of requests that may miss their SLO.
	Violations string `env:"VIOLATIONS" envDefault:"1%" usage:"share of the requests to any model that may miss their SLO"`
	// From is the first rate tried.
	From float64 `env:"FROM" envDefault:"20" usage:"total requests/s to begin with"`
	// Most ends the search upwards.
	Most float64 `env:"MOST" envDefault:"100000" usage:"total requests/s not to go beyond"`
	// Precision is how near the highest good rate and the lowest bad one get.
	Precision string `env:"PRECISION" envDefault:"5%" usage:"how near the answer has to be to the first rate that is too high"`
	// Step is how long a rate is measured.
	Step time.Duration `env:"STEP" envDefault:"10s" usage:"how long each rate is measured"`
	// Settle lets the planner adapt before a rate is measured.
	Settle time.Duration `env:"SETTLE" envDefault:"15s" usage:"how long each rate is sent before it is measured; more than a planner's epoch"`
	// JSON is where every step goes.
	JSON string
}

// Validate checks what can be checked without the system.
func (c *searchConfig) Validate() error {
	if err := c.Load.Validate(); err != nil {
		return err
	}
	switch {
	case c.Mix == "":
		return fmt.Errorf("--mix: missing: expected weights by model, as in resnet50=2,vgg16=1")
	case c.Step <= 0 || c.Settle < 0:
		return fmt.Errorf("--step %v, --settle %v: expected more than 0 and at least 0", c.Step, c.Settle)
	case !(c.From > 0) || !(c.Most >= c.From) || arrival.CheckRPS(c.Most) != nil:
		return fmt.Errorf("--from %v, --most %v: expected 0 < from <= most", c.From, c.Most)
	}
	return nil
}

func newSearchCommand() *cobra.Command {
	var cfg searchConfig
	cmd := &cobra.Command{
		Use:   "search",
		Short: "Find the highest rate at which few enough requests miss their SLO",
		Long: `Raise the total rate of a mix of models until more than --violations of the requests to any one
of them miss their SLO, then narrow in on the border by bisection. Lost requests, errors and late
answers all are misses. A rate at which this client cannot keep its own schedule counts as too high,
and the step says so.

Exit status: 0 when a rate was found, 1 when none was good or a run failed, 2 for wrong usage.`,
		Example: `  loadgen search --mix lenet=1
  loadgen search --mix scen3 --violations 0.5% --step 20s --json peak.json`,
	}
	cli.Bind(cmd, &cfg)
	cmd.Flags().StringVar(&cfg.JSON, "json", "", "`file` for the answer and every step as JSON (- for standard output)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cli.Load(cmd, &cfg); err != nil {
			return err
		}
		return searchPeak(cmd.Context(), cfg, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

// peak is the document that loadgen search --json writes.
type peak struct {
	Mix        map[string]float64 `json:"mix"`
	Violations float64            `json:"violations"` // share allowed
	TotalRPS   float64            `json:"total_rps"`  // the highest good rate; 0: none
	TooHighRPS float64            `json:"too_high_rps,omitempty"`
	Steps      []peakStep         `json:"steps"`
}

type peakStep struct {
	TotalRPS   float64    `json:"total_rps"`
	Good       bool       `json:"good"`
	Why        string     `json:"why"`
	Violations float64    `json:"violations"` // of the worst model
	Run        report.Run `json:"run"`
}

func searchPeak(ctx context.Context, cfg searchConfig, stdout, stderr io.Writer) error {
	log := telemetry.NewLogger(cfg.Load.Log, stderr, "loadgen")
	var p peak
	var precision float64
	var err error
	if p.Mix, err = scenario.ParseMix(cfg.Mix); err != nil {
		return cli.Usagef("--mix: %w", err)
	}
	if p.Violations, err = arrival.ParseFraction(cfg.Violations); err != nil || p.Violations < 0 || p.Violations >= 1 {
		return cli.Usagef("--violations %q: expected a share below 1, such as 1%%", cfg.Violations)
	}
	if precision, err = arrival.ParseFraction(cfg.Precision); err != nil || precision <= 0 || precision >= 1 {
		return cli.Usagef("--precision %q: expected a share between 0 and 1, such as 5%%", cfg.Precision)
	}
	s, err := newSession(cfg.Load, log)
	if err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	defer s.close()

	border := search.New(cfg.From, cfg.Most, precision)
	for rps, more := border.Next(); more; rps, more = border.Next() {
		step, err := s.try(ctx, cfg, p, rps, stderr)
		if err != nil {
			return err
		}
		fmt.Fprintf(stderr, "%8.1f req/s: %s\n", rps, step.Why)
		p.Steps = append(p.Steps, step)
		border.Tell(step.Good)
	}
	p.TotalRPS, p.TooHighRPS = border.Border()
	if cfg.JSON != "" {
		if err := writeFile(cfg.JSON, stdout, func(w io.Writer) error { return writeJSON(w, p) }); err != nil {
			return err
		}
	}
	if cfg.JSON != "-" {
		p.print(stdout)
	}
	if p.TotalRPS == 0 {
		return fmt.Errorf("no rate was good: the lowest tried, %.3g req/s, is too high already", p.TooHighRPS)
	}
	return nil
}

// try measures one total rate.
func (s *session) try(ctx context.Context, cfg searchConfig, p peak, rps float64, stderr io.Writer) (peakStep, error) {
	rates := map[string]float64{}
	for name, share := range p.Mix {
		rates[name] = rps * share
	}
	sc := scenario.Constant(rates, cfg.Settle+cfg.Step)
	doc, err := s.run(ctx, settings{
		scenario: sc, warmup: cfg.Settle,
		watch: func(r *drive.Run) func() { return watchOnTerminal(stderr, r, sc.Duration()) },
	})
	if err != nil {
		return peakStep{}, err
	}
	if ctx.Err() != nil {
		return peakStep{}, fmt.Errorf("interrupted at %.1f req/s", rps)
	}
	for _, name := range doc.Names() {
		if doc.Models[name].Sent == 0 {
			return peakStep{}, fmt.Errorf("%.3g req/s: no request to %s came in %v: try a longer --step or a higher --from", rps, name, cfg.Step)
		}
	}
	step := peakStep{TotalRPS: rps, Run: doc}
	step.judge(p.Violations)
	return step, nil
}

// judge decides whether the step's rate is sustained; the worst model decides.
func (p *peakStep) judge(allowed float64) {
	var worst string
	for _, name := range p.Run.Names() {
		if v := p.Run.Models[name].ViolationShare(); worst == "" || v > p.Violations {
			worst, p.Violations = name, v
		}
	}
	f := p.Run.Models[worst]
	p.Good = p.Violations <= allowed
	p.Why = fmt.Sprintf("%.2f%% of %d to %s missed %g ms (p99 %.1f ms, %d errors, %d lost)", 100*p.Violations, f.Sent, worst, f.SLOMs, f.P99Ms, f.ErrorCount(), f.Lost)
	if t := p.Run.Total; !t.KeptUp() {
		p.Good = false
		p.Why += fmt.Sprintf("; this client sent %d of %d more than %v late", t.Late, t.Sent, report.LateAfter)
	}
	if p.Good {
		p.Why += ": good"
	} else {
		p.Why += ": too high"
	}
}

func (p peak) print(w io.Writer) {
	var rates []string
	for _, name := range slices.Sorted(maps.Keys(p.Mix)) {
		rates = append(rates, fmt.Sprintf("%s=%.1f", name, p.Mix[name]*p.TotalRPS))
	}
	fmt.Fprintf(w, "%.1f req/s in all (%s) with at most %g%% of any model's requests beyond their SLO", p.TotalRPS, strings.Join(rates, ", "), 100*p.Violations)
	if p.TooHighRPS > 0 {
		fmt.Fprintf(w, "; %.1f is too high", p.TooHighRPS)
	}
	fmt.Fprintln(w)
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// watchOnTerminal shows progress only where it can be taken back.
func watchOnTerminal(w io.Writer, run *drive.Run, total time.Duration) (stop func()) {
	if !isTerminal(w) {
		return func() {}
	}
	return watch(w, run, total)
}
