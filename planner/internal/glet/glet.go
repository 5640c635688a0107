// Package glet reads the files of a glet installation (the prototype of the gpu-lets paper,
// github.com/casys-kaist/glet) and writes the file that its frontend reads, so that its users can
// plan with any algorithm here without converting anything.
package glet

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/profile"
)

// Files names the files to read. Tasks, Config and Latency are required.
type Files struct {
	Tasks   string // N, then id,rate,SLO, per line
	Config  string // sched-config.json or sim-config.json
	Devices string // device-config.json
	Latency string // latency.csv: model,part,batch,ms
	Mem     string // mem-config.json
}

// Models are glet's models in the order of the ids in its task files.
var Models = []string{
	"lenet1", "lenet2", "lenet3", "lenet4", "lenet5", "lenet6", "googlenet", "resnet50", "ssd-mobilenetv1",
	"vgg16", "mnasnet1_0", "mobilenet_v2", "densenet161", "bert",
}

// MaxBatch is the largest batch that glet plans.
const MaxBatch = 32

// Load builds the problem that the files describe, with warnings about keys that have no effect.
// Rates are the 99th percentile of Poisson arrivals in a second, latencies include the time that
// glet takes to gather a batch, as in its own scheduler. Errors name file, line or key.
func Load(f Files) (problem.Input, []string, error) { return load(os.ReadFile, f) }

func load(from source, f Files) (problem.Input, []string, error) {
	cfg, warnings, err := from.config(f.Config)
	if err != nil {
		return problem.Input{}, nil, err
	}
	set := &profile.Set{}
	in := problem.Input{Profiles: set, Buffer: cfg.latencyRatio, MaxModels: cfg.maxModel}
	if in.Models, err = from.tasks(f.Tasks); err != nil {
		return in, nil, err
	}
	devices, err := from.devices(f.Devices)
	if err != nil {
		return in, nil, err
	}
	mem, err := from.mem(f.Mem)
	if err != nil {
		return in, nil, err
	}
	for _, g := range cfg.gpus {
		if err := from.addLatencies(set, g.kind, f.Latency, mem); err != nil {
			return in, nil, err
		}
		dev, known := devices[g.kind]
		if f.Devices != "" && !known {
			return in, nil, fmt.Errorf("%s: key %q: found no type %q: expected every type of %s", f.Devices, "device_specs", g.kind, f.Config)
		}
		for range g.count {
			in.GPUs = append(in.GPUs, problem.GPU{Host: "local", Index: len(in.GPUs), Type: g.kind, MemBytes: dev.memMB << 20, Shares: cfg.parts})
		}
		if cfg.interference {
			w, err := from.addInterference(set, g.kind, f.Devices, dev)
			if err != nil {
				return in, nil, err
			}
			warnings = append(warnings, w...)
		}
	}
	for _, m := range in.Models {
		if _, ok := set.Get(cfg.gpus[0].kind, m.Name); !ok {
			return in, nil, fmt.Errorf("%s: found no model %q of %s: expected lines %s,part,batch,ms", f.Latency, m.Name, f.Tasks, m.Name)
		}
	}
	if cfg.interference {
		if in.Interference, err = interference.New(set); err != nil {
			return in, nil, err
		}
	}
	return in, warnings, nil
}

// tasks reads N, then N lines id,rate,SLO, with the SLO in ms.
func (from source) tasks(path string) ([]problem.Model, error) {
	rows, err := from.csv(path)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 || len(rows[0].fields) < 1 {
		return nil, fmt.Errorf("%s: line 1: found nothing: expected the number of models", path)
	}
	n, err := strconv.Atoi(rows[0].fields[0])
	if err != nil || n < 0 || n > len(rows)-1 {
		return nil, fmt.Errorf("%s: line %d: found %q: expected the number of models, and as many lines after it as that (%d follow)", path, rows[0].line, rows[0].fields[0], len(rows)-1)
	}
	var out []problem.Model
	for _, row := range rows[1 : n+1] {
		m, err := parseTask(row.fields)
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, row.line, err)
		}
		if slices.ContainsFunc(out, func(o problem.Model) bool { return o.Name == m.Name }) {
			return nil, fmt.Errorf("%s: line %d: found %s again: expected each model once", path, row.line, m.Name)
		}
		out = append(out, m)
	}
	return out, nil
}

func parseTask(fields []string) (problem.Model, error) {
	if len(fields) < 3 {
		return problem.Model{}, fmt.Errorf("found %d fields: expected id,rate,SLO", len(fields))
	}
	id, err := strconv.Atoi(fields[0])
	if err != nil || id < 0 || id >= len(Models) {
		return problem.Model{}, fmt.Errorf("found id %q: expected 0..%d (0 is %s, %d is %s)", fields[0], len(Models)-1, Models[0], len(Models)-1, Models[len(Models)-1])
	}
	rate, err := number(fields[1], "rate", 0, 1e7)
	if err != nil {
		return problem.Model{}, err
	}
	slo, err := number(fields[2], "SLO in ms", 1e-3, profile.MaxMs)
	if err != nil {
		return problem.Model{}, err
	}
	return problem.Model{Name: Models[id], Rate: Percentile99(rate), SLO: time.Duration(slo * float64(time.Millisecond)), MaxBatch: MaxBatch}, nil
}

func number(text, what string, lo, hi float64) (float64, error) {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !(v >= lo && v <= hi) {
		return 0, fmt.Errorf("found %s %q: expected a number of %g..%g", what, text, lo, hi)
	}
	return v, nil
}

// Percentile99 is the rate that glet plans for: one more than the 99th percentile of a Poisson
// distribution with the rate as its mean, which it sums up from 1; above 550, a tenth more. 0 stays
// 0. For rates below 5 that sum never gets to 99 % and glet never returns: here it starts from 0.
func Percentile99(rate float64) float64 {
	mean := math.Floor(rate)
	if mean <= 0 {
		return rate
	}
	if mean > 550 {
		return math.Floor(mean * 1.1)
	}
	p, sum := math.Exp(-mean), 0.0
	if 1-p < 0.99 {
		sum = p
	}
	for k := 1.0; ; k++ {
		p *= mean / k
		if sum += p; sum >= 0.99 || k > 10*mean+50 {
			return k + 1
		}
	}
}

// addLatencies adds a profile per model of latency.csv, with all batches 1..MaxBatch and gathering.
func (from source) addLatencies(set *profile.Set, kind, path string, mem map[string]int64) error {
	rows, err := from.csv(path)
	if err != nil {
		return err
	}
	raw := map[string]*profile.Profile{}
	for i, row := range rows {
		if i == 0 && len(row.fields) > 1 && row.fields[0] == "model" {
			continue
		}
		if len(row.fields) < 4 {
			return fmt.Errorf("%s: line %d: found %d fields: expected model,part,batch,ms", path, row.line, len(row.fields))
		}
		part, errPart := strconv.Atoi(row.fields[1])
		batch, errBatch := strconv.Atoi(row.fields[2])
		ms, errMs := number(row.fields[3], "latency", 1e-6, profile.MaxMs)
		switch {
		case errPart != nil || part < 1 || part > 100:
			return fmt.Errorf("%s: line %d: found part %q: expected 1..100 percent", path, row.line, row.fields[1])
		case errBatch != nil || batch < 1 || batch > 4096:
			return fmt.Errorf("%s: line %d: found batch %q: expected 1..4096", path, row.line, row.fields[2])
		case errMs != nil:
			return fmt.Errorf("%s: line %d: %w", path, row.line, errMs)
		}
		name := row.fields[0]
		if raw[name] == nil {
			raw[name] = &profile.Profile{Model: name, GPUType: kind, Source: path}
		}
		raw[name].Points = append(raw[name].Points, profile.Point{Share: part, Batch: batch, P50Ms: ms})
	}
	for _, name := range sortedKeys(raw) {
		if err := raw[name].Validate(); err != nil {
			return fmt.Errorf("%s: model %s: %w", path, name, err)
		}
	}
	for _, name := range Models {
		from := raw[name]
		if from == nil && strings.HasPrefix(name, "lenet") { // glet has one table for its six
			from = raw["lenet1"]
		}
		if from != nil {
			set.Add(gathered(from, name, mem[name]))
		}
	}
	return nil
}

// gathered is a profile with all batches up to MaxBatch, the time to gather them included.
func gathered(raw *profile.Profile, name string, mem int64) *profile.Profile {
	out := &profile.Profile{Model: name, GPUType: raw.GPUType, Source: raw.Source}
	for _, share := range raw.Shares() {
		for batch := 1; batch <= MaxBatch; batch++ {
			if ms, err := raw.Latency(share, batch); err == nil {
				out.Points = append(out.Points, profile.Point{Share: share, Batch: batch, P50Ms: ms + gatherMs(name, batch)})
			}
		}
	}
	if mem > 0 {
		out.Memory = []profile.Memory{{Batch: MaxBatch, Bytes: mem}}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// addInterference adds glet's fitted constants and utilisations, if the device names readable files.
func (from source) addInterference(set *profile.Set, kind, devices string, dev device) ([]string, error) {
	if dev.constants == "" || dev.util == "" {
		return []string{fmt.Sprintf("interference of %s: no files named: planned with the conservative default", kind)}, nil
	}
	dir := filepath.Dir(devices)
	constants, err := from.csv(filepath.Join(dir, dev.constants))
	if errors.Is(err, os.ErrNotExist) {
		return []string{fmt.Sprintf("interference of %s: %v: planned with the conservative default", kind, err)}, nil
	}
	if err != nil {
		return nil, err
	}
	if len(constants) < 2 || len(constants[1].fields) < 5 {
		return nil, fmt.Errorf("%s: expected a header and a line of five constants", dev.constants)
	}
	fitted := &profile.Interference{GPUType: kind, Kind: interference.Linear, Features: []string{"l2_self", "l2_other", "dram_self", "dram_other", "const"}, Source: dev.constants}
	for _, text := range constants[1].fields[:5] {
		v, err := number(text, "constant", -1e3, 1e3)
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", dev.constants, constants[1].line, err)
		}
		fitted.Coefficients = append(fitted.Coefficients, v)
	}
	if err := from.addDemand(set, kind, filepath.Join(dir, dev.util)); err != nil {
		return nil, err
	}
	set.AddInterference(fitted)
	return nil, nil
}

// addDemand reads UTIL.CSV: name, batch, duration, then SM, L2 and memory utilisation in percent.
func (from source) addDemand(set *profile.Set, kind, path string) error {
	rows, err := from.csv(path)
	if err != nil {
		return err
	}
	for i, row := range rows {
		if i == 0 {
			continue
		}
		if len(row.fields) < 6 {
			return fmt.Errorf("%s: line %d: found %d fields: expected name,batch,duration,sm,l2,mem", path, row.line, len(row.fields))
		}
		batch, err := strconv.Atoi(row.fields[1])
		if err != nil || batch < 1 {
			return fmt.Errorf("%s: line %d: found batch %q: expected 1 or more", path, row.line, row.fields[1])
		}
		var v [3]float64
		for k := range v {
			if v[k], err = number(row.fields[3+k], "utilisation in percent", 0, 100); err != nil {
				return fmt.Errorf("%s: line %d: %w", path, row.line, err)
			}
		}
		for _, name := range Models {
			if name != row.fields[0] && !(row.fields[0] == "lenet" && strings.HasPrefix(name, "lenet")) {
				continue
			}
			if p, ok := set.Get(kind, name); ok {
				p.Demand = append(p.Demand, profile.Demand{Share: 100, Batch: batch, SM: v[0] / 100, L2: v[1] / 100, DRAM: v[2] / 100})
			}
		}
	}
	return nil
}
