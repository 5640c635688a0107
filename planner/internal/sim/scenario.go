package sim

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// ParseScenario reads a scenario: one setting per line, # begins a comment.
//
//	gpus rtx2080ti:4                         GPUs of one host, several types separated by commas
//	model vgg16 slo=142ms rate=50            also timeout=, max_batch=, weight=, and instead of rate=
//	                                         trace=0s:50,60s:400 (linear in between)
//	                                         pattern=poisson|uniform|mmpp burst=1.8 sojourn=5s
//	steer algorithm=elastic epoch=10s        plan epoch by epoch; also hold=, idle=, warm=, violations=,
//	                                         observe=, gap=, move=; without this line one plan is made
//	                                         for the beginning and stays
//	interference off                         on unless it says off
//	duration 120s
//	start 500ms                              time of a new gpu-let until it loads
//	load 200ms                               time of loading a model
//	overhead 0s                              time per batch outside the engine
//	row 10s                                  time of a row of the result
//	seed 1
//
// profiles and interference are given by the caller. Errors name the file and line.
func ParseScenario(file, text string, profiles problem.Profiles, interference problem.Interference) (Config, error) {
	s := scenario{
		Config:   Config{Profiles: profiles, Interference: interference, Traffic: map[string]Traffic{}, Seed: 1, Start: 500 * time.Millisecond, Load: 200 * time.Millisecond},
		Steering: DefaultSteering(10 * time.Second),
	}
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if err := s.setting(words[0], words[1:]); err != nil {
			return Config{}, fmt.Errorf("%s: line %d: %s: %w", file, i+1, words[0], err)
		}
	}
	c, err := s.finish()
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// DefaultSteering is how planner run decides by default, without its algorithm.
func DefaultSteering(length time.Duration) Steering {
	return Steering{
		Decide: epoch.Config{Demand: demand.DefaultConfig(length), WarmRPS: 1, Hold: 3 * length, MoveSeconds: 2},
		Epoch:  length, Observe: time.Second, MinGap: 2 * time.Second,
	}
}

// scenario is a Config that is being read.
type scenario struct {
	Config
	Steering Steering
	steered  bool
}

func (s *scenario) setting(key string, args []string) error {
	durations := map[string]*time.Duration{
		"duration": &s.Duration, "start": &s.Start, "load": &s.Load, "overhead": &s.Overhead, "row": &s.Row,
	}
	if d := durations[key]; d != nil {
		return parseInto(args, func(v string) (err error) { *d, err = time.ParseDuration(v); return err })
	}
	switch key {
	case "seed":
		return parseInto(args, func(v string) (err error) { s.Seed, err = strconv.ParseUint(v, 10, 64); return err })
	case "interference":
		return parseInto(args, func(v string) error {
			if v == "off" {
				s.Interference = nil
			} else if v != "on" {
				return fmt.Errorf("found %q: expected on or off", v)
			}
			return nil
		})
	case "gpus":
		return parseInto(args, func(v string) (err error) { s.Hosts, err = ParseGPUs(v); return err })
	case "model":
		return s.model(args)
	case "steer":
		s.steered = true
		return s.steer(args)
	}
	return fmt.Errorf("expected gpus, model, steer, interference, duration, start, load, overhead, row or seed")
}

func parseInto(args []string, set func(string) error) error {
	if len(args) != 1 {
		return fmt.Errorf("found %d values: expected one", len(args))
	}
	return set(args[0])
}

// ParseGPUs reads type:count,... into one simulated host.
func ParseGPUs(text string) ([]plan.HostReport, error) {
	host := plan.HostReport{Host: "sim", Engine: "sim"}
	for _, part := range strings.Split(text, ",") {
		gpuType, count, counted := strings.Cut(strings.TrimSpace(part), ":")
		n := 1
		if counted {
			var err error
			if n, err = strconv.Atoi(count); err != nil || n < 1 || n > 100_000 {
				return nil, fmt.Errorf("found %q: expected type:count with a count of 1 to 100000", part)
			}
		}
		if gpuType == "" {
			return nil, fmt.Errorf("found %q: expected type:count", part)
		}
		for range n {
			host.Devices = append(host.Devices, plan.Device{Index: len(host.Devices), GPUType: gpuType, Sim: true})
		}
	}
	return []plan.HostReport{host}, nil
}

func (s *scenario) model(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("found no name: expected one, then slo= and rate=")
	}
	m := model.Model{Config: model.Config{Name: args[0], Weight: 1}}
	t := Traffic{Pattern: Poisson}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		if err := modelSetting(&m, &t, key, value); err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
	}
	if m.Timeout == 0 {
		m.Timeout = 2 * m.SLO
	}
	s.Models = append(s.Models, m)
	s.Traffic[m.Name] = t
	return nil
}

func modelSetting(m *model.Model, t *Traffic, key, value string) (err error) {
	switch key {
	case "slo":
		m.SLO, err = time.ParseDuration(value)
	case "timeout":
		m.Timeout, err = time.ParseDuration(value)
	case "max_batch":
		m.MaxBatch, err = strconv.Atoi(value)
	case "weight":
		m.Weight, err = strconv.ParseFloat(value, 64)
	case "rate":
		var rate float64
		rate, err = strconv.ParseFloat(value, 64)
		t.Trace = []Point{{0, rate}}
	case "trace":
		t.Trace, err = parsePoints(value)
	case "pattern":
		t.Pattern = Pattern(value)
	case "burst":
		t.Burst, err = strconv.ParseFloat(value, 64)
	case "sojourn":
		t.Sojourn, err = time.ParseDuration(value)
	default:
		err = fmt.Errorf("expected slo, timeout, max_batch, weight, rate, trace, pattern, burst or sojourn")
	}
	return err
}

// parsePoints reads time:rate,...
func parsePoints(text string) ([]Point, error) {
	var points []Point
	for _, part := range strings.Split(text, ",") {
		when, rate, ok := strings.Cut(part, ":")
		at, err := time.ParseDuration(when)
		if !ok || err != nil {
			return nil, fmt.Errorf("found %q: expected time:rate", part)
		}
		r, err := strconv.ParseFloat(rate, 64)
		if err != nil {
			return nil, fmt.Errorf("found %q: expected time:rate", part)
		}
		points = append(points, Point{at, r})
	}
	return points, nil
}

func (s *scenario) steer(args []string) error {
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		if err := s.steerSetting(key, value); err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
	}
	return nil
}

func (s *scenario) steerSetting(key, value string) (err error) {
	st := &s.Steering
	durations := map[string]*time.Duration{
		"hold": &st.Decide.Hold, "idle": &st.Decide.IdleAfter, "observe": &st.Observe, "gap": &st.MinGap,
		"drain": &st.Decide.Demand.DrainWithin,
	}
	floats := map[string]*float64{
		"warm": &st.Decide.WarmRPS, "violations": &st.Decide.Demand.Violations, "move": &st.Decide.MoveSeconds,
		"buffer": &st.Decide.Buffer,
	}
	switch {
	case durations[key] != nil:
		*durations[key], err = time.ParseDuration(value)
	case floats[key] != nil:
		*floats[key], err = strconv.ParseFloat(value, 64)
	case key == "algorithm":
		st.Decide.AlgorithmName = value
		st.Decide.Algorithm, err = pack.ByName(value)
	case key == "epoch":
		var d time.Duration
		if d, err = time.ParseDuration(value); err == nil && d > 0 {
			st.Epoch, st.Decide.Demand, st.Decide.Hold = d, demand.DefaultConfig(d), 3*d
		}
	default:
		err = fmt.Errorf("expected algorithm, epoch, hold, idle, observe, gap, drain, warm, violations, move or buffer")
	}
	return err
}

// finish completes the Config. Without a steer line the plan for the beginning is made here.
func (s *scenario) finish() (Config, error) {
	c := s.Config
	if len(c.Hosts) == 0 || len(c.Models) == 0 {
		return c, fmt.Errorf("found %d hosts and %d models: expected a line gpus and a line model", len(c.Hosts), len(c.Models))
	}
	st := s.Steering
	st.Interference = c.Interference
	if st.Decide.Algorithm == nil {
		st.Decide.AlgorithmName = "elastic"
		var err error
		if st.Decide.Algorithm, err = pack.ByName(st.Decide.AlgorithmName); err != nil {
			return c, err
		}
	}
	c.Steering = &st
	if err := c.Validate(); err != nil || s.steered {
		return c, err
	}
	c.Plan = FirstPlan(c)
	c.Steering = nil
	return c, nil
}

// FirstPlan is the plan that c's steering makes for the rates of the beginning.
func FirstPlan(c Config) plan.Plan {
	w := &world{cfg: c, planner: newPlanner(c)}
	return epoch.Decide(c.Steering.Decide, w.state()).Plan
}
