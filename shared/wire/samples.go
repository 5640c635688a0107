package wire

import (
	"fmt"

	"github.com/gpulet/gpulet/shared/tensor"
)

// Samples is a file of example requests with, where known, their right answers. The first
// dimension of every tensor counts samples. Data aliases the file's bytes.
type Samples struct {
	N       int // samples in the file
	Inputs  []tensor.Tensor
	Outputs []tensor.Tensor // what the model answers; empty: unknown
	Labels  []int           // the right class of each sample; empty: unknown
}

var samplesKeys = &schema{keys: []string{"inputs", "v", "outputs", "labels"}, required: 1}

// samplesLimits: a file of samples is our own and already in memory; only tensors are counted.
var samplesLimits = Limits{MaxTensors: 64, MaxName: 256}

// DecodeSamples decodes a samples.msgpack: a map of inputs, outputs (optional) and labels
// (optional), tensors as on the wire. Errors name file and key.
func DecodeSamples(file string, data []byte) (Samples, error) {
	s, err := decodeSamples(data)
	if err != nil {
		return Samples{}, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

func decodeSamples(data []byte) (Samples, error) {
	var s Samples
	r := &reader{buf: data}
	err := r.object(samplesKeys, func(key string) (err error) {
		switch key {
		case "inputs":
			s.Inputs, err = r.tensors(nil, samplesLimits)
		case "v":
			err = r.version()
		case "outputs":
			s.Outputs, err = r.tensors(nil, samplesLimits)
		case "labels":
			s.Labels, err = r.labels()
		}
		return err
	})
	if err != nil {
		return Samples{}, err
	}
	if err := r.end(); err != nil {
		return Samples{}, err
	}
	return s, s.count()
}

func (r *reader) labels() ([]int, error) {
	n, err := r.arrayLen()
	if err != nil {
		return nil, err
	}
	labels := make([]int, n)
	for i := range labels {
		if err := r.intInto(&labels[i]); err != nil {
			return nil, atIndex(i, err)
		}
	}
	return labels, nil
}

// count sets N and refuses tensors and labels that disagree on it.
func (s *Samples) count() error {
	if len(s.Inputs) == 0 {
		return fmt.Errorf("inputs: none: expected at least 1")
	}
	for _, group := range []struct {
		key     string
		tensors []tensor.Tensor
	}{{"inputs", s.Inputs}, {"outputs", s.Outputs}} {
		for _, t := range group.tensors {
			if len(t.Shape) == 0 || t.Shape[0] < 1 {
				return fmt.Errorf("%s: tensor %q: shape %v: expected at least one sample", group.key, t.Name, t.Shape)
			}
			if s.N == 0 {
				s.N = int(t.Shape[0])
			}
			if int(t.Shape[0]) != s.N {
				return fmt.Errorf("%s: tensor %q: %d samples: expected %d as in %q", group.key, t.Name, t.Shape[0], s.N, s.Inputs[0].Name)
			}
		}
	}
	if s.Labels != nil && len(s.Labels) != s.N {
		return fmt.Errorf("labels: %d: expected %d, one for each sample", len(s.Labels), s.N)
	}
	return nil
}

// Request returns the request for samples first .. first+n-1. It takes no copy of their data.
func (s Samples) Request(first, n int) Request {
	return Request{Inputs: Rows(s.Inputs, first, n)}
}

// Rows returns samples first .. first+n-1 of every tensor, sharing their data.
func Rows(ts []tensor.Tensor, first, n int) []tensor.Tensor {
	rows := make([]tensor.Tensor, len(ts))
	for i, t := range ts {
		row := len(t.Data) / int(t.Shape[0])
		rows[i] = tensor.Tensor{
			Name: t.Name, DType: t.DType,
			Shape: append([]int64{int64(n)}, t.Shape[1:]...),
			Data:  t.Data[first*row : (first+n)*row],
		}
	}
	return rows
}

// EncodeSamples is the inverse of DecodeSamples.
func EncodeSamples(s Samples) []byte {
	b := make([]byte, 0, 64+tensorsSize(s.Inputs)+tensorsSize(s.Outputs)+9*len(s.Labels))
	keys := 2
	if len(s.Outputs) > 0 {
		keys++
	}
	if len(s.Labels) > 0 {
		keys++
	}
	b = appendMap(b, keys)
	b = appendInt(appendStr(b, "v"), Version)
	b = appendTensors(appendStr(b, "inputs"), s.Inputs)
	if len(s.Outputs) > 0 {
		b = appendTensors(appendStr(b, "outputs"), s.Outputs)
	}
	if len(s.Labels) > 0 {
		b = appendArray(appendStr(b, "labels"), len(s.Labels))
		for _, l := range s.Labels {
			b = appendInt(b, int64(l))
		}
	}
	return b
}
