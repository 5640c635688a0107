package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/profile"
)

func newPredictCommand() *cobra.Command {
	cfg := &config{}
	return experiment(&cobra.Command{
		Use:   "predict",
		Short: "Note what was predicted of everything that was measured",
		Long: `Runs planner simulate on the plan and the rates of every try in the output folder that has no
prediction yet, and holds its co-runs against the interference model. It needs no GPU: it can run later,
on another machine with the same profiles.`,
		Example: `  evaluate predict --out docs/results`,
	}, cfg, cfg, func(ctx context.Context) error { return predict(ctx, cfg) })
}

func predict(ctx context.Context, cfg *config) error {
	files, err := filepath.Glob(filepath.Join(cfg.Out, "goodput", "*.json"))
	if err != nil {
		return err
	}
	for _, file := range files {
		name := filepath.Join("goodput", filepath.Base(file))
		var c cell
		if _, err := cfg.read(name, &c); err != nil {
			return err
		}
		for i := range c.Tries {
			// What runs side by side is no plan that the simulator knows.
			if t := &c.Tries[i]; t.Predicted == nil && c.Expected > 0 {
				if t.Predicted, err = cfg.simulate(ctx, c, *t); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
		if err := cfg.write(name, c); err != nil {
			return err
		}
	}
	say("%d cells have predictions", len(files))
	return cfg.judge(ctx)
}

// judge holds the co-runs, where there are any, against the interference model.
func (c *config) judge(ctx context.Context) error {
	var measured corunResult
	if there, err := c.read("corun.json", &measured); err != nil || !there {
		return err
	}
	dir, err := os.MkdirTemp("", "gpulet-judge-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, corunRuns)
	if err := profile.WriteJSON(file, measured.Runs); err != nil {
		return err
	}
	out, _, err := output(ctx, nil, c.program("planner"), "fit", "--gpu", measured.Runs.GPUType, "--profiles", c.Profiles, "--judge", file, "--json")
	if err != nil {
		return err
	}
	judged := map[string]any{}
	if err := json.Unmarshal(out, &judged); err != nil {
		return fmt.Errorf("planner fit --judge: %w", err)
	}
	judged["about"] = measured.About
	return c.write("judged.json", judged)
}

// simulatedRequests bounds the work of one simulation.
const simulatedRequests = 200_000

// simulate is the share of requests that planner simulate expects to miss their SLO.
func (c *config) simulate(ctx context.Context, of cell, t try) (*float64, error) {
	dir, err := os.MkdirTemp("", "gpulet-predict-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "plan.json")
	if err := profile.WriteJSON(file, t.Plan); err != nil {
		return nil, err
	}
	slos := map[string]time.Duration{}
	for name, ms := range of.SLOsMs {
		// The simulator knows the engine alone: what happens outside takes its part of the SLO.
		slos[name] = max(time.Duration((ms-of.Reserve)*float64(time.Millisecond)), time.Microsecond)
	}
	span := min(20*time.Second, max(time.Second, time.Duration(simulatedRequests/t.Rate*float64(time.Second)))).Round(time.Millisecond)
	out, _, err := output(ctx, nil, c.program("planner"), "simulate", "--plan", file, "--rates", pairs(scaled(of.Parts, t.Rate), "%.3f"),
		"--slos", pairs(slos, "%v"), "--models", "", "--profiles", c.Profiles, "--duration", span.String(), "--json")
	if err != nil {
		return nil, err
	}
	var r struct{ Total struct{ Violations float64 } }
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("planner simulate: %w", err)
	}
	return &r.Total.Violations, nil
}
