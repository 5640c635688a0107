package v2

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/shared/wire"
)

// bodyTimeout is how long a client may take to send its body.
const bodyTimeout = time.Minute

// A refused body is read to its end within these bounds, and thrown away: a client that is still
// sending sees a broken connection in place of the answer.
const (
	drainBytes   = 64 << 20
	drainTimeout = 5 * time.Second
)

// readBody reads the whole body into the buffer of mem, which counts its bytes. Its errors are Refusals,
// or the client's own failure to send it.
func readBody(w http.ResponseWriter, r *http.Request, mem *exchange.Body, limit int64) ([]byte, error) {
	if err := admit.Body(r.ContentLength, limit); err != nil {
		return nil, err
	}
	ctl := http.NewResponseController(w)
	_ = ctl.SetReadDeadline(time.Now().Add(bodyTimeout)) // not supported in some tests only
	defer func() { _ = ctl.SetReadDeadline(time.Time{}) }()
	body, err := fill((*mem.Buf)[:0], r, limit, mem)
	if err != nil {
		return nil, err
	}
	*mem.Buf = body
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
func fill(b []byte, r *http.Request, limit int64, mem *exchange.Body) ([]byte, error) {
	if err := mem.Grow(cap(b)); err != nil {
		return nil, err
	}
	for {
		if len(b) == cap(b) {
			more := room(len(b), r.ContentLength)
			if err := mem.Grow(more); err != nil {
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
