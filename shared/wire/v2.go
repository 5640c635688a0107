package wire

import (
	"fmt"
	"strconv"
	"time"

	"github.com/gpulet/gpulet/shared/tensor"
)

// The bodies of the open inference protocol (v2), whose JSON tensors the bus speaks too, with the
// binary tensor data extension: behind the JSON follow, in the order of the tensors, the bytes of
// those whose parameters hold binary_data_size.
// https://github.com/kserve/open-inference-protocol
// https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md

// AllJSON stands for the length of the JSON where nothing follows it.
const AllJSON = -1

// V2Request is an inference request of the v2 protocol.
type V2Request struct {
	Request
	ID string // given back with the answer; may be empty
	// Timeout is the timeout parameter (µs on the wire); zero: none.
	Timeout time.Duration
	// BinaryOutputs asks for all outputs as binary data unless the output itself says otherwise.
	BinaryOutputs bool
	// Binary says, for each of Request.Outputs, whether it is wanted as binary data.
	Binary []bool
}

// WantsBinary reports whether output is wanted as binary data.
func (r *V2Request) WantsBinary(output string) bool {
	for i, name := range r.Outputs {
		if name == output {
			return r.Binary[i]
		}
	}
	return r.BinaryOutputs
}

// MaxTimeout bounds the timeout that a client may ask for.
const MaxTimeout = 24 * time.Hour

// maxID bounds a request id in bytes.
const maxID = 256

var (
	v2RequestKeys = &schema{keys: []string{"inputs", "id", "parameters", "outputs"}, required: 1}
	v2InputKeys   = &schema{keys: []string{"name", "shape", "datatype", "parameters", "data"}, required: 3}
	v2OutputKeys  = &schema{keys: []string{"name", "parameters"}, required: 1}
	// Parameters are an open set; those that change what is asked for and are not served are refused.
	v2RequestParameters = &schema{keys: []string{"timeout", "binary_data_output", "sequence_id"}, open: true}
	v2InputParameters   = &schema{keys: []string{"binary_data_size", "shared_memory_region"}, open: true}
	v2OutputParameters  = &schema{keys: []string{"binary_data", "shared_memory_region", "classification"}, open: true}
)

// DecodeV2Request decodes an inference request whose first jsonLen bytes are JSON (AllJSON: all of
// them) and whose other bytes are the tensors' binary data. Binary Data aliases body. See
// DecodeRequest for inputs and lim; here lim.MaxBytes bounds each tensor, body is bounded by
// whoever read it.
func DecodeV2Request(body []byte, jsonLen int, inputs []tensor.Spec, lim Limits) (V2Request, error) {
	text, data, err := splitBinary(body, jsonLen)
	if err != nil {
		return V2Request{}, err
	}
	d := v2Decoder{jsonReader: jsonReader{buf: text}, data: data, specs: inputs, lim: lim.orDefault()}
	req, err := d.request()
	if err == nil {
		err = d.end()
	}
	if err == nil && len(d.data) > 0 {
		err = fmt.Errorf("%d bytes of binary data are no input's", len(d.data))
	}
	if err != nil {
		return V2Request{}, err
	}
	return req, nil
}

func splitBinary(body []byte, jsonLen int) (text, data []byte, err error) {
	switch {
	case jsonLen == AllJSON:
		return body, nil, nil
	case jsonLen < 0 || jsonLen > len(body):
		return nil, nil, fmt.Errorf("%d bytes of JSON announced: the body has %d", jsonLen, len(body))
	}
	return body[:jsonLen], body[jsonLen:], nil
}

// v2Decoder decodes requests and responses; it owns the binary data not yet claimed by a tensor.
type v2Decoder struct {
	jsonReader
	data  []byte
	specs []tensor.Spec
	lim   Limits
}

func (d *v2Decoder) request() (V2Request, error) {
	var req V2Request
	var perOutput []int8
	err := d.object(v2RequestKeys, func(key string) (err error) {
		switch key {
		case "inputs":
			req.Inputs, err = d.tensors()
		case "id":
			req.ID, err = d.text(maxID)
		case "parameters":
			err = d.requestParameters(&req)
		case "outputs":
			perOutput, err = d.outputs(&req)
		}
		return err
	})
	req.Binary = make([]bool, len(perOutput))
	for i, v := range perOutput {
		req.Binary[i] = v > 0 || v == 0 && req.BinaryOutputs
	}
	return req, err
}

func (d *v2Decoder) text(limit int) (string, error) {
	b, err := d.str(limit)
	return string(b), err
}

func (d *v2Decoder) requestParameters(req *V2Request) error {
	return d.object(v2RequestParameters, func(key string) (err error) {
		switch key {
		case "timeout":
			req.Timeout, err = d.timeout()
		case "binary_data_output":
			req.BinaryOutputs, err = d.bool()
		case "sequence_id":
			err = d.noSequence()
		}
		return err
	})
}

// timeout takes a timeout in microseconds; 0 is none.
func (d *v2Decoder) timeout() (time.Duration, error) {
	us, err := d.int()
	if err == nil && (us < 0 || us > MaxTimeout.Microseconds()) {
		err = fmt.Errorf("found %d: expected 0 to %d microseconds", us, MaxTimeout.Microseconds())
	}
	return time.Duration(us) * time.Microsecond, err
}

// noSequence takes a sequence id, a number or a string, and refuses those that name a sequence.
func (d *v2Decoder) noSequence() error {
	var id string
	if d.next() == '"' {
		s, err := d.text(maxID)
		if err != nil {
			return err
		}
		id = s
	} else {
		n, err := d.int()
		if err != nil {
			return err
		}
		id = strconv.FormatInt(n, 10)
	}
	if id != "" && id != "0" {
		return fmt.Errorf("found %q: sequences are not supported: expected 0 or nothing", id)
	}
	return nil
}

// outputs takes the wanted outputs and returns for each whether binary data is wanted (1), not
// wanted (-1) or left open (0).
func (d *v2Decoder) outputs(req *V2Request) ([]int8, error) {
	var binary []int8
	err := d.array(d.lim.MaxTensors, func(int) error {
		wish := int8(0)
		err := d.object(v2OutputKeys, func(key string) (err error) {
			if key == "parameters" {
				wish, err = d.outputParameters()
				return err
			}
			name, err := d.text(d.lim.MaxName)
			req.Outputs = append(req.Outputs, name)
			return err
		})
		binary = append(binary, wish)
		return err
	})
	return binary, err
}

func (d *v2Decoder) outputParameters() (wish int8, err error) {
	err = d.object(v2OutputParameters, func(key string) error {
		switch key {
		case "binary_data":
			yes, err := d.bool()
			wish = -1
			if yes {
				wish = 1
			}
			return err
		case "classification":
			n, err := d.int()
			if err == nil && n != 0 {
				err = fmt.Errorf("found %d: classification is not supported", n)
			}
			return err
		}
		return errSharedMemory
	})
	return wish, err
}

var errSharedMemory = fmt.Errorf("shared memory is not supported: send data or binary_data_size")

func (d *v2Decoder) tensors() ([]tensor.Tensor, error) {
	var ts []tensor.Tensor
	err := d.array(d.lim.MaxTensors, func(int) error {
		t, err := d.tensor()
		ts = append(ts, t)
		return err
	})
	return ts, err
}

// tensor takes one tensor. Its elements are read where they stand when type and shape came before
// them, as they do in what the field's clients send, and else after the rest has been read.
func (d *v2Decoder) tensor() (tensor.Tensor, error) {
	var t tensor.Tensor
	binarySize := int64(-1)
	later := -1 // where data stands that came before type and shape
	hasData := false
	err := d.object(v2InputKeys, func(key string) (err error) {
		switch key {
		case "name":
			var b []byte
			b, err = d.str(d.lim.MaxName)
			t.Name = intern(b, d.specs)
		case "shape":
			t.Shape, err = d.shape()
		case "datatype":
			t.DType, err = d.dtype()
		case "parameters":
			binarySize, err = d.inputParameters()
		case "data":
			hasData = true
			if t.DType == tensor.Invalid || t.Shape == nil {
				d.next()
				later = d.off
				return d.skip(0)
			}
			t.Data, err = d.tensorData(t.DType, t.Shape, d.lim.MaxBytes)
		}
		return err
	})
	switch {
	case err != nil:
		return t, err
	case hasData && binarySize >= 0:
		return t, fmt.Errorf("tensor %q has both data and binary_data_size", t.Name)
	case later >= 0:
		again := jsonReader{buf: d.buf, off: later}
		t.Data, err = again.tensorData(t.DType, t.Shape, d.lim.MaxBytes)
		return t, at("data", err)
	case hasData:
		return t, nil
	case binarySize < 0:
		return t, fmt.Errorf("tensor %q has neither data nor binary_data_size", t.Name)
	}
	t.Data, err = d.claim(binarySize)
	if err == nil {
		err = t.Validate()
	}
	return t, err
}

// claim takes the next n bytes of binary data.
func (d *v2Decoder) claim(n int64) ([]byte, error) {
	if n > int64(len(d.data)) {
		return nil, fmt.Errorf("binary_data_size %d: %d bytes of binary data are left", n, len(d.data))
	}
	b := d.data[:n:n]
	d.data = d.data[n:]
	return b, nil
}

func (d *v2Decoder) shape() ([]int64, error) {
	shape := make([]int64, 0, 4)
	err := d.array(tensor.MaxDims, func(int) error {
		v, err := d.int()
		shape = append(shape, v)
		return err
	})
	return shape, err
}

func (d *v2Decoder) dtype() (tensor.DType, error) {
	b, err := d.str(maxKey)
	if err != nil {
		return tensor.Invalid, err
	}
	return parseDType(b)
}

func (d *v2Decoder) inputParameters() (binarySize int64, err error) {
	binarySize = -1
	err = d.object(v2InputParameters, func(key string) error {
		if key == "shared_memory_region" {
			return errSharedMemory
		}
		n, err := d.int()
		if err == nil && n < 0 {
			err = fmt.Errorf("found %d: expected 0 or more", n)
		}
		binarySize = n
		return err
	})
	return binarySize, err
}

// EncodeV2Request encodes an inference request, with all inputs as binary data or none. jsonLen is
// what the Inference-Header-Content-Length header says; AllJSON means that it is left out.
func EncodeV2Request(req V2Request, binary bool) (body []byte, jsonLen int, err error) {
	for _, t := range req.Inputs {
		if err := t.Validate(); err != nil {
			return nil, 0, fmt.Errorf("encode request: %w", err)
		}
	}
	b := make([]byte, 0, 128+len(req.ID)+v2Size(req.Inputs, binary))
	b = append(b, '{')
	if req.ID != "" {
		b = append(appendJSONString(append(b, `"id":`...), req.ID), ',')
	}
	b = appendRequestParameters(b, req)
	b = append(b, `"inputs":`...)
	b, err = appendV2Tensors(b, req.Inputs, func(string) bool { return binary })
	if err != nil {
		return nil, 0, fmt.Errorf("encode request: %w", err)
	}
	b = append(appendV2Outputs(b, req), '}')
	if !binary {
		return b, AllJSON, nil
	}
	jsonLen = len(b)
	for _, t := range req.Inputs {
		b = append(b, t.Data...)
	}
	return b, jsonLen, nil
}

func appendRequestParameters(b []byte, req V2Request) []byte {
	if req.Timeout <= 0 && !req.BinaryOutputs {
		return b
	}
	b = append(b, `"parameters":{"binary_data_output":`...)
	b = strconv.AppendBool(b, req.BinaryOutputs)
	if req.Timeout > 0 {
		b = strconv.AppendInt(append(b, `,"timeout":`...), req.Timeout.Microseconds(), 10)
	}
	return append(b, "},"...)
}

func appendV2Outputs(b []byte, req V2Request) []byte {
	if len(req.Outputs) == 0 {
		return b
	}
	b = append(b, `,"outputs":[`...)
	for i, name := range req.Outputs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSONString(append(b, `{"name":`...), name)
		if i < len(req.Binary) && req.Binary[i] != req.BinaryOutputs {
			b = strconv.AppendBool(append(b, `,"parameters":{"binary_data":`...), req.Binary[i])
			b = append(b, '}')
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// V2Response is an inference response of the v2 protocol.
type V2Response struct {
	ID      string
	Model   string
	Version string
	Outputs []tensor.Tensor
}

// EncodeV2Response encodes a response up to its binary data, which is the Data of those outputs
// that binary names, in order: the caller writes it behind the JSON without a copy. hasBinary
// reports whether there is any; then len(text) goes into Inference-Header-Content-Length.
func EncodeV2Response(rep V2Response, binary func(output string) bool) (text []byte, hasBinary bool, err error) {
	size := 128 + len(rep.ID) + len(rep.Model)
	for _, t := range rep.Outputs {
		if err := t.Validate(); err != nil {
			return nil, false, fmt.Errorf("encode response: %w", err)
		}
		hasBinary = hasBinary || binary(t.Name)
		size += v2Size([]tensor.Tensor{t}, binary(t.Name))
	}
	b := make([]byte, 0, size)
	b = appendJSONString(append(b, `{"model_name":`...), rep.Model)
	b = appendJSONString(append(b, `,"model_version":`...), rep.Version)
	if rep.ID != "" {
		b = appendJSONString(append(b, `,"id":`...), rep.ID)
	}
	b = append(b, `,"outputs":`...)
	if b, err = appendV2Tensors(b, rep.Outputs, binary); err != nil {
		return nil, false, fmt.Errorf("encode response: %w", err)
	}
	return append(b, '}'), hasBinary, nil
}

// v2Size guesses the room for the tensors as text; 12 characters hold most floats.
func v2Size(ts []tensor.Tensor, binary bool) int {
	n := 0
	for _, t := range ts {
		n += 112 + len(t.Name) + 8*len(t.Shape)
		if !binary {
			n += 12 * len(t.Data) / max(1, t.DType.Size())
		} else {
			n += len(t.Data)
		}
	}
	return n
}

func appendV2Tensors(b []byte, ts []tensor.Tensor, binary func(name string) bool) (_ []byte, err error) {
	b = append(b, '[')
	for i, t := range ts {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSONString(append(b, `{"name":`...), t.Name)
		b = append(append(append(b, `,"datatype":"`...), t.DType.String()...), `","shape":[`...)
		for j, v := range t.Shape {
			if j > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, v, 10)
		}
		if binary(t.Name) {
			b = strconv.AppendInt(append(b, `],"parameters":{"binary_data_size":`...), int64(len(t.Data)), 10)
			b = append(b, "}}"...)
			continue
		}
		if b, err = appendData(append(b, `],"data":`...), t); err != nil {
			return nil, err
		}
		b = append(b, '}')
	}
	return append(b, ']'), nil
}

var v2ResponseKeys = &schema{keys: []string{"model_name", "outputs", "model_version", "id"}, required: 2, open: true}

// DecodeV2Response decodes a response as DecodeV2Request decodes a request.
func DecodeV2Response(body []byte, jsonLen int, lim Limits) (V2Response, error) {
	text, data, err := splitBinary(body, jsonLen)
	if err != nil {
		return V2Response{}, err
	}
	d := v2Decoder{jsonReader: jsonReader{buf: text}, data: data, lim: lim.orDefault()}
	var rep V2Response
	err = d.object(v2ResponseKeys, func(key string) (err error) {
		switch key {
		case "model_name":
			rep.Model, err = d.text(d.lim.MaxName)
		case "model_version":
			rep.Version, err = d.text(d.lim.MaxName)
		case "id":
			rep.ID, err = d.text(maxID)
		case "outputs":
			rep.Outputs, err = d.tensors()
		}
		return err
	})
	if err == nil {
		err = d.end()
	}
	if err == nil && len(d.data) > 0 {
		err = fmt.Errorf("%d bytes of binary data are no output's", len(d.data))
	}
	if err != nil {
		return V2Response{}, err
	}
	return rep, nil
}
