package control

import (
	"log/slog"
	"slices"
)

// notices says things once: when they begin, and when they are over.
type notices struct {
	log   *slog.Logger
	known []string
	lost  string // the bus error that was last said
}

// problems says what is new and what is gone.
func (n *notices) problems(now []string) {
	for _, p := range now {
		if !slices.Contains(n.known, p) {
			n.log.Warn("problem", "problem", p)
		}
	}
	for _, p := range n.known {
		if !slices.Contains(now, p) {
			n.log.Info("problem solved", "problem", p)
		}
	}
	n.known = slices.Clone(now)
}

// bus says when the bus is lost and when it is back.
func (n *notices) bus(err error) {
	switch {
	case err == nil && n.lost != "":
		n.log.Info("the bus answers again")
		n.lost = ""
	case err != nil && n.lost != err.Error():
		n.log.Warn("cannot plan for now: what is known is kept", "error", err)
		n.lost = err.Error()
	}
}
