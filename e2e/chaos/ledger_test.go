package chaos

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

// TestLedgerReadsOffWhatBecameOfEveryRequest enters one request of every fate.
func TestLedgerReadsOffWhatBecameOfEveryRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLedger()
		time.Sleep(time.Second) // the bubble's clock: nothing may be settled at 0
		open := func() uint64 { return l.Open("m") }
		l.Answered(open(), wire.StatusOK, false, "")
		l.Answered(open(), wire.StatusOK, true, "element 0 is 1: expected 2")
		l.Answered(open(), wire.Expired, false, "")
		l.GivenUp(open(), "")
		l.GivenUp(open(), wire.Unavailable)
		again := open()
		l.SentAgain(again)
		l.Answered(again, wire.StatusOK, false, "")
		l.Answered(again, wire.StatusOK, false, "") // the same again: a second delivery
		differs := open()
		l.Answered(differs, wire.StatusOK, false, "")
		l.Answered(differs, wire.Failed, false, "")
		late := open()
		waiting := open()
		l.Answered(waiting+1, wire.StatusOK, false, "")
		if l.Waiting() != 2 {
			t.Errorf("%d wait, expected 2", l.Waiting())
		}
		time.Sleep(2 * Disturbed)
		l.Answered(late, wire.StatusOK, false, "")

		a := l.Account(0, time.Hour)
		for what, c := range map[string][2]int{
			"requests": {a.Requests, 8}, "ok": {a.OK, 5}, "wrong": {a.Wrong, 1}, "lost": {a.Lost, 1},
			"told expired": {a.Told[wire.Expired], 1}, "told unavailable": {a.Told[wire.Unavailable], 1},
			"twice": {a.Twice, 0}, "differs": {a.Differs, 1}, "dropped": {a.Dropped, 2}, "again": {a.Again, 1}, "late": {a.Late, 1},
		} {
			if c[0] != c[1] {
				t.Errorf("%s: %d, expected %d", what, c[0], c[1])
			}
		}
		if unasked, why := l.Strange(); unasked != 1 || why == "" {
			t.Errorf("%d unasked, wrong %q", unasked, why)
		}
		if got := l.Recovery(time.Second, time.Hour); got != 2*Disturbed {
			t.Errorf("recovered after %v, expected the late answer, after %v", got, 2*Disturbed)
		}
		if l.Calm(0) {
			t.Error("calm while a request waits")
		}
	})
}

// TestCalmIsAStretchOfGoodAnswers: it takes ten good answers in a row, sent after the question.
func TestCalmIsAStretchOfGoodAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLedger()
		time.Sleep(time.Second)
		answer := func(status wire.Status) {
			l.Answered(l.Open("m"), status, false, "")
			time.Sleep(20 * time.Millisecond)
		}
		since := l.Now()
		for range 100 {
			answer(wire.StatusOK)
		}
		if !l.Calm(since) {
			t.Error("a hundred good answers are not calm")
		}
		if l.Calm(l.Now()) {
			t.Error("calm before anything was sent")
		}
		answer(wire.Expired)
		for range 20 {
			answer(wire.StatusOK)
		}
		if l.Calm(since) {
			t.Error("calm right after an error")
		}
		for range 60 {
			answer(wire.StatusOK)
		}
		if !l.Calm(since) {
			t.Error("an error of long ago disturbs")
		}
	})
}

// TestAnswersOfOthersAreWrong: the right answer to one request is wrong for every other.
func TestAnswersOfOthersAreWrong(t *testing.T) {
	m := Model{Name: "m", Factor: 2, Width: 4, Answers: true}
	right := func(m Model, seq uint64) []float32 {
		y := m.question(seq)
		for i := range y {
			y[i] *= m.Factor
		}
		return y
	}
	for _, seq := range []uint64{0, 1, 4095, 4096, 1 << 20} {
		if why := m.judge(seq, right(m, seq)); why != "" {
			t.Errorf("request %d: %s", seq, why)
		}
		if m.judge(seq, right(m, seq+1)) == "" || m.judge(seq, right(m, seq+4096)) == "" {
			t.Errorf("request %d takes the answer of another", seq)
		}
		if m.judge(seq, right(Model{Factor: 3, Width: 4}, seq)) == "" || m.judge(seq, nil) == "" {
			t.Errorf("request %d takes another model's answer, or none", seq)
		}
	}
}
