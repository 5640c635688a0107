package glet

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/gpulet/gpulet/shared/profile"
)

// CorunFiles names the three CSV files in which groups that build on glet publish co-runs, each with
// a header line. Columns may stand in any order; others are ignored.
type CorunFiles struct {
	Pairs   string // model, batch, partition_pct, co_model, co_batch, co_partition_pct, latency_s
	Latency string // model, batch, partition_pct, latency_s: alone
	Util    string // model, batch, partition_pct, l2_util_pct, mem_util_pct: alone
}

// LoadCoruns reads co-runs, and profiles that hold the latency and demand of each model alone.
func LoadCoruns(f CorunFiles, gpuType string) (*profile.Set, *profile.Corun, error) {
	return loadCoruns(os.ReadFile, f, gpuType)
}

func loadCoruns(from source, f CorunFiles, gpuType string) (*profile.Set, *profile.Corun, error) {
	alone := map[string]*profile.Profile{}
	get := func(name string) *profile.Profile {
		name = strings.ToLower(name)
		if alone[name] == nil {
			alone[name] = &profile.Profile{Model: name, GPUType: gpuType, Source: f.Latency}
		}
		return alone[name]
	}
	err := from.eachRow(f.Latency, func(r record) error {
		run, err := r.running("model", "partition_pct", "batch")
		if err != nil {
			return err
		}
		s, err := r.number("latency_s", 1e-9, 3600)
		if err == nil {
			p := get(run.Model)
			p.Points = append(p.Points, profile.Point{Share: run.Share, Batch: run.Batch, P50Ms: 1000 * s})
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	err = from.eachRow(f.Util, func(r record) error {
		run, err := r.running("model", "partition_pct", "batch")
		if err != nil {
			return err
		}
		l2, err := r.number("l2_util_pct", 0, 100)
		if err != nil {
			return err
		}
		dram, err := r.number("mem_util_pct", 0, 100)
		if err == nil {
			p := get(run.Model)
			p.Demand = append(p.Demand, profile.Demand{Share: run.Share, Batch: run.Batch, L2: l2 / 100, DRAM: dram / 100})
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	set := &profile.Set{}
	for _, name := range sortedKeys(alone) {
		if len(alone[name].Points) > 0 {
			set.Add(alone[name])
		}
	}
	runs, err := from.pairs(f.Pairs, gpuType, set)
	return set, runs, err
}

func (from source) pairs(path, gpuType string, set *profile.Set) (*profile.Corun, error) {
	out := &profile.Corun{GPUType: gpuType, Source: path}
	err := from.eachRow(path, func(r record) error {
		self, err := r.running("model", "partition_pct", "batch")
		if err != nil {
			return err
		}
		other, err := r.running("co_model", "co_partition_pct", "co_batch")
		if err != nil {
			return err
		}
		s, err := r.number("latency_s", 1e-9, 3600)
		if err != nil {
			return err
		}
		p, ok := set.Get(gpuType, self.Model)
		if !ok {
			return fmt.Errorf("found model %q: expected one with a latency alone", self.Model)
		}
		ms, err := p.Latency(self.Share, self.Batch)
		if err != nil {
			return err
		}
		out.Runs = append(out.Runs, profile.Measurement{Self: self, Others: []profile.Running{other}, Slowdown: 1000 * s / ms})
		return nil
	})
	return out, err
}

// record is a row under its header.
type record struct {
	header []string
	fields []string
}

func (from source) eachRow(path string, use func(record) error) error {
	rows, err := from.csv(path)
	if err != nil {
		return err
	}
	if len(rows) < 2 {
		return fmt.Errorf("%s: found %d lines: expected a header and rows", path, len(rows))
	}
	for _, row := range rows[1:] {
		if err := use(record{rows[0].fields, row.fields}); err != nil {
			return fmt.Errorf("%s: line %d: %w", path, row.line, err)
		}
	}
	return nil
}

func (r record) get(column string) (string, error) {
	i := slices.Index(r.header, column)
	if i < 0 || i >= len(r.fields) {
		return "", fmt.Errorf("found no column %q: expected it in the header %v", column, r.header)
	}
	return r.fields[i], nil
}

func (r record) number(column string, lo, hi float64) (float64, error) {
	text, err := r.get(column)
	if err != nil {
		return 0, err
	}
	return number(text, column, lo, hi)
}

func (r record) running(model, share, batch string) (profile.Running, error) {
	name, err := r.get(model)
	if err != nil {
		return profile.Running{}, err
	}
	var v [2]int
	for i, column := range []string{share, batch} {
		text, err := r.get(column)
		if err != nil {
			return profile.Running{}, err
		}
		limit := [2]int{100, math.MaxInt32}[i]
		if v[i], err = strconv.Atoi(text); err != nil || v[i] < 1 || v[i] > limit {
			return profile.Running{}, fmt.Errorf("found %s %q: expected 1..%d", column, text, limit)
		}
	}
	return profile.Running{Model: strings.ToLower(name), Share: v[0], Batch: v[1]}, nil
}
