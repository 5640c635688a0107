package plannercmd

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/profile"
)

// judged holds co-runs that no model was fitted to against the interference model that plans are made
// with.
type judged struct {
	GPUType string `json:"gpu_type"`
	Kind    string `json:"kind"`
	// Margin is what plans multiply the predictions with; Error leaves it out.
	Margin float64          `json:"margin"`
	Error  profile.FitError `json:"error"`
	// Above counts the co-runs that were slower than predicted with the margin.
	Above int           `json:"above"`
	Runs  []judgedCorun `json:"runs"`
}

type judgedCorun struct {
	profile.Measurement
	Predicted float64 `json:"predicted"` // slowdown, without the margin
}

// judgeCoruns reads co-runs and says how far off the GPU type's interference.json is on them.
func judgeCoruns(set *profile.Set, dir, gpuType, file string) (judged, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return judged{}, err
	}
	runs, err := profile.ParseCorun(file, data)
	if err != nil {
		return judged{}, err
	}
	fitted, ok := set.Interference(gpuType)
	switch {
	case runs.GPUType != gpuType:
		return judged{}, fmt.Errorf("%s: key %q: found %q: expected the one of --gpu, %q", file, "gpu_type", runs.GPUType, gpuType)
	case !ok:
		return judged{}, fmt.Errorf("%s: found no %s of %s: expected one, as planner fit --write makes it", dir, profile.InterferenceFile, gpuType)
	case len(runs.Runs) == 0:
		return judged{}, fmt.Errorf("%s: found no co-runs: expected at least one", file)
	}
	predict, err := interference.New(set)
	if err != nil {
		return judged{}, err
	}
	j := judged{GPUType: gpuType, Kind: fitted.Kind, Margin: max(1, fitted.Margin)}
	if j.Error, err = interference.Error(set, fitted, runs); err != nil {
		return judged{}, err
	}
	for _, m := range runs.Runs {
		with := predict.Slowdown(gpuType, load(m.Self), loads(m.Others))
		if m.Slowdown > with {
			j.Above++
		}
		j.Runs = append(j.Runs, judgedCorun{m, max(1, with/j.Margin)})
	}
	return j, nil
}

func load(r profile.Running) problem.Load {
	return problem.Load(r)
}

// loads makes each of the others a neighbour of its own.
func loads(others []profile.Running) (neighbours [][]problem.Load) {
	for _, r := range others {
		neighbours = append(neighbours, []problem.Load{load(r)})
	}
	return neighbours
}

func (j judged) print(out io.Writer) error {
	var b strings.Builder
	for _, r := range j.Runs {
		fmt.Fprintf(&b, "%s %d%% b%d beside %d: measured x%.3f, predicted x%.3f\n", r.Self.Model, r.Self.Share, r.Self.Batch, len(r.Others), r.Slowdown, r.Predicted)
	}
	fmt.Fprintf(&b, "%s: off by p50 %.1f %%, p90 %.1f %%, at most %.1f %%; %d of %d above the prediction with its margin, x%.3f\n",
		j.Kind, 100*j.Error.P50, 100*j.Error.P90, 100*j.Error.Max, j.Above, len(j.Runs), j.Margin)
	_, err := io.WriteString(out, b.String())
	return err
}
