package inbox

import "github.com/gpulet/gpulet/shared/life"

// remembered is how many ended requests are told apart; a reply to an older one is a stray.
const remembered = 1 << 14

// closedRing remembers the fate of the last requests that have ended, by their number.
type closedRing [remembered]struct {
	number uint64
	fate   life.Fate
}

func (r *closedRing) put(n uint64, f life.Fate) {
	slot := &r[n%remembered]
	slot.number, slot.fate = n, f
}

func (r *closedRing) of(n uint64) life.Fate {
	if slot := &r[n%remembered]; slot.number == n {
		return slot.fate
	}
	return life.Unknown
}
