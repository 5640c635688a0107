package plannercmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/glet"
	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/plan"
)

// planConfig is the configuration of planner plan.
type planConfig struct {
	Problem   problemConfig
	Models    string `env:"MODELS" envDefault:"models" usage:"folder of the model repository; the paper's nine models need none"`
	Rates     string `env:"RATES" usage:"rates, model=req/s,..."`
	RatesFile string `env:"RATES_FILE" usage:"file of model,rate lines"`
	Algorithm string `env:"ALGORITHM" envDefault:"gpulet" usage:"packing algorithm"`
	Headroom  bool   `env:"HEADROOM" usage:"give what is left of the GPUs in use to their gpu-lets, or cut as many GPUs for a multiple of the rates: room for bursts (gpulet)"`
	Original  bool   `env:"ORIGINAL" envDefault:"false" usage:"elastic only: as the published prototype, with its two gpu-lets a GPU and its unsound plans"`
	Current   string `env:"CURRENT" usage:"plan document that runs now, to stay close to"`
	Format    string `env:"FORMAT" envDefault:"table" usage:"table, json or modellist"`
	JSON      bool   `env:"JSON" envDefault:"false" usage:"short for --format json"`
	Output    string `env:"OUTPUT" usage:"file to write instead of standard output"`
	Explain   bool   `env:"EXPLAIN" envDefault:"false" usage:"say why, per gpu-let and model"`

	Tasks   string `env:"GLET_TASKS" usage:"tasks.csv of a glet installation"`
	Config  string `env:"GLET_CONFIG" usage:"sched-config.json of a glet installation"`
	Devices string `env:"GLET_DEVICES" usage:"device-config.json of a glet installation"`
	Latency string `env:"GLET_LATENCY" usage:"latency.csv of a glet installation"`
	Mem     string `env:"GLET_MEM" usage:"mem-config.json of a glet installation"`
}

// Validate names the first setting that is out of range.
func (c *planConfig) Validate() error {
	if err := c.Problem.validate(); err != nil {
		return err
	}
	if _, err := pack.ByName(c.Algorithm); err != nil {
		return fmt.Errorf("--algorithm: %w", err)
	}
	if c.JSON {
		c.Format = "json"
	}
	switch c.Format {
	case "table", "json", "modellist":
	default:
		return fmt.Errorf("--format: found %q: expected table, json or modellist", c.Format)
	}
	if c.Original && c.Algorithm != "elastic" {
		return fmt.Errorf("--original: found --algorithm %s: expected elastic", c.Algorithm)
	}
	if c.Original && c.Explain {
		return errors.New("--explain: found --original: expected another algorithm, the prototype gives no reasons")
	}
	if c.glet() {
		if c.Tasks == "" || c.Config == "" || c.Latency == "" {
			return errors.New("glet's files: expected at least --glet-tasks, --glet-config and --glet-latency")
		}
		return nil
	}
	if (c.Rates == "") == (c.RatesFile == "") {
		return errors.New("expected one of --rates and --rates-file")
	}
	return nil
}

func (c *planConfig) glet() bool {
	return c.Tasks+c.Config+c.Devices+c.Latency+c.Mem != ""
}

func newPlanCommand() *cobra.Command {
	cfg := &planConfig{}
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Plan gpu-lets for given rates, without a running system",
		Long: `Packs models onto GPUs so that every rate is served within its SLO, and shows the plan as a table
and a drawing. The plan passes through the independent checker first. Exit 1 when the rates cannot
be served, saying what lacks and how many GPUs would do.

A glet installation's own files can be given instead of rates, GPUs and profiles; with
--algorithm elastic --original --format modellist the output is what glet's scheduler writes.`,
		Example: `  planner plan --gpus rtx2080ti:4 --rates resnet50=400,vgg16=100
  planner plan --gpus rtx2080ti:4 --rates resnet50=400 --algorithm elastic --explain
  planner plan --gpus h100:2 --rates-file rates.csv --current plan.json --json
  planner plan --glet-tasks tasks.csv --glet-config sched-config.json --glet-devices device-config.json \
      --glet-latency latency.csv --algorithm elastic --original --format modellist --output ModelList.txt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return runPlan(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

func runPlan(cmd *cobra.Command, cfg *planConfig) error {
	in, err := cfg.input(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if cfg.Current != "" {
		data, err := os.ReadFile(cfg.Current)
		if err != nil {
			return err
		}
		current, err := plan.Parse(cfg.Current, data)
		if err != nil {
			return err
		}
		in.Current = &current
	}
	algorithm, err := pack.ByName(cfg.Algorithm)
	if err != nil {
		return err
	}
	res := algorithm(in, pack.Options{Steps: cfg.Problem.Steps, Original: cfg.Original, Explain: cfg.Explain, Headroom: cfg.Headroom})
	if !check.Complete(res.Plan) && cfg.Algorithm != "gpulet" {
		res.Plan.DesiredGPUs = desiredWithGpulet(in)
	}
	violations := check.Plan(in, res.Plan)
	if err := cfg.write(cmd.OutOrStdout(), in, res); err != nil {
		return err
	}
	return verdict(res, violations, cfg.Original, cmd.ErrOrStderr())
}

// desiredWithGpulet is how many GPUs would serve everything, where the algorithm that was asked for
// cannot say.
func desiredWithGpulet(in problem.Input) int {
	in.Current = nil
	return pack.Gpulet(in, pack.Options{}).Plan.DesiredGPUs
}

// input builds the problem from flags or from glet's files.
func (c *planConfig) input(w io.Writer) (problem.Input, error) {
	if c.glet() {
		in, warnings, err := glet.Load(glet.Files{Tasks: c.Tasks, Config: c.Config, Devices: c.Devices, Latency: c.Latency, Mem: c.Mem})
		for _, warning := range warnings {
			fmt.Fprintf(w, "glet: %s\n", warning)
		}
		return in, err
	}
	rates, err := c.rates()
	if err != nil {
		return problem.Input{}, err
	}
	p, err := c.Problem.load(c.Models, sortedNames(rates), w)
	if err != nil {
		return problem.Input{}, err
	}
	return p.withRates(p.needs(rates)), nil
}

func (c *planConfig) rates() (map[string]float64, error) {
	if c.RatesFile != "" {
		return readRates(c.RatesFile)
	}
	rates, err := parseAssignments("rates", c.Rates, parseRate)
	if err != nil {
		return nil, cli.Usagef("%v", err)
	}
	return rates, nil
}

// write prints the plan in the chosen format.
func (c *planConfig) write(out io.Writer, in problem.Input, res pack.Result) error {
	var text string
	switch c.Format {
	case "json":
		data, err := json.MarshalIndent(res.Plan, "", " ")
		if err != nil {
			return err
		}
		text = string(data) + "\n"
	case "modellist":
		text = glet.ModelList(in.GPUs, res.Plan)
	default:
		text = planTable(res.Plan) + "\n" + planDrawing(in.GPUs, res.Plan)
		if in.Current != nil {
			change := plan.Diff(*in.Current, res.Plan)
			text += fmt.Sprintf("\nagainst the current plan: %d moves\n%s", change.Moves(), change)
		}
		text += notesText(res.Explain)
		if res.Bound > 0 {
			text += fmt.Sprintf("\nno sound plan needs fewer than %.2f GPUs\n", res.Bound)
		}
	}
	if c.Output == "" {
		_, err := io.WriteString(out, text)
		return err
	}
	return os.WriteFile(c.Output, []byte(text), 0o644)
}

// notesText prints notes.
func notesText(notes []pack.Note) string {
	var b strings.Builder
	for _, n := range notes {
		fmt.Fprintf(&b, "\n%s  %s\n  %s\n", n.Gpulet, n.Model, n.Chosen)
		for _, r := range n.Rejected {
			fmt.Fprintf(&b, "  - %s\n", r)
		}
		for _, l := range n.Load {
			fmt.Fprintf(&b, "  load: %s\n", l)
		}
	}
	return b.String()
}

// verdict is the command's error: what lacks, or what the checker refused.
func verdict(res pack.Result, violations []check.Violation, original bool, w io.Writer) error {
	if len(violations) > 0 {
		var lines []string
		for _, v := range violations {
			lines = append(lines, v.String())
		}
		text := "the plan is unsound:\n  " + strings.Join(lines, "\n  ")
		if !original {
			return errors.New(text)
		}
		fmt.Fprintln(w, text)
	}
	if check.Complete(res.Plan) {
		return nil
	}
	var lines []string
	for _, name := range sortedNames(res.Plan.Unserved) {
		lines = append(lines, fmt.Sprintf("%s: %.4g req/s not served: %s", name, res.Plan.Unserved[name], res.Reasons[name]))
	}
	with := ""
	if res.Plan.Algorithm != "gpulet" {
		with = "with --algorithm gpulet "
	}
	return fmt.Errorf("the rates cannot be served; %s%s would do:\n  %s", with, problem.Count(res.Plan.DesiredGPUs, "GPU"), strings.Join(lines, "\n  "))
}
