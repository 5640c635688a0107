package engine

import (
	"context"
	"fmt"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine/cabi"
)

// native is an engine behind the C ABI.
type native struct{ lib *cabi.Library }

var (
	_ Engine      = (*native)(nil)
	_ JPEGDecoder = (*native)(nil)
)

func (e *native) Info() Info {
	return Info{
		Name:    e.lib.Engine(),
		Version: e.lib.Version(),
		Library: e.lib.Path(),
		CUDA:    e.lib.HasCUDA(),
		JPEG:    e.lib.HasJPEG(),
	}
}

func (e *native) Device(name string) (Device, error) {
	d, err := e.lib.DeviceInfo(name)
	if err != nil {
		return Device{}, wrap(err, "device "+name)
	}
	return Device{Name: d.Name, SMs: d.SMs, MemFree: d.MemFree, MemTotal: d.MemTotal}, nil
}

// DecodeJPEG implements JPEGDecoder.
func (e *native) DecodeJPEG(pixels, data []byte, channels, height, width int) error {
	if err := e.lib.DecodeJPEG(pixels, data, channels, height, width); err != nil {
		return wrap(err, "JPEG")
	}
	return nil
}

func (e *native) Close() error { return nil }

func (e *native) Load(ctx context.Context, spec Spec) (Model, error) {
	spec, err := spec.resolve()
	if err != nil {
		return nil, err
	}
	what := "load " + spec.Model.Name
	if err := checkArchive(what, spec.Model.Path); err != nil {
		return nil, err
	}
	var notes []string
	ways := treatments(spec.Device)
	for i, way := range ways {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		m, err := e.load(ctx, spec, way)
		if err == nil {
			m.notes = append(notes, m.notes...)
			return m, nil
		}
		if CodeOf(err) != ELOAD || i == len(ways)-1 {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		notes = append(notes, fmt.Sprintf("served %s, because %s it fails: %v", ways[i+1].name, way.name, err))
	}
	panic("unreachable: the last way returns")
}

// treatment is what LibTorch does to an archive before it runs.
type treatment struct {
	name  string
	flags uint32
}

// treatments are tried in turn until an archive loads and runs. On a CPU, optimize_for_inference
// fuses and re-orders weights for oneDNN: 3 to 4 times faster than freezing alone on convolutional
// models, the same on transformers. LibTorch calls it a prototype, hence the second way. On CUDA
// the captured graph is what matters.
func treatments(device string) []treatment {
	freeze := treatment{"frozen", cabi.Freeze}
	if device == "cpu" {
		return []treatment{{"optimized", cabi.Optimize}, freeze}
	}
	return []treatment{freeze}
}

func (e *native) load(ctx context.Context, spec Spec, way treatment) (*nativeModel, error) {
	handle, err := e.lib.Load(loadOptions(&spec, way.flags))
	if err != nil {
		return nil, wrap(err, spec.Model.Path)
	}
	m := &nativeModel{spec: spec, handle: handle, canStage: e.lib.CanStage()}
	if err := m.warmUp(ctx); err != nil {
		handle.Close()
		return nil, err
	}
	return m, nil
}

func loadOptions(s *Spec, flags uint32) cabi.LoadOptions {
	o := cabi.LoadOptions{
		Path:      s.Model.Path,
		Device:    s.Device,
		Flags:     flags,
		Precision: int(precisions[s.Precision]),
	}
	for flag, wanted := range map[uint32]bool{
		cabi.Pad: s.FixedBatch, cabi.ChannelsLast: s.ChannelsLast, cabi.Eager: s.Eager,
	} {
		if wanted {
			o.Flags |= flag
		}
	}
	for _, in := range s.Model.Inputs {
		p, ok := s.Model.Preprocess[in.Name]
		o.Inputs = append(o.Inputs, inputSpec(in.DType, p, ok))
	}
	for _, out := range s.Model.Outputs {
		o.OutputDTypes = append(o.OutputDTypes, int(out.DType))
	}
	return o
}

func inputSpec(dtype tensor.DType, p model.Preprocess, preprocess bool) cabi.InputSpec {
	spec := cabi.InputSpec{DType: int(dtype), Preprocess: preprocess, Scale: float32(p.Scale)}
	n := max(len(p.Mean), len(p.Std))
	for c := range n {
		spec.Mean = append(spec.Mean, float32(channel(p.Mean, c, 0)))
		spec.Std = append(spec.Std, float32(channel(p.Std, c, 1)))
	}
	return spec
}

// channel is a channel's value; a single value stands for all channels, none for otherwise.
func channel(values []float64, c int, otherwise float64) float64 {
	switch len(values) {
	case 0:
		return otherwise
	case 1:
		return values[0]
	}
	return values[c]
}
