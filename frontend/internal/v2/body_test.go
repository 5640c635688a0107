package v2

import (
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/shared/wire"
)

// read reads a body of which length bytes are announced (-1: none) in mem.
func read(t *testing.T, body io.Reader, length int64, mem *exchange.Body) error {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/", body)
	r.ContentLength = length
	_, err := readBody(httptest.NewRecorder(), r, mem, 16<<20)
	return err
}

func TestBodiesAreCountedWhileTheyAreHeld(t *testing.T) {
	const size = 1 << 20
	room := exchange.NewRoom(3 * size)
	for _, length := range []int64{size, -1} {
		first := room.NewBody()
		if err := read(t, strings.NewReader(strings.Repeat(" ", size)), length, first); err != nil {
			t.Fatal(err)
		}
		if n := room.Held(); n < size {
			t.Errorf("%d bytes are held: expected at least %d", n, size)
		}
		second := room.NewBody()
		err := read(t, strings.NewReader(strings.Repeat(" ", 3*size)), length*3, second)
		var ref *admit.Refusal
		if !errors.As(err, &ref) || ref.Status != wire.Overloaded || !strings.Contains(ref.Detail, "expected at most 3145728") {
			t.Errorf("%v: expected a refusal as overloaded", err)
		}
		first.Release()
		second.Release()
		if n := room.Held(); n != 0 {
			t.Errorf("%d bytes are held after all is released", n)
		}
	}
}

func TestAnAnnouncedLengthReservesNothing(t *testing.T) {
	room := exchange.NewRoom(1 << 30)
	mem := room.NewBody()
	mem.Buf = new([]byte) // not one that is large from before
	defer mem.Release()
	body := io.MultiReader(strings.NewReader("0123456789"), broken{})
	err := read(t, body, 16<<20, mem)
	if err == nil || err.Error() != "request body: 10 of 16777216 bytes came: cut off" {
		t.Errorf("error %v", err)
	}
	if n := room.Held(); n > 8192 {
		t.Errorf("%d bytes are held for 10 that came", n)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("cut off") }
