package plan

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func let(id string, share int, models ...string) Gpulet {
	g := Gpulet{ID: id, Host: "h", GPUType: "g", Share: share}
	for _, m := range models {
		g.Models = append(g.Models, Assignment{Model: m, Batch: 4, RateRPS: 10})
	}
	return g
}

func TestParseReadsWhatIsWritten(t *testing.T) {
	p := Plan{Revision: 3, GPUsUsed: 1, Gpulets: []Gpulet{let("a", 40, "x"), let("b", 60, "x", "y")}, Unserved: map[string]float64{"z": 2}}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("plan.json", data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got); diff != "" {
		t.Error(diff)
	}
}

func TestValidateSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		want string
		lets []Gpulet
	}{
		{`key "gpulets[1].id": found "a" again`, []Gpulet{let("a", 40), let("a", 40)}},
		{`key "gpulets[0].id": found "A": expected [a-z0-9-]{1,96}`, []Gpulet{let("A", 40)}},
		{`key "gpulets[1].share": found shares of 110 % on GPU h/0 so far: expected at most 100`, []Gpulet{let("a", 60), let("b", 50)}},
		{`key "gpulets[0].share": found 0: expected 1..100 percent`, []Gpulet{let("a", 0)}},
		{`key "gpulets[0].models[1].model": found "x" again`, []Gpulet{let("a", 50, "x", "x")}},
		{`key "gpulets[0].models[0].model": found "X Y"`, []Gpulet{let("a", 50, "X Y")}},
		{`key "gpulets[0].limit": found 40: expected 50..100 percent, at least the share, or none`, []Gpulet{limited("a", 50, 40, "x")}},
		{`key "gpulets[0].models[0].burst": found 3: expected at least the batch, 4, or none`, []Gpulet{bursting("a", 20, 3, "x")}},
		{`key "gpulets[0].limit": found 101`, []Gpulet{limited("a", 50, 101, "x")}},
	} {
		if err := (Plan{Gpulets: c.lets}).Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v\nexpected %q", err, c.want)
		}
	}
}

func limited(id string, share, limit int, models ...string) Gpulet {
	g := let(id, share, models...)
	g.Limit = limit
	return g
}

func bursting(id string, share, burst int, models ...string) Gpulet {
	g := let(id, share, models...)
	g.Models[0].Burst = burst
	return g
}

func TestAnotherBurstIsAnotherBatch(t *testing.T) {
	old, new := Plan{Gpulets: []Gpulet{let("a", 20, "x")}}, Plan{Gpulets: []Gpulet{bursting("a", 20, 8, "x")}}
	if err := new.Validate(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("~ a 20% x batch=4 -> x batch=4..8\n", Diff(old, new).String()); diff != "" {
		t.Error(diff)
	}
	if same := Diff(old, Plan{Gpulets: []Gpulet{bursting("a", 20, 4, "x")}}); !same.Empty() {
		t.Errorf("a burst of the batch itself is none: %v", same)
	}
}

func TestAnotherLimitIsAnotherProcess(t *testing.T) {
	old, new := Plan{Gpulets: []Gpulet{let("a", 20, "x")}}, Plan{Gpulets: []Gpulet{limited("a", 20, 40, "x")}}
	if err := new.Validate(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("- a 20% x batch=4\n+ a 20..40% x batch=4\n", Diff(old, new).String()); diff != "" {
		t.Error(diff)
	}
	if same := Diff(old, Plan{Gpulets: []Gpulet{limited("a", 20, 20, "x")}}); !same.Empty() {
		t.Errorf("a limit of the share itself is none: %v", same)
	}
}

func TestParseSaysWhere(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"{\n \"revision\": \"x\"}", `p.json: line 2: key "revision": found a JSON string: expected uint64`},
		{"{", "p.json: "},
		{"{}{}", "found more after the plan"},
		{`{"unserved": {"m": -1}}`, `key "unserved.m": found -1`},
	} {
		if _, err := Parse("p.json", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v\nexpected %q", err, c.want)
		}
	}
}

func TestDiffSaysWhatMoves(t *testing.T) {
	old := Plan{Gpulets: []Gpulet{let("a", 40, "x"), let("b", 60, "y"), let("c", 20, "z")}}
	changed := let("b", 60, "y", "w")
	changed.Models[0].Batch = 8
	retuned := let("c", 20, "z")
	retuned.Models[0].RateRPS = 11
	got := Diff(old, Plan{Gpulets: []Gpulet{changed, retuned, let("d", 40, "x")}})
	want := "- a 40% x batch=4\n+ d 40% x batch=4\n~ b 60% y batch=4 -> y batch=8, w batch=4\n"
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"c"}, got.Retune); diff != "" {
		t.Error(diff)
	}
	if got.Moves() != 2 || got.Empty() {
		t.Errorf("%d moves: expected 2, x and w to load", got.Moves())
	}
	if same := Diff(old, old); !same.Empty() || same.String() != "no change\n" {
		t.Errorf("a plan against itself: %v", same)
	}
}
