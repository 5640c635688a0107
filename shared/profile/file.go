package profile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// Files in a GPU type's folder that are not profiles.
const (
	DeviceFile       = "device.json"
	InterferenceFile = "interference.json"
	CorunFile        = "corun.json"
)

// MaxMs bounds a believable latency (an hour); more is a mistake in the unit.
const MaxMs = 3.6e6

var nameRE = regexp.MustCompile(`^[a-z0-9_.-]{1,64}$`)

// Parse reads one profile. It is strict: unknown keys, missing ones and impossible figures are
// errors that name the file (path, as given), the place, what was found and what was expected.
func Parse(path string, data []byte) (*Profile, error) {
	var p Profile
	if err := decode(data, &p); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	p.sort()
	return &p, nil
}

// decode is strict JSON: one value, no unknown keys, errors with their line.
func decode(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return atLine(data, dec.InputOffset(), err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("line %d: found more after the document: expected its end", line(data, dec.InputOffset()))
	}
	return nil
}

func atLine(data []byte, offset int64, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("line %d: not readable as JSON: %w", line(data, syntax.Offset), err)
	case errors.As(err, &kind):
		return fmt.Errorf("line %d: key %q: found a JSON %s: expected %s", line(data, kind.Offset), kind.Field, kind.Value, kind.Type)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("line %d: found the end of the file: expected a JSON object", line(data, int64(len(data))))
	}
	return fmt.Errorf("line %d: %s", line(data, offset), strings.TrimPrefix(err.Error(), "json: "))
}

func line(data []byte, offset int64) int {
	offset = min(max(offset, 0), int64(len(data)))
	return 1 + bytes.Count(data[:offset], []byte("\n"))
}

// Validate reports the first thing in p that cannot be: a missing name, a share outside 1..100, a
// latency that is not a positive number, percentiles out of order, a point given twice.
func (p *Profile) Validate() error {
	if !nameRE.MatchString(p.Model) {
		return fmt.Errorf("key %q: found %q: expected a name of [a-z0-9_.-]{1,64}", "model", p.Model)
	}
	if !nameRE.MatchString(p.GPUType) {
		return fmt.Errorf("key %q: found %q: expected a name of [a-z0-9_.-]{1,64}", "gpu_type", p.GPUType)
	}
	if p.Layout != "" && p.Layout != ChannelsLast {
		return fmt.Errorf("key %q: found %q: expected %q, or none", "layout", p.Layout, ChannelsLast)
	}
	if len(p.Points) == 0 {
		return fmt.Errorf("key %q: found none: expected at least one {share, batch, p50_ms}", "points")
	}
	seen := map[[2]int]int{}
	for i, q := range p.Points {
		at := fmt.Sprintf("points[%d]", i)
		if err := q.validate(at); err != nil {
			return err
		}
		if first, ok := seen[[2]int{q.Share, q.Batch}]; ok {
			return fmt.Errorf("key %q: found share %d batch %d again, after points[%d]: expected each once", at, q.Share, q.Batch, first)
		}
		seen[[2]int{q.Share, q.Batch}] = i
	}
	for i, m := range p.Memory {
		if m.Batch < 1 || m.Bytes < 0 {
			return fmt.Errorf("key %q: found batch %d, %d bytes: expected batch from 1, bytes from 0", fmt.Sprintf("memory[%d]", i), m.Batch, m.Bytes)
		}
	}
	for i, d := range p.Demand {
		if err := d.validate(fmt.Sprintf("demand[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func (q Point) validate(at string) error {
	if err := shareBatch(at, q.Share, q.Batch); err != nil {
		return err
	}
	if !(q.P50Ms > 0) || q.P50Ms > MaxMs {
		return fmt.Errorf("key %q: found %v: expected a time above 0 and up to %v ms", at+".p50_ms", q.P50Ms, MaxMs)
	}
	last, lastKey := q.P50Ms, "p50_ms"
	for _, f := range []struct {
		key string
		ms  float64
	}{{"p95_ms", q.P95Ms}, {"p99_ms", q.P99Ms}} {
		if f.ms == 0 {
			continue
		}
		if !(f.ms >= last) || f.ms > MaxMs {
			return fmt.Errorf("key %q: found %v: expected at least %s, %v, and up to %v ms", at+"."+f.key, f.ms, lastKey, last, MaxMs)
		}
		last, lastKey = f.ms, f.key
	}
	if q.N < 0 {
		return fmt.Errorf("key %q: found %d: expected 0 or more", at+".n", q.N)
	}
	if !(q.CIMs >= 0) || q.CIMs > MaxMs {
		return fmt.Errorf("key %q: found %v: expected a time from 0 to %v ms", at+".ci_ms", q.CIMs, MaxMs)
	}
	return nil
}

func (d Demand) validate(at string) error {
	if err := shareBatch(at, d.Share, d.Batch); err != nil {
		return err
	}
	for _, f := range []struct {
		key   string
		value float64
	}{{"sm", d.SM}, {"occupancy", d.Occupancy}, {"tensor", d.Tensor}, {"l2", d.L2}, {"dram", d.DRAM}} {
		if !(f.value >= 0 && f.value <= 1) {
			return fmt.Errorf("key %q: found %v: expected a fraction 0..1", at+"."+f.key, f.value)
		}
	}
	return nil
}

func shareBatch(at string, share, batch int) error {
	if share < 1 || share > 100 {
		return fmt.Errorf("key %q: found %d: expected 1..100 percent", at+".share", share)
	}
	if batch < 1 || batch > math.MaxInt32 {
		return fmt.Errorf("key %q: found %d: expected 1 or more samples", at+".batch", batch)
	}
	return nil
}

func (p *Profile) sort() {
	slices.SortFunc(p.Points, func(a, b Point) int {
		return cmp.Or(cmp.Compare(a.Share, b.Share), cmp.Compare(a.Batch, b.Batch))
	})
	slices.SortFunc(p.Memory, func(a, b Memory) int { return cmp.Compare(a.Batch, b.Batch) })
	slices.SortStableFunc(p.Demand, func(a, b Demand) int {
		return cmp.Or(cmp.Compare(a.Share, b.Share), cmp.Compare(a.Batch, b.Batch))
	})
}

// Save writes p to dir/<gpu-type>/<model>.json, whole or not at all.
func Save(dir string, p *Profile) error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("save profile: %w", err)
	}
	return WriteJSON(filepath.Join(dir, p.GPUType, p.Model+".json"), p)
}

// WriteJSON writes v as indented JSON to path, whole or not at all, making its folder.
func WriteJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it is renamed
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}

// Set holds profiles, devices and interference by GPU type. The zero value is empty and usable.
// Reads may run concurrently with each other, not with Add.
type Set struct {
	profiles map[string]map[string]*Profile
	devices  map[string]*Device
	corun    map[string]*Corun
	fitted   map[string]*Interference
}

// LoadDir reads every profile under dir: <gpu-type>/<model>.json, <gpu-type>/device.json and
// <gpu-type>/interference.json. A broken file gives an error and hides no other; a dir that does
// not exist gives an error and an empty set.
func LoadDir(dir string) (*Set, []error) {
	set := &Set{}
	types, err := os.ReadDir(dir)
	if err != nil {
		return set, []error{fmt.Errorf("profiles %s: %w", dir, plain(err))}
	}
	var problems []error
	for _, t := range types {
		if strings.HasPrefix(t.Name(), ".") || !t.IsDir() {
			continue
		}
		files, err := filepath.Glob(filepath.Join(dir, t.Name(), "*.json"))
		if err != nil {
			problems = append(problems, fmt.Errorf("profiles %s: %w", t.Name(), err))
		}
		sort.Strings(files)
		for _, path := range files {
			if err := set.load(path, t.Name()); err != nil {
				problems = append(problems, err)
			}
		}
	}
	return set, problems
}

// load reads one file of the folder gpuType into the set.
func (s *Set) load(path, gpuType string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, plain(err))
	}
	var found string
	switch filepath.Base(path) {
	case DeviceFile:
		d, err := ParseDevice(path, data)
		if err != nil {
			return err
		}
		if found = d.GPUType; found == gpuType {
			s.AddDevice(d)
		}
	case InterferenceFile:
		f, err := ParseInterference(path, data)
		if err != nil {
			return err
		}
		if found = f.GPUType; found == gpuType {
			s.AddInterference(f)
		}
	case CorunFile:
		c, err := ParseCorun(path, data)
		if err != nil {
			return err
		}
		if found = c.GPUType; found == gpuType {
			s.AddCorun(c)
		}
	default:
		p, err := Parse(path, data)
		if err != nil {
			return err
		}
		if want := strings.TrimSuffix(filepath.Base(path), ".json"); p.Model != want {
			return fmt.Errorf("%s: key %q: found %q: expected the file's name, %q", path, "model", p.Model, want)
		}
		if found = p.GPUType; found == gpuType {
			s.Add(p)
		}
	}
	if found != gpuType {
		return fmt.Errorf("%s: key %q: found %q: expected the folder's name, %q", path, "gpu_type", found, gpuType)
	}
	return nil
}

func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Get returns the profile of a model on a GPU type.
func (s *Set) Get(gpuType, model string) (*Profile, bool) {
	p, ok := s.profiles[gpuType][model]
	return p, ok
}

// Add puts p into the set in place of an earlier profile of the same model and GPU type.
func (s *Set) Add(p *Profile) {
	if s.profiles == nil {
		s.profiles = map[string]map[string]*Profile{}
	}
	if s.profiles[p.GPUType] == nil {
		s.profiles[p.GPUType] = map[string]*Profile{}
	}
	s.profiles[p.GPUType][p.Model] = p
}

// Device returns what is known of a GPU type.
func (s *Set) Device(gpuType string) (*Device, bool) { d, ok := s.devices[gpuType]; return d, ok }

// Contexts is the device memory of a gpu-let beside its models, by the GPU types of which it is known.
func (s *Set) Contexts() map[string]int64 {
	known := map[string]int64{}
	for gpuType, d := range s.devices {
		known[gpuType] = d.ContextBytes
	}
	return known
}

// AddDevice puts d into the set.
func (s *Set) AddDevice(d *Device) {
	if s.devices == nil {
		s.devices = map[string]*Device{}
	}
	s.devices[d.GPUType] = d
}

// Interference returns the fitted interference model of a GPU type.
func (s *Set) Interference(gpuType string) (*Interference, bool) {
	f, ok := s.fitted[gpuType]
	return f, ok
}

// AddInterference puts f into the set.
func (s *Set) AddInterference(f *Interference) {
	if s.fitted == nil {
		s.fitted = map[string]*Interference{}
	}
	s.fitted[f.GPUType] = f
}

// Corun returns the co-run measurements of a GPU type.
func (s *Set) Corun(gpuType string) (*Corun, bool) { c, ok := s.corun[gpuType]; return c, ok }

// AddCorun puts c into the set.
func (s *Set) AddCorun(c *Corun) {
	if s.corun == nil {
		s.corun = map[string]*Corun{}
	}
	s.corun[c.GPUType] = c
}

// Types lists the GPU types with profiles, sorted.
func (s *Set) Types() []string { return sortedKeys(s.profiles) }

// Models lists the profiled models of a GPU type, sorted.
func (s *Set) Models(gpuType string) []string { return sortedKeys(s.profiles[gpuType]) }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
