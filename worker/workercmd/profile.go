package workercmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/affinity"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/profiler"
)

// profileConfig are the settings of `worker profile`.
type profileConfig struct {
	Engine     engineConfig
	Device     string        `env:"DEVICE" envDefault:"auto" usage:"auto or cpu"`
	Repository string        `env:"REPOSITORY" usage:"folder of the model repository (default $GPULET_MODELS, else models)"`
	StateDir   string        `env:"STATE_DIR" envDefault:".gpulet" usage:"folder for keys and local state"`
	Budget     time.Duration `env:"BUDGET" envDefault:"0" usage:"time to measure one model in (default 3s with --quick, else 30s)"`

	models  []string
	out     string
	shares  []int
	batches []int
	quick   bool
	force   bool
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
	if c.Budget < 0 {
		return fmt.Errorf("budget %v: expected 0 or more", c.Budget)
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
	if c.Budget == 0 {
		c.Budget = 30 * time.Second
		if c.quick {
			c.Budget = 3 * time.Second
		}
	}
}

func newProfileCommand() *cobra.Command {
	cfg := &profileConfig{}
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Measure models on this host",
		Long: `Measures how long batches of models take on shares of this host's device, and writes one profile
per model, which the planner plans with: <out>/<gpu type>/<model>.json. A model that was measured
here before is left alone, unless its archive has changed or --force is given.

On a CPU a share is a number of cores. Each (model, share) is measured in a process of its own that
is bound to so many cores; nothing else should run meanwhile.`,
		Example: `  worker profile --quick                                 every model of the repository
  worker profile --models resnet50,bert --out profiles/
  worker profile --models lenet --shares 50,100 --batches 1,2,4,8,16`,
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
	cmd.Flags().IntSliceVar(&cfg.shares, "shares", nil, "percentages of the device (default: 1, 2, 4, ... and all cores)")
	cmd.Flags().IntSliceVar(&cfg.batches, "batches", nil, "batch sizes (default: 1, 2, 4, ... and the model's max_batch)")
	cmd.Flags().BoolVar(&cfg.quick, "quick", false, "a few seconds a model: good enough to plan on this very host")
	cmd.Flags().BoolVar(&cfg.force, "force", false, "measure again what was measured before")
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
	inv, err := device.Discover(choice, nil)
	if err != nil {
		return err
	}
	models, err := chooseModels(cfg)
	if err != nil {
		return err
	}
	program, err := self()
	if err != nil {
		return err
	}
	p := &profiling{cmd: cmd, cfg: cfg, inv: inv, program: program}
	var failed []string
	var profiles []*profile.Profile
	for _, m := range models {
		prof, err := p.model(cmd.Context(), m)
		if cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		if err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", m.Name, err)
			failed = append(failed, fmt.Sprintf("%s (%v)", m.Name, err))
			continue
		}
		profiles = append(profiles, prof)
	}
	if cfg.asJSON {
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(profiles); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("not measured: %s", strings.Join(failed, "; "))
	}
	return nil
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

// profiling measures models one after the other.
type profiling struct {
	cmd     *cobra.Command
	cfg     *profileConfig
	inv     device.Inventory
	program string
}

// model returns the profile of m, measured now unless that was done before.
func (p *profiling) model(ctx context.Context, m model.Model) (*profile.Profile, error) {
	dev := p.inv.Devices[0]
	if !p.cfg.force {
		cached, err := profiler.Cached(p.cfg.out, dev.GPUType, m)
		switch {
		case err == nil:
			p.say("%s: measured before, see %s\n", m.Name, profiler.Path(p.cfg.out, dev.GPUType, m.Name))
			return cached, nil
		case !errors.Is(err, profiler.ErrNotCached):
			p.say("%s: refused, measuring again: %v\n", m.Name, err)
		}
	}
	prof := &profile.Profile{
		Model: m.Name, ModelHash: m.Hash, GPUType: dev.GPUType, GPU: dev.Name, Precision: m.Precision,
		Date: time.Now().UTC().Format(time.DateOnly), Source: "measured on the host by `worker profile`", Updated: time.Now().UTC().Truncate(time.Second),
	}
	shares := p.shares()
	for _, share := range shares {
		r, err := p.share(ctx, m, share, p.cfg.Budget/time.Duration(len(shares)))
		if err != nil {
			return nil, fmt.Errorf("share %d%%: %w", share, err)
		}
		prof.Torch = r.Engine
		profiler.Merge(prof, r.Points, r.Memory)
		p.say("%s: %3d%% (%d of %d cores):%s\n", m.Name, share, device.CoresOf(share, len(p.inv.Cores)), len(p.inv.Cores), inWords(r.Points))
	}
	return prof, profile.Save(p.cfg.out, prof)
}

func (p *profiling) say(format string, args ...any) {
	w := p.cmd.OutOrStdout()
	if p.cfg.asJSON {
		w = p.cmd.ErrOrStderr()
	}
	fmt.Fprintf(w, format, args...)
}

func inWords(points []profile.Point) string {
	var b strings.Builder
	for _, q := range points {
		fmt.Fprintf(&b, "  b%d %.2f ms", q.Batch, q.P50Ms)
	}
	return b.String()
}

// shares are those asked for, else powers of two of cores, and all of them.
func (p *profiling) shares() []int {
	if len(p.cfg.shares) > 0 {
		return p.cfg.shares
	}
	n := len(p.inv.Cores)
	all := device.CoreShares(n)
	if len(all) <= 4 {
		return all
	}
	var shares []int
	for _, k := range profiler.Batches(n) { // the same powers of two
		shares = append(shares, max(1, 100*k/n))
	}
	return slices.Compact(shares)
}

// shareReport is what the process that measured a share prints.
type shareReport struct {
	Engine string           `json:"engine"`
	Points []profile.Point  `json:"points"`
	Memory []profile.Memory `json:"memory"`
}

// share has a process measure a model on some cores. It may crash without harm.
func (p *profiling) share(ctx context.Context, m model.Model, share int, budget time.Duration) (shareReport, error) {
	cores := p.inv.Cores[:device.CoresOf(share, len(p.inv.Cores))]
	args := []string{
		"measure", "--repository", p.cfg.Repository, "--model", m.Name, "--share", strconv.Itoa(share),
		"--cores", joinInts(cores), "--budget", budget.String(),
	}
	if len(p.cfg.batches) > 0 {
		args = append(args, "--batches", joinInts(p.cfg.batches))
	}
	if p.cfg.quick {
		args = append(args, "--quick")
	}
	cmd := exec.CommandContext(ctx, p.program, append(args, p.cfg.Engine.args()...)...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	var r shareReport
	if err := cmd.Run(); err != nil {
		return r, errors.New(strings.TrimPrefix(lastLine(words.String(), err), "gpulet worker: "))
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return r, fmt.Errorf("found %.100q: expected a measurement", out.String())
	}
	return r, nil
}

// measureConfig are the settings of `worker measure`.
type measureConfig struct {
	Engine     engineConfig
	Repository string        `env:"REPOSITORY" envDefault:"models" usage:"folder of the model repository"`
	Model      string        `env:"MODEL" usage:"name of the model"`
	Share      int           `env:"SHARE" envDefault:"100" usage:"percent of the device, to be noted"`
	Cores      []int         `env:"CORES" usage:"cores to run on"`
	Batches    []int         `env:"BATCHES" usage:"batch sizes (default: powers of two)"`
	Budget     time.Duration `env:"BUDGET" envDefault:"3s" usage:"time for all batches together"`
	Quick      bool          `env:"QUICK" usage:"few runs of each"`
}

func newMeasureCommand() *cobra.Command {
	cfg := &measureConfig{}
	cmd := &cobra.Command{
		Use:    "measure",
		Short:  "Measure one model on one share (started by profile)",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			r, err := measure(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

// measure restricts the process to the cores, which must come before the engine's library, and
// measures.
func measure(ctx context.Context, cfg *measureConfig) (shareReport, error) {
	var r shareReport
	m, err := model.Load(cfg.Repository, cfg.Model)
	if err != nil {
		return r, err
	}
	if len(cfg.Cores) > 0 {
		if err := affinity.Set(cfg.Cores); err != nil {
			return r, err
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	eng, err := engine.Open(cfg.Engine.Engine, engine.Options{Library: cfg.Engine.EngineLib, Threads: len(cfg.Cores)})
	if err != nil {
		return r, err
	}
	defer eng.Close()
	batches := cfg.Batches
	if len(batches) == 0 {
		batches = profiler.Batches(m.MaxBatch)
	}
	loaded, err := eng.Load(ctx, engine.Spec{Model: m, Device: "cpu", Precision: m.Precision, MaxBatch: max(m.MaxBatch, batches[len(batches)-1])})
	if err != nil {
		return r, err
	}
	defer loaded.Close()
	what := profiler.Quick(cfg.Share, batches, cfg.Budget)
	if !cfg.Quick {
		what.MinRuns, what.MaxRuns = 20, 500
	}
	r.Engine = eng.Info().Version
	if r.Points, err = profiler.Measure(ctx, loaded, m.Inputs, what); err != nil {
		return r, err
	}
	r.Memory = []profile.Memory{{Batch: r.Points[len(r.Points)-1].Batch, Bytes: loaded.MemBytes()}}
	return r, nil
}
