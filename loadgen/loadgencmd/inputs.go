package loadgencmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gpulet/gpulet/loadgen/internal/drive"
	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// What requests carry (--body).
const (
	bodyAuto   = "auto"   // a model's samples where it has some, else random tensors
	bodyRandom = "random" // random tensors
	bodyJPEG   = "jpeg"   // JPEGs where the model takes images, else as auto
)

// jpegs is how many different JPEGs a model is sent.
const jpegs = 32

// inputs are what m is sent; the same for every run of the session.
func (s *session) inputs(m model.Config) ([]payload.Item, error) {
	if items := s.items[m.Name]; items != nil {
		return items, nil
	}
	items, err := s.makeInputs(m)
	if err != nil {
		return nil, err
	}
	if err := payload.Ask(items, s.cfg.outputs[m.Name], m.Outputs); err != nil {
		return nil, cli.Usagef("--outputs: model %s: %v", m.Name, err)
	}
	s.items[m.Name] = items
	return items, nil
}

func (s *session) makeInputs(m model.Config) ([]payload.Item, error) {
	switch s.cfg.Body {
	case bodyRandom:
		return s.random(m)
	case bodyJPEG:
		if spec, err := m.ImageInput(); err == nil {
			return payload.JPEGs(spec, jpegs, s.cfg.Seed)
		}
	}
	file := filepath.Join(s.cfg.Models, m.Name, "samples.msgpack")
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("no samples: the model is sent random inputs, and its answers are not checked", "model", m.Name, "expected", file)
		return s.random(m)
	}
	if err != nil {
		return nil, err
	}
	if s.cfg.Samples > 1 {
		return nil, cli.Usagef("--samples %d: %s is sent one sample at a time: expected --body %s", s.cfg.Samples, file, bodyRandom)
	}
	samples, err := wire.DecodeSamples(file, data)
	if err != nil {
		return nil, err
	}
	items, err := payload.FromSamples(samples, m.Accepted())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return items, nil
}

// random makes random tensors for m. Inputs that may come as bytes do: they are a quarter of the
// size of floats.
func (s *session) random(m model.Config) ([]payload.Item, error) {
	if m.MaxBatch > 0 && s.cfg.Samples > m.MaxBatch {
		return nil, cli.Usagef("--samples %d: model %s: expected at most %d, its max_batch", s.cfg.Samples, m.Name, m.MaxBatch)
	}
	specs := slices.Clone(m.Inputs)
	for i, in := range m.Accepted() {
		if s.cfg.Body == bodyRandom && in.Accepts(tensor.UINT8) {
			specs[i].DType = tensor.UINT8
		}
	}
	items, err := payload.Random(specs, randomItems(specs, s.cfg.Samples), s.cfg.Samples, s.cfg.Varying, s.cfg.Seed)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", m.Name, err)
	}
	return items, nil
}

// randomItems is how many different random requests of so many samples a model gets: a few, within
// a few MiB.
func randomItems(specs []tensor.Spec, samples int) int {
	const most, budget = 16, 32 << 20
	size := 1
	for _, in := range specs {
		n := in.DType.Size() * samples
		for _, d := range in.Shape {
			n *= int(max(d, 1))
		}
		size += n
	}
	return min(max(budget/size, 1), most)
}

// checkBody refuses --body jpeg where no model is sent any.
func (s *session) checkBody(streams []drive.Stream) error {
	if s.cfg.Body != bodyJPEG {
		return nil
	}
	sent := func(st drive.Stream) bool { return st.Items[0].Image != nil }
	if slices.ContainsFunc(streams, sent) {
		return nil
	}
	return cli.Usagef("--body %s: none of the models takes images: each needs one input [3 height width] or [1 height width] in UINT8, itself or by preprocess", bodyJPEG)
}
