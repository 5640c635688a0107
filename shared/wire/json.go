package wire

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// jsonReader walks a JSON text in place, as reader walks msgpack. encoding/json would build the
// numbers of a tensor as one value each, match keys in any case and keep the last of two equal
// keys; this one refuses what it does not know and hands numbers out as they stand.
type jsonReader struct {
	buf []byte
	off int
}

// next passes over white space and returns the byte after it without taking it; 0 at the end.
func (r *jsonReader) next() byte {
	for ; r.off < len(r.buf); r.off++ {
		switch c := r.buf[r.off]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// expected says what was found instead of want at the next byte.
func (r *jsonReader) expected(want string) error {
	c := r.next()
	switch {
	case r.off >= len(r.buf):
		return fmt.Errorf("at byte %d: found the end of the JSON: expected %s", r.off, want)
	case c == '"':
		return fmt.Errorf("at byte %d: found a string: expected %s", r.off, want)
	case c == 'n':
		return fmt.Errorf("at byte %d: found null: expected %s", r.off, want)
	case c == 'N':
		return fmt.Errorf("at byte %d: found NaN, which JSON does not have: expected %s", r.off, want)
	case c == '{' || c == '[':
		return fmt.Errorf("at byte %d: found %s: expected %s", r.off, map[byte]string{'{': "an object", '[': "an array"}[c], want)
	}
	return fmt.Errorf("at byte %d: found %q: expected %s", r.off, c, want)
}

// take takes the byte c after white space.
func (r *jsonReader) take(c byte, want string) error {
	if r.next() != c {
		return r.expected(want)
	}
	r.off++
	return nil
}

// str takes a string of at most limit bytes. The result aliases the text where nothing is escaped.
func (r *jsonReader) str(limit int) ([]byte, error) {
	if r.next() != '"' {
		return nil, r.expected("a string")
	}
	start, escaped := r.off, false
	for i := start + 1; i < len(r.buf); i++ {
		switch c := r.buf[i]; {
		case c == '\\':
			escaped = true
			i++
		case c < ' ':
			return nil, fmt.Errorf("at byte %d: control character %#x in a string", i, c)
		case c == '"':
			r.off = i + 1
			return unquote(r.buf[start:r.off], escaped, limit)
		}
	}
	return nil, fmt.Errorf("at byte %d: string without an end", start)
}

func unquote(quoted []byte, escaped bool, limit int) ([]byte, error) {
	s := quoted[1 : len(quoted)-1]
	if len(s) > 6*limit { // \u0061 is the longest way to write a byte
		return nil, fmt.Errorf("a string of %d bytes: expected at most %d", len(s), limit)
	}
	if !utf8.Valid(s) {
		return nil, fmt.Errorf("string %q: expected UTF-8", s)
	}
	if escaped {
		var plain string
		if err := json.Unmarshal(quoted, &plain); err != nil {
			return nil, fmt.Errorf("string %s: %w", quoted, err)
		}
		s = []byte(plain)
	}
	if len(s) > limit {
		return nil, fmt.Errorf("a string of %d bytes: expected at most %d", len(s), limit)
	}
	return s, nil
}

// number takes a number and returns its text, which is one that JSON allows.
func (r *jsonReader) number() ([]byte, error) {
	r.next()
	start := r.off
	b := r.buf
	i := start
	if i < len(b) && b[i] == '-' {
		i++
	}
	first := i
	i = digits(b, i)
	if i == first || b[first] == '0' && i > first+1 {
		return nil, r.expected("a number")
	}
	if i < len(b) && b[i] == '.' {
		end := digits(b, i+1)
		if end == i+1 {
			return nil, r.expected("a number")
		}
		i = end
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		e := i + 1
		if e < len(b) && (b[e] == '+' || b[e] == '-') {
			e++
		}
		end := digits(b, e)
		if end == e {
			return nil, r.expected("a number")
		}
		i = end
	}
	r.off = i
	return b[start:i], nil
}

// digits returns the index after the run of digits at i.
func digits(b []byte, i int) int {
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	return i
}

// int takes an integer written without fraction or exponent.
func (r *jsonReader) int() (int64, error) {
	tok, err := r.number()
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(string(tok), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("found %s: expected an integer from %d to %d", tok, int64(math.MinInt64), int64(math.MaxInt64))
	}
	return v, nil
}

// bool takes true or false.
func (r *jsonReader) bool() (bool, error) {
	switch {
	case r.literal("true"):
		return true, nil
	case r.literal("false"):
		return false, nil
	}
	return false, r.expected("true or false")
}

func (r *jsonReader) literal(word string) bool {
	r.next()
	end := r.off + len(word)
	if end > len(r.buf) || string(r.buf[r.off:end]) != word {
		return false
	}
	r.off = end
	return true
}

// object takes an object of s, as reader.object does.
func (r *jsonReader) object(s *schema, visit func(key string) error) error {
	var seen uint32
	err := r.members(func(raw []byte) (err error) {
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
		return at(string(raw), err)
	})
	if err != nil {
		return err
	}
	return s.complete(seen)
}

// members takes an object and calls visit for each key; visit takes the value.
func (r *jsonReader) members(visit func(key []byte) error) error {
	if err := r.take('{', "an object"); err != nil {
		return err
	}
	for n := 0; ; n++ {
		if r.next() == '}' && n == 0 {
			r.off++
			return nil
		}
		key, err := r.str(maxKey)
		if err != nil {
			return err
		}
		if err := r.take(':', `":"`); err != nil {
			return err
		}
		if err := visit(key); err != nil {
			return err
		}
		if r.next() == '}' {
			r.off++
			return nil
		}
		if err := r.take(',', `"," or "}"`); err != nil {
			return err
		}
	}
}

// array takes an array and calls visit for each element, which takes it. limit bounds the elements.
func (r *jsonReader) array(limit int, visit func(i int) error) error {
	if err := r.take('[', "an array"); err != nil {
		return err
	}
	for i := 0; ; i++ {
		if r.next() == ']' && i == 0 {
			r.off++
			return nil
		}
		if i == limit {
			return fmt.Errorf("more than %d elements", limit)
		}
		if err := visit(i); err != nil {
			return atIndex(i, err)
		}
		if r.next() == ']' {
			r.off++
			return nil
		}
		if err := r.take(',', `"," or "]"`); err != nil {
			return err
		}
	}
}

// skip passes over one value of any kind and checks its syntax.
func (r *jsonReader) skip(depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("at byte %d: nested deeper than %d", r.off, maxDepth)
	}
	switch r.next() {
	case '{':
		return r.members(func([]byte) error { return r.skip(depth + 1) })
	case '[':
		return r.array(math.MaxInt, func(int) error { return r.skip(depth + 1) })
	case '"':
		_, err := r.str(len(r.buf))
		return err
	case 't', 'f':
		_, err := r.bool()
		return err
	case 'n':
		if r.literal("null") {
			return nil
		}
		return r.expected("a value")
	}
	if _, err := r.number(); err != nil {
		return r.expected("a value")
	}
	return nil
}

// end refuses what follows a whole text.
func (r *jsonReader) end() error {
	if r.next(); r.off < len(r.buf) {
		return fmt.Errorf("%d bytes follow the JSON", len(r.buf)-r.off)
	}
	return nil
}

// appendJSONString appends s quoted.
func appendJSONString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // strings always marshal
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
