package v2

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// headerJSONLength says how many bytes at the start of a body are JSON; binary data follows them.
const headerJSONLength = "Inference-Header-Content-Length"

// bodyTimeout is how long a client may take to send its body.
const bodyTimeout = time.Minute

// A refused body is read to its end within these bounds, and thrown away: a client that is still
// sending sees a broken connection in place of the answer.
const (
	drainBytes   = 64 << 20
	drainTimeout = 5 * time.Second
)

// keepBuffer is the largest buffer, in bytes, that is kept for the next request.
const keepBuffer = 4 << 20

// buffers are bodies as read, which are dead once the request is on the bus, and messages as sent, which
// are dead once it is answered.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(b *[]byte) {
	if cap(*b) <= keepBuffer {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

// held is a buffer, and its part of the memory that all bodies may take together.
type held struct {
	total *atomic.Int64 // bytes of all bodies
	limit int64
	bytes int64   // of this one
	buf   *[]byte // nil once it is released
}

// grow takes n bytes more. They are taken when it refuses, too: release gives them back.
func (h *held) grow(n int) error {
	h.bytes += int64(n)
	return admit.Bodies(h.total.Add(int64(n)), h.limit)
}

// release gives the buffer back. It may be called more than once.
func (h *held) release() {
	h.total.Add(-h.bytes)
	h.bytes = 0
	if h.buf != nil {
		putBuffer(h.buf)
		h.buf = nil
	}
}

// slack is how many bytes larger than a message its buffer may be while the message is kept, or as much as
// the message: else a few large requests would leave large buffers to many small ones.
const slack = 16 << 10

// keep counts the buffer for as long as it is held, and returns what is in it.
func (h *held) keep() []byte {
	if b := *h.buf; cap(b) > 2*len(b)+slack {
		exact := slices.Clone(b)
		putBuffer(h.buf)
		h.buf = &exact
	}
	n := int64(cap(*h.buf))
	h.bytes += n
	h.total.Add(n)
	return *h.buf
}

// readBody reads the whole body into the buffer of mem, which counts its bytes. Its errors are Refusals,
// or the client's own failure to send it.
func readBody(w http.ResponseWriter, r *http.Request, mem *held, limit int64) ([]byte, error) {
	if err := admit.Body(r.ContentLength, limit); err != nil {
		return nil, err
	}
	ctl := http.NewResponseController(w)
	_ = ctl.SetReadDeadline(time.Now().Add(bodyTimeout)) // not supported in some tests only
	defer func() { _ = ctl.SetReadDeadline(time.Time{}) }()
	body, err := fill((*mem.buf)[:0], r, limit, mem)
	if err != nil {
		return nil, err
	}
	*mem.buf = body
	return body, nil
}

// drain throws away what is left of a refused request's body. A client that waits to be told to go on
// (100-continue) and was not sends none.
func drain(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Expect") != "" {
		return
	}
	ctl := http.NewResponseController(w)
	_ = ctl.SetReadDeadline(time.Now().Add(drainTimeout)) // not supported in some tests only
	_, _ = io.CopyN(io.Discard, r.Body, drainBytes)       // a client that has left is told by the answer's failing
	_ = ctl.SetReadDeadline(time.Time{})
}

// fill reads the body to its end. The buffer grows with what has come: an announced length costs a
// client nothing, so it reserves nothing.
func fill(b []byte, r *http.Request, limit int64, mem *held) ([]byte, error) {
	if err := mem.grow(cap(b)); err != nil {
		return nil, err
	}
	for {
		if len(b) == cap(b) {
			more := room(len(b), r.ContentLength)
			if err := mem.grow(more); err != nil {
				return nil, err
			}
			b = append(make([]byte, 0, len(b)+more), b...) // exactly as large as it is counted
		}
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case int64(len(b)) > limit:
			return nil, admit.Body(int64(len(b)), limit)
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil && r.ContentLength >= 0:
			return nil, admit.Refusef(wire.BadRequest, "request body: %d of %d bytes came: %v", len(b), r.ContentLength, err)
		case err != nil:
			return nil, admit.Refusef(wire.BadRequest, "request body: %d bytes came: %v", len(b), err)
		}
	}
}

// room is how many bytes to make room for behind n that have come, of length announced (-1: none):
// as many again, up to what was announced.
func room(n int, length int64) int {
	more := max(4096, n)
	if left := length - int64(n); left > 0 {
		more = min(more, int(left))
	}
	return more
}

// image reports whether the headers announce an image as the whole body, and of which type. It is the
// gpu-let that decodes it: here would be the wrong machine to spend that time on.
func image(h http.Header) (kind string, ok bool, err error) {
	if enc := h.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return "", false, fmt.Errorf("content encoding %q: expected none", enc)
	}
	kind, ok = wire.ImageType(h.Get("Content-Type"))
	if n := h.Get(headerJSONLength); ok && n != "" {
		return "", false, fmt.Errorf("header %s: found %q: expected none with a body of %s", headerJSONLength, n, kind)
	}
	return kind, ok, nil
}

// decode decodes a body by its headers: JSON with binary data behind it where headerJSONLength is
// set, one raw tensor where that is 0 or the content type says so, else JSON alone.
func decode(h http.Header, body []byte, m *model.Model, limits wire.Limits) (wire.V2Request, error) {
	jsonLen := wire.AllJSON
	if v := h.Get(headerJSONLength); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return wire.V2Request{}, fmt.Errorf("header %s: found %q: expected 0 or more", headerJSONLength, v)
		}
		jsonLen = n
	}
	if jsonLen == 0 || jsonLen == wire.AllJSON && strings.HasPrefix(h.Get("Content-Type"), wire.TypeRaw) {
		req, err := wire.DecodeRequest(wire.TypeRaw, body, m.Inputs, limits)
		return wire.V2Request{Request: req}, err
	}
	return wire.DecodeV2Request(body, jsonLen, m.Inputs, limits)
}
