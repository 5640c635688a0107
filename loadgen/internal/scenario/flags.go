package scenario

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
)

// ParseRates reads "lenet=500,bert=20": requests/s by model.
func ParseRates(text string) (map[string]float64, error) {
	return pairs(text, "lenet=500,bert=20", func(v string) (float64, error) {
		rps, err := strconv.ParseFloat(v, 64)
		if err != nil || arrival.CheckRPS(rps) != nil {
			return 0, fmt.Errorf("found %q: expected requests/s, a number of at least 0", v)
		}
		return rps, nil
	})
}

// ParseSLOs reads "lenet=50ms,bert=1s".
func ParseSLOs(text string) (map[string]time.Duration, error) {
	return pairs(text, "lenet=50ms,bert=1s", parseDuration)
}

// ParseOutputs reads "ssd=boxes+scores,bert=logits": the outputs to ask for.
func ParseOutputs(text string) (map[string][]string, error) {
	return pairs(text, "bert=logits,ssd=boxes+scores", func(v string) ([]string, error) {
		names := strings.Split(v, "+")
		if slices.Contains(names, "") {
			return nil, fmt.Errorf("found %q: expected names of outputs, separated by +", v)
		}
		return names, nil
	})
}

// mixes are the workloads of the gpu-let paper (Choi et al., USENIX ATC 2022), as requests to each
// model for one of the whole; the requests of game and traffic are sent independently of each other.
var mixes = map[string]map[string]float64{
	"scen1":   {"googlenet": 1, "bert": 1, "mnasnet1_0": 1, "mobilenet_v2": 1},
	"scen2":   {"densenet161": 1, "vgg16": 1},
	"scen3":   {"resnet50": 1, "vgg16": 1, "mobilenet_v2": 1},
	"scen4":   {"ssd-mobilenetv1": 1, "mnasnet1_0": 1, "densenet161": 1},
	"scen5":   {"lenet": 1, "ssd-mobilenetv1": 1, "vgg16": 1, "mnasnet1_0": 1},
	"game":    {"lenet": 6, "resnet50": 1},
	"traffic": {"ssd-mobilenetv1": 1, "googlenet": 1, "vgg16": 1},
}

// ParseMix reads the name of a known mix, or weights such as "resnet50=2,vgg16=1", and returns each
// model's share of the total rate.
func ParseMix(text string) (map[string]float64, error) {
	weights, known := mixes[text]
	if !known {
		var err error
		if weights, err = ParseRates(text); err != nil {
			return nil, fmt.Errorf("%w, or one of %s", err, strings.Join(slices.Sorted(maps.Keys(mixes)), ", "))
		}
	}
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	if !(sum > 0) || math.IsInf(sum, 1) {
		return nil, fmt.Errorf("mix %q: weights sum to %g: expected a sum above 0 that is a number", text, sum)
	}
	shares := map[string]float64{}
	for name, w := range weights {
		if w > 0 {
			shares[name] = w / sum
		}
	}
	return shares, nil
}

// pairs reads name=value,name=value.
func pairs[T any](text, example string, parse func(string) (T, error)) (map[string]T, error) {
	out := map[string]T{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("found %q: expected %s", part, example)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%s comes twice", name)
		}
		v, err := parse(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = v
	}
	return out, nil
}
