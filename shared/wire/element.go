package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"

	"github.com/gpulet/gpulet/shared/tensor"
)

// tensorData takes the elements of a tensor: one flat array in row-major order, or arrays nested
// as shape says. Memory is taken only after the text has been found long enough to fill it.
func (r *jsonReader) tensorData(d tensor.DType, shape []int64, limit int) ([]byte, error) {
	size, err := tensor.Bytes(d, shape)
	if err != nil {
		return nil, err
	}
	n := size / int64(d.Size())
	if size > int64(limit) {
		return nil, fmt.Errorf("%s%v needs %d bytes: expected at most %d", d, shape, size, limit)
	}
	if n > int64(len(r.buf)-r.off+1)/2 { // an element and its comma
		return nil, fmt.Errorf("%s%v needs %d elements: the text is too short for them", d, shape, n)
	}
	if r.next() != '[' {
		return nil, r.expected("an array")
	}
	e := elements{r: r, dtype: d, shape: shape, out: make([]byte, 0, size)}
	if len(shape) > 1 && e.nested() {
		err = e.level(0)
	} else {
		err = e.row(n)
	}
	return e.out, err
}

// elements turns the text of a tensor into its bytes.
type elements struct {
	r     *jsonReader
	dtype tensor.DType
	shape []int64
	out   []byte
}

// nested reports whether the array that comes next holds arrays.
func (e *elements) nested() bool {
	ahead := jsonReader{buf: e.r.buf, off: e.r.off + 1}
	return ahead.next() == '['
}

// level takes the array of dimension dim.
func (e *elements) level(dim int) error {
	want := e.shape[dim]
	if dim == len(e.shape)-1 {
		return e.row(want)
	}
	got := int64(0)
	err := e.r.array(int(want), func(int) error {
		got++
		return e.level(dim + 1)
	})
	if err == nil && got != want {
		err = fmt.Errorf("%d elements: expected %d", got, want)
	}
	return err
}

// row takes an array of exactly want elements. It does without array's callback: this is the loop
// that large JSON requests spend their time in.
func (e *elements) row(want int64) error {
	r := e.r
	if err := r.take('[', "an array"); err != nil {
		return err
	}
	for i := range want {
		if i > 0 && r.next() != ',' {
			if r.next() == ']' {
				return fmt.Errorf("%d elements: expected %d", i, want)
			}
			return atIndex(int(i), r.expected(`"," or "]"`))
		}
		if i > 0 {
			r.off++
		}
		if i == 0 && r.next() == ']' {
			return fmt.Errorf("0 elements: expected %d", want)
		}
		if err := e.element(); err != nil {
			return atIndex(int(i), err)
		}
	}
	if r.next() == ',' {
		return fmt.Errorf("more than %d elements", want)
	}
	return r.take(']', `"," or "]"`)
}

func (e *elements) element() error {
	if e.dtype == tensor.BOOL {
		v, err := e.r.bool()
		if err != nil {
			return err
		}
		bit := byte(0)
		if v {
			bit = 1
		}
		e.out = append(e.out, bit)
		return nil
	}
	tok, err := e.r.number()
	if err != nil {
		return err
	}
	out, ok := appendNumber(e.out, e.dtype, tok)
	if !ok {
		return fmt.Errorf("found %s: expected a number that fits %s", tok, e.dtype)
	}
	e.out = out
	return nil
}

// appendNumber appends the bytes of tok, the text of a JSON number, as d. It reports false where
// tok is out of d's range, or has a fraction or an exponent and d is an integer.
func appendNumber(b []byte, d tensor.DType, tok []byte) ([]byte, bool) {
	switch d {
	case tensor.FP32:
		v, err := strconv.ParseFloat(string(tok), 32)
		return binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v))), err == nil
	case tensor.FP64:
		v, err := strconv.ParseFloat(string(tok), 64)
		return binary.LittleEndian.AppendUint64(b, math.Float64bits(v)), err == nil
	case tensor.FP16:
		v, err := strconv.ParseFloat(string(tok), 64)
		h := tensor.FloatToFP16(v)
		return binary.LittleEndian.AppendUint16(b, h), err == nil && h&0x7fff < 0x7c00
	case tensor.BF16:
		v, err := strconv.ParseFloat(string(tok), 64)
		h := tensor.FloatToBF16(v)
		return binary.LittleEndian.AppendUint16(b, h), err == nil && h&0x7fff < 0x7f80
	case tensor.UINT8:
		v, err := strconv.ParseUint(string(tok), 10, 8)
		return append(b, byte(v)), err == nil
	}
	v, err := strconv.ParseInt(string(tok), 10, 8*d.Size())
	return appendLittle(b, uint64(v), d.Size()), err == nil
}

func appendLittle(b []byte, v uint64, size int) []byte {
	var le [8]byte
	binary.LittleEndian.PutUint64(le[:], v)
	return append(b, le[:size]...)
}

// appendData appends t's elements as one flat JSON array. NaN and infinity are errors: JSON does
// not have them.
func appendData(b []byte, t tensor.Tensor) ([]byte, error) {
	b = append(b, '[')
	size := t.DType.Size()
	for off := 0; off < len(t.Data); off += size {
		if off > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendElement(b, t.DType, t.Data[off:off+size]); err != nil {
			return nil, fmt.Errorf("tensor %q: element %d is %w", t.Name, off/size, err)
		}
	}
	return append(b, ']'), nil
}

func appendElement(b []byte, d tensor.DType, raw []byte) ([]byte, error) {
	switch d {
	case tensor.FP32:
		return appendFloat(b, float64(math.Float32frombits(binary.LittleEndian.Uint32(raw))), 32)
	case tensor.FP64:
		return appendFloat(b, math.Float64frombits(binary.LittleEndian.Uint64(raw)), 64)
	case tensor.FP16:
		return appendFloat(b, float64(tensor.FP16ToFloat(binary.LittleEndian.Uint16(raw))), 32)
	case tensor.BF16:
		return appendFloat(b, float64(tensor.BF16ToFloat(binary.LittleEndian.Uint16(raw))), 32)
	case tensor.UINT8:
		return strconv.AppendUint(b, uint64(raw[0]), 10), nil
	case tensor.INT8:
		return strconv.AppendInt(b, int64(int8(raw[0])), 10), nil
	case tensor.INT16:
		return strconv.AppendInt(b, int64(int16(binary.LittleEndian.Uint16(raw))), 10), nil
	case tensor.INT32:
		return strconv.AppendInt(b, int64(int32(binary.LittleEndian.Uint32(raw))), 10), nil
	case tensor.INT64:
		return strconv.AppendInt(b, int64(binary.LittleEndian.Uint64(raw)), 10), nil
	}
	return strconv.AppendBool(b, raw[0] != 0), nil
}

func appendFloat(b []byte, v float64, bits int) ([]byte, error) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil, fmt.Errorf("%v, which JSON does not have: ask for binary data", v)
	}
	return strconv.AppendFloat(b, v, 'g', -1, bits), nil
}
