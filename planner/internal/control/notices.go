package control

import (
	"log/slog"
	"slices"
	"strings"
	"unicode"
)

// notices says things once: when they begin, and when they are over.
type notices struct {
	log   *slog.Logger
	known []string
	lost  string // the bus error that was last said
}

// problems says what is new and what is gone. A problem whose figures change is the same problem.
func (n *notices) problems(now []string) {
	kinds := make([]string, len(now))
	for i, p := range now {
		if kinds[i] = withoutFigures(p); !slices.Contains(n.known, kinds[i]) {
			n.log.Warn("problem", "problem", p)
		}
	}
	for _, k := range n.known {
		if !slices.Contains(kinds, k) {
			n.log.Info("problem solved", "problem", k)
		}
	}
	n.known = kinds
}

// withoutFigures leaves the numbers out of a text, but not those that belong to a name.
func withoutFigures(text string) string {
	words := strings.Fields(text)
	return strings.Join(slices.DeleteFunc(words, func(w string) bool {
		return strings.IndexFunc(w, unicode.IsDigit) == 0
	}), " ")
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
