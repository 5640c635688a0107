package exchange

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gpulet/gpulet/frontend/internal/admit"
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

// Room is the memory that all bodies may take together. It is safe for concurrent use.
type Room struct {
	held  atomic.Int64 // bytes
	limit int64
}

// NewRoom returns room for limit bytes.
func NewRoom(limit int64) *Room { return &Room{limit: limit} }

// Held is how many bytes are taken.
func (r *Room) Held() int64 { return r.held.Load() }

// Check refuses whatever would come in addition where more is taken than there is.
func (r *Room) Check() error { return admit.Bodies(r.Held(), r.limit) }

// Take takes n bytes. They are taken when it refuses, too.
func (r *Room) Take(n int64) error { return admit.Bodies(r.held.Add(n), r.limit) }

// Give gives n bytes back.
func (r *Room) Give(n int64) { r.held.Add(-n) }

// Body is a buffer, and its part of the room.
type Body struct {
	// Buf is nil once the body is released.
	Buf   *[]byte
	room  *Room
	bytes int64
}

// NewBody returns an empty body. Its owner releases it.
func (r *Room) NewBody() *Body { return &Body{Buf: getBuffer(), room: r} }

// Grow takes n bytes more. They are taken when it refuses, too: Release gives them back.
func (b *Body) Grow(n int) error {
	b.bytes += int64(n)
	return b.room.Take(int64(n))
}

// Release gives the buffer back. It may be called more than once.
func (b *Body) Release() {
	b.room.Give(b.bytes)
	b.bytes = 0
	if b.Buf != nil {
		putBuffer(b.Buf)
		b.Buf = nil
	}
}

// slack is how many bytes larger than a message its buffer may be while the message is kept, or as much as
// the message: else a few large requests would leave large buffers to many small ones.
const slack = 16 << 10

// keep counts the buffer for as long as it is held, and returns what is in it.
func (b *Body) keep() []byte {
	if buf := *b.Buf; cap(buf) > 2*len(buf)+slack {
		exact := slices.Clone(buf)
		putBuffer(b.Buf)
		b.Buf = &exact
	}
	n := int64(cap(*b.Buf))
	b.bytes += n
	b.room.Give(-n)
	return *b.Buf
}
