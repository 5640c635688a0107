package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
)

// load is Poisson load on the site: samples/s by model, sent in requests of some samples each.
type load struct {
	rates            map[string]float64
	samples          map[string]int
	warmup, duration time.Duration
	body             string          // loadgen's --body; "": its own default
	pictures         map[string]bool // models that take pictures, which alone can be sent JPEGs
	seed             uint64
}

// loadReport is what loadgen run --json says, as far as it matters here.
type loadReport struct {
	DurationS float64                `json:"duration_s"`
	Models    map[string]loadFigures `json:"models"`
	Total     loadFigures            `json:"total"`
}

type loadFigures struct {
	Sent       int64            `json:"sent"`
	OK         int64            `json:"ok"`
	Lost       int64            `json:"lost"`
	Errors     map[string]int64 `json:"errors"`
	Causes     map[string]string
	Violations int64   `json:"slo_violations"`
	SLOMs      float64 `json:"slo_ms"`
	RateRPS    float64 `json:"rate_rps"`
	GoodputRPS float64 `json:"goodput_rps"`
	P50Ms      float64 `json:"p50_ms"`
	P99Ms      float64 `json:"p99_ms"`
	LagP99Ms   float64 `json:"send_lag_p99_ms"`
	Late       int64   `json:"late"` // sends behind their time
	Stages     *struct {
		QueuedMs  float64 `json:"queued_ms"`
		BatchedMs float64 `json:"batched_ms"`
		ExecMs    float64 `json:"exec_ms"`
		Batch     float64 `json:"batch"`
	} `json:"stages"`
	Timeline []struct {
		AtS        float64 `json:"at_s"`
		Sent       int64   `json:"sent"`
		Violations int64   `json:"violations"`
		P99Ms      float64 `json:"p99_ms"`
	} `json:"timeline"`
}

// missed is the share of requests that violated their SLO.
func (f loadFigures) missed() float64 {
	if f.Sent == 0 {
		return 0
	}
	return float64(f.Violations) / float64(f.Sent)
}

// worst is the model that missed its SLO most often.
func (r loadReport) worst() (name string, missed float64) {
	for m, f := range r.Models {
		if v := f.missed(); name == "" || v > missed || v == missed && m < name {
			name, missed = m, v
		}
	}
	return name, missed
}

// missedBy is the share of all requests that violated their SLO, for each step of the timeline.
func (r loadReport) missedBy() []float64 {
	var sent, missed []float64
	for _, f := range r.Models {
		for i, step := range f.Timeline {
			if i == len(sent) {
				sent, missed = append(sent, 0), append(missed, 0)
			}
			sent[i] += float64(step.Sent)
			missed[i] += float64(step.Violations)
		}
	}
	for i := range missed {
		missed[i] /= max(1, sent[i])
	}
	return missed
}

// form is what the requests of a model look like. loadgen sends one form at a time.
type form struct {
	body    string // loadgen's --body; "": its own default
	samples int    // per request
}

// forms groups the models of a load by what is sent to them.
func (l load) forms() map[form]map[string]float64 {
	groups := map[form]map[string]float64{}
	for name, rate := range l.rates {
		f := form{body: l.body, samples: max(1, l.samples[name])}
		switch {
		case l.body == bodyJPEG && !l.pictures[name], l.body == "" && f.samples > 1:
			f.body = bodyRandom
		}
		if groups[f] == nil {
			groups[f] = map[string]float64{}
		}
		groups[f][name] = rate / float64(f.samples)
	}
	return groups
}

// Bodies of loadgen that matter here.
const (
	bodyJPEG   = "jpeg"
	bodyRandom = "random"
)

// send sends load, a form of requests by a process, and returns what came of it and the CPU time that
// sending took.
func (s *site) send(ctx context.Context, l load) (loadReport, time.Duration, error) {
	type outcome struct {
		report loadReport
		cpu    time.Duration
		err    error
	}
	groups := l.forms()
	outcomes := make(chan outcome, len(groups))
	for f, requests := range groups {
		go func() {
			r, cpu, err := s.sendForm(ctx, l, f, requests)
			outcomes <- outcome{r, cpu, err}
		}()
	}
	all, cpu, err := loadReport{Models: map[string]loadFigures{}}, time.Duration(0), error(nil)
	for range groups {
		o := <-outcomes
		all.add(o.report)
		cpu, err = cpu+o.cpu, errors.Join(err, o.err)
	}
	return all, cpu, err
}

// add takes in what was sent beside.
func (r *loadReport) add(o loadReport) {
	r.DurationS = max(r.DurationS, o.DurationS)
	maps.Copy(r.Models, o.Models)
	r.Total.Sent += o.Total.Sent
	r.Total.OK += o.Total.OK
	r.Total.Lost += o.Total.Lost
	r.Total.Violations += o.Total.Violations
	r.Total.Late += o.Total.Late
}

// sendForm sends the requests of one form, given in requests/s.
func (s *site) sendForm(ctx context.Context, l load, f form, requests map[string]float64) (r loadReport, cpu time.Duration, err error) {
	out, err := os.CreateTemp(s.dir, "load-*.json")
	if err != nil {
		return r, 0, err
	}
	out.Close()
	if os.Getenv(keepLogs) == "" {
		defer os.Remove(out.Name())
	}
	args := s.onBus("run", "--rates", pairs(requests, "%.4f"), "--warmup", l.warmup.String(), "--duration", (l.warmup + l.duration).String(),
		"--json", out.Name(), "--models", s.cfg.Models, "--seed", strconv.FormatUint(l.seed, 10), "--grace", "2s", "--tolerance", "1e30", "--log-level", "error")
	if f.body != "" {
		args = append(args, "--body", f.body)
	}
	if f.samples > 1 {
		args = append(args, "--samples", strconv.Itoa(f.samples))
	}
	if outputs := of(requests, s.cfg.Outputs); outputs != "" {
		args = append(args, "--outputs", outputs)
	}
	ctx, cancel := context.WithTimeout(ctx, l.warmup+l.duration+30*time.Second)
	defer cancel()
	_, state, failed := output(ctx, nil, s.cfg.program("loadgen"), args...)
	data, err := os.ReadFile(out.Name())
	if err != nil || len(data) == 0 { // it did not come as far as that
		return r, 0, errors.Join(failed, err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, 0, fmt.Errorf("loadgen: %w", err)
	}
	return r, state.UserTime() + state.SystemTime(), nil
}

// of is the part of a list model=value,... that concerns the models that requests are sent to.
func of(requests map[string]float64, list string) string {
	parts := slices.DeleteFunc(strings.Split(list, ","), func(part string) bool {
		name, _, _ := strings.Cut(part, "=")
		_, sent := requests[name]
		return !sent
	})
	return strings.Join(parts, ",")
}

// parseSamples reads model=N,...
func parseSamples(text string) (map[string]int, error) {
	out := map[string]int{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(part, "=")
		n, err := strconv.Atoi(value)
		if err != nil || name == "" || n < 1 {
			return nil, fmt.Errorf("found %q: expected model=samples", part)
		}
		out[name] = n
	}
	return out, nil
}

// samplesFor is how many samples a request of each model has, so that at the given rates (samples/s) no
// more than limit requests/s come together: powers of two up to most, the same for every arm. Requests of
// the models in single have one.
func samplesFor(rates map[string]float64, limit float64, most int, single map[string]bool) map[string]int {
	samples := map[string]int{}
	for name := range rates {
		samples[name] = 1
	}
	for {
		total, busiest, highest := 0.0, "", 0.0
		for name, rate := range rates {
			requests := rate / float64(samples[name])
			total += requests
			if samples[name] < most && !single[name] && (requests > highest || requests == highest && name < busiest) {
				busiest, highest = name, requests
			}
		}
		if total <= limit || busiest == "" {
			return samples
		}
		samples[busiest] *= 2
	}
}

// pictures are the models of the repository among names that take pictures of three colours as bytes, and
// so can be sent JPEGs.
func pictures(repository string, names []string) (map[string]bool, error) {
	found := map[string]bool{}
	for _, name := range names {
		m, err := modelConfig(repository, name)
		if err != nil {
			return nil, err
		}
		if len(m.Inputs) != 1 || len(m.Inputs[0].Shape) != 3 || m.Inputs[0].Shape[0] != 3 {
			continue
		}
		in := m.Inputs[0]
		found[name] = in.DType == tensor.UINT8 || slices.Contains(m.Preprocess[in.Name].Accept, tensor.UINT8)
	}
	return found, nil
}

// available are the named models that the repository has; others are left out, which is said.
func (c *config) available(names []string) ([]string, error) {
	var found []string
	for _, name := range names {
		if _, err := modelConfig(c.Models, name); err != nil {
			say("%s is left out: %v", name, err)
			continue
		}
		found = append(found, name)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has none of %v: expected some (scripts/gpu/prepare.sh)", c.Models, names)
	}
	return found, nil
}

// modelConfig reads a model.yaml.
func modelConfig(repository, name string) (model.Config, error) {
	path := filepath.Join(repository, name, model.ConfigFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return model.Config{}, err
	}
	return model.ParseConfig(path, data)
}

// sloOf reads a model's SLO in the repository.
func sloOf(repository, name string) (time.Duration, error) {
	m, err := modelConfig(repository, name)
	return m.SLO, err
}
