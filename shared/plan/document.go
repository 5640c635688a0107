package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"sort"
)

var (
	idRE   = regexp.MustCompile(`^[a-z0-9-]{1,96}$`)
	nameRE = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)
)

// Parse reads a plan document and validates it. Unknown keys are ignored, since fields may be
// added; path names the document in errors.
func Parse(path string, data []byte) (Plan, error) {
	var p Plan
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&p); err != nil {
		return Plan{}, fmt.Errorf("%s: %w", path, atLine(data, err))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Plan{}, fmt.Errorf("%s: line %d: found more after the plan: expected its end", path, line(data, dec.InputOffset()))
	}
	if err := p.Validate(); err != nil {
		return Plan{}, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func atLine(data []byte, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("line %d: not readable as JSON: %w", line(data, syntax.Offset), err)
	case errors.As(err, &kind):
		return fmt.Errorf("line %d: key %q: found a JSON %s: expected %s", line(data, kind.Offset), kind.Field, kind.Value, kind.Type)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("found the end of the document: expected a JSON object")
	}
	return err
}

func line(data []byte, offset int64) int {
	offset = min(max(offset, 0), int64(len(data)))
	return 1 + bytes.Count(data[:offset], []byte("\n"))
}

// Validate reports the first thing in p that makes no sense whatever the GPUs and models are: a
// malformed or repeated id, a GPU cut into more than 100 %, a batch below 1, a model twice in a
// gpu-let, a rate that is no number.
func (p Plan) Validate() error {
	ids := map[string]bool{}
	cut := map[string]int{}
	for i, g := range p.Gpulets {
		at := fmt.Sprintf("gpulets[%d]", i)
		if err := g.validate(at); err != nil {
			return err
		}
		if ids[g.ID] {
			return fmt.Errorf("key %q: found %q again: expected ids to differ", at+".id", g.ID)
		}
		ids[g.ID] = true
		device := g.Device()
		if cut[device] += g.Share; cut[device] > 100 {
			return fmt.Errorf("key %q: found shares of %d %% on GPU %s so far: expected at most 100", at+".share", cut[device], device)
		}
	}
	for _, model := range sortedKeys(p.Unserved) {
		if r := p.Unserved[model]; !(r >= 0) || math.IsInf(r, 0) {
			return fmt.Errorf("key %q: found %v: expected a rate of 0 or more", "unserved."+model, r)
		}
	}
	if p.GPUsUsed < 0 || p.DesiredGPUs < 0 {
		return fmt.Errorf("found gpus_used %d, desired_gpus %d: expected 0 or more", p.GPUsUsed, p.DesiredGPUs)
	}
	return nil
}

// Device names the GPU that a gpu-let is on: "host/0".
func (g Gpulet) Device() string { return fmt.Sprintf("%s/%d", g.Host, g.GPU) }

func (g Gpulet) validate(at string) error {
	switch {
	case !idRE.MatchString(g.ID):
		return fmt.Errorf("key %q: found %q: expected [a-z0-9-]{1,96}", at+".id", g.ID)
	case g.Host == "":
		return fmt.Errorf("key %q is missing or empty: expected a host's name", at+".host")
	case g.GPU < 0:
		return fmt.Errorf("key %q: found %d: expected the index of a device, from 0", at+".gpu", g.GPU)
	case g.Share < 1 || g.Share > 100:
		return fmt.Errorf("key %q: found %d: expected 1..100 percent", at+".share", g.Share)
	case g.Limit != 0 && (g.Limit < g.Share || g.Limit > 100):
		return fmt.Errorf("key %q: found %d: expected %d..100 percent, at least the share, or none", at+".limit", g.Limit, g.Share)
	}
	seen := map[string]bool{}
	for i, a := range g.Models {
		at := fmt.Sprintf("%s.models[%d]", at, i)
		switch {
		case !nameRE.MatchString(a.Model):
			return fmt.Errorf("key %q: found %q: expected [a-z0-9_-]{1,64}", at+".model", a.Model)
		case seen[a.Model]:
			return fmt.Errorf("key %q: found %q again: expected each model once in a gpu-let", at+".model", a.Model)
		case a.Layout != "" && a.Layout != "channels_last":
			return fmt.Errorf("key %q: found %q: expected \"channels_last\", or none", at+".layout", a.Layout)
		case a.Batch < 1:
			return fmt.Errorf("key %q: found %d: expected 1 or more samples", at+".batch", a.Batch)
		case a.Burst != 0 && a.Burst < a.Batch:
			return fmt.Errorf("key %q: found %d: expected at least the batch, %d, or none", at+".burst", a.Burst, a.Batch)
		case !finite(a.RateRPS), !finite(a.DutyMs), !finite(a.ExecMs):
			return fmt.Errorf("key %q: found rate %v, duty %v, exec %v: expected numbers of 0 or more", at, a.RateRPS, a.DutyMs, a.ExecMs)
		}
		seen[a.Model] = true
	}
	return nil
}

func finite(v float64) bool { return v >= 0 && !math.IsInf(v, 0) }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
