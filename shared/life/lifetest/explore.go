// Package lifetest takes small systems through everything that may happen to their requests, and finds
// the shortest way to what must not.
//
// A system is a client per request, a queue, gpu-lets and a planner, on a network that may lose
// messages, with processes that may die. Its clients and gpu-lets decide by the rules of package life,
// as the programs do; what JetStream does is modelled after what shared/bus measures of it in its
// tests. Every interleaving is taken, so what holds here holds for every order of events within the
// bounds that a Config sets.
package lifetest

import (
	"fmt"
	"strings"
)

// Counterexample is the shortest way to a state that must not be.
type Counterexample struct {
	Trace []string
	Err   error // what is wrong with the last state
}

func (c *Counterexample) Error() string {
	return fmt.Sprintf("%v, after\n  %s", c.Err, strings.Join(c.Trace, "\n  "))
}

func (c *Counterexample) Unwrap() error { return c.Err }

// space is what there is to search: a graph of states.
type space[S comparable] struct {
	start S
	// next calls step with every state that may follow s, and what leads there.
	next func(s S, step func(label func() string, to S))
	// check judges a state; end reports that nothing follows it.
	check func(s S, end bool) error
	limit int // states; more is an error
}

// search visits every state that can be reached, nearest first.
func (sp space[S]) search() (states int, err error) {
	index := map[S]int32{sp.start: 0}
	found := []S{sp.start}
	parent := []int32{-1}
	for i := 0; i < len(found); i++ {
		s, end := found[i], true
		sp.next(s, func(_ func() string, to S) {
			end = false
			if _, known := index[to]; !known {
				index[to] = int32(len(found))
				found = append(found, to)
				parent = append(parent, int32(i))
			}
		})
		if err := sp.check(s, end); err != nil {
			return len(found), &Counterexample{Trace: sp.trace(found, parent, int32(i)), Err: err}
		}
		if len(found) > sp.limit {
			return len(found), fmt.Errorf("more than %d states: expected fewer", sp.limit)
		}
	}
	return len(found), nil
}

// trace says how state i was reached.
func (sp space[S]) trace(found []S, parent []int32, i int32) []string {
	var steps []string
	for ; parent[i] >= 0; i = parent[i] {
		text := ""
		sp.next(found[parent[i]], func(label func() string, to S) {
			if text == "" && to == found[i] {
				text = label()
			}
		})
		steps = append([]string{text}, steps...)
	}
	return steps
}
