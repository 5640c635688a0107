package plannercmd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/planner/internal/glet"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/profile"
)

// fitConfig is the configuration of planner fit.
type fitConfig struct {
	Profiles string `env:"PROFILES" envDefault:"profiles" usage:"folder of profiles, by GPU type"`
	GPU      string `env:"GPU" usage:"GPU type whose corun.json is fitted"`
	Kind     string `env:"KIND" usage:"kind of model to write: linear, anchored, pairwise or saturating; default: the one with the least error"`
	Write    bool   `env:"WRITE" envDefault:"false" usage:"write interference.json beside corun.json"`
	Pairs    string `env:"PAIRS" usage:"instead of corun.json: CSV of co-runs (model,batch,partition_pct,co_model,co_batch,co_partition_pct,latency_s)"`
	Latency  string `env:"LATENCY" usage:"with --pairs: CSV of latencies alone (model,batch,partition_pct,latency_s)"`
	Util     string `env:"UTIL" usage:"with --pairs: CSV of utilisation alone (model,batch,partition_pct,l2_util_pct,mem_util_pct)"`
	Judge    string `env:"JUDGE" usage:"fit nothing: hold the co-runs of this file, in the form of corun.json, against the GPU type's interference.json"`
	JSON     bool   `env:"JSON" envDefault:"false" usage:"print JSON"`
}

// Validate names the first setting that is out of range.
func (c *fitConfig) Validate() error {
	switch {
	case c.Kind != "" && !slices.Contains(interference.Kinds, c.Kind):
		return fmt.Errorf("--kind: found %q: expected one of %s", c.Kind, strings.Join(interference.Kinds, ", "))
	case c.Pairs != "" && (c.Latency == "" || c.Util == ""):
		return errors.New("--pairs: expected --latency and --util with it")
	case c.Pairs != "" && c.Write:
		return errors.New("--write: found --pairs: expected a GPU type's corun.json")
	case c.Judge != "" && (c.Write || c.Pairs != "" || c.Kind != ""):
		return errors.New("--judge: found --write, --pairs or --kind: it fits nothing")
	case c.Pairs == "" && c.GPU == "":
		return errors.New("--gpu: found none: expected a GPU type with a corun.json")
	}
	return nil
}

func newFitCommand() *cobra.Command {
	cfg := &fitConfig{}
	cmd := &cobra.Command{
		Use:   "fit",
		Short: "Fit models of interference to co-run measurements, and say how far off they are",
		Long: `Fits every kind of interference model to the co-runs that worker profile --corun measured
(profiles/<gpu-type>/corun.json) and prints its error on held-out combinations: fifths, each predicted
from the other four. With --write the best (or --kind) becomes what plans are made with.

With --judge nothing is fitted: co-runs measured since are held against what plans are made with.`,
		Example: `  planner fit --gpu h100 --write
  planner fit --gpu h100 --judge corun-today.json
  planner fit --pairs interference.csv --latency latency.csv --util util.csv`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return runFit(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

func runFit(cmd *cobra.Command, cfg *fitConfig) error {
	if cfg.Judge != "" {
		return runJudge(cmd, cfg)
	}
	set, runs, err := cfg.load(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	fits, least, failed := interference.FitBest(set, runs)
	for _, err := range failed {
		fmt.Fprintln(cmd.ErrOrStderr(), err)
	}
	var best *profile.Interference
	for i, f := range fits {
		if f.Kind == cfg.Kind || cfg.Kind == "" && i == least {
			best = f
		}
	}
	if best == nil {
		return fmt.Errorf("%s could not be fitted to the %d co-runs of %s", cmp.Or(cfg.Kind, "no kind of model"), len(runs.Runs), runs.GPUType)
	}
	if cfg.Write {
		path := filepath.Join(cfg.Profiles, cfg.GPU, profile.InterferenceFile)
		if err := profile.WriteJSON(path, best); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s (%s)\n", path, best.Kind)
	}
	if cfg.JSON {
		return cli.PrintJSON(cmd.OutOrStdout(), fits)
	}
	return printFits(cmd.OutOrStdout(), fits)
}

func runJudge(cmd *cobra.Command, cfg *fitConfig) error {
	set, problems := profile.LoadDir(cfg.Profiles)
	for _, p := range problems {
		fmt.Fprintf(cmd.ErrOrStderr(), "left out: %v\n", p)
	}
	j, err := judgeCoruns(set, cfg.Profiles, cfg.GPU, cfg.Judge)
	if err != nil {
		return err
	}
	if cfg.JSON {
		return cli.PrintJSON(cmd.OutOrStdout(), j)
	}
	return j.print(cmd.OutOrStdout())
}

func (c *fitConfig) load(w io.Writer) (*profile.Set, *profile.Corun, error) {
	if c.Pairs != "" {
		return glet.LoadCoruns(glet.CorunFiles{Pairs: c.Pairs, Latency: c.Latency, Util: c.Util}, "given")
	}
	set, problems := profile.LoadDir(c.Profiles)
	for _, p := range problems {
		fmt.Fprintf(w, "left out: %v\n", p)
	}
	runs, ok := set.Corun(c.GPU)
	if !ok {
		return nil, nil, fmt.Errorf("%s: found no %s: expected one, as worker profile --corun writes it", filepath.Join(c.Profiles, c.GPU), profile.CorunFile)
	}
	return set, runs, nil
}

func printFits(out io.Writer, fits []*profile.Interference) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "held-out error\tpairs\tp50\tp90\tmax\tmargin\t")
	for _, f := range fits {
		fmt.Fprintf(w, "%s\t%d\t%.1f %%\t%.1f %%\t%.0f %%\tx%.3f\t\n", f.Kind, f.HeldOut.Pairs, 100*f.HeldOut.P50, 100*f.HeldOut.P90, 100*f.HeldOut.Max, f.Margin)
	}
	return w.Flush()
}
