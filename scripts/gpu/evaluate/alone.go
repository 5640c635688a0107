package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/profile"
)

// sharesResult is how many SMs a process sees on each share.
type sharesResult struct {
	About  about      `json:"about"`
	Shares []shareSMs `json:"shares"`
}

type shareSMs struct {
	Share int `json:"share"` // percent
	SMs   int `json:"sms"`
	Cores int `json:"cores,omitempty"` // in place of SMs, on a CPU
}

func newSharesCommand() *cobra.Command {
	cfg := &config{}
	return experiment(&cobra.Command{
		Use:     "shares",
		Short:   "Read the SM count of a process at every share of 10 to 100 %",
		Example: `  evaluate shares --device cuda:0`,
	}, cfg, cfg, func(ctx context.Context) error {
		return once(ctx, cfg, "shares.json", func(ctx context.Context, r *sharesResult) error {
			r.About = cfg.about(ctx)
			b, stop, err := startBench(ctx, cfg)
			if err != nil {
				return err
			}
			defer stop()
			for _, share := range tens() {
				res, err := b.run(ctx, execRun{Model: "lenet", Share: share, Batch: 1}, 20)
				if err != nil {
					return err
				}
				say("%d%%: %d SMs", share, res.SMs)
				r.Shares = append(r.Shares, shareSMs{share, res.SMs, res.Cores})
			}
			return nil
		})
	})
}

type graphsConfig struct {
	Common config
	On     string `env:"GRAPHS_ON" envDefault:"lenet googlenet mobilenet_v2" usage:"models, separated by spaces"`
	Shares []int  `env:"GRAPHS_SHARES" usage:"shares (default: 10,20,...,100)"`
	Count  int    `env:"GRAPHS_COUNT" envDefault:"200" usage:"batches to run of each"`
}

// graphsResult is the time of single samples with and without CUDA graphs.
type graphsResult struct {
	About about      `json:"about"`
	Rows  []graphRow `json:"rows"`
}

type graphRow struct {
	Model   string  `json:"model"`
	Share   int     `json:"share"`
	EagerMs float64 `json:"eager_ms"` // medians
	GraphMs float64 `json:"graph_ms"`
	// EagerLoadMs and GraphLoadMs are the times to load; their difference is that of one capture.
	EagerLoadMs float64 `json:"eager_load_ms"`
	GraphLoadMs float64 `json:"graph_load_ms"`
}

func newGraphsCommand() *cobra.Command {
	cfg := &graphsConfig{}
	return experiment(&cobra.Command{
		Use:     "graphs",
		Short:   "Compare CUDA graphs with eager execution at batch 1",
		Example: `  evaluate graphs --device cuda:0 --graphs-shares 10,50,100`,
	}, cfg, &cfg.Common, func(ctx context.Context) error {
		return once(ctx, &cfg.Common, "graphs.json", func(ctx context.Context, r *graphsResult) error { return graphs(ctx, cfg, r) })
	})
}

func graphs(ctx context.Context, cfg *graphsConfig, r *graphsResult) error {
	r.About = cfg.Common.about(ctx)
	b, stop, err := startBench(ctx, &cfg.Common)
	if err != nil {
		return err
	}
	defer stop()
	shares := cfg.Shares
	if len(shares) == 0 {
		shares = tens()
	}
	models, err := cfg.Common.available(names(cfg.On))
	if err != nil {
		return err
	}
	// By share first: a run that is cut short has all models at some shares.
	for _, share := range shares {
		for _, name := range models {
			if cfg.Common.left() < 10*time.Second && len(r.Rows) > 0 {
				say("the budget ends before %s at %d%%", name, share)
				return nil
			}
			eager, err := b.run(ctx, execRun{Model: name, Share: share, Batch: 1, eager: true}, cfg.Count)
			if err != nil {
				return err
			}
			graph, err := b.run(ctx, execRun{Model: name, Share: share, Batch: 1}, cfg.Count)
			if err != nil {
				return err
			}
			say("%s on %d%%: eager %.3f ms, graph %.3f ms", name, share, eager.P50Ms, graph.P50Ms)
			r.Rows = append(r.Rows, graphRow{name, share, eager.P50Ms, graph.P50Ms, eager.LoadMs, graph.LoadMs})
		}
	}
	return nil
}

type splitsConfig struct {
	Common  config
	GPUType string        `env:"GPU_TYPE" envDefault:"h100" usage:"type of the GPU, whose profiles say which batch fits"`
	On      string        `env:"SPLITS_ON" envDefault:"resnet50 bert mobilenet_v2 vgg16 googlenet lenet" usage:"models, separated by spaces, the most important first"`
	Into    []int         `env:"SPLITS_INTO" usage:"numbers of equal gpu-lets (default: 1,2,4,5,10)"`
	Span    time.Duration `env:"SPLITS_SPAN" envDefault:"1500ms" usage:"time that each split is measured"`
}

// splitsResult is the throughput of equal gpu-lets that fill the GPU.
type splitsResult struct {
	About about      `json:"about"`
	Rows  []splitRow `json:"rows"`
}

type splitRow struct {
	Model         string  `json:"model"`
	SLOMs         float64 `json:"slo_ms"`
	Gpulets       int     `json:"gpulets"`
	Share         int     `json:"share"`
	Batch         int     `json:"batch"` // the best of which two fit the SLO, by the profile
	SamplesPerSec float64 `json:"samples_per_s"`
	P50Ms         float64 `json:"p50_ms"` // of the slowest
}

func newSplitsCommand() *cobra.Command {
	cfg := &splitsConfig{}
	return experiment(&cobra.Command{
		Use:     "splits",
		Short:   "Compare equal gpu-lets that fill the GPU with one process on all of it",
		Example: `  evaluate splits --device cuda:0 --splits-on "resnet50 bert"`,
	}, cfg, &cfg.Common, func(ctx context.Context) error {
		return once(ctx, &cfg.Common, "splits.json", func(ctx context.Context, r *splitsResult) error { return splits(ctx, cfg, r) })
	})
}

func splits(ctx context.Context, cfg *splitsConfig, r *splitsResult) error {
	r.About = cfg.Common.about(ctx)
	set, _ := profile.LoadDir(cfg.Common.Profiles)
	b, stop, err := startBench(ctx, &cfg.Common)
	if err != nil {
		return err
	}
	defer stop()
	models, err := cfg.Common.available(names(cfg.On))
	if err != nil {
		return err
	}
	into := cfg.Into
	if len(into) == 0 {
		into = []int{1, 2, 4, 5, 10}
	}
	for _, name := range models {
		p, ok := set.Get(cfg.GPUType, name)
		if !ok {
			return fmt.Errorf("no profile of %s on %s", name, cfg.GPUType)
		}
		slo, err := sloOf(cfg.Common.Models, name)
		if err != nil {
			return err
		}
		for _, n := range into {
			if cfg.Common.left() < 10*time.Second && len(r.Rows) > 0 {
				say("the budget ends before %s in %d", name, n)
				return nil
			}
			row := splitRow{Model: name, SLOMs: slo.Seconds() * 1000, Gpulets: n, Share: 100 / n}
			row.Batch, _ = bestBatch(p, row.Share, slo)
			runs := slices.Repeat([]execRun{{Model: name, Share: row.Share, Batch: row.Batch, layout: p.Layout}}, n)
			results, err := b.together(ctx, runs, cfg.Span)
			if err != nil {
				return err
			}
			for _, res := range results {
				row.SamplesPerSec += res.SamplesPerSec
				row.P50Ms = max(row.P50Ms, res.P50Ms)
			}
			say("%s in %d: %.0f samples/s at batch %d", name, n, row.SamplesPerSec, row.Batch)
			r.Rows = append(r.Rows, row)
		}
	}
	return nil
}

// bestBatch is the batch with the most samples/s of which two fit the SLO; the smallest where none does.
func bestBatch(p *profile.Profile, share int, slo time.Duration) (best int, rate float64) {
	for _, b := range p.Batches() {
		ms, err := p.Latency(share, b)
		if err != nil || best > 0 && 2*ms > slo.Seconds()*1000 {
			continue
		}
		if r := float64(b) * 1000 / ms; r > rate {
			best, rate = b, r
		}
	}
	return max(best, 1), rate
}
