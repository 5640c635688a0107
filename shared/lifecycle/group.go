package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Group runs the parts of a program. It stops when the context ends or a part fails, and stops
// the parts one after the other, the last started first: start connections, then the work that
// uses them, then what takes work in. It is used by one goroutine.
type Group struct {
	ctx     context.Context // the group's own life, ended by Wait
	cancel  context.CancelFunc
	members []*member
	once    sync.Once
	err     error
}

type member struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// NewGroup returns a group that stops when ctx ends.
func NewGroup(ctx context.Context) *Group {
	g := &Group{}
	g.ctx, g.cancel = context.WithCancel(ctx)
	return g
}

// Go starts a part. Its context keeps ctx's values but ends only when the parts started after it
// have returned. An error stops the group; a nil return stops only this part.
func (g *Group) Go(name string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(g.ctx))
	m := &member{cancel: cancel, done: make(chan struct{})}
	g.members = append(g.members, m)
	go func() {
		defer close(m.done)
		if err := run(ctx); err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)) {
			g.fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
}

func (g *Group) fail(err error) {
	g.once.Do(func() { g.err = err })
	g.cancel()
}

// Wait returns when every part has returned: after ctx ended, after a part failed, or after all
// of them finished by themselves. It returns the first error, named by its part; a part that ends
// with context.Canceled because it was told to stop did not fail.
func (g *Group) Wait() error {
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for _, m := range g.members {
			<-m.done
		}
	}()
	select {
	case <-finished:
	case <-g.ctx.Done():
	}
	for i := len(g.members) - 1; i >= 0; i-- {
		g.members[i].cancel()
		<-g.members[i].done
	}
	<-finished
	g.cancel()
	return g.err
}
