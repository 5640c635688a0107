package blackbox

import (
	"bytes"
	"testing"
	"time"
)

// FuzzDecode: the child may write anything, as its memory may be damaged when it dies. What makes
// sense is what a recorder would have written.
func FuzzDecode(f *testing.F) {
	for _, w := range []Work{{Model: "model"}, {Model: "m", Requests: []Request{{Seq: 7, Stored: time.Unix(1e9, 1)}}}} {
		slot := make([]byte, slotBytes)
		(&Slot{slot}).Begin(w)
		f.Add(slot[:128])
	}
	f.Add(bytes.Repeat([]byte{255}, headBytes))
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		w, ok := decode(data)
		if !ok || len(w.Model) > 64 || len(w.Requests) > maxItems {
			return
		}
		slot := make([]byte, slotBytes)
		(&Slot{slot}).Begin(w)
		if n := headBytes + len(w.Model) + itemBytes*len(w.Requests); !bytes.Equal(slot[:n], data[:n]) {
			t.Errorf("%+v was read from\n%x\nand is written as\n%x", w, data[:n], slot[:n])
		}
	})
}
