package workercmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/profiler"
)

// profileConfig are the settings of `worker profile`.
type profileConfig struct {
	Engine     engineConfig
	MPS        mpsConfig
	Device     string        `env:"DEVICE" envDefault:"auto" usage:"auto, cpu, cuda or cuda:N"`
	Repository string        `env:"REPOSITORY" usage:"folder of the model repository (default $GPULET_MODELS, else models)"`
	StateDir   string        `env:"STATE_DIR" envDefault:".gpulet" usage:"folder for keys and local state"`
	Budget     time.Duration `env:"BUDGET" envDefault:"0" usage:"time to run one model in on all shares (default 3s with --quick, 100ms a point on a GPU, else 30s)"`
	// Tolerance is how far off interpolation between measured shares may be. 0 measures all shares.
	Tolerance float64 `env:"TOLERANCE" envDefault:"0.05" usage:"error of interpolation between shares from which one in between is measured too; 0: measure all"`
	// CorunBudget is the time for co-runs, starting processes included.
	CorunBudget time.Duration `env:"CORUN_BUDGET" envDefault:"3m" usage:"time to measure co-runs in"`
	// CorunSeed chooses among equally informative combinations.
	CorunSeed uint64 `env:"CORUN_SEED" envDefault:"1" usage:"seed of the choice of co-runs"`
	// AllowUnpartitioned measures although processes are not held to their shares.
	AllowUnpartitioned bool `env:"ALLOW_UNPARTITIONED" envDefault:"false" usage:"measure although MPS does not hold processes to their shares: whole GPUs only"`

	models  []string
	out     string
	shares  []int
	batches []int
	html    string
	quick   bool
	force   bool
	corun   bool
	asJSON  bool
}

// Validate reports the first setting that makes no sense.
func (c *profileConfig) Validate() error {
	for _, s := range c.shares {
		if s < 1 || s > 100 {
			return fmt.Errorf("--shares: found %d: expected 1 to 100 percent", s)
		}
	}
	for _, b := range c.batches {
		if b < 1 || b > model.MaxBatch {
			return fmt.Errorf("--batches: found %d: expected 1 to %d samples", b, model.MaxBatch)
		}
	}
	switch {
	case c.Budget < 0:
		return fmt.Errorf("budget %v: expected 0 or more", c.Budget)
	case !(c.Tolerance >= 0 && c.Tolerance <= 1):
		return fmt.Errorf("tolerance %v: expected a fraction from 0 to 1", c.Tolerance)
	case c.CorunBudget <= 0:
		return fmt.Errorf("corun budget %v: expected more than 0", c.CorunBudget)
	}
	slices.Sort(c.shares)
	slices.Sort(c.batches)
	c.shares, c.batches = slices.Compact(c.shares), slices.Compact(c.batches)
	return c.Engine.Validate()
}

// fill sets what depends on other settings.
func (c *profileConfig) fill() {
	if c.Repository == "" {
		c.Repository = os.Getenv(cli.EnvPrefix + "MODELS")
	}
	if c.Repository == "" {
		c.Repository = "models"
	}
	if c.out == "" {
		c.out = filepath.Join(c.StateDir, "profiles")
	}
}

func newProfileCommand() *cobra.Command {
	cfg := &profileConfig{}
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Measure models on this host",
		Long: `Measures how long batches of models take on shares of this host's device, and writes one profile
per model, which the planner plans with: <out>/<gpu type>/<model>.json. What was measured here before
is kept, unless the model's archive, the engine or the driver has changed or --force is given; so an
interrupted run goes on where it was.

On a GPU a share is a percentage of its SMs, given to a process by MPS; on a CPU it is a number of
cores. Each share gets a process that measures all models one after the other, from host memory to
host memory, as a gpu-let runs them. Shares are measured only where interpolating between others
would be off by more than --tolerance. Nothing else should run meanwhile.

With --corun, processes on several shares then run models beside each other, as many combinations
as --corun-budget allows. Their slowdowns go to corun.json, and the model of interference that is
fitted to them to interference.json, with its error on combinations that it was not fitted to.`,
		Example: `  worker profile --quick                                 every model of the repository
  worker profile --models resnet50,bert --out profiles/
  worker profile --models lenet --shares 50,100 --batches 1,2,4,8,16
  worker profile --device cuda:0 --corun --out profiles/ --html profile.html`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			cfg.fill()
			return runProfile(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	cmd.Flags().StringSliceVar(&cfg.models, "models", nil, "models to measure (default: all of the repository)")
	cmd.Flags().StringVar(&cfg.out, "out", "", "folder to write to (default <state-dir>/profiles, where the agent looks)")
	cmd.Flags().IntSliceVar(&cfg.shares, "shares", nil, "percentages of the device (default: 10,20,30,40,50,60,80,100 of a GPU, else 1, 2, 4, ... and all cores)")
	cmd.Flags().IntSliceVar(&cfg.batches, "batches", nil, "batch sizes (default: 1, 2, 4, ... and the model's max_batch)")
	cmd.Flags().BoolVar(&cfg.quick, "quick", false, "a few seconds a model: good enough to plan on this very host")
	cmd.Flags().BoolVar(&cfg.force, "force", false, "measure again what was measured before")
	cmd.Flags().BoolVar(&cfg.corun, "corun", false, "also run models beside each other, and fit a model of interference")
	cmd.Flags().StringVar(&cfg.html, "html", "", "file for a report with curves as HTML")
	cmd.Flags().BoolVar(&cfg.asJSON, "json", false, "print the profiles as JSON")
	return cmd
}

func runProfile(cmd *cobra.Command, cfg *profileConfig) error {
	choice, err := device.Parse(cfg.Device)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	if choice.Kind == device.Sim {
		return cli.Usagef("device %q: a simulated GPU answers from a profile, there is nothing to measure", cfg.Device)
	}
	models, err := chooseModels(cfg)
	if err != nil {
		return err
	}
	p := &profiling{cfg: cfg, models: models, show: newSteps(cmd, cfg.asJSON)}
	defer p.show.clear()
	if p.target, err = newTarget(cmd.Context(), cfg, choice, p.show.say); err != nil {
		return err
	}
	defer p.target.close()
	return p.run(cmd)
}

// chooseModels returns the models that were asked for.
func chooseModels(cfg *profileConfig) ([]model.Model, error) {
	if len(cfg.models) == 0 {
		models, problems := model.Scan(cfg.Repository)
		if len(models) == 0 {
			return nil, errors.Join(append(problems, fmt.Errorf("no models in %s", cfg.Repository))...)
		}
		return models, nil
	}
	var models []model.Model
	for _, name := range cfg.models {
		m, err := model.Load(cfg.Repository, name)
		if err != nil {
			return nil, err
		}
		models = append(models, m)
	}
	return models, nil
}

// profiling measures models on a target.
type profiling struct {
	cfg    *profileConfig
	target *target
	models []model.Model
	show   *steps
}

func (p *profiling) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	survey := p.survey()
	profiles := p.profiles(ctx, survey)
	failed := survey.Run(ctx, p.models, profiles)
	profiles = slices.DeleteFunc(profiles, func(q *profile.Profile) bool { return len(q.Points) == 0 })
	errs := []error{notMeasured(p.models, failed), p.saveDevice(survey.ContextBytes())}
	if p.cfg.corun && ctx.Err() == nil {
		errs = append(errs, p.corun(ctx, profiles))
	}
	p.show.clear()
	if p.cfg.html != "" {
		errs = append(errs, p.report())
	}
	if p.cfg.asJSON {
		errs = append(errs, json.NewEncoder(cmd.OutOrStdout()).Encode(profiles))
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: what was measured is kept in %s", ctx.Err(), filepath.Join(p.cfg.out, p.target.dev.GPUType))
	}
	return errors.Join(errs...)
}

// notMeasured puts the models that failed into one error.
func notMeasured(models []model.Model, failed map[string]error) error {
	var words []string
	for _, m := range models {
		if err := failed[m.Name]; err != nil {
			words = append(words, fmt.Sprintf("%s (%v)", m.Name, err))
		}
	}
	if len(words) == 0 {
		return nil
	}
	return fmt.Errorf("not measured: %s", strings.Join(words, "; "))
}

// survey is what is to be measured, by the settings and the kind of device.
func (p *profiling) survey() *profiler.Survey {
	s := &profiler.Survey{
		Shares: p.cfg.shares, Tolerance: p.cfg.Tolerance, Batches: p.batches, Rule: profiler.OnCPU, Budget: p.cfg.Budget,
		Captures: p.target.isGPU(), Start: p.target.start, Check: p.target.check, Note: func(text string) { p.show.say("%s", text) },
		Save: func(q *profile.Profile) error { return profile.Save(p.cfg.out, q) },
		Step: p.step,
	}
	if p.target.meter != nil { // else the interface would not be nil
		s.Counters = p.target.meter
	}
	if len(s.Shares) == 0 {
		s.Shares = p.target.shares()
	}
	switch {
	case p.cfg.quick:
		s.Rule = profiler.Quick
	case p.target.isGPU():
		s.Rule = profiler.OnGPU
	}
	if s.Budget == 0 {
		s.Budget = p.budget(len(s.Shares))
	}
	return s
}

// pointBudget is the time for one point on a GPU, on average: those of fast batches need less.
const pointBudget = 100 * time.Millisecond

// budget is the time to run one model in by default.
func (p *profiling) budget(shares int) time.Duration {
	most := 1
	for _, m := range p.models {
		most = max(most, len(p.batches(m)))
	}
	switch {
	case p.cfg.quick:
		return 3 * time.Second
	case p.target.isGPU():
		return pointBudget * time.Duration(shares*most)
	}
	return 30 * time.Second
}

// batches are the sizes to measure of a model.
func (p *profiling) batches(m model.Model) []int {
	if len(p.cfg.batches) > 0 {
		return p.cfg.batches
	}
	return profiler.Batches(m.MaxBatch)
}

// profiles are what is known of the models, to be added to: empty where nothing is, or nothing that
// still holds.
func (p *profiling) profiles(ctx context.Context, s *profiler.Survey) []*profile.Profile {
	var out []*profile.Profile
	for _, m := range p.models {
		fresh := p.fresh(m)
		path := profiler.Path(p.cfg.out, p.target.dev.GPUType, m.Name)
		earlier, err := profiler.Cached(p.cfg.out, p.target.dev.GPUType, m)
		if err == nil && !p.cfg.force {
			fresh.Torch = p.target.engineVersion(ctx)
			fresh, err = profiler.Resume(earlier, fresh)
		}
		switch {
		case p.cfg.force || errors.Is(err, profiler.ErrNotCached):
		case err != nil:
			p.show.say("%s: refused, measuring again: %v", path, err)
		case s.Missing(m, fresh):
			p.show.say("%s: measured in part before, going on: see %s", m.Name, path)
		default:
			p.show.say("%s: measured before, see %s", m.Name, path)
		}
		out = append(out, fresh)
	}
	return out
}

func (p *profiling) fresh(m model.Model) *profile.Profile {
	now := time.Now().UTC()
	return &profile.Profile{
		Model: m.Name, ModelHash: m.Hash, GPUType: p.target.dev.GPUType, GPU: p.target.dev.Name, Driver: p.target.inv.Driver,
		Precision: m.Precision, Inputs: profiler.Inputs(m), Date: now.Format(time.DateOnly),
		Source: "measured on the host by `worker profile`", Updated: now.Truncate(time.Second),
	}
}

// step shows what was measured of a model on a share.
func (p *profiling) step(s profiler.Step) {
	var words strings.Builder
	fmt.Fprintf(&words, "%s: %3d%%%s:", s.Model, s.Share, p.target.extent(s.Share))
	for _, q := range s.Points {
		fmt.Fprintf(&words, "  b%d %.2f ms", q.Batch, q.P50Ms)
	}
	if len(s.Points) == 0 {
		words.WriteString("  nothing")
	}
	p.show.step(words.String(), s.Done, s.Left)
}

// report writes the page about everything in the device's folder.
func (p *profiling) report() error {
	page := profiler.Page{GPUType: p.target.dev.GPUType, SLOs: map[string]time.Duration{}}
	var problems []error
	page.Profiles, problems = profile.LoadDir(p.cfg.out)
	for _, err := range problems {
		p.show.say("left out of the report: %v", err)
	}
	for _, m := range p.models {
		page.SLOs[m.Name] = m.SLO
	}
	f, err := os.Create(p.cfg.html)
	if err != nil {
		return err
	}
	return errors.Join(page.Write(f), f.Close())
}
