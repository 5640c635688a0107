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
	"time"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// headerJSONLength says how many bytes at the start of a body are JSON; binary data follows them.
const headerJSONLength = "Inference-Header-Content-Length"

// bodyTimeout is how long a client may take to send its body.
const bodyTimeout = time.Minute

// keepBuffer is the largest buffer, in bytes, that is kept for the next request.
const keepBuffer = 4 << 20

// buffers are bodies as read and messages as sent: both are dead once the request is on the bus.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(b *[]byte) {
	if cap(*b) <= keepBuffer {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

// readBody reads the whole body into buf. Its errors are Refusals, or the client's own failure to
// send it.
func readBody(w http.ResponseWriter, r *http.Request, buf *[]byte, limit int64) ([]byte, error) {
	if err := admit.Body(r.ContentLength, limit); err != nil {
		return nil, err
	}
	ctl := http.NewResponseController(w)
	_ = ctl.SetReadDeadline(time.Now().Add(bodyTimeout)) // not supported in some tests only
	defer func() { _ = ctl.SetReadDeadline(time.Time{}) }()
	body, err := fill((*buf)[:0], r, limit)
	if err != nil {
		return nil, err
	}
	*buf = body
	return body, nil
}

func fill(b []byte, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength >= 0 {
		b = slices.Grow(b, int(r.ContentLength))[:r.ContentLength]
		n, err := io.ReadFull(r.Body, b)
		if err != nil {
			return nil, admit.Refusef(wire.BadRequest, "request body: %d of %d bytes came: %v", n, r.ContentLength, err)
		}
		return b, nil
	}
	for { // sent in chunks: its size is known at its end
		if len(b) == cap(b) {
			b = slices.Grow(b, max(4096, len(b)))
		}
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case int64(len(b)) > limit:
			return nil, admit.Body(int64(len(b)), limit)
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, admit.Refusef(wire.BadRequest, "request body: %d bytes came: %v", len(b), err)
		}
	}
}

// decode decodes a body by its headers: JSON with binary data behind it where headerJSONLength is
// set, one raw tensor where that is 0 or the content type says so, else JSON alone.
func decode(h http.Header, body []byte, m *model.Model, limits wire.Limits) (wire.V2Request, error) {
	if enc := h.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return wire.V2Request{}, fmt.Errorf("content encoding %q: expected none", enc)
	}
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
