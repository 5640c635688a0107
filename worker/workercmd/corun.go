package workercmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/profiler"
)

// corun runs the models that have a profile beside each other, and fits a model of interference.
func (p *profiling) corun(ctx context.Context, profiles []*profile.Profile) error {
	layouts := map[string]string{}
	for _, q := range profiles {
		layouts[q.Model] = q.Layout
	}
	var models []model.Model
	for _, m := range p.models {
		if _, ok := layouts[m.Name]; ok {
			models = append(models, m)
		}
	}
	if len(models) == 0 {
		return errors.New("co-runs: found no model that was measured: expected at least one")
	}
	runs, err := p.coruns(models)
	if err != nil {
		return err
	}
	done := 0
	s := &profiler.Session{
		Splits: profiler.Splits, Seed: p.cfg.CorunSeed, Budget: p.cfg.CorunBudget, Captures: p.target.isGPU(),
		Batches: func(m model.Model) []int { return profiler.CorunBatches(slices.Max(p.batches(m))) },
		Layout:  func(name string) string { return layouts[name] },
		Start:   p.target.start, Check: p.target.check, Note: func(text string) { p.show.say("%s", text) },
		Save: func(list []profile.Measurement) error {
			runs.Runs = list
			return profile.WriteJSON(p.path(profile.CorunFile), runs)
		},
		Step: func(combo []profile.Measurement, left time.Duration) {
			done++
			p.show.timed(inWords(combo), done, left)
		},
	}
	runs.Runs, err = s.Run(ctx, models, runs.Runs)
	if len(runs.Runs) == 0 || ctx.Err() != nil {
		return err
	}
	return errors.Join(err, p.fit(runs))
}

// inWords is a combination as a line of progress.
func inWords(combo []profile.Measurement) string {
	var words []string
	for _, m := range combo {
		words = append(words, fmt.Sprintf("%s b%d on %d%% x%.2f", m.Self.Model, m.Self.Batch, m.Self.Share, m.Slowdown))
	}
	return strings.Join(words, ", ")
}

func (p *profiling) path(file string) string {
	return filepath.Join(p.cfg.out, p.target.dev.GPUType, file)
}

// coruns are those measured before with these archives and this engine, to be added to.
func (p *profiling) coruns(models []model.Model) (*profile.Corun, error) {
	fresh := &profile.Corun{
		GPUType: p.target.dev.GPUType, Date: time.Now().UTC().Format(time.DateOnly), Torch: p.target.engineVersion(context.Background()),
		Source:      fmt.Sprintf("measured on the host by `worker profile --corun`: %s, %s", p.target.dev.Name, p.target.inv.Driver),
		ModelHashes: map[string]string{},
	}
	for _, m := range models {
		fresh.ModelHashes[m.Name] = m.Hash
	}
	path := p.path(profile.CorunFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || p.cfg.force {
		return fresh, nil
	}
	if err != nil {
		return nil, err
	}
	earlier, err := profile.ParseCorun(path, data)
	if err != nil {
		return nil, err
	}
	if earlier.Torch != fresh.Torch {
		p.show.say("%s: measured with engine %q: measuring again with %q", path, earlier.Torch, fresh.Torch)
		return fresh, nil
	}
	same := func(r profile.Running) bool { return earlier.ModelHashes[r.Model] == fresh.ModelHashes[r.Model] }
	for _, m := range earlier.Runs {
		if same(m.Self) && !slices.ContainsFunc(m.Others, func(r profile.Running) bool { return !same(r) }) {
			fresh.Runs = append(fresh.Runs, m)
		}
	}
	p.show.say("%s: going on from %d measurements, %d of other archives dropped", path, len(fresh.Runs), len(earlier.Runs)-len(fresh.Runs))
	return fresh, nil
}

// fit fits every kind of interference model to co-runs and writes the best.
func (p *profiling) fit(runs *profile.Corun) error {
	set, problems := profile.LoadDir(p.cfg.out)
	for _, err := range problems {
		p.show.say("left out: %v", err)
	}
	fits, best, failed := interference.FitBest(set, runs)
	for _, err := range failed {
		p.show.say("not fitted: %v", err)
	}
	if best < 0 {
		return fmt.Errorf("interference: found %d co-runs that no kind of model fits: expected more (--corun-budget)", len(runs.Runs))
	}
	for i, f := range fits {
		chosen := ""
		if i == best {
			chosen = ", chosen"
		}
		p.show.say("interference, %s: off by %.1f %% at p50, %.1f %% at p90 on %d held-out measurements%s", f.Kind, 100*f.HeldOut.P50, 100*f.HeldOut.P90, f.HeldOut.Pairs, chosen)
	}
	return profile.WriteJSON(p.path(profile.InterferenceFile), fits[best])
}
