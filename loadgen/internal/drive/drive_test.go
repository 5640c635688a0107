package drive

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/wire"
)

func TestEveryRequestIsAccountedFor(t *testing.T) {
	st := echoStream("echo", 2000, 300*time.Millisecond)
	models, total := do(t, []Stream{st}, options(300*time.Millisecond), func(s Sink, r Request) {
		now := time.Now()
		switch r.Seq % 10 {
		case 0: // lost
		case 1:
			s.Answered(r.Stream, r.Seq, now, wire.Reply{Status: wire.Expired, Detail: "too late"})
		case 2: // twice
			s.Answered(r.Stream, r.Seq, now, echo(st, r.Item))
			s.Answered(r.Stream, r.Seq, now, echo(st, r.Item))
		case 3:
			s.Refused(r.Stream, r.Seq, wire.Overloaded, "queue is full", true)
		case 4: // an acknowledgement lost, an answer all the same
			s.Refused(r.Stream, r.Seq, wire.Unavailable, "no acknowledgement", false)
			s.Answered(r.Stream, r.Seq, now, echo(st, r.Item))
		case 5: // an acknowledgement lost, and no answer
			s.Refused(r.Stream, r.Seq, wire.Unavailable, "no acknowledgement", false)
		case 6: // another item's answer
			s.Answered(r.Stream, r.Seq, now, echo(st, (r.Item+1)%3))
		default:
			s.Answered(r.Stream, r.Seq, now, echo(st, r.Item))
		}
	})
	f := models["echo"]
	if f.Sent < 400 {
		t.Fatalf("only %d sent", f.Sent)
	}
	of := func(cases ...int64) (n int64) { // how many requests fell to these cases
		for _, c := range cases {
			n += (f.Sent - c + 9) / 10
		}
		return n
	}
	for what, c := range map[string][2]int64{
		"lost":        {f.Lost, of(0)},
		"expired":     {f.Errors[wire.Expired], of(1)},
		"duplicates":  {f.Duplicates, of(2)},
		"overloaded":  {f.Errors[wire.Overloaded], of(3)},
		"unavailable": {f.Errors[wire.Unavailable], of(5)},
		"wrong":       {f.Wrong, of(6)},
		"ok":          {f.OK, of(2, 4, 6, 7, 8, 9)},
		"correct":     {f.Correct, of(2, 4, 7, 8, 9)},
		"violations":  {f.SLOViolations, of(0, 1, 3, 5)},
		"all":         {f.OK + f.Lost + f.ErrorCount(), f.Sent},
		"total ok":    {total.OK, f.OK},
		"total lost":  {total.Lost, f.Lost},
		"unasked":     {f.Unasked, 0},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %d, expected %d", what, c[0], c[1])
		}
	}
	if want := float64(f.Correct) / float64(f.OK); f.Accuracy == nil || *f.Accuracy != want {
		t.Errorf("accuracy %v, expected %v", f.Accuracy, want)
	}
	if !strings.Contains(f.WrongWhy, `output "y": element`) || f.Causes[wire.Overloaded] != "queue is full" {
		t.Errorf("words: %q, %v", f.WrongWhy, f.Causes)
	}
	if f.Stages == nil || f.Stages.ExecMs != 2 || f.Stages.Batch != 4 {
		t.Errorf("stages %+v", f.Stages)
	}
	var steps report.Step
	for _, s := range f.Timeline {
		steps.Sent += s.Sent
		steps.OK += s.OK
		steps.Violations += s.Violations
	}
	if steps.Sent != f.Sent || steps.OK != f.OK || steps.Violations != f.SLOViolations {
		t.Errorf("the timeline sums to %+v", steps)
	}
}

func TestAnswersToNothingAreTold(t *testing.T) {
	st := echoStream("echo", 100, 50*time.Millisecond)
	models, _ := do(t, []Stream{st}, options(50*time.Millisecond), func(s Sink, r Request) {
		s.Answered(r.Stream, r.Seq, time.Now(), echo(st, r.Item))
		s.Answered(r.Stream, r.Seq+1000, time.Now(), echo(st, r.Item))
	})
	if f := models["echo"]; f.Unasked != f.Sent || f.OK != f.Sent {
		t.Errorf("%d unasked and %d ok of %d sent", f.Unasked, f.OK, f.Sent)
	}
}

// A system that stalls must show in the latency of the requests that should have been sent
// meanwhile: that is what an open loop is for.
func TestLatencyCountsFromTheIntendedTime(t *testing.T) {
	const stall = 200 * time.Millisecond
	st := echoStream("echo", 1000, 300*time.Millisecond)
	stalled := false
	models, _ := do(t, []Stream{st}, options(300*time.Millisecond), func(s Sink, r Request) {
		if !stalled {
			stalled = true
			<-time.After(stall) // the sender is blocked, as by a full connection
		}
		s.Answered(r.Stream, r.Seq, time.Now(), echo(st, r.Item))
	})
	f := models["echo"]
	if f.P50Ms < 50 || f.MaxMs < report.Ms(stall) {
		t.Errorf("p50 %.1f ms and max %.1f ms do not show a stall of %v", f.P50Ms, f.MaxMs, stall)
	}
	if f.Late < f.Sent/3 || f.SendLagMaxMs < 150 {
		t.Errorf("late sends are not shown: %d of %d, at most %.1f ms", f.Late, f.Sent, f.SendLagMaxMs)
	}
}

func TestWarmupIsNotCounted(t *testing.T) {
	const d = 300 * time.Millisecond
	opts := options(d)
	opts.Warmup = d / 2
	st := echoStream("echo", 1000, d)
	var sent int64
	models, _ := do(t, []Stream{st}, opts, func(s Sink, r Request) {
		sent++
		s.Answered(r.Stream, r.Seq, time.Now(), echo(st, r.Item))
	})
	f := models["echo"]
	if f.Sent >= sent || f.Sent < sent/3 || f.OK != f.Sent {
		t.Errorf("%d sent, of which %d counted and %d ok", sent, f.Sent, f.OK)
	}
	if math.Abs(f.RateRPS-1000) > 250 {
		t.Errorf("rate %.1f/s, expected about 1000", f.RateRPS)
	}
}

func TestCancellingStopsSendingAndStillTakesAnswers(t *testing.T) {
	st := echoStream("echo", 1000, time.Hour)
	run, err := New([]Stream{st}, options(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var held []Request
	sender := &scripted{run, func(s Sink, r Request) {
		if held = append(held, r); len(held) < 20 {
			return
		}
		cancel()
		for _, h := range held {
			s.Answered(h.Stream, h.Seq, time.Now(), echo(st, h.Item))
		}
		held = nil
	}}
	sending := run.Do(ctx, context.Background(), sender)
	if sending >= time.Hour {
		t.Errorf("sent for %v", sending)
	}
	if _, total := run.Figures(sending); total.OK < 20 || total.OK+total.Lost != total.Sent {
		t.Errorf("%+v", total)
	}
}

func TestAbortDoesNotWaitForAnswers(t *testing.T) {
	st := echoStream("echo", 1000, 20*time.Millisecond)
	st.Timeout = time.Hour
	run, err := New([]Stream{st}, options(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	abort, cancel := context.WithCancel(t.Context())
	cancel()
	run.Do(t.Context(), abort, &scripted{run, func(Sink, Request) {}})
	if _, total := run.Figures(20 * time.Millisecond); total.Lost != total.Sent || total.Sent == 0 {
		t.Errorf("%d of %d lost, expected all", total.Lost, total.Sent)
	}
}

func TestSettledBlocksAreDropped(t *testing.T) {
	st := echoStream("echo", 1e6, 20*time.Millisecond)
	run, err := New([]Stream{st}, options(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	l := run.ledgers[0]
	most := 0
	run.Do(t.Context(), context.Background(), &scripted{run, func(s Sink, r Request) {
		most = max(most, len(l.blocks))
		s.Answered(r.Stream, r.Seq, time.Now(), wire.Reply{Status: wire.StatusOK})
		if r.Seq > 2*blockSize {
			s.Answered(r.Stream, r.Seq-2*blockSize, time.Now(), wire.Reply{Status: wire.StatusOK})
		}
	}})
	f := l.figures(1, newTally(Stream{}, run.opts))
	if f.Sent < 10*blockSize || most > 2 {
		t.Errorf("%d requests in up to %d blocks, expected many in at most 2", f.Sent, most)
	}
	if f.Duplicates != f.Sent-2*blockSize-1 {
		t.Errorf("%d duplicates of long settled requests seen, expected %d", f.Duplicates, f.Sent-2*blockSize-1)
	}
}

func TestRunsThatCannotBe(t *testing.T) {
	good := options(time.Second)
	for name, opts := range map[string]Options{
		"no duration": {Interval: time.Second},
		"all warm-up": {Duration: time.Second, Warmup: time.Second, Interval: time.Second},
		"no interval": {Duration: time.Second},
	} {
		if _, err := New([]Stream{echoStream("echo", 1, time.Second)}, opts); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New([]Stream{{Model: "echo"}}, good); err == nil || !strings.Contains(err.Error(), "echo") {
		t.Errorf("a stream without items: %v", err)
	}
}

func TestProgressTellsLatenciesOnce(t *testing.T) {
	st := echoStream("echo", 1000, 50*time.Millisecond)
	run, err := New([]Stream{st}, options(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	run.Do(t.Context(), context.Background(), &scripted{run, func(s Sink, r Request) {
		s.Answered(r.Stream, r.Seq, time.Now().Add(10*time.Millisecond), echo(st, r.Item))
	}})
	first, second := run.Progress(), run.Progress()
	if first.P50 < 10*time.Millisecond || second.P50 != 0 || first.Sent != second.Sent || first.OK != first.Sent {
		t.Errorf("progress %+v, then %+v", first, second)
	}
}

// BenchmarkOpenLoop is the cost of one request in this package: schedule, ledger and judgement.
func BenchmarkOpenLoop(b *testing.B) {
	st := echoStream("echo", 1, time.Second)
	st.Arrivals = arrival.Replay(make([]time.Duration, b.N), 0, time.Second)
	run, err := New([]Stream{st}, options(time.Second))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	run.Do(context.Background(), context.Background(), &scripted{run, func(s Sink, r Request) {
		s.Answered(r.Stream, r.Seq, time.Now(), echo(st, r.Item))
	}})
	if _, total := run.Figures(time.Second); total.OK != int64(b.N) {
		b.Fatalf("%d of %d ok", total.OK, b.N)
	}
}
