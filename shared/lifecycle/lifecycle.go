// Package lifecycle starts a program's parts, stops them in order and tells "stop taking work"
// from "give up".
//
// The first signal ends the context of Notify: parts stop taking work, finish what they hold and
// return. A second signal, or the end of the grace period, ends the abort context: parts leave
// what they hold and return. A third signal ends the process.
package lifecycle

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

type abortKey struct{}

// Notify returns a context that ends with parent or at the first SIGINT or SIGTERM. The second
// signal ends the abort context that Context hands out; the third has its default effect. Call
// stop to take the signals' default effect back.
func Notify(parent context.Context) (ctx context.Context, stop func()) {
	abort, cancelAbort := context.WithCancel(context.WithoutCancel(parent))
	ctx, cancel := context.WithCancel(context.WithValue(parent, abortKey{}, abort))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer signal.Stop(signals)
		for _, end := range []func(){cancel, cancelAbort} {
			select {
			case <-signals:
				end()
			case <-quit:
				return
			}
		}
	}()
	return ctx, func() {
		select {
		case <-done:
		default:
			close(quit)
			<-done
		}
		cancel()
		cancelAbort()
	}
}

// Context splits ctx in two: drain ends with ctx and says "stop taking work"; abort ends grace
// later, at a second signal (see Notify), or by stop, and says "give up what is held". Both carry
// ctx's values. Call stop when the work is done.
func Context(ctx context.Context, grace time.Duration) (drain, abort context.Context, stop func()) {
	abort, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := func() bool { return true }
	if signalled, ok := ctx.Value(abortKey{}).(context.Context); ok {
		unhook = context.AfterFunc(signalled, cancel)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-abort.Done():
			return
		case <-ctx.Done():
		}
		_ = Sleep(abort, grace)
		cancel()
	}()
	return ctx, abort, func() {
		unhook()
		cancel()
		<-ended
	}
}
