// Package scenario is what a run sends: which models, at what rates over time, held to which SLO.
//
// A scenario comes from a YAML file or from the flags of a command line; both become the same
// value. The package reads no files and sends nothing.
package scenario

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
)

// Scenario is rates over time: phases, one after the other.
type Scenario struct {
	Name string
	// Arrival is how requests come unless a model says otherwise; nil leaves it to the caller.
	Arrival *arrival.Spec
	// Seed is nil where the file names none.
	Seed   *uint64
	Models map[string]Model
	Phases []Phase
}

// Model is what a scenario says of one model; zero fields are left to the caller.
type Model struct {
	SLO     time.Duration
	Arrival *arrival.Spec
}

// Phase is a stretch of time with one rate per model, in requests/s. A model that it does not name
// keeps the rate of the phase before, which is 0 at first.
type Phase struct {
	Name     string
	Duration time.Duration
	// Ramp goes to Rates in a straight line over the phase, from where the last one ended.
	Ramp  bool
	Rates map[string]float64
}

// Constant is a scenario of one phase.
func Constant(rates map[string]float64, d time.Duration) Scenario {
	return Scenario{Phases: []Phase{{Duration: d, Rates: rates}}}
}

// Duration is the length of all phases.
func (s Scenario) Duration() time.Duration {
	var d time.Duration
	for _, p := range s.Phases {
		d += p.Duration
	}
	return d
}

// Names lists the models that any phase or setting names, sorted.
func (s Scenario) Names() []string {
	names := map[string]bool{}
	for name := range s.Models {
		names[name] = true
	}
	for _, p := range s.Phases {
		for name := range p.Rates {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Rate is the rate of model over time.
func (s Scenario) Rate(model string) arrival.Rate {
	var r arrival.Rate
	last := 0.0
	for _, p := range s.Phases {
		rps, named := p.Rates[model]
		if !named {
			rps = last
		}
		if !p.Ramp {
			last = rps
		}
		r.Append(last, rps, p.Duration)
		last = rps
	}
	return r
}

// file is a scenario as written.
type file struct {
	Name    string               `yaml:"name"`
	Arrival string               `yaml:"arrival"`
	Seed    *uint64              `yaml:"seed"`
	Models  map[string]fileModel `yaml:"models"`
	Phases  []filePhase          `yaml:"phases"`
}

type fileModel struct {
	SLO     string `yaml:"slo"`
	Arrival string `yaml:"arrival"`
}

type filePhase struct {
	Name     string             `yaml:"name"`
	Duration string             `yaml:"duration"`
	Ramp     bool               `yaml:"ramp"`
	Rates    map[string]float64 `yaml:"rates"`
}

// Parse reads a scenario file. Unknown keys and values that cannot be are errors that name file,
// key, what was found and what was expected.
func Parse(path string, data []byte) (Scenario, error) {
	s, err := parse(data)
	if err != nil {
		return Scenario{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func parse(data []byte) (s Scenario, err error) {
	defer func() { // the YAML parser has panicked on hostile input before
		if r := recover(); r != nil {
			s, err = Scenario{}, fmt.Errorf("not readable as YAML: %v", r)
		}
	}()
	var f file
	if err := yaml.UnmarshalWithOptions(data, &f, yaml.Strict()); err != nil {
		return Scenario{}, fmt.Errorf("%s: expected the keys name, arrival, seed, models, phases", yaml.FormatError(err, false, false))
	}
	s = Scenario{Name: f.Name, Seed: f.Seed, Models: map[string]Model{}}
	if s.Arrival, err = parseArrival(f.Arrival); err != nil {
		return Scenario{}, err
	}
	for _, name := range slices.Sorted(maps.Keys(f.Models)) {
		m, err := f.Models[name].model()
		if err != nil {
			return Scenario{}, fmt.Errorf("models.%s.%w", name, err)
		}
		s.Models[name] = m
	}
	if len(f.Phases) == 0 {
		return Scenario{}, fmt.Errorf("phases: none: expected at least one, such as {duration: 10s, rates: {lenet: 100}}")
	}
	for i, p := range f.Phases {
		phase, err := p.phase()
		if err != nil {
			return Scenario{}, fmt.Errorf("phases[%d].%w", i, err)
		}
		s.Phases = append(s.Phases, phase)
		if s.Duration() > maxDuration {
			return Scenario{}, fmt.Errorf("phases: longer than %v together", maxDuration)
		}
	}
	return s, nil
}

func parseArrival(text string) (*arrival.Spec, error) {
	if text == "" {
		return nil, nil
	}
	spec, err := arrival.ParseSpec(text)
	if err != nil {
		return nil, err
	}
	return &spec, nil
}

func (f fileModel) model() (m Model, err error) {
	if f.SLO != "" {
		if m.SLO, err = parseDuration(f.SLO); err != nil {
			return m, fmt.Errorf("slo: %w", err)
		}
	}
	m.Arrival, err = parseArrival(f.Arrival)
	return m, err
}

func (f filePhase) phase() (Phase, error) {
	d, err := parseDuration(f.Duration)
	if err != nil {
		return Phase{}, fmt.Errorf("duration: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Rates)) {
		if err := arrival.CheckRPS(f.Rates[name]); err != nil {
			return Phase{}, fmt.Errorf("rates.%s: %w", name, err)
		}
	}
	return Phase{Name: f.Name, Duration: d, Ramp: f.Ramp, Rates: f.Rates}, nil
}

// maxDuration keeps phases and their sums well inside a time.Duration.
const maxDuration = 1000 * time.Hour

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > maxDuration {
		return 0, fmt.Errorf("found %q: expected a duration above 0 such as 30s, at most %v", text, maxDuration)
	}
	return d, nil
}
