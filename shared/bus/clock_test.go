package bus

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestClocksAreComparedWithinTheExchange draws clocks and delays: what is found is never further off
// than the fastest exchange took, and clocks that agree are taken for equal.
func TestClocksAreComparedWithinTheExchange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ahead := rapid.SampledFrom([]time.Duration{0, time.Millisecond, -time.Millisecond, 5 * time.Second, -5 * time.Second, time.Hour}).Draw(t, "ahead")
		clock := time.Unix(1e9, 0)
		delay := func(what string) time.Duration {
			return time.Duration(rapid.IntRange(0, 20e6).Draw(t, what))
		}
		fastest := time.Hour
		got, err := compareClocks(func() time.Time { return clock }, func() (time.Time, error) {
			there, back := delay("there"), delay("back")
			fastest = min(fastest, there+back)
			clock = clock.Add(there)
			at := clock.Add(ahead)
			clock = clock.Add(back)
			return at, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if off := (got - ahead).Abs(); off > fastest {
			t.Errorf("%v found, %v true: off by more than the fastest exchange, %v", got, ahead, fastest)
		}
		if ahead == 0 && got != 0 {
			t.Errorf("%v found between equal clocks", got)
		}
	})
}

func TestClocksWithoutAnAnswer(t *testing.T) {
	gone := errors.New("gone")
	if _, err := compareClocks(time.Now, func() (time.Time, error) { return time.Time{}, gone }); !errors.Is(err, gone) {
		t.Errorf("%v, expected %v", err, gone)
	}
}

// TestDeadlinesAreByThisHostsClock has a server whose clock is five seconds behind: what it stamped
// is not late here.
func TestDeadlinesAreByThisHostsClock(t *testing.T) {
	b := &Bus{}
	b.ahead.Store(int64(-5 * time.Second))
	stamped := time.Unix(1e9, 0)
	m := &Msg{Stored: b.local(stamped), Stamped: stamped, bus: b}
	for _, c := range []struct {
		key, value string
		want       time.Time
	}{
		{"Gpulet-Timeout", "3s", stamped.Add(8 * time.Second)},
		{"Gpulet-Deadline", "1000000003000000", stamped.Add(8 * time.Second)},
		{"Other", "", stamped.Add(7 * time.Second)},
	} {
		m.header = map[string][]string{c.key: {c.value}}
		if at, err := m.Deadline(2 * time.Second); err != nil || !at.Equal(c.want) {
			t.Errorf("%s: %v, %v: expected %v", c.key, at, err, c.want)
		}
	}
}
