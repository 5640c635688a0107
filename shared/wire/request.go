package wire

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gpulet/gpulet/shared/tensor"
)

// DecodeRequest decodes a request's body. The content type "" stands for msgpack, or for JSON when
// the body starts with '{'; images are not decoded here (see ImageType). inputs are the model's input specs: a raw body takes its name, type and
// shape from them; other bodies are decoded as they are (see Check). Zero fields of lim are those
// of DefaultLimits.
//
// Every tensor returned holds exactly the bytes that its type and shape ask for. Data aliases body
// where body holds the bytes as they are, so body must stay untouched while the request is in use.
func DecodeRequest(contentType string, body []byte, inputs []tensor.Spec, lim Limits) (Request, error) {
	lim = lim.orDefault()
	if len(body) > lim.MaxBytes {
		return Request{}, fmt.Errorf("request body: %d bytes: expected at most %d", len(body), lim.MaxBytes)
	}
	var req Request
	var err error
	switch t := mediaType(contentType, body); t {
	case TypeMsgpack:
		req, err = decodeMsgpackRequest(body, inputs, lim)
	case TypeJSON:
		req, err = decodeJSONRequest(body, inputs, lim)
	case TypeRaw:
		req, err = decodeRawRequest(body, inputs)
	default:
		return Request{}, fmt.Errorf("content type %q: expected one of %s, %s, %s, %s, %s", t, TypeMsgpack, TypeJSON, TypeRaw, TypeJPEG, TypePNG)
	}
	if err != nil {
		return Request{}, fmt.Errorf("request body: %w", err)
	}
	return req, nil
}

// EncodeRequest encodes a request's body as contentType: msgpack (also ""), JSON, or raw, which
// holds exactly one input and no choice of outputs.
func EncodeRequest(contentType string, req Request) ([]byte, error) {
	switch t := mediaType(contentType, nil); t {
	case TypeMsgpack:
		return AppendRequest(nil, req)
	case TypeJSON:
		return appendJSONRequest(req)
	case TypeRaw:
		if len(req.Inputs) != 1 || len(req.Outputs) != 0 {
			return nil, fmt.Errorf("encode request: %s holds 1 input and no outputs: found %d and %d", t, len(req.Inputs), len(req.Outputs))
		}
		if err := req.Inputs[0].Validate(); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		return req.Inputs[0].Data, nil
	default:
		return nil, fmt.Errorf("encode request: content type %q: expected one of %s, %s, %s", t, TypeMsgpack, TypeJSON, TypeRaw)
	}
}

// AppendRequest appends req as msgpack to dst, grown at most once, and returns the result. It is
// EncodeRequest for callers that keep their buffers.
func AppendRequest(dst []byte, req Request) ([]byte, error) {
	for _, t := range req.Inputs {
		if err := t.Validate(); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
	}
	return appendMsgpackRequest(slices.Grow(dst, requestSize(req)), req), nil
}

// mediaType returns the content type without its parameters and with its aliases resolved; body
// decides where the type is left out.
func mediaType(contentType string, body []byte) string {
	t, _, _ := strings.Cut(contentType, ";")
	switch t = strings.ToLower(strings.TrimSpace(t)); t {
	case "":
		// No msgpack map starts with white space or '{': those bytes are small integers there.
		if s := strings.TrimLeft(string(body[:min(len(body), 16)]), " \t\r\n"); strings.HasPrefix(s, "{") {
			return TypeJSON
		}
		return TypeMsgpack
	case "application/x-msgpack", "application/vnd.msgpack":
		return TypeMsgpack
	}
	return t
}

// ImageType returns which of TypeJPEG and TypePNG a content type is. The body of such a request is
// the image alone, and DecodeRequest has no part in it.
func ImageType(contentType string) (kind string, ok bool) {
	if len(contentType) < len("image/") || !strings.EqualFold(contentType[:len("image/")], "image/") {
		return "", false
	}
	switch t := mediaType(contentType, nil); t {
	case TypeJPEG, "image/jpg":
		return TypeJPEG, true
	case TypePNG:
		return TypePNG, true
	}
	return "", false
}

func (l Limits) orDefault() Limits {
	if l.MaxBytes == 0 {
		l.MaxBytes = DefaultLimits.MaxBytes
	}
	if l.MaxTensors == 0 {
		l.MaxTensors = DefaultLimits.MaxTensors
	}
	if l.MaxName == 0 {
		l.MaxName = DefaultLimits.MaxName
	}
	return l
}

var (
	requestKeys = &schema{keys: []string{"inputs", "v", "outputs"}, required: 1}
	tensorKeys  = &schema{keys: []string{"name", "dtype", "shape", "data"}, required: 4}
)

func decodeMsgpackRequest(body []byte, specs []tensor.Spec, lim Limits) (Request, error) {
	var req Request
	r := &reader{buf: body}
	err := r.object(requestKeys, func(key string) (err error) {
		switch key {
		case "inputs":
			req.Inputs, err = r.tensors(specs, lim)
		case "v":
			err = r.version()
		case "outputs":
			req.Outputs, err = r.names(lim)
		}
		return err
	})
	if err != nil {
		return Request{}, err
	}
	return req, r.end()
}

// version takes the version of a body and refuses those that this build does not speak.
func (r *reader) version() error {
	v, err := r.int()
	if err != nil {
		return err
	}
	return checkVersion(v)
}

func checkVersion(v int64) error {
	if v != Version {
		return fmt.Errorf("version %d: expected %d", v, Version)
	}
	return nil
}

// tensors takes an array of tensors. Names that specs know cost no memory.
func (r *reader) tensors(specs []tensor.Spec, lim Limits) ([]tensor.Tensor, error) {
	n, err := r.count(lim.MaxTensors, "tensors")
	if err != nil {
		return nil, err
	}
	ts := make([]tensor.Tensor, n)
	dims := make([]int64, 0, 4*n) // one backing array for all shapes; append may move later ones
	for i := range ts {
		if dims, err = r.tensor(&ts[i], specs, dims, lim); err != nil {
			return nil, atIndex(i, err)
		}
	}
	return ts, nil
}

func (r *reader) count(limit int, what string) (int, error) {
	n, err := r.arrayLen()
	if err == nil && n > limit {
		err = fmt.Errorf("%d %s: expected at most %d", n, what, limit)
	}
	return n, err
}

// tensor takes one tensor into t, its shape appended to dims.
func (r *reader) tensor(t *tensor.Tensor, specs []tensor.Spec, dims []int64, lim Limits) ([]int64, error) {
	err := r.object(tensorKeys, func(key string) (err error) {
		switch key {
		case "name":
			t.Name, err = r.name(specs, lim)
		case "dtype":
			t.DType, err = r.dtype()
		case "shape":
			dims, err = r.shape(dims, &t.Shape)
		case "data":
			t.Data, err = r.bin()
		}
		return err
	})
	if err == nil {
		err = t.Validate()
	}
	return dims, err
}

func (r *reader) name(specs []tensor.Spec, lim Limits) (string, error) {
	b, err := r.str(lim.MaxName)
	if err != nil {
		return "", err
	}
	return intern(b, specs), nil
}

func intern(name []byte, specs []tensor.Spec) string {
	for i := range specs {
		if specs[i].Name == string(name) {
			return specs[i].Name
		}
	}
	return string(name)
}

func (r *reader) dtype() (tensor.DType, error) {
	b, err := r.str(maxKey)
	if err != nil {
		return tensor.Invalid, err
	}
	return parseDType(b)
}

// parseDType is tensor.ParseDType without a string made for the known types.
func parseDType(name []byte) (tensor.DType, error) {
	for d := tensor.FP32; d.Size() > 0; d++ {
		if d.String() == string(name) {
			return d, nil
		}
	}
	return tensor.ParseDType(string(name))
}

func (r *reader) shape(dims []int64, shape *[]int64) ([]int64, error) {
	n, err := r.count(tensor.MaxDims, "dimensions")
	if err != nil {
		return dims, err
	}
	start := len(dims)
	for i := range n {
		v, err := r.int()
		if err != nil {
			return dims, atIndex(i, err)
		}
		dims = append(dims, v)
	}
	*shape = dims[start:len(dims):len(dims)]
	return dims, nil
}

func (r *reader) names(lim Limits) ([]string, error) {
	n, err := r.count(lim.MaxTensors, "names")
	if err != nil {
		return nil, err
	}
	names := make([]string, n)
	for i := range names {
		if names[i], err = r.name(nil, lim); err != nil {
			return nil, atIndex(i, err)
		}
	}
	return names, nil
}

// decodeRawRequest makes one tensor of the whole body: as many samples as it holds, or one sample
// where a dimension of the input varies and so takes what there is.
func decodeRawRequest(body []byte, specs []tensor.Spec) (Request, error) {
	if len(specs) != 1 {
		return Request{}, fmt.Errorf("%s: the model has %d inputs: expected 1", TypeRaw, len(specs))
	}
	s := specs[0]
	shape := append([]int64{-1}, s.Shape...)
	free := 0 // the dimension that is told by the number of bytes
	for i, v := range s.Shape {
		if v != -1 {
			continue
		}
		if free > 0 {
			return Request{}, fmt.Errorf("%s: input %q varies in more than one dimension: %v", TypeRaw, s.Name, s.Shape)
		}
		free = i + 1
	}
	shape[0] = 1
	shape[free] = 1
	unit, err := tensor.Bytes(s.DType, shape)
	if err != nil {
		return Request{}, fmt.Errorf("input %q: %w", s.Name, err)
	}
	if unit == 0 || len(body) == 0 || int64(len(body))%unit != 0 {
		return Request{}, fmt.Errorf("input %q: %d bytes of raw data: expected a multiple of %d (%s%v)", s.Name, len(body), unit, s.DType, shape)
	}
	shape[free] = int64(len(body)) / unit
	return Request{Inputs: []tensor.Tensor{{Name: s.Name, DType: s.DType, Shape: shape, Data: body}}}, nil
}

// requestSize is an upper bound, a few bytes above the real size.
func requestSize(req Request) int {
	n := 32 + tensorsSize(req.Inputs)
	for _, name := range req.Outputs {
		n += 5 + len(name)
	}
	return n
}

func tensorsSize(ts []tensor.Tensor) int {
	n := 5
	for _, t := range ts {
		n += 48 + len(t.Name) + 9*len(t.Shape) + len(t.Data)
	}
	return n
}

func appendMsgpackRequest(b []byte, req Request) []byte {
	keys := 2
	if len(req.Outputs) > 0 {
		keys++
	}
	b = appendMap(b, keys)
	b = appendInt(appendStr(b, "v"), Version)
	b = appendTensors(appendStr(b, "inputs"), req.Inputs)
	if len(req.Outputs) > 0 {
		b = appendArray(appendStr(b, "outputs"), len(req.Outputs))
		for _, name := range req.Outputs {
			b = appendStr(b, name)
		}
	}
	return b
}

func appendTensors(b []byte, ts []tensor.Tensor) []byte {
	b = appendArray(b, len(ts))
	for _, t := range ts {
		b = appendMap(b, 4)
		b = appendStr(appendStr(b, "name"), t.Name)
		b = appendStr(appendStr(b, "dtype"), t.DType.String())
		b = appendArray(appendStr(b, "shape"), len(t.Shape))
		for _, v := range t.Shape {
			b = appendInt(b, v)
		}
		b = appendBin(appendStr(b, "data"), t.Data)
	}
	return b
}

// Check reports whether req holds every input of specs exactly once, each of the right dtype and
// shape and all of the same number of samples, which it returns. Errors name the input, what was
// found and what was expected.
func (r Request) Check(specs []tensor.Spec) (samples int64, err error) {
	for i, t := range r.Inputs {
		if !hasSpec(specs, t.Name) {
			return 0, fmt.Errorf("input %q: the model has no such input: expected %s", t.Name, specNames(specs))
		}
		if _, twice := find(r.Inputs[:i], t.Name); twice {
			return 0, fmt.Errorf("input %q comes twice", t.Name)
		}
	}
	for i, s := range specs {
		t, ok := find(r.Inputs, s.Name)
		if !ok {
			return 0, fmt.Errorf("input %q is missing: expected %s", s.Name, specNames(specs))
		}
		n, err := s.Check(t)
		if err != nil {
			return 0, err
		}
		if i > 0 && n != samples {
			return 0, fmt.Errorf("input %q: %d samples: expected %d as in input %q", s.Name, n, samples, specs[0].Name)
		}
		samples = n
	}
	return samples, nil
}

// ChooseOutputs takes the choice of outputs that a request's headers make: names, separated by
// commas; header is the value of HeaderOutputs. A body that chooses leaves nothing to choose.
func (r *Request) ChooseOutputs(header string) error {
	switch {
	case header == "":
		return nil
	case len(r.Outputs) > 0:
		return fmt.Errorf("header %s: found %.100q beside a body that names outputs: expected one of the two", HeaderOutputs, header)
	case len(header) > DefaultLimits.MaxTensors*(DefaultLimits.MaxName+1):
		return fmt.Errorf("header %s: %d bytes: expected the names of at most %d outputs", HeaderOutputs, len(header), DefaultLimits.MaxTensors)
	}
	for name := range strings.SplitSeq(header, ",") {
		r.Outputs = append(r.Outputs, strings.TrimSpace(name))
	}
	return nil
}

// CheckOutputs reports whether every output that req asks for, if any, is one of specs and asked
// for once.
func (r Request) CheckOutputs(specs []tensor.Spec) error {
	for i, name := range r.Outputs {
		if !hasSpec(specs, name) {
			return fmt.Errorf("output %q: the model has no such output: expected %s", name, specNames(specs))
		}
		for _, other := range r.Outputs[:i] {
			if other == name {
				return fmt.Errorf("output %q comes twice", name)
			}
		}
	}
	return nil
}

// Choose returns those of a reply's outputs that req asks for, in its order; all where it asks for none.
func (r Request) Choose(outputs []tensor.Tensor) ([]tensor.Tensor, error) {
	if len(r.Outputs) == 0 {
		return outputs, nil
	}
	chosen := make([]tensor.Tensor, len(r.Outputs))
	for i, name := range r.Outputs {
		t, ok := find(outputs, name)
		if !ok {
			return nil, fmt.Errorf("its reply lacks output %q", name)
		}
		chosen[i] = t
	}
	return chosen, nil
}

func find(ts []tensor.Tensor, name string) (tensor.Tensor, bool) {
	for _, t := range ts {
		if t.Name == name {
			return t, true
		}
	}
	return tensor.Tensor{}, false
}

func hasSpec(specs []tensor.Spec, name string) bool {
	for i := range specs {
		if specs[i].Name == name {
			return true
		}
	}
	return false
}

func specNames(specs []tensor.Spec) string {
	names := make([]string, len(specs))
	for i, s := range specs {
		names[i] = fmt.Sprintf("%q", s.Name)
	}
	return strings.Join(names, ", ")
}
