package gpulet

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/gpulet/gpulet/shared/batch"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// request is a fetched request that has neither been acknowledged nor given back.
type request struct {
	msg      *bus.Msg
	model    *bound
	inputs   []tensor.Tensor // in the order of the model's specs; they alias the message or pixels
	pixels   []byte          // of a decoded image; the model's to use again
	outputs  []string        // wanted; empty: all
	samples  int
	deadline time.Time
	fetched  time.Time
	unwanted bool // cancelled after it was launched, while its image is decoded, or while it is judged
}

// decode reads the request's body and checks it against the model. The error is for the client.
func (r *request) decode() error {
	m := r.model.Config
	req, err := wire.DecodeRequest(r.msg.Get(wire.HeaderType), r.msg.Data, m.Inputs, wire.DefaultLimits)
	if err != nil {
		return err
	}
	samples, err := req.Check(m.Accepted())
	if err != nil {
		return err
	}
	if samples > int64(m.MaxBatch) {
		return fmt.Errorf("%d samples: expected at most %d, the model's max_batch", samples, m.MaxBatch)
	}
	r.samples, r.inputs = int(samples), inOrder(req.Inputs, m.Inputs)
	return r.choose(req)
}

// choose notes which outputs are wanted: those that body or headers name.
func (r *request) choose(body wire.Request) error {
	if err := body.ChooseOutputs(r.msg.Get(wire.HeaderOutputs)); err != nil {
		return err
	}
	r.outputs = body.Outputs
	return body.CheckOutputs(r.model.Config.Outputs)
}

// inOrder sorts inputs, which hold each of specs once, like specs.
func inOrder(inputs []tensor.Tensor, specs []tensor.Spec) []tensor.Tensor {
	for i := range specs {
		for j := i; j < len(inputs); j++ {
			if inputs[j].Name == specs[i].Name {
				inputs[i], inputs[j] = inputs[j], inputs[i]
				break
			}
		}
	}
	return inputs
}

// id names the request: what its client called it, else its place in the queue.
func (r *request) id() string {
	if id := r.msg.Get(wire.HeaderRequestID); id != "" {
		return id
	}
	return strconv.FormatUint(r.msg.Seq, 10)
}

// part is a run of some of r's requests.
func (r run) part(requests []*request) run {
	part := newRun(r.model, r.name, r.loaded, requests)
	part.expected, part.measured = r.expected, r.measured
	return part
}

// newRun gathers the inputs of requests that fit together.
func newRun(m *bound, name string, loaded engine.Model, requests []*request) run {
	r := run{model: m, name: name, loaded: loaded, requests: requests}
	for _, req := range requests {
		r.samples += req.samples
	}
	first := requests[0]
	r.inputs = make([]engine.Input, len(first.inputs))
	segments := make([][]byte, len(first.inputs)*len(requests))
	for i, t := range first.inputs {
		in := &r.inputs[i]
		in.DType = t.DType
		in.Shape = slices.Clone(t.Shape)
		in.Shape[0] = int64(r.samples)
		in.Segments, segments = segments[:len(requests):len(requests)], segments[len(requests):]
		for k, req := range requests {
			in.Segments[k] = req.inputs[i].Data
		}
	}
	return r
}

// newRuns splits a batch into what the engine can execute together: requests of the same dtypes
// and shapes. Redelivered requests run alone, after the others: one of them may have brought a
// process down.
func newRuns(m *bound, items []batch.Item) []run {
	var groups [][]*request
	var again []*request
	for _, it := range items {
		req := it.Payload.(*request) //nolint:forcetypeassert // the loop puts nothing else in
		if req.msg.Delivered > 1 {
			again = append(again, req)
			continue
		}
		i := slices.IndexFunc(groups, func(g []*request) bool { return fits(g[0], req) })
		if i < 0 {
			groups = append(groups, make([]*request, 0, len(items)))
			i = len(groups) - 1
		}
		groups[i] = append(groups[i], req)
	}
	for _, req := range again {
		groups = append(groups, []*request{req})
	}
	runs := make([]run, len(groups))
	for i, g := range groups {
		r := newRun(m, m.name(), m.loaded, g)
		r.expected, r.measured = m.estimate.exec(r.samples), m.estimate.measured()
		runs[i] = r
	}
	return runs
}

// fits reports whether two requests can be concatenated along the first dimension.
func fits(a, b *request) bool {
	for i := range a.inputs {
		if a.inputs[i].DType != b.inputs[i].DType || !slices.Equal(a.inputs[i].Shape[1:], b.inputs[i].Shape[1:]) {
			return false
		}
	}
	return true
}
