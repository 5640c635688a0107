package grpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// request is a decoded inference request.
type request struct {
	wire.Request
	model   string
	id      string
	timeout time.Duration // the timeout parameter; zero: none
	raw     bool          // outputs are wanted as bytes
	// image is the one input in place of tensors, where it is not nil.
	image     []byte
	imageType string
}

// datatypeBytes is the datatype of texts and of files. Here it is an image's.
const datatypeBytes = "BYTES"

// maxID bounds a request's id in bytes.
const maxID = 256

// fieldRaw is the number of raw_input_contents.
const fieldRaw = 7

// unmarshal is proto.Unmarshal, except that raw contents are not copied: they are those of b.
func unmarshal(b []byte, m *oip.ModelInferRequest) error {
	var raw [][]byte
	rest, end := b, 0 // b without its raw contents; up to end it has been looked at
	for end < len(b) {
		num, kind, n := protowire.ConsumeTag(b[end:])
		if n < 0 {
			return proto.Unmarshal(b, m) // which says what is wrong
		}
		size := protowire.ConsumeFieldValue(num, kind, b[end+n:])
		if size < 0 {
			return proto.Unmarshal(b, m)
		}
		next := end + n + size
		switch {
		case num == fieldRaw && kind == protowire.BytesType:
			if raw == nil {
				rest = b[:end:end]
			}
			data, _ := protowire.ConsumeBytes(b[end+n:])
			raw = append(raw, data)
		case raw != nil:
			rest = append(rest, b[end:next]...)
		}
		end = next
	}
	if err := proto.Unmarshal(rest, m); err != nil {
		return err
	}
	m.RawInputContents = raw
	return nil
}

// decode decodes a request for a model with the inputs of specs; maxBytes bounds each tensor. Raw data
// is not copied. The error says where it is, what was found and what was expected.
func decode(m *oip.ModelInferRequest, specs []tensor.Spec, maxBytes int64) (request, error) {
	req := request{model: m.GetModelName(), id: m.GetId(), raw: len(m.GetRawInputContents()) > 0}
	for _, bound := range []struct {
		what      string
		n, expect int
	}{
		{"id: %d bytes", len(req.id), maxID},
		{"inputs: %d tensors", len(m.GetInputs()), wire.DefaultLimits.MaxTensors},
		{"outputs: %d tensors", len(m.GetOutputs()), wire.DefaultLimits.MaxTensors},
	} {
		if bound.n > bound.expect {
			return request{}, fmt.Errorf(bound.what+": expected at most %d", bound.n, bound.expect)
		}
	}
	if raw, inputs := len(m.GetRawInputContents()), len(m.GetInputs()); raw > 0 && raw != inputs {
		return request{}, fmt.Errorf("raw_input_contents: data of %d inputs: expected %d, one for each input, or none", raw, inputs)
	}
	if err := req.parameters(m.GetParameters()); err != nil {
		return request{}, fmt.Errorf("parameters.%w", err)
	}
	for i, in := range m.GetInputs() {
		var raw []byte
		if req.raw {
			raw = m.GetRawInputContents()[i]
			if slices.ContainsFunc(contents(in.GetContents()), func(f filled) bool { return f.n > 0 }) {
				return request{}, fmt.Errorf("inputs[%d].contents: found beside raw_input_contents: expected one of the two", i)
			}
		}
		if err := req.input(in, raw, len(m.GetInputs()), specs, maxBytes); err != nil {
			return request{}, fmt.Errorf("inputs[%d]%w", i, err)
		}
	}
	for i, out := range m.GetOutputs() {
		if err := outputParameters(out.GetParameters()); err != nil {
			return request{}, fmt.Errorf("outputs[%d].parameters.%w", i, err)
		}
		req.Outputs = append(req.Outputs, out.GetName())
	}
	if wants, ok := m.GetParameters()["binary_data_output"]; ok {
		req.raw = wants.GetBoolParam()
	}
	return req, nil
}

// parameters takes those of a request. They are an open set; what changes the request and is not served is
// refused, as it is over HTTP.
func (r *request) parameters(ps map[string]*oip.InferParameter) error {
	if p, ok := ps["timeout"]; ok {
		us, err := integer(p)
		if err == nil && (us < 0 || us > wire.MaxTimeout.Microseconds()) {
			err = fmt.Errorf("found %d: expected 0 to %d microseconds", us, wire.MaxTimeout.Microseconds())
		}
		if err != nil {
			return fmt.Errorf("timeout: %w", err)
		}
		r.timeout = time.Duration(us) * time.Microsecond
	}
	if p, ok := ps["binary_data_output"]; ok {
		if _, is := p.GetParameterChoice().(*oip.InferParameter_BoolParam); !is {
			return fmt.Errorf("binary_data_output: found %s: expected bool_param", kind(p))
		}
	}
	if p, ok := ps["sequence_id"]; ok {
		id := p.GetStringParam()
		if n, err := integer(p); err == nil && n != 0 {
			id = fmt.Sprint(n)
		}
		if id != "" && id != "0" {
			return fmt.Errorf("sequence_id: found %.100q: sequences are not supported: expected 0 or nothing", id)
		}
	}
	return nil
}

// integer is the value of a parameter that is a whole number.
func integer(p *oip.InferParameter) (int64, error) {
	switch v := p.GetParameterChoice().(type) {
	case *oip.InferParameter_Int64Param:
		return v.Int64Param, nil
	case *oip.InferParameter_Uint64Param:
		return int64(min(v.Uint64Param, math.MaxInt64)), nil
	}
	return 0, fmt.Errorf("found %s: expected int64_param", kind(p))
}

// kind names the field that a parameter's value is in.
func kind(p *oip.InferParameter) string {
	switch p.GetParameterChoice().(type) {
	case *oip.InferParameter_BoolParam:
		return "bool_param"
	case *oip.InferParameter_Int64Param:
		return "int64_param"
	case *oip.InferParameter_StringParam:
		return "string_param"
	case *oip.InferParameter_DoubleParam:
		return "double_param"
	case *oip.InferParameter_Uint64Param:
		return "uint64_param"
	}
	return "no value"
}

var errSharedMemory = errors.New("shared_memory_region: shared memory is not supported: expected contents or raw_input_contents")

func outputParameters(ps map[string]*oip.InferParameter) error {
	if _, ok := ps["shared_memory_region"]; ok {
		return errSharedMemory
	}
	if p, ok := ps["classification"]; ok {
		n, err := integer(p)
		if err == nil && n != 0 {
			err = fmt.Errorf("found %d: classification is not supported", n)
		}
		if err != nil {
			return fmt.Errorf("classification: %w", err)
		}
	}
	return nil
}

// input takes one of n inputs; raw is its data where the request has it apart. The error begins with the
// place below the input.
func (r *request) input(in *oip.ModelInferRequest_InferInputTensor, raw []byte, n int, specs []tensor.Spec, maxBytes int64) error {
	if len(in.GetName()) > wire.DefaultLimits.MaxName {
		return fmt.Errorf(".name: a string of %d bytes: expected at most %d", len(in.GetName()), wire.DefaultLimits.MaxName)
	}
	if _, ok := in.GetParameters()["shared_memory_region"]; ok {
		return fmt.Errorf(".parameters.%w", errSharedMemory)
	}
	if in.GetDatatype() == datatypeBytes {
		return r.imageInput(in, raw, n, specs)
	}
	dtype, err := tensor.ParseDType(in.GetDatatype())
	if err != nil {
		return fmt.Errorf(".datatype: %w, or %s for an image", err, datatypeBytes)
	}
	t := tensor.Tensor{Name: in.GetName(), DType: dtype, Shape: in.GetShape(), Data: raw}
	if t.Shape == nil {
		t.Shape = []int64{}
	}
	if !r.raw {
		if t.Data, err = elements(in.GetContents(), dtype, t.Shape, maxBytes); err != nil {
			return err
		}
	}
	if err := t.Validate(); err != nil {
		return fmt.Errorf(": %w", err)
	}
	r.Inputs = append(r.Inputs, t)
	return nil
}

// filled is a field of a tensor's contents and how many elements it has.
type filled struct {
	name string
	n    int
}

func contents(c *oip.InferTensorContents) []filled {
	return []filled{
		{"bool_contents", len(c.GetBoolContents())},
		{"int_contents", len(c.GetIntContents())},
		{"int64_contents", len(c.GetInt64Contents())},
		{"uint_contents", len(c.GetUintContents())},
		{"uint64_contents", len(c.GetUint64Contents())},
		{"fp32_contents", len(c.GetFp32Contents())},
		{"fp64_contents", len(c.GetFp64Contents())},
		{"bytes_contents", len(c.GetBytesContents())},
	}
}

// fields names the field of the contents in which each type has its elements.
var fields = map[tensor.DType]string{
	tensor.BOOL: "bool_contents", tensor.UINT8: "uint_contents",
	tensor.INT8: "int_contents", tensor.INT16: "int_contents", tensor.INT32: "int_contents", tensor.INT64: "int64_contents",
	tensor.FP32: "fp32_contents", tensor.FP64: "fp64_contents",
}

// only fails where c has elements elsewhere than in the field of that name, or not n of them there.
func only(c *oip.InferTensorContents, datatype, field string, n int64) error {
	for _, f := range contents(c) {
		switch {
		case f.name != field && f.n > 0:
			return fmt.Errorf(".contents.%s: found %d elements: expected those of %s in %s", f.name, f.n, datatype, field)
		case f.name == field && int64(f.n) != n:
			return fmt.Errorf(".contents.%s: %d elements: expected %d", f.name, f.n, n)
		}
	}
	return nil
}

// elements are the bytes of a tensor's typed contents.
func elements(c *oip.InferTensorContents, d tensor.DType, shape []int64, maxBytes int64) ([]byte, error) {
	size, err := tensor.Bytes(d, shape)
	if err != nil {
		return nil, fmt.Errorf(".shape: %w", err)
	}
	if size > maxBytes {
		return nil, fmt.Errorf(": %s%v needs %d bytes: expected at most %d", d, shape, size, maxBytes)
	}
	field, ok := fields[d]
	if !ok {
		return nil, fmt.Errorf(".datatype: %s has no contents of its type: expected its bytes in raw_input_contents", d)
	}
	if err := only(c, d.String(), field, size/int64(d.Size())); err != nil {
		return nil, err
	}
	misfit := func(i int, v int64) error {
		return fmt.Errorf(".contents.%s[%d]: found %d: expected a number that fits %s", field, i, v, d)
	}
	out, le := make([]byte, 0, size), binary.LittleEndian
	switch d {
	case tensor.BOOL:
		for _, v := range c.GetBoolContents() {
			bit := byte(0)
			if v {
				bit = 1
			}
			out = append(out, bit)
		}
	case tensor.UINT8:
		for i, v := range c.GetUintContents() {
			if v > math.MaxUint8 {
				return nil, misfit(i, int64(v))
			}
			out = append(out, byte(v))
		}
	case tensor.INT8:
		for i, v := range c.GetIntContents() {
			if int32(int8(v)) != v {
				return nil, misfit(i, int64(v))
			}
			out = append(out, byte(v))
		}
	case tensor.INT16:
		for i, v := range c.GetIntContents() {
			if int32(int16(v)) != v {
				return nil, misfit(i, int64(v))
			}
			out = le.AppendUint16(out, uint16(v))
		}
	case tensor.INT32:
		for _, v := range c.GetIntContents() {
			out = le.AppendUint32(out, uint32(v))
		}
	case tensor.INT64:
		for _, v := range c.GetInt64Contents() {
			out = le.AppendUint64(out, uint64(v))
		}
	case tensor.FP32:
		for _, v := range c.GetFp32Contents() {
			out = le.AppendUint32(out, math.Float32bits(v))
		}
	case tensor.FP64:
		for _, v := range c.GetFp64Contents() {
			out = le.AppendUint64(out, math.Float64bits(v))
		}
	}
	return out, nil
}

// imageInput takes an image: the one element of the one input. It is the gpu-let that decodes it.
func (r *request) imageInput(in *oip.ModelInferRequest_InferInputTensor, raw []byte, n int, specs []tensor.Spec) error {
	several := slices.ContainsFunc(in.GetShape(), func(v int64) bool { return v != 1 })
	if n != 1 || several || len(in.GetShape()) > tensor.MaxDims {
		return fmt.Errorf(": %s%v, one of %d inputs: expected one image as the only input, of the shape [1]", datatypeBytes, in.GetShape(), n)
	}
	if len(specs) != 1 || specs[0].Name != in.GetName() {
		return fmt.Errorf(".name: found %q: expected %s", in.GetName(), names(specs))
	}
	if !r.raw {
		if err := only(in.GetContents(), datatypeBytes, "bytes_contents", 1); err != nil {
			return err
		}
		r.image = in.GetContents().GetBytesContents()[0]
	} else {
		// An element in raw form is its length in four bytes, and then its bytes.
		if len(raw) < 4 || int64(binary.LittleEndian.Uint32(raw)) != int64(len(raw))-4 {
			return fmt.Errorf(": %d bytes of raw data: expected the length of one element in 4 bytes, and the element", len(raw))
		}
		r.image = raw[4:]
	}
	switch {
	case bytes.HasPrefix(r.image, []byte("\xff\xd8\xff")):
		r.imageType = wire.TypeJPEG
	case bytes.HasPrefix(r.image, []byte("\x89PNG\r\n\x1a\n")):
		r.imageType = wire.TypePNG
	default:
		return fmt.Errorf(": %s of %d bytes that begin with %.8q: expected a JPEG or PNG image", datatypeBytes, len(r.image), r.image)
	}
	return nil
}

func names(specs []tensor.Spec) string {
	list := make([]string, len(specs))
	for i, s := range specs {
		list[i] = fmt.Sprintf("%q", s.Name)
	}
	return strings.Join(list, ", ")
}
