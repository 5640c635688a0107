package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/profile"
)

type corunConfig struct {
	Common  config
	GPUType string        `env:"GPU_TYPE" envDefault:"h100" usage:"type of the GPU"`
	Span    time.Duration `env:"CORUN_SPAN" envDefault:"2s" usage:"time that each combination runs together"`
	Most    int           `env:"CORUN_MOST" envDefault:"12" usage:"most combinations to run"`
}

// corunResult is the slowdown of gpu-lets beside others, in combinations that no interference model was
// fitted to.
type corunResult struct {
	About about         `json:"about"`
	Runs  profile.Corun `json:"runs"`
}

// corunRuns has the measurements in the form that planner fit reads.
const corunRuns = "corun-runs.json"

func newCorunCommand() *cobra.Command {
	cfg := &corunConfig{}
	return experiment(&cobra.Command{
		Use:   "corun",
		Short: "Measure gpu-lets beside neighbours at full load, in new combinations",
		Long: `Runs combinations of models and splits that are not in the GPU type's corun.json, each gpu-let at full
load, and writes every median over the profiled one: the slowdown that the interference model should
have predicted. planner fit --judge holds it against that model.`,
		Example: `  evaluate corun --device cuda:0
  planner fit --gpu h100 --judge build/gpu/results/corun-runs.json`,
	}, cfg, &cfg.Common, func(ctx context.Context) error {
		err := once(ctx, &cfg.Common, "corun.json", func(ctx context.Context, r *corunResult) error { return corun(ctx, cfg, r) })
		if err != nil {
			return err
		}
		var r corunResult // in the form that planner fit reads
		if _, err := cfg.Common.read("corun.json", &r); err != nil {
			return err
		}
		return cfg.Common.write(corunRuns, r.Runs)
	})
}

func corun(ctx context.Context, cfg *corunConfig, r *corunResult) error {
	r.About = cfg.Common.about(ctx)
	r.Runs = profile.Corun{GPUType: cfg.GPUType, Date: r.About.Date, Source: "evaluate corun: medians beside neighbours over profiled medians"}
	set, _ := profile.LoadDir(cfg.Common.Profiles)
	b, stop, err := startBench(ctx, &cfg.Common)
	if err != nil {
		return err
	}
	defer stop()
	models, err := cfg.Common.available(set.Models(cfg.GPUType))
	if err != nil {
		return err
	}
	list := combinations(set, cfg.GPUType, models)
	if len(list) == 0 {
		return fmt.Errorf("no two models with profiles of %s at the shares of one split", cfg.GPUType)
	}
	for _, runs := range list[:min(len(list), cfg.Most)] {
		if cfg.Common.left() < cfg.Span+10*time.Second && len(r.Runs.Runs) > 0 {
			say("the budget ends after %d measurements", len(r.Runs.Runs))
			return nil
		}
		results, err := b.together(ctx, runs, cfg.Span)
		if err != nil {
			return err
		}
		for i, self := range runs {
			p, _ := set.Get(cfg.GPUType, self.Model)
			m := profile.Measurement{Self: profile.Running{Model: self.Model, Share: self.Share, Batch: self.Batch}}
			for k, o := range runs {
				if k != i {
					m.Others = append(m.Others, profile.Running{Model: o.Model, Share: o.Share, Batch: o.Batch})
				}
			}
			m.Slowdown = results[i].P50Ms / median(p, self.Share, self.Batch)
			say("%s %d%% b%d beside %d: x%.3f", self.Model, self.Share, self.Batch, len(m.Others), m.Slowdown)
			r.Runs.Runs = append(r.Runs.Runs, m)
		}
	}
	return nil
}

// median is the profiled median of a measured point; 0: there is none.
func median(p *profile.Profile, share, batch int) float64 {
	i := slices.IndexFunc(p.Points, func(q profile.Point) bool { return q.Share == share && q.Batch == batch })
	if i < 0 {
		return 0
	}
	return p.Points[i].P50Ms
}

// partitions are the ways to cut a GPU that are tried, one after the other.
var partitions = [][]int{{50, 50}, {20, 80}, {30, 30, 40}, {40, 60}, {20, 20, 20, 40}, {20, 20, 20, 20, 20}, {50, 50}, {10, 20, 70}}

// combinations deals models and batches out to the splits, so that each comes with changing neighbours.
// Only profiled points take part, and none of the very combinations that a model was fitted to.
func combinations(set *profile.Set, gpuType string, models []string) (list [][]execRun) {
	next := 0
	for round := range 4 {
		for i, shares := range partitions {
			var runs []execRun
			for k, share := range shares {
				batch := []int{4, 16, 8, 1}[(round+i+k)%4]
				for range models { // the next one that has the point
					name := models[next%len(models)]
					next++
					if p, _ := set.Get(gpuType, name); median(p, share, batch) > 0 {
						runs = append(runs, execRun{Model: name, Share: share, Batch: batch, layout: p.Layout})
						break
					}
				}
			}
			next++ // so that neighbours change from round to round
			if len(runs) == len(shares) && !measured(set, gpuType, runs) {
				list = append(list, runs)
			}
		}
	}
	return list
}

// measured reports whether the combination is in the type's corun.json.
func measured(set *profile.Set, gpuType string, runs []execRun) bool {
	known, ok := set.Corun(gpuType)
	if !ok {
		return false
	}
	key := func(list []profile.Running) string {
		var words []string
		for _, r := range list {
			words = append(words, fmt.Sprint(r))
		}
		slices.Sort(words)
		return fmt.Sprint(words)
	}
	var all []profile.Running
	for _, r := range runs {
		all = append(all, profile.Running{Model: r.Model, Share: r.Share, Batch: r.Batch})
	}
	return slices.ContainsFunc(known.Runs, func(m profile.Measurement) bool {
		return key(append([]profile.Running{m.Self}, m.Others...)) == key(all)
	})
}
