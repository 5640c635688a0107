package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/lifecycle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBackoffDoublesUpToItsMax(t *testing.T) {
	b := lifecycle.Backoff{Min: 100 * time.Millisecond, Max: time.Second}
	for range 2 {
		for i, want := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			want *= time.Millisecond
			if got := b.Next(); got > want || got < want*9/10-1 {
				t.Errorf("wait %d is %v, expected %v less up to a tenth", i, got, want)
			}
		}
		b.Reset()
	}
	var zero lifecycle.Backoff
	for range 20 {
		if got := zero.Next(); got < 90*time.Millisecond || got > 5*time.Second {
			t.Errorf("zero value waits %v, expected 100ms to 5s", got)
		}
	}
}

func TestBackoffWithMinAboveMax(t *testing.T) {
	b := lifecycle.Backoff{Min: 10 * time.Second}
	for range 3 {
		if got := b.Next(); got < 9*time.Second || got > 10*time.Second {
			t.Errorf("wait %v, expected about 10s", got)
		}
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := lifecycle.Sleep(ctx, 500*time.Millisecond); err != nil {
			t.Error(err)
		}
		if err := lifecycle.Sleep(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, expected %v", err, context.DeadlineExceeded)
		}
	})
}

func TestAbortComesAGraceAfterDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		parent, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "kept"))
		drain, abort, stop := lifecycle.Context(parent, 5*time.Second)
		defer stop()
		if abort.Value(key{}) != "kept" {
			t.Error("abort lost the values of its parent")
		}
		cancel()
		<-drain.Done()
		began := time.Now()
		if abort.Err() != nil {
			t.Error("aborted without grace")
		}
		<-abort.Done()
		if waited := time.Since(began); waited != 5*time.Second {
			t.Errorf("aborted after %v, expected 5s", waited)
		}
	})
}

func TestStopEndsAbort(t *testing.T) {
	drain, abort, stop := lifecycle.Context(t.Context(), time.Hour)
	stop()
	if drain.Err() != nil || abort.Err() == nil {
		t.Errorf("drain %v, abort %v, expected only abort to end", drain.Err(), abort.Err())
	}
}

func TestSecondSignalAborts(t *testing.T) {
	ctx, stop := lifecycle.Notify(context.Background())
	defer stop()
	drain, abort, done := lifecycle.Context(ctx, time.Hour)
	defer done()
	raise(t)
	<-drain.Done()
	if abort.Err() != nil {
		t.Error("aborted at the first signal")
	}
	raise(t)
	<-abort.Done()
	stop()
	stop()
}

func raise(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

func TestStopWithoutASignal(t *testing.T) {
	ctx, stop := lifecycle.Notify(context.Background())
	stop()
	if ctx.Err() == nil {
		t.Error("the context outlives stop")
	}
}

func TestGroupStopsTheLastStartedFirst(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := lifecycle.NewGroup(ctx)
	var order []string // each part writes before the next is told to stop
	for _, name := range []string{"connections", "work", "intake"} {
		g.Go(name, func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, name)
			return ctx.Err()
		})
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Errorf("error %v from parts that were told to stop", err)
	}
	if want := []string{"intake", "work", "connections"}; !slices.Equal(order, want) {
		t.Errorf("stopped in the order %v, expected %v", order, want)
	}
}

func TestGroupStopsWhenAPartFails(t *testing.T) {
	g := lifecycle.NewGroup(t.Context())
	cause, stopped := errors.New("cause"), false
	g.Go("other", func(ctx context.Context) error {
		<-ctx.Done()
		stopped = true
		return errors.New("a later error")
	})
	g.Go("failing", func(context.Context) error { return cause })
	g.Go("finished", func(context.Context) error { return nil })
	err := g.Wait()
	if !errors.Is(err, cause) || err.Error() != "failing: cause" || !stopped {
		t.Errorf("error %v, other part stopped %v", err, stopped)
	}
}

func TestGroupEndsWhenAllPartsFinish(t *testing.T) {
	g := lifecycle.NewGroup(t.Context())
	g.Go("one", func(context.Context) error { return nil })
	g.Go("two", func(context.Context) error { return nil })
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if err := lifecycle.NewGroup(t.Context()).Wait(); err != nil {
		t.Errorf("an empty group: %v", err)
	}
}

// context.Canceled from a part that nobody told to stop is a failure like any other.
func TestGroupDoesNotHideACancellationOfItsOwn(t *testing.T) {
	g := lifecycle.NewGroup(t.Context())
	g.Go("part", func(context.Context) error { return context.Canceled })
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, expected %v", err, context.Canceled)
	}
}
