package plannercmd

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/profile"
)

// problemConfig is what plan, compare and peak are told of GPUs and models.
type problemConfig struct {
	Profiles     string  `env:"PROFILES" envDefault:"profiles" usage:"folder of profiles, by GPU type"`
	GPUs         string  `env:"GPUS" usage:"GPUs to plan on, type:count,..."`
	SLOs         string  `env:"SLOS" usage:"SLOs that differ from the repository's, model=duration,..."`
	Interference bool    `env:"INTERFERENCE" envDefault:"true" usage:"plan for the slowdown by neighbours on a GPU"`
	Buffer       float64 `env:"BUFFER" envDefault:"1" usage:"factor on every predicted latency, at least 1"`
	// Reserve is what planner run keeps of every SLO for the way through the queue.
	Reserve time.Duration `env:"RESERVE" envDefault:"0" usage:"part of every SLO kept for what happens outside the engine"`
	Steps   int           `env:"STEPS" envDefault:"0" usage:"budget of the search in candidate cuts; 0: by default, -1: the first plan found"`
}

func (c *problemConfig) validate() error {
	switch {
	case !(c.Buffer >= 1) || c.Buffer > 100:
		return fmt.Errorf("--buffer: found %v: expected 1..100", c.Buffer)
	case c.Reserve < 0:
		return fmt.Errorf("--reserve: found %v: expected 0 or more", c.Reserve)
	case c.Steps < -1:
		return fmt.Errorf("--steps: found %d: expected -1 or more", c.Steps)
	}
	return nil
}

// offlineProblem is a problem whose rates are still to be filled in.
type offlineProblem struct {
	input problem.Input
	set   *profile.Set
}

// load reads profiles and builds the problem for the named models, described in the repository ("" for
// none). Trouble with what the user named is an error; trouble with other files is told on w.
func (c *problemConfig) load(repository string, names []string, w io.Writer) (*offlineProblem, error) {
	set, problems := profile.LoadDir(c.Profiles)
	for _, p := range problems {
		fmt.Fprintf(w, "left out: %v\n", p)
	}
	predict, err := interference.New(set)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Profiles, err)
	}
	gpus, context, err := parseFleet(c.GPUs, c.Profiles, set)
	if err != nil {
		return nil, err
	}
	slos, err := parseAssignments("slos", c.SLOs, parseSLO)
	if err != nil {
		return nil, cli.Usagef("%v", err)
	}
	for _, name := range sortedNames(slos) {
		if !slices.Contains(names, name) {
			return nil, cli.Usagef("--slos: found model %q: expected one that is asked for: %s", name, strings.Join(names, ", "))
		}
	}
	if _, err := os.Stat(repository); repository != "" && errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(w, "--models: found no folder %s: SLOs are those of --slos and, for its models, of the paper\n", repository)
	}
	models, err := catalog(repository, names, slos)
	if err != nil {
		return nil, err
	}
	p := &offlineProblem{set: set, input: problem.Input{GPUs: gpus, Profiles: set, Buffer: c.Buffer, ContextBytes: context}}
	if c.Interference {
		p.input.Interference = predict
	}
	for _, m := range models {
		p.input.Models = append(p.input.Models, problem.Model{Name: m.Name, SLO: problem.Net(m.SLO, c.Reserve), Weight: m.Weight, MaxBatch: m.MaxBatch})
		if err := servable(set, gpus, m.Name, m.SLO, c.Buffer); err != nil {
			return nil, leftOut(err, m.Name, gpus, problems)
		}
	}
	return p, nil
}

// leftOut adds to an error about a model that a profile of it was left out, which problems tell.
func leftOut(err error, name string, gpus []problem.GPU, problems []error) error {
	for _, p := range problems {
		if slices.ContainsFunc(gpus, func(g problem.GPU) bool {
			return strings.Contains(p.Error(), filepath.Join(g.Type, name+".json")+":")
		}) {
			return fmt.Errorf("%w (it was left out: %w)", err, p)
		}
	}
	return err
}

// maxFleet bounds the GPUs of one type on the command line.
const maxFleet = 100000

// parseFleet reads "rtx2080ti:4,h100:2". Hosts hold eight GPUs each.
func parseFleet(text, dir string, set *profile.Set) ([]problem.GPU, int64, error) {
	if strings.TrimSpace(text) == "" {
		return nil, 0, cli.Usagef("--gpus: found none: expected type:count,..., with a type of %s", strings.Join(set.Types(), ", "))
	}
	var gpus []problem.GPU
	var context int64
	seen := map[string]bool{}
	for _, part := range strings.Split(text, ",") {
		name, count, ok := strings.Cut(strings.TrimSpace(part), ":")
		n := 1
		if ok {
			var err error
			if n, err = strconv.Atoi(count); err != nil {
				return nil, 0, cli.Usagef("--gpus: found %q: expected type:count", part)
			}
		}
		if n < 1 || n > maxFleet {
			return nil, 0, cli.Usagef("--gpus: found %d of %s: expected 1..%d", n, name, maxFleet)
		}
		if !slices.Contains(set.Types(), name) {
			return nil, 0, unknownType(name, dir, set)
		}
		if seen[name] {
			return nil, 0, cli.Usagef("--gpus: found type %q again: expected each type once, type:count", name)
		}
		seen[name] = true
		proto := problem.GPU{Type: name}
		if d, ok := set.Device(name); ok {
			proto.MemBytes, proto.Shares = d.MemBytes, d.Shares
			context = max(context, d.ContextBytes)
		}
		for i := range n {
			g := proto
			g.Host, g.Index = fmt.Sprintf("%s-%d", name, i/8), i%8
			gpus = append(gpus, g)
		}
	}
	return gpus, context, nil
}

func unknownType(name, dir string, set *profile.Set) error {
	return cli.Usagef("--gpus: found type %q: expected one with profiles in %s: %s", name, dir, strings.Join(set.Types(), ", "))
}

// servable reports why no GPU can serve a model: no profile, or an SLO below the fastest possible.
func servable(set *profile.Set, gpus []problem.GPU, name string, slo time.Duration, buffer float64) error {
	in := problem.Input{GPUs: gpus, Profiles: set, Buffer: buffer}
	least, ok := in.LeastSLOMs(name)
	if !ok {
		var types []string
		for _, g := range gpus {
			if !slices.Contains(types, g.Type) {
				types = append(types, g.Type)
			}
		}
		return fmt.Errorf("model %s: no profile on %s: expected profiles/<gpu-type>/%s.json", name, strings.Join(types, ", "), name)
	}
	if least > float64(slo)/float64(time.Millisecond) {
		return fmt.Errorf("model %s: SLO %v: the fastest possible is %.3g ms: a request may wait for a batch (at least %.3g ms) before its own", name, slo, least, least/2)
	}
	return nil
}

// withRates is the problem at the given rates; models without one are left out.
func (p *offlineProblem) withRates(rates map[string]float64) problem.Input {
	in := p.input
	in.Models = nil
	for _, m := range p.input.Models {
		if m.Rate = rates[m.Name]; m.Rate > 0 {
			in.Models = append(in.Models, m)
		}
	}
	return in
}

// readRates reads a file of model,rate lines (a header and comments with # allowed).
func readRates(path string) (map[string]float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseRates(path, f)
}

func parseRates(path string, in io.Reader) (map[string]float64, error) {
	r := csv.NewReader(in)
	r.Comment, r.TrimLeadingSpace, r.FieldsPerRecord = '#', true, -1
	out := map[string]float64{}
	for {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		line, _ := r.FieldPos(0)
		if len(rec) != 2 {
			return nil, fmt.Errorf("%s: line %d: found %d fields: expected model,rate", path, line, len(rec))
		}
		if line == 1 && rec[0] == "model" {
			continue
		}
		rate, err := parseRate(strings.TrimSpace(rec[1]))
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, line, err)
		}
		name := strings.TrimSpace(rec[0])
		if _, again := out[name]; again {
			return nil, fmt.Errorf("%s: line %d: found model %q again: expected each once", path, line, name)
		}
		out[name] = rate
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: found no rates: expected lines model,rate", path)
	}
	return out, nil
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
