package v2

import (
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/shared/wire"
)

// read reads a body of which length bytes are announced (-1: none) in mem.
func read(t *testing.T, body io.Reader, length int64, mem *held) error {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/", body)
	r.ContentLength = length
	mem.buf = new([]byte)
	_, err := readBody(httptest.NewRecorder(), r, mem, 16<<20)
	return err
}

func TestBodiesAreCountedWhileTheyAreHeld(t *testing.T) {
	var total atomic.Int64
	const size = 1 << 20
	for _, length := range []int64{size, -1} {
		first := &held{total: &total, limit: 3 * size}
		if err := read(t, strings.NewReader(strings.Repeat(" ", size)), length, first); err != nil {
			t.Fatal(err)
		}
		if n := total.Load(); n < size {
			t.Errorf("%d bytes are held: expected at least %d", n, size)
		}
		second := &held{total: &total, limit: 3 * size}
		err := read(t, strings.NewReader(strings.Repeat(" ", 3*size)), length*3, second)
		var ref *admit.Refusal
		if !errors.As(err, &ref) || ref.Status != wire.Overloaded || !strings.Contains(ref.Detail, "expected at most 3145728") {
			t.Errorf("%v: expected a refusal as overloaded", err)
		}
		first.release()
		second.release()
		if n := total.Load(); n != 0 {
			t.Errorf("%d bytes are held after all is released", n)
		}
	}
}

func TestAnAnnouncedLengthReservesNothing(t *testing.T) {
	var total atomic.Int64
	mem := &held{total: &total, limit: 1 << 30}
	body := io.MultiReader(strings.NewReader("0123456789"), broken{})
	err := read(t, body, 16<<20, mem)
	if err == nil || err.Error() != "request body: 10 of 16777216 bytes came: cut off" {
		t.Errorf("error %v", err)
	}
	if mem.bytes > 8192 {
		t.Errorf("%d bytes are held for 10 that came", mem.bytes)
	}
}

// A message is kept until it is answered, in a buffer of about its size: one that a large request has left
// would be held by a small one.
func TestMessagesAreKeptInBuffersOfTheirSize(t *testing.T) {
	for _, c := range []struct{ size, room, most int }{{100, 100, 100}, {100, slack, slack}, {100, 4 << 20, 128}, {1 << 20, 2 << 20, 2 << 20}} {
		var total atomic.Int64
		buf := make([]byte, c.size, c.room)
		buf[0] = 7
		h := held{total: &total, buf: &buf}
		kept := h.keep()
		if len(kept) != c.size || kept[0] != 7 || cap(kept) > c.most || total.Load() != int64(cap(kept)) {
			t.Errorf("%d bytes in a buffer of %d: %d are kept in one of %d, %d are counted", c.size, c.room, len(kept), cap(kept), total.Load())
		}
		h.release()
		h.release()
		if total.Load() != 0 {
			t.Errorf("%d bytes are held after all is released", total.Load())
		}
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("cut off") }
