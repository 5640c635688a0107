package plannercmd

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/ask"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

type applyConfig struct {
	Online       ask.Config
	Way          wayConfig
	Profiles     string  `env:"PROFILES" envDefault:"profiles" usage:"folder of shipped profiles, as planner run has it"`
	Interference bool    `env:"INTERFERENCE" envDefault:"true" usage:"plan for the slowdown by neighbours on a GPU"`
	Buffer       float64 `env:"BUFFER" envDefault:"1" usage:"factor on every predicted latency, at least 1"`
	Force        bool    `env:"FORCE" envDefault:"false" usage:"publish the plan though it is unsound"`
}

// Validate names the first setting that is out of range.
func (c *applyConfig) Validate() error {
	if !(c.Buffer >= 1) {
		return fmt.Errorf("buffer %v: must be at least 1", c.Buffer)
	}
	return c.Way.validate()
}

func newApplyCommand() *cobra.Command {
	cfg := &applyConfig{}
	return ask.Command(&cobra.Command{
		Use:   "apply PLAN.json",
		Short: "Publish a plan document and pin it",
		Long: `Publishes a plan document, such as planner plan --json prints, as the next revision. It stays
pinned: planner run keeps watching and reporting, but replaces it only after planner rollback --resume.

The document is judged first by the independent checker, with the hosts that report, the models that
are registered and the profiles that are known. What is wrong with it is printed, and it is refused
unless --force is given; a document that is malformed is refused in any case.`,
		Example: `  planner plan --gpus h100:1 --rates resnet50=400,bert=100 --json --output plan.json
  planner apply plan.json
  planner apply plan.json --force
  planner rollback --resume`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usagef("expected one file with a plan document")
			}
			return nil
		},
	}, bus.RolePlanner, cfg, &cfg.Online, func(ctx context.Context, b *bus.Bus, args []string, out io.Writer) error {
		a, err := apply(ctx, b, cfg, args[0])
		if err != nil {
			return err
		}
		if cfg.Online.JSON {
			return cli.PrintJSON(out, a)
		}
		_, err = io.WriteString(out, a.text())
		return err
	})
}

// applied is the command's output.
type applied struct {
	Plan     plan.Plan `json:"plan"`
	Problems []string  `json:"problems"` // why the plan is unsound; published by force
}

func (a applied) text() string {
	var b strings.Builder
	for _, p := range a.Problems {
		fmt.Fprintf(&b, "unsound: %s\n", p)
	}
	fmt.Fprintf(&b, "revision %d published and pinned: %s (planner rollback --resume takes the pin away)\n",
		a.Plan.Revision, problem.Count(len(a.Plan.Gpulets), "gpu-let"))
	return b.String()
}

// apply judges the document in file and publishes it.
func apply(ctx context.Context, b *bus.Bus, cfg *applyConfig, file string) (applied, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return applied{}, err
	}
	p, err := plan.Parse(file, data)
	if err != nil {
		return applied{}, err
	}
	state, _, err := readState(ctx, b)
	if err != nil {
		return applied{}, fmt.Errorf("read the system's state: %w", err)
	}
	a := applied{Problems: []string{}}
	for _, v := range cfg.judge(state, p) {
		a.Problems = append(a.Problems, v.String())
	}
	if len(a.Problems) > 0 && !cfg.Force {
		return a, fmt.Errorf("%s is unsound here, nothing is published (--force publishes it all the same):\n  %s", file, strings.Join(a.Problems, "\n  "))
	}
	p.Pinned, p.Reason = true, "applied from "+file
	a.Plan, err = publish(ctx, b, func(plan.Plan) (plan.Plan, error) { return p, nil })
	return a, err
}

// judge asks the checker about p in the system as it is.
func (c *applyConfig) judge(s epoch.State, p plan.Plan) []check.Violation {
	set, _ := profile.LoadDir(c.Profiles) // a profile that cannot be read is one that is missing
	s.Files = set
	if c.Interference {
		if predict, err := interference.New(set); err == nil {
			s.Interference = predict
		}
	}
	return epoch.Check(c.Way.reserve(epoch.Config{Buffer: c.Buffer}), s, p)
}
