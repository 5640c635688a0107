package control

import (
	"cmp"
	"context"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
)

// readAtOnce is how many requests of a queue are read at one look: enough for the deadlines to be known
// in time, and few enough for a queue of large requests that nobody wants.
const readAtOnce = 1 << 10

// sweeper ends requests that wait past their deadline in queues that nobody fetches from: those of models
// without a gpu-let, or whose gpu-lets are all gone. Where anybody fetches, it is for gpu-lets to say so.
//
// Its goroutine is told of each look at the queues, and owns everything else. It reads a request once,
// when it is new in a queue that stands still.
type sweeper struct {
	bus     Bus
	metrics *Metrics
	log     *slog.Logger
	looks   chan map[string]bus.Lag // capacity 1
	stalls  map[string]*stall
}

func newSweeper(b Bus, m *Metrics, log *slog.Logger) *sweeper {
	return &sweeper{bus: b, metrics: m, log: log, looks: make(chan map[string]bus.Lag, 1), stalls: map[string]*stall{}}
}

// tell says how the queues are; one that is not among them is of no interest. While the sweeper is busy
// a look is dropped: the next one comes soon.
func (s *sweeper) tell(look map[string]bus.Lag) {
	select {
	case s.looks <- look:
	default:
	}
}

// run sweeps until ctx ends.
func (s *sweeper) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case look := <-s.looks:
			s.look(ctx, look)
		case <-timer.C:
		}
		timer.Reset(s.sweep(ctx))
	}
}

// look takes a look in, and reads what is new where a queue stands still.
func (s *sweeper) look(ctx context.Context, look map[string]bus.Lag) {
	for model := range s.stalls {
		if lag, ok := look[model]; !ok || lag.Pending+lag.AckPending == 0 {
			delete(s.stalls, model)
		}
	}
	now := time.Now()
	for model, lag := range look {
		if lag.Pending+lag.AckPending == 0 {
			continue
		}
		st := s.stalls[model]
		if st == nil || !lag.Created.Equal(st.lag.Created) { // the latter: the queue was made anew
			s.stalls[model] = &stall{lag: lag}
			continue
		}
		if st.saw(lag); !st.still || st.read == lag.LastSeq {
			continue
		}
		list, err := s.bus.Backlog(ctx, model, st.read+1, readAtOnce)
		if err != nil {
			s.failed(ctx, model, err)
			continue
		}
		st.add(now, list)
	}
}

// sweep ends what is due, and returns when to come again unless there is a look before.
func (s *sweeper) sweep(ctx context.Context) time.Duration {
	next := time.Duration(math.MaxInt64)
	for model, st := range s.stalls {
		seqs := st.take(time.Now())
		if len(seqs) > 0 {
			n, early, err := s.bus.Expire(ctx, model, seqs)
			s.metrics.expired.WithLabelValues(model).Add(float64(n))
			if err != nil {
				s.failed(ctx, model, err)
				continue
			}
			st.add(time.Now(), early)
		}
		next = min(next, st.next(time.Now()))
	}
	return next
}

// failed forgets a queue that cannot be read now: the next looks begin anew with it.
func (s *sweeper) failed(ctx context.Context, model string, err error) {
	delete(s.stalls, model)
	if ctx.Err() == nil {
		s.log.Debug("cannot look after the deadlines of a queue", "model", model, "error", err)
	}
}

// endAtOnce is how many requests of a queue are ended before the others have their turn, and before it is
// looked at whether anybody fetches again: of a queue that was left full, all may be due at once.
const endAtOnce = 256

// stall is what is known of one queue.
type stall struct {
	lag   bus.Lag // as last seen
	still bool    // nobody has fetched between the last two looks
	read  uint64  // up to which sequence deadlines are known
	due   []due   // soonest first
}

// due is a request, and when it may not wait any longer.
type due struct {
	seq uint64
	at  time.Time
}

// saw takes a look in.
func (st *stall) saw(lag bus.Lag) {
	st.still = lag.Deliveries == st.lag.Deliveries
	st.lag = lag
	st.read = max(st.read+1, lag.FirstSeq) - 1 // whatever was before has an answer
	st.due = slices.DeleteFunc(st.due, func(d due) bool { return d.seq < lag.FirstSeq })
}

// add notes requests that were read at now.
func (st *stall) add(now time.Time, list []bus.Waiting) {
	for _, w := range list {
		st.due = append(st.due, due{w.Seq, now.Add(w.Left)})
		st.read = max(st.read, w.Seq)
	}
	slices.SortFunc(st.due, func(a, b due) int { return a.at.Compare(b.at) })
}

// take returns the requests that are due, endAtOnce of them at most, lowest sequence first, and forgets
// them. While anybody fetches there are none.
func (st *stall) take(now time.Time) []uint64 {
	if !st.still {
		return nil
	}
	n, _ := slices.BinarySearchFunc(st.due, now, func(d due, now time.Time) int { return cmp.Or(d.at.Compare(now), -1) })
	n = min(n, endAtOnce)
	var seqs []uint64
	for _, d := range st.due[:n] {
		seqs = append(seqs, d.seq)
	}
	st.due = st.due[n:]
	slices.Sort(seqs)
	return seqs
}

// next is how long after now the soonest is due.
func (st *stall) next(now time.Time) time.Duration {
	if !st.still || len(st.due) == 0 {
		return math.MaxInt64
	}
	return max(st.due[0].at.Sub(now), 0)
}
