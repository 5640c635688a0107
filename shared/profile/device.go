package profile

import (
	"fmt"
	"math"
)

// Device is what planning needs to know of a GPU type: profiles/<gpu-type>/device.json.
type Device struct {
	GPUType  string `json:"gpu_type"`
	Name     string `json:"name,omitempty"` // product name
	MemBytes int64  `json:"mem_bytes"`      // what gpu-lets may use together; 0: unknown
	SMs      int    `json:"sms,omitempty"`
	// Shares lists the shares that may be planned, ascending; empty means any.
	Shares []int `json:"shares,omitempty"`
	// ContextBytes is what a gpu-let's CUDA context takes beside its models.
	ContextBytes int64  `json:"context_bytes,omitempty"`
	Source       string `json:"source,omitempty"`
}

// ParseDevice reads a device.json, as strictly as Parse.
func ParseDevice(path string, data []byte) (*Device, error) {
	var d Device
	if err := decode(data, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case !nameRE.MatchString(d.GPUType):
		return nil, fmt.Errorf("%s: key %q: found %q: expected a name of [a-z0-9_.-]{1,64}", path, "gpu_type", d.GPUType)
	case d.MemBytes < 0 || d.ContextBytes < 0 || d.SMs < 0:
		return nil, fmt.Errorf("%s: found mem_bytes %d, context_bytes %d, sms %d: expected 0 or more", path, d.MemBytes, d.ContextBytes, d.SMs)
	}
	last := 0
	for _, s := range d.Shares {
		if s <= last || s > 100 {
			return nil, fmt.Errorf("%s: key %q: found %v: expected rising shares of 1..100", path, "shares", d.Shares)
		}
		last = s
	}
	return &d, nil
}

// Corun is what was measured of models running beside each other on one GPU type:
// profiles/<gpu-type>/corun.json, written by `worker profile --corun`. Interference models are
// fitted to it.
type Corun struct {
	GPUType string `json:"gpu_type"`
	Source  string `json:"source,omitempty"`
	Date    string `json:"date,omitempty"`
	Torch   string `json:"torch,omitempty"` // version of the engine
	// ModelHashes are the archives that ran, by model.
	ModelHashes map[string]string `json:"model_hashes,omitempty"`
	Runs        []Measurement     `json:"runs"`
}

// Measurement is the slowdown of one load beside others.
type Measurement struct {
	Self   Running   `json:"self"`
	Others []Running `json:"others"`
	// Slowdown is the median batch time beside the others over the median alone.
	Slowdown float64 `json:"slowdown"`
	// AloneMs is the median alone, in ms; 0: not noted.
	AloneMs float64 `json:"alone_ms,omitempty"`
}

// Running is a model kept busy with batches of one size on a share of the GPU.
type Running struct {
	Model string `json:"model"`
	Share int    `json:"share"`
	Batch int    `json:"batch"`
}

// ParseCorun reads a corun.json, as strictly as Parse.
func ParseCorun(path string, data []byte) (*Corun, error) {
	var c Corun
	if err := decode(data, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !nameRE.MatchString(c.GPUType) {
		return nil, fmt.Errorf("%s: key %q: found %q: expected a name of [a-z0-9_.-]{1,64}", path, "gpu_type", c.GPUType)
	}
	for i, m := range c.Runs {
		if err := m.validate(fmt.Sprintf("runs[%d]", i)); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return &c, nil
}

func (m Measurement) validate(at string) error {
	if !(m.Slowdown > 0) || math.IsInf(m.Slowdown, 0) {
		return fmt.Errorf("key %q: found %v: expected a factor above 0", at+".slowdown", m.Slowdown)
	}
	if m.AloneMs < 0 {
		return fmt.Errorf("key %q: found %v: expected a time above 0, or none", at+".alone_ms", m.AloneMs)
	}
	if len(m.Others) == 0 {
		return fmt.Errorf("key %q: found none: expected at least one neighbour", at+".others")
	}
	for i, r := range append([]Running{m.Self}, m.Others...) {
		where := at + ".self"
		if i > 0 {
			where = fmt.Sprintf("%s.others[%d]", at, i-1)
		}
		if !nameRE.MatchString(r.Model) {
			return fmt.Errorf("key %q: found %q: expected a name of [a-z0-9_.-]{1,64}", where+".model", r.Model)
		}
		if err := shareBatch(where, r.Share, r.Batch); err != nil {
			return err
		}
	}
	return nil
}

// Interference is a fitted interference model: profiles/<gpu-type>/interference.json. The planner
// evaluates it; Kind says which formula its coefficients belong to.
type Interference struct {
	GPUType string `json:"gpu_type"`
	Kind    string `json:"kind"`
	Source  string `json:"source,omitempty"`
	// Coefficients of the features, in the order of Features.
	Features     []string  `json:"features"`
	Coefficients []float64 `json:"coefficients"`
	// Floor is the least slowdown predicted beside any neighbour, at least 1.
	Floor float64 `json:"floor,omitempty"`
	// Margin multiplies predictions: a quantile of the ratio of measured to predicted slowdown.
	Margin float64 `json:"margin,omitempty"`
	// HeldOut is the error on pairs that were not fitted.
	HeldOut *FitError `json:"held_out,omitempty"`
}

// FitError states how far off a fitted model is, as fractions of the measured slowdown.
type FitError struct {
	Pairs int     `json:"pairs"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	Max   float64 `json:"max"`
}

// ParseInterference reads an interference.json, as strictly as Parse.
func ParseInterference(path string, data []byte) (*Interference, error) {
	var f Interference
	if err := decode(data, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case !nameRE.MatchString(f.GPUType):
		return nil, fmt.Errorf("%s: key %q: found %q: expected a name of [a-z0-9_.-]{1,64}", path, "gpu_type", f.GPUType)
	case f.Kind == "":
		return nil, fmt.Errorf("%s: key %q is missing: expected the kind of model", path, "kind")
	case len(f.Features) != len(f.Coefficients):
		return nil, fmt.Errorf("%s: found %d features, %d coefficients: expected as many", path, len(f.Features), len(f.Coefficients))
	case f.Floor < 0 || f.Margin < 0 || f.Floor > 100 || f.Margin > 100:
		return nil, fmt.Errorf("%s: found floor %v, margin %v: expected 0..100", path, f.Floor, f.Margin)
	}
	return &f, nil
}
