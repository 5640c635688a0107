package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// reader walks a msgpack body in place. It takes no memory for what it reads, so a length that
// lies costs nothing: every length is held against the bytes that are left before it is believed.
//
// It is stricter than the library's decoder, which takes floats and nil for integers and looks
// through extension types; the library is the oracle of its tests.
type reader struct {
	buf []byte
	off int
}

var errTruncated = errors.New("body ends in the middle of a value")

func (r *reader) left() int { return len(r.buf) - r.off }

// code takes the next type byte.
func (r *reader) code() (byte, error) {
	if r.left() < 1 {
		return 0, errTruncated
	}
	c := r.buf[r.off]
	r.off++
	return c, nil
}

// uint takes a big-endian number of width bytes (1, 2, 4 or 8).
func (r *reader) uint(width int) (uint64, error) {
	if r.left() < width {
		return 0, errTruncated
	}
	b := r.buf[r.off : r.off+width]
	r.off += width
	switch width {
	case 1:
		return uint64(b[0]), nil
	case 2:
		return uint64(binary.BigEndian.Uint16(b)), nil
	case 4:
		return uint64(binary.BigEndian.Uint32(b)), nil
	default:
		return binary.BigEndian.Uint64(b), nil
	}
}

// length takes the length of an array or a map whose items need at least one byte each.
func (r *reader) length(width int) (int, error) {
	n, err := r.uint(width)
	if err != nil {
		return 0, err
	}
	if n > uint64(r.left()) {
		return 0, fmt.Errorf("%d items announced, %d bytes left: %w", n, r.left(), errTruncated)
	}
	return int(n), nil
}

// mapLen takes the head of a map.
func (r *reader) mapLen() (int, error) {
	c, err := r.code()
	switch {
	case err != nil:
		return 0, err
	case msgpcode.IsFixedMap(c):
		return int(c & msgpcode.FixedMapMask), nil
	case c == msgpcode.Map16:
		return r.length(2)
	case c == msgpcode.Map32:
		return r.length(4)
	}
	return 0, mismatch(c, "a map")
}

// arrayLen takes the head of an array.
func (r *reader) arrayLen() (int, error) {
	c, err := r.code()
	switch {
	case err != nil:
		return 0, err
	case msgpcode.IsFixedArray(c):
		return int(c & msgpcode.FixedArrayMask), nil
	case c == msgpcode.Array16:
		return r.length(2)
	case c == msgpcode.Array32:
		return r.length(4)
	}
	return 0, mismatch(c, "an array")
}

// take returns the next n bytes of the body itself.
func (r *reader) take(n uint64) ([]byte, error) {
	if n > uint64(r.left()) {
		return nil, fmt.Errorf("%d bytes announced, %d left: %w", n, r.left(), errTruncated)
	}
	end := r.off + int(n)
	b := r.buf[r.off:end:end]
	r.off = end
	return b, nil
}

// str takes a string of at most limit bytes of UTF-8; the result aliases the body.
func (r *reader) str(limit int) ([]byte, error) {
	c, err := r.code()
	if err != nil {
		return nil, err
	}
	var n uint64
	switch {
	case msgpcode.IsFixedString(c):
		n = uint64(c & msgpcode.FixedStrMask)
	case c == msgpcode.Str8:
		n, err = r.uint(1)
	case c == msgpcode.Str16:
		n, err = r.uint(2)
	case c == msgpcode.Str32:
		n, err = r.uint(4)
	default:
		return nil, mismatch(c, "a string")
	}
	if err != nil {
		return nil, err
	}
	if n > uint64(limit) {
		return nil, fmt.Errorf("a string of %d bytes: expected at most %d", n, limit)
	}
	b, err := r.take(n)
	if err == nil && !utf8.Valid(b) {
		err = fmt.Errorf("string %q: expected UTF-8", b)
	}
	return b, err
}

// bin takes binary data; the result aliases the body.
func (r *reader) bin() ([]byte, error) {
	c, err := r.code()
	if err != nil {
		return nil, err
	}
	var n uint64
	switch c {
	case msgpcode.Bin8:
		n, err = r.uint(1)
	case msgpcode.Bin16:
		n, err = r.uint(2)
	case msgpcode.Bin32:
		n, err = r.uint(4)
	default:
		return nil, mismatch(c, "bin")
	}
	if err != nil {
		return nil, err
	}
	return r.take(n)
}

// int takes an integer that fits an int64.
func (r *reader) int() (int64, error) {
	c, err := r.code()
	if err != nil {
		return 0, err
	}
	if msgpcode.IsFixedNum(c) {
		return int64(int8(c)), nil
	}
	switch c {
	case msgpcode.Uint8, msgpcode.Uint16, msgpcode.Uint32, msgpcode.Uint64:
		n, err := r.uint(1 << (c - msgpcode.Uint8))
		if n > math.MaxInt64 {
			return 0, fmt.Errorf("integer %d: expected at most %d", n, int64(math.MaxInt64))
		}
		return int64(n), err
	case msgpcode.Int8:
		n, err := r.uint(1)
		return int64(int8(n)), err
	case msgpcode.Int16:
		n, err := r.uint(2)
		return int64(int16(n)), err
	case msgpcode.Int32:
		n, err := r.uint(4)
		return int64(int32(n)), err
	case msgpcode.Int64:
		n, err := r.uint(8)
		return int64(n), err
	}
	return 0, mismatch(c, "an integer")
}

// maxDepth bounds the nesting of a value that skip passes over.
const maxDepth = 16

// skip passes over one value of any kind.
func (r *reader) skip(depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	c, err := r.code()
	if err != nil {
		return err
	}
	switch kindOf(c) {
	case "map", "array", "string", "bin", "int":
		r.off--
		return r.skipSized(kindOf(c), depth)
	case "nil", "bool":
		return nil
	case "float":
		_, err = r.take(map[byte]uint64{msgpcode.Float: 4, msgpcode.Double: 8}[c])
		return err
	}
	return mismatch(c, "a plain value")
}

func (r *reader) skipSized(kind string, depth int) error {
	var n int
	var err error
	switch kind {
	case "map":
		n, err = r.mapLen()
		n *= 2
	case "array":
		n, err = r.arrayLen()
	case "string":
		_, err = r.str(r.left())
	case "bin":
		_, err = r.bin()
	case "int":
		_, err = r.int()
	}
	for ; err == nil && n > 0; n-- {
		err = r.skip(depth + 1)
	}
	return err
}

// schema lists the keys of a map: required ones first.
type schema struct {
	keys     []string
	required int  // the first so many keys must be there
	open     bool // unknown keys are passed over instead of refused
}

const maxKey = 64

// object takes a map of s and calls visit once for every key that it holds; visit takes the
// key's value. Keys that come twice are refused, as are required keys that do not come.
func (r *reader) object(s *schema, visit func(key string) error) error {
	n, err := r.mapLen()
	if err != nil {
		return err
	}
	var seen uint32
	for range n {
		raw, err := r.str(maxKey)
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		i := s.index(raw)
		switch {
		case i < 0 && !s.open:
			return fmt.Errorf("unknown key %q: expected one of %q", raw, s.keys)
		case i < 0:
			err = r.skip(0)
		case seen&(1<<i) != 0:
			return fmt.Errorf("key %q comes twice", raw)
		default:
			seen |= 1 << i
			err = visit(s.keys[i])
		}
		if err != nil {
			return at(string(raw), err)
		}
	}
	return s.complete(seen)
}

// complete refuses an object whose keys, as bits of seen, leave out a required one.
func (s *schema) complete(seen uint32) error {
	for i, key := range s.keys[:s.required] {
		if seen&(1<<i) == 0 {
			return fmt.Errorf("key %q is missing", key)
		}
	}
	return nil
}

func (s *schema) index(key []byte) int {
	for i, k := range s.keys {
		if k == string(key) {
			return i
		}
	}
	return -1
}

// end refuses what follows a whole body.
func (r *reader) end() error {
	if n := r.left(); n > 0 {
		return fmt.Errorf("%d bytes follow the body", n)
	}
	return nil
}

func mismatch(c byte, want string) error {
	return fmt.Errorf("found %s: expected %s", kindOf(c), want)
}

// kindOf names the msgpack type that c starts.
func kindOf(c byte) string {
	switch {
	case msgpcode.IsFixedNum(c), c >= msgpcode.Uint8 && c <= msgpcode.Int64:
		return "int"
	case msgpcode.IsFixedMap(c), c == msgpcode.Map16, c == msgpcode.Map32:
		return "map"
	case msgpcode.IsFixedArray(c), c == msgpcode.Array16, c == msgpcode.Array32:
		return "array"
	case msgpcode.IsString(c):
		return "string"
	case msgpcode.IsBin(c):
		return "bin"
	case c == msgpcode.Nil:
		return "nil"
	case c == msgpcode.False, c == msgpcode.True:
		return "bool"
	case c == msgpcode.Float, c == msgpcode.Double:
		return "float"
	}
	return fmt.Sprintf("type byte %#x", c)
}

// Appenders of msgpack. Each writes the shortest form.

func appendMap(b []byte, n int) []byte { return append(b, msgpcode.FixedMapLow|byte(n)) }

func appendArray(b []byte, n int) []byte {
	switch {
	case n < 16:
		return append(b, msgpcode.FixedArrayLow|byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, msgpcode.Array16), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, msgpcode.Array32), uint32(n))
}

func appendStr(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, msgpcode.FixedStrLow|byte(n))
	case n <= math.MaxUint8:
		b = append(b, msgpcode.Str8, byte(n))
	case n <= math.MaxUint16:
		b = binary.BigEndian.AppendUint16(append(b, msgpcode.Str16), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, msgpcode.Str32), uint32(n))
	}
	return append(b, s...)
}

func appendBin(b, data []byte) []byte {
	switch n := len(data); {
	case n <= math.MaxUint8:
		b = append(b, msgpcode.Bin8, byte(n))
	case n <= math.MaxUint16:
		b = binary.BigEndian.AppendUint16(append(b, msgpcode.Bin16), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, msgpcode.Bin32), uint32(n))
	}
	return append(b, data...)
}

func appendInt(b []byte, v int64) []byte {
	switch {
	case v >= -32 && v < 128:
		return append(b, byte(v))
	case v >= 0 && v <= math.MaxUint8:
		return append(b, msgpcode.Uint8, byte(v))
	case v >= 0 && v <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, msgpcode.Uint16), uint16(v))
	case v >= 0 && v <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, msgpcode.Uint32), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(b, msgpcode.Int64), uint64(v))
}
