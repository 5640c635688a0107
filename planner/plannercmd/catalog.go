package plannercmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/shared/model"
)

// paperSLOs are the objectives of the nine models of the gpu-lets paper (Choi et al., USENIX ATC
// 2022): offline tools know these models without a repository.
var paperSLOs = map[string]time.Duration{
	"googlenet": 66 * time.Millisecond, "lenet": 5 * time.Millisecond, "resnet50": 108 * time.Millisecond,
	"ssd-mobilenetv1": 202 * time.Millisecond, "vgg16": 142 * time.Millisecond, "mnasnet1_0": 62 * time.Millisecond,
	"mobilenet_v2": 64 * time.Millisecond, "densenet161": 202 * time.Millisecond, "bert": 22 * time.Millisecond,
}

// catalog describes models for offline tools: by an SLO given on the command line, else by their
// model.yaml in the repository dir, else as in the paper. Sorted by name.
func catalog(dir string, names []string, slos map[string]time.Duration) ([]model.Model, error) {
	var list []model.Model
	for _, name := range names {
		m, err := describe(dir, name, slos[name])
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

func describe(dir, name string, slo time.Duration) (model.Model, error) {
	m := model.Model{Config: model.Config{Name: name, Weight: 1}}
	path := filepath.Join(dir, name, model.ConfigFile)
	data, err := os.ReadFile(path)
	if dir == "" { // no repository
		err = os.ErrNotExist
	}
	switch {
	case err == nil:
		if m.Config, err = model.ParseConfig(path, data); err != nil {
			return m, err
		}
	case !errors.Is(err, fs.ErrNotExist) && !isNotDir(err):
		return m, err
	case slo == 0:
		slo = paperSLOs[name]
	}
	if slo > 0 {
		m.SLO, m.Timeout = slo, 2*slo
	}
	if m.SLO == 0 {
		return m, fmt.Errorf("model %s: no SLO: expected %s, or --slos %s=100ms", name, path, name)
	}
	return m, nil
}

// isNotDir is true of a path that leads through a file.
func isNotDir(err error) bool {
	pathErr, ok := err.(*fs.PathError) //nolint:errorlint // os.ReadFile returns it bare
	return ok && strings.Contains(pathErr.Err.Error(), "not a directory")
}

// parseAssignments reads name=value,... into a map, with value read by parse.
func parseAssignments[V any](flag, text string, parse func(string) (V, error)) (map[string]V, error) {
	out := map[string]V{}
	if strings.TrimSpace(text) == "" {
		return out, nil
	}
	for _, part := range strings.Split(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--%s: found %q: expected model=value", flag, part)
		}
		if _, again := out[name]; again {
			return nil, fmt.Errorf("--%s: found model %q twice", flag, name)
		}
		v, err := parse(value)
		if err != nil {
			return nil, fmt.Errorf("--%s: model %q: %w", flag, name, err)
		}
		out[name] = v
	}
	return out, nil
}

// parseNames reads name,name,... with each name once.
func parseNames(flag, text string) ([]string, error) {
	var names []string
	for _, part := range strings.Split(text, ",") {
		name := strings.TrimSpace(part)
		switch {
		case name == "":
			return nil, fmt.Errorf("--%s: found %q: expected names separated by commas", flag, text)
		case slices.Contains(names, name):
			return nil, fmt.Errorf("--%s: found %s again: expected each once", flag, name)
		}
		names = append(names, name)
	}
	return names, nil
}

// parseAlgorithms reads --algorithms.
func parseAlgorithms(text string) ([]string, error) {
	names, err := parseNames("algorithms", text)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, err := pack.ByName(name); err != nil {
			return nil, fmt.Errorf("--algorithms: %w", err)
		}
	}
	return names, nil
}

// maxRate bounds a rate on the command line, requests per second.
const maxRate = 1e9

func parseRate(text string) (float64, error) {
	rate, err := strconv.ParseFloat(text, 64)
	if err != nil || !(rate >= 0) || rate > maxRate {
		return 0, fmt.Errorf("found %q: expected requests per second, 0..%g", text, maxRate)
	}
	return rate, nil
}

func parseSLO(text string) (time.Duration, error) {
	slo, err := time.ParseDuration(text)
	if err != nil || slo <= 0 {
		return 0, fmt.Errorf("found %q: expected a positive duration such as 100ms", text)
	}
	return slo, nil
}
