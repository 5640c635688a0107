package admit

import (
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

func TestRequestsThatCannotBeAnsweredInTimeAreRefused(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		b    Backlog
		left time.Duration
		want string // empty: taken
	}{
		"nothing waits":             {Backlog{Seen: now, PeakRPS: 100}, time.Millisecond, ""},
		"as much as can be":         {Backlog{Waiting: 50, Seen: now, PeakRPS: 100}, 500 * time.Millisecond, ""},
		"more than that":            {Backlog{Waiting: 60, Seen: now, PeakRPS: 100}, 500 * time.Millisecond, "model toy: overloaded: requests wait for at least 600ms: expected at most 500ms, the time that is left"},
		"it may have gone since":    {Backlog{Waiting: 60, Seen: now.Add(-100 * time.Millisecond), PeakRPS: 100}, 500 * time.Millisecond, ""},
		"not all of it":             {Backlog{Waiting: 60, Seen: now.Add(-100 * time.Millisecond), PeakRPS: 100}, 499 * time.Millisecond, "model toy: overloaded: requests wait for at least 500ms: expected at most 499ms, the time that is left"},
		"a look that is long ago":   {Backlog{Waiting: 60, Seen: now.Add(-time.Hour), PeakRPS: 100}, time.Microsecond, ""},
		"a look ahead of the clock": {Backlog{Waiting: 60, Seen: now.Add(time.Hour), PeakRPS: 100}, 600 * time.Millisecond, ""},
		"nobody serves it yet":      {Backlog{Waiting: 60, Seen: now}, time.Millisecond, ""},
		"nothing was ever seen":     {Backlog{}, time.Millisecond, ""},
	} {
		err := InTime(toy, c.left, c.b, now)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if r := refusal(t, err, wire.Overloaded, c.want); r.Retry != c.b.Wait(now)-c.left || r.Retry <= 0 {
			t.Errorf("%s: retry after %v", name, r.Retry)
		}
	}
}
