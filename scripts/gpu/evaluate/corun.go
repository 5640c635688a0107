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
load, and writes every median over that of the same gpu-let alone, which was measured just before on the
same GPU in the same way: the slowdown that the interference model should have predicted. planner fit
--judge holds it against that model.`,
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
	r.Runs = profile.Corun{GPUType: cfg.GPUType, Date: r.About.Date, Source: "evaluate corun: medians beside neighbours over medians alone, of one session"}
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
	s := session{span: cfg.Span, together: b.together, alone: map[execRun]float64{}}
	for _, runs := range list[:min(len(list), cfg.Most)] {
		if cfg.Common.left() < s.takes(runs) && len(r.Runs.Runs) > 0 {
			say("the budget ends after %d measurements", len(r.Runs.Runs))
			return nil
		}
		measured, err := s.measure(ctx, runs)
		if err != nil {
			return err
		}
		r.Runs.Runs = append(r.Runs.Runs, measured...)
	}
	return nil
}

// session measures combinations, and what their gpu-lets take alone.
type session struct {
	span     time.Duration
	together func(ctx context.Context, runs []execRun, span time.Duration) ([]execResult, error)
	alone    map[execRun]float64 // medians in ms of what has run alone
}

// loadTime is more than processes take to load their models and to end.
const loadTime = 10 * time.Second

// takes is how long a combination may take.
func (s *session) takes(runs []execRun) time.Duration {
	parts := 1
	for i, r := range runs {
		if s.alone[r] == 0 && !slices.Contains(runs[:i], r) {
			parts++
		}
	}
	return time.Duration(parts) * (s.span + loadTime)
}

// measure runs each of a combination alone, unless it was, and then all together.
func (s *session) measure(ctx context.Context, runs []execRun) ([]profile.Measurement, error) {
	for _, r := range runs {
		if s.alone[r] > 0 {
			continue
		}
		results, err := s.together(ctx, []execRun{r}, s.span)
		if err != nil {
			return nil, err
		}
		if s.alone[r] = results[0].P50Ms; s.alone[r] <= 0 {
			return nil, fmt.Errorf("%s %d%% b%d alone: found a median of %v ms: expected more than 0", r.Model, r.Share, r.Batch, s.alone[r])
		}
	}
	results, err := s.together(ctx, runs, s.span)
	if err != nil {
		return nil, err
	}
	var measured []profile.Measurement
	for i, self := range runs {
		m := profile.Measurement{Self: self.running(), AloneMs: s.alone[self], Slowdown: results[i].P50Ms / s.alone[self]}
		for k, o := range runs {
			if k != i {
				m.Others = append(m.Others, o.running())
			}
		}
		say("%s %d%% b%d beside %d: x%.3f of %.3f ms", self.Model, self.Share, self.Batch, len(m.Others), m.Slowdown, m.AloneMs)
		measured = append(measured, m)
	}
	return measured, nil
}

// running is r as interference models know it.
func (r execRun) running() profile.Running {
	return profile.Running{Model: r.Model, Share: r.Share, Batch: r.Batch}
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
		all = append(all, r.running())
	}
	return slices.ContainsFunc(known.Runs, func(m profile.Measurement) bool {
		return key(append([]profile.Running{m.Self}, m.Others...)) == key(all)
	})
}
