package life_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/wire"
)

// Whatever is heard, and in whatever order, one word is accepted: the first that is not a doubt.
func TestOneWordIsAccepted(t *testing.T) {
	words := []life.Word{life.Reply, life.Refusal, life.Doubt, life.Leave}
	var hear func(f life.Fate, heard []life.Word, accepted []life.Word)
	hear = func(f life.Fate, heard, accepted []life.Word) {
		ends := slices.DeleteFunc(slices.Clone(heard), func(w life.Word) bool { return w == life.Doubt })
		if len(ends) > 1 {
			ends = ends[:1]
		}
		if d := cmp.Diff(ends, accepted, equateEmpty); d != "" {
			t.Fatalf("heard %v (-want +accepted):\n%s", heard, d)
		}
		if len(heard) == 5 {
			return
		}
		for _, w := range words {
			next, ok := f.Hear(w)
			took := slices.Clone(accepted)
			if ok {
				took = append(took, w)
			}
			hear(next, append(slices.Clone(heard), w), took)
		}
	}
	hear(life.Waiting, nil, nil)
}

var equateEmpty = cmp.Transformer("nil", func(w []life.Word) string { return fmt.Sprint(w) })

func TestWhatWasNeverSentAcceptsNothing(t *testing.T) {
	for _, w := range []life.Word{life.Reply, life.Refusal, life.Doubt, life.Leave} {
		if next, ok := life.Unknown.Hear(w); ok || next != life.Unknown {
			t.Errorf("word %v: fate %v, accepted %v", w, next, ok)
		}
	}
}

func TestOnlyWhatCouldNotBeSentIsLeftInTheQueue(t *testing.T) {
	for sent, want := range map[life.Sent]bool{life.Handed: true, life.Undeliverable: true, life.Unsent: false} {
		if sent.Acknowledge() != want {
			t.Errorf("%v: acknowledged %v, expected %v", sent, !want, want)
		}
	}
}

// Every state but the ends can be left, every state but the first can be reached, and no event leads
// to two states.
func TestTheTableHasNoDeadEnds(t *testing.T) {
	from, to := map[life.State]bool{}, map[life.State]bool{life.Published: true}
	next := map[string]life.State{}
	for _, tr := range life.Transitions() {
		from[tr.From], to[tr.To] = true, true
		key := string(tr.From) + " " + string(tr.Event)
		if s, ok := next[key]; ok {
			t.Errorf("%s leads to %s and %s", key, s, tr.To)
		}
		next[key] = tr.To
	}
	for s := range to {
		if end := s == life.Gone || s == life.Refused; from[s] == end {
			t.Errorf("state %s: is an end %v, can be left %v", s, end, from[s])
		}
	}
	for s := range from {
		if !to[s] {
			t.Errorf("state %s is never reached", s)
		}
	}
}

// Every status but that of the door's own refusal, unknown_model, ends some life.
func TestEveryStatusEndsALife(t *testing.T) {
	told := map[wire.Status]bool{wire.UnknownModel: true}
	for _, tr := range life.Transitions() {
		told[tr.Status] = true
	}
	for _, s := range wire.Statuses() {
		if !told[s] {
			t.Errorf("no transition tells %s", s)
		}
	}
}

func TestTheProtocolPageShowsTheTable(t *testing.T) {
	page, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## The life of a request\n")
	if !ok {
		t.Fatal("docs/protocol.md has no section on the life of a request")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var shown []life.Transition
	row := regexp.MustCompile("(?m)^\\| (\\w+) \\| ([^|`]+) \\| (\\w+)(?:: `(\\w+)`)? \\|")
	for _, m := range row.FindAllStringSubmatch(section, -1) {
		if m[1] == "state" {
			continue
		}
		shown = append(shown, life.Transition{
			From: life.State(m[1]), Event: life.Event(m[2]), To: life.State(m[3]), Status: wire.Status(m[4]),
		})
	}
	if d := cmp.Diff(life.Transitions(), shown); d != "" {
		t.Errorf("the table (-code +page):\n%s", d)
	}
}
