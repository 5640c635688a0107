package exchange

import "testing"

// A message is kept until it is answered, in a buffer of about its size: one that a large request has left
// would be held by a small one.
func TestMessagesAreKeptInBuffersOfTheirSize(t *testing.T) {
	for _, c := range []struct{ size, room, most int }{{100, 100, 100}, {100, slack, slack}, {100, 4 << 20, 128}, {1 << 20, 2 << 20, 2 << 20}} {
		room := NewRoom(1 << 30)
		buf := make([]byte, c.size, c.room)
		buf[0] = 7
		h := Body{room: room, Buf: &buf}
		kept := h.keep()
		if len(kept) != c.size || kept[0] != 7 || cap(kept) > c.most || room.Held() != int64(cap(kept)) {
			t.Errorf("%d bytes in a buffer of %d: %d are kept in one of %d, %d are counted", c.size, c.room, len(kept), cap(kept), room.Held())
		}
		h.Release()
		h.Release()
		if room.Held() != 0 {
			t.Errorf("%d bytes are held after all is released", room.Held())
		}
	}
}
