package model

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/gpulet/gpulet/shared/tensor"
)

// Limits of what a model.yaml may say. They are far above what serves well and exist so that a
// slip of the finger is an error and not an allocation.
const (
	MaxSLO   = time.Hour
	MaxBatch = 4096
	maxIO    = 64
	// maxConfig bounds a model.yaml in bytes.
	maxConfig = 1 << 20
)

var nameRE = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)

// ValidName reports whether name may name a model: it becomes part of stream and file names.
func ValidName(name string) bool { return nameRE.MatchString(name) }

// file is a model.yaml as written: pointers tell a missing key from a zero.
type file struct {
	Name       *string                `yaml:"name"`
	SLO        *string                `yaml:"slo"`
	Timeout    *string                `yaml:"timeout"`
	MaxBatch   *int                   `yaml:"max_batch"`
	Precision  *string                `yaml:"precision"`
	Inputs     []fileSpec             `yaml:"inputs"`
	Outputs    []fileSpec             `yaml:"outputs"`
	Preprocess map[string]filePreproc `yaml:"preprocess"`
	Version    *int                   `yaml:"version"`
	Weight     *float64               `yaml:"weight"`
	Class      *string                `yaml:"class"`
	Storage    *string                `yaml:"storage"`
}

type fileSpec struct {
	Name  *string  `yaml:"name"`
	DType *string  `yaml:"dtype"`
	Shape *[]int64 `yaml:"shape"`
}

type filePreproc struct {
	Accept []string  `yaml:"accept"`
	Scale  *float64  `yaml:"scale"`
	Mean   []float64 `yaml:"mean"`
	Std    []float64 `yaml:"std"`
}

var (
	topKeys     = []string{"name", "slo", "timeout", "max_batch", "precision", "inputs", "outputs", "preprocess", "version", "weight", "class", "storage"}
	specKeys    = []string{"name", "dtype", "shape"}
	preprocKeys = []string{"accept", "scale", "mean", "std"}
)

// ParseConfig reads a model.yaml and fills in its defaults. It is strict: a key that is unknown,
// missing, written twice or of the wrong kind is an error that names the file (path, as given), key, what
// was found and what was expected.
func ParseConfig(path string, data []byte) (Config, error) {
	c, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func parseConfig(data []byte) (c Config, err error) {
	defer func() { // the YAML parser has panicked on hostile input before
		if r := recover(); r != nil {
			c, err = Config{}, fmt.Errorf("not readable as YAML: %v", r)
		}
	}()
	doc, err := parser.ParseBytes(data, 0)
	if err != nil {
		return Config{}, fmt.Errorf("not readable as YAML: %s", yaml.FormatError(err, false, false))
	}
	if len(doc.Docs) != 1 || doc.Docs[0].Body == nil {
		return Config{}, fmt.Errorf("found %d documents: expected one mapping with the keys %s", countDocs(doc), strings.Join(topKeys, ", "))
	}
	if err := checkKeys(doc.Docs[0].Body); err != nil {
		return Config{}, err
	}
	var f file
	if err := yaml.NodeToValue(doc.Docs[0].Body, &f, yaml.Strict()); err != nil {
		return Config{}, fmt.Errorf("%s", yaml.FormatError(err, false, false))
	}
	return f.config()
}

func countDocs(f *ast.File) int {
	n := 0
	for _, d := range f.Docs {
		if d.Body != nil {
			n++
		}
	}
	return n
}

// checkKeys finds unknown keys before decoding, so that the message can list the known ones.
func checkKeys(body ast.Node) error {
	top, err := mapping("", body)
	if err != nil {
		return err
	}
	if err := known("", top, topKeys); err != nil {
		return err
	}
	for _, e := range top {
		switch key := e.Key.String(); key {
		case "inputs", "outputs":
			seq, ok := e.Value.(*ast.SequenceNode)
			if !ok {
				return fmt.Errorf("key %q: found %s: expected a list of {name, dtype, shape}", key, kind(e.Value))
			}
			for i, v := range seq.Values {
				at := fmt.Sprintf("%s[%d]", key, i)
				m, err := mapping(at, v)
				if err != nil {
					return err
				}
				if err := known(at+".", m, specKeys); err != nil {
					return err
				}
			}
		case "preprocess":
			m, err := mapping(key, e.Value)
			if err != nil {
				return err
			}
			for _, in := range m {
				at := key + "." + in.Key.String()
				pm, err := mapping(at, in.Value)
				if err != nil {
					return err
				}
				if err := known(at+".", pm, preprocKeys); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func mapping(at string, n ast.Node) ([]*ast.MappingValueNode, error) {
	switch m := n.(type) {
	case *ast.MappingNode:
		return m.Values, nil
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{m}, nil
	}
	if at == "" {
		return nil, fmt.Errorf("found %s: expected a mapping with the keys %s", kind(n), strings.Join(topKeys, ", "))
	}
	return nil, fmt.Errorf("key %q: found %s: expected a mapping", at, kind(n))
}

func kind(n ast.Node) string {
	if n == nil {
		return "nothing"
	}
	s := n.String()
	if len(s) > 40 {
		s = s[:40] + "…"
	}
	return fmt.Sprintf("%s %q", strings.ToLower(n.Type().String()), s)
}

func known(prefix string, m []*ast.MappingValueNode, keys []string) error {
	for _, e := range m {
		if key := e.Key.String(); !slices.Contains(keys, key) {
			line := 0
			if t := e.Key.GetToken(); t != nil && t.Position != nil {
				line = t.Position.Line
			}
			return fmt.Errorf("line %d: unknown key %q: expected one of %s", line, prefix+key, strings.Join(keys, ", "))
		}
	}
	return nil
}

func (f file) config() (Config, error) {
	c := Config{Precision: "stored", Weight: 1, Class: "interactive"}
	var err error
	if f.Name == nil {
		return c, missing("name", "a name of [a-z0-9_-]{1,64}")
	}
	if c.Name = *f.Name; !ValidName(c.Name) {
		return c, fmt.Errorf("key %q: found %q: expected a name of [a-z0-9_-]{1,64}", "name", c.Name)
	}
	if f.SLO == nil {
		return c, missing("slo", "a duration such as 100ms")
	}
	if c.SLO, err = duration("slo", *f.SLO); err != nil {
		return c, err
	}
	c.Timeout = 2 * c.SLO
	if f.Timeout != nil {
		if c.Timeout, err = duration("timeout", *f.Timeout); err != nil {
			return c, err
		}
		if c.Timeout < c.SLO {
			return c, fmt.Errorf("key %q: found %v: expected at least the slo, %v", "timeout", c.Timeout, c.SLO)
		}
	}
	if f.MaxBatch == nil {
		return c, missing("max_batch", "a whole number from 1")
	}
	if c.MaxBatch = *f.MaxBatch; c.MaxBatch < 1 || c.MaxBatch > MaxBatch {
		return c, fmt.Errorf("key %q: found %d: expected 1..%d", "max_batch", c.MaxBatch, MaxBatch)
	}
	if c.Precision, err = oneOf("precision", f.Precision, "stored", "fp32", "fp16", "bf16"); err != nil {
		return c, err
	}
	if c.Class, err = oneOf("class", f.Class, "interactive", "offline"); err != nil {
		return c, err
	}
	if c.Storage, err = oneOf("storage", f.Storage, "memory", "file"); err != nil {
		return c, err
	}
	if f.Storage == nil && c.Class == "offline" {
		c.Storage = "file"
	}
	if f.Weight != nil {
		if c.Weight = *f.Weight; !(c.Weight > 0) || math.IsInf(c.Weight, 0) {
			return c, fmt.Errorf("key %q: found %v: expected a number above 0", "weight", c.Weight)
		}
	}
	if f.Version != nil {
		if c.Pin = *f.Version; c.Pin < 1 {
			return c, fmt.Errorf("key %q: found %d: expected a version folder's number, from 1", "version", c.Pin)
		}
	}
	if c.Inputs, err = specs("inputs", f.Inputs); err != nil {
		return c, err
	}
	if c.Outputs, err = specs("outputs", f.Outputs); err != nil {
		return c, err
	}
	c.Preprocess, err = f.preprocess(c.Inputs)
	return c, err
}

func missing(key, expected string) error {
	return fmt.Errorf("key %q is missing: expected %s", key, expected)
}

func duration(key, found string) (time.Duration, error) {
	d, err := time.ParseDuration(found)
	if err != nil || d <= 0 || d > MaxSLO {
		return 0, fmt.Errorf("key %q: found %q: expected a duration above 0 and up to %v, such as 100ms", key, found, MaxSLO)
	}
	return d, nil
}

// oneOf returns *found, or the first of the allowed values when the key is missing.
func oneOf(key string, found *string, allowed ...string) (string, error) {
	if found == nil {
		return allowed[0], nil
	}
	if !slices.Contains(allowed, *found) {
		return "", fmt.Errorf("key %q: found %q: expected one of %s", key, *found, strings.Join(allowed, ", "))
	}
	return *found, nil
}

func specs(key string, list []fileSpec) ([]tensor.Spec, error) {
	if len(list) == 0 {
		return nil, missing(key, "a list of {name, dtype, shape}")
	}
	if len(list) > maxIO {
		return nil, fmt.Errorf("key %q: found %d entries: expected at most %d", key, len(list), maxIO)
	}
	out := make([]tensor.Spec, 0, len(list))
	seen := map[string]bool{}
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", key, i)
		spec, err := s.spec(at)
		if err != nil {
			return nil, err
		}
		if seen[spec.Name] {
			return nil, fmt.Errorf("key %q: found %q twice: expected different names", at+".name", spec.Name)
		}
		seen[spec.Name] = true
		out = append(out, spec)
	}
	return out, nil
}

func (s fileSpec) spec(at string) (tensor.Spec, error) {
	var out tensor.Spec
	switch {
	case s.Name == nil:
		return out, missing(at+".name", "the tensor's name")
	case *s.Name == "" || len(*s.Name) > 128:
		return out, fmt.Errorf("key %q: found %q: expected 1 to 128 characters", at+".name", *s.Name)
	case s.DType == nil:
		return out, missing(at+".dtype", "an element type such as FP32")
	case s.Shape == nil:
		return out, missing(at+".shape", "the dimensions without the batch, -1 where one varies")
	case len(*s.Shape) > tensor.MaxDims-1:
		return out, fmt.Errorf("key %q: found %d dimensions: expected at most %d", at+".shape", len(*s.Shape), tensor.MaxDims-1)
	}
	dt, err := tensor.ParseDType(*s.DType)
	if err != nil {
		return out, fmt.Errorf("key %q: found %w", at+".dtype", err)
	}
	fixed := make([]int64, 0, len(*s.Shape))
	for i, d := range *s.Shape {
		if d == 0 || d < -1 {
			return out, fmt.Errorf("key %q: dimension %d: found %d: expected a size above 0, or -1 where it varies", at+".shape", i, d)
		}
		if d > 0 {
			fixed = append(fixed, d)
		}
	}
	if _, err := tensor.Bytes(dt, fixed); err != nil {
		return out, fmt.Errorf("key %q: %w", at+".shape", err)
	}
	return tensor.Spec{Name: *s.Name, DType: dt, Shape: slices.Clone(*s.Shape)}, nil
}

func (f file) preprocess(inputs []tensor.Spec) (map[string]Preprocess, error) {
	if len(f.Preprocess) == 0 {
		return nil, nil
	}
	out := make(map[string]Preprocess, len(f.Preprocess))
	names := make([]string, 0, len(f.Preprocess))
	for name := range f.Preprocess {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		i := slices.IndexFunc(inputs, func(s tensor.Spec) bool { return s.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("key %q: found no such input: expected the name of one of the inputs", "preprocess."+name)
		}
		p, err := f.Preprocess[name].preprocess("preprocess."+name, inputs[i])
		if err != nil {
			return nil, err
		}
		out[name] = p
	}
	return out, nil
}

func (f filePreproc) preprocess(at string, in tensor.Spec) (Preprocess, error) {
	p := Preprocess{Scale: 1, Mean: f.Mean, Std: f.Std}
	if len(f.Accept) == 0 {
		return p, missing(at+".accept", "a list of element types such as [UINT8]")
	}
	for _, name := range f.Accept {
		dt, err := tensor.ParseDType(name)
		if err != nil {
			return p, fmt.Errorf("key %q: found %w", at+".accept", err)
		}
		p.Accept = append(p.Accept, dt)
	}
	if f.Scale != nil {
		p.Scale = *f.Scale
	}
	if p.Scale == 0 || math.IsNaN(p.Scale) || math.IsInf(p.Scale, 0) {
		return p, fmt.Errorf("key %q: found %v: expected a finite number other than 0", at+".scale", p.Scale)
	}
	for _, list := range []struct {
		key    string
		values []float64
	}{{"mean", f.Mean}, {"std", f.Std}} {
		if err := perChannel(at+"."+list.key, list.values, in); err != nil {
			return p, err
		}
	}
	if slices.Contains(f.Std, 0) {
		return p, fmt.Errorf("key %q: found %v: expected numbers other than 0", at+".std", f.Std)
	}
	return p, nil
}

// perChannel checks a list that holds one number per channel, or one for all.
func perChannel(key string, values []float64, in tensor.Spec) error {
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("key %q: found %v: expected finite numbers", key, v)
		}
	}
	if len(values) <= 1 {
		return nil
	}
	if len(in.Shape) == 0 || in.Shape[0] != int64(len(values)) {
		return fmt.Errorf("key %q: found %d numbers: expected one, or one per channel of input %q with shape %v", key, len(values), in.Name, in.Shape)
	}
	return nil
}
