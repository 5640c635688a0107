package lifetest_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/life/lifetest"
)

type budget = lifetest.Budget

// systems are those that are searched: one request to which a lot happens, two that get into each
// other's way.
var systems = map[string]lifetest.Config{
	"one request, everything but cancels": {Requests: 1, Budget: budget{
		Crashes: 1, PlannerCrashes: 1, Losses: 1, Outages: 1, Stalls: 1, GiveBacks: 1, Drains: 1, Retries: 1, Full: 1,
	}},
	"cancelled in the middle of it":     {Requests: 1, Budget: budget{Crashes: 1, PlannerCrashes: 1, Stalls: 1, Cancels: 1, GiveBacks: 1}},
	"cancelled over a bad network":      {Requests: 1, Budget: budget{PlannerCrashes: 1, Losses: 2, Cancels: 1}},
	"a frontend and its deadline":       {Requests: 1, Budget: budget{Crashes: 1, Losses: 1, Cancels: 1}, Door: true, Deadlines: true},
	"a frontend without an answer":      {Requests: 1, Budget: budget{Crashes: 2, Losses: 2, Full: 1, Stalls: 1}, Door: true},
	"a request that kills whoever runs": {Requests: 1, Budget: budget{Crashes: 3, PlannerCrashes: 2, Losses: 1}},
	"slow and speechless gpu-lets":      {Requests: 1, Budget: budget{Crashes: 1, PlannerCrashes: 1, Outages: 2, Stalls: 3}},
	"a server that forgets":             {Requests: 1, Budget: budget{Forgets: 1, Crashes: 1, Losses: 1, Full: 1}, Door: true},
	"a server that forgets the dead":    {Requests: 1, Budget: budget{Forgets: 1, Crashes: 3, PlannerCrashes: 1}, Door: true},
	"a server that forgets twice":       {Requests: 1, Budget: budget{Forgets: 2, Cancels: 1, Stalls: 1}, Door: true},
	"a frontend that is cut off":        {Requests: 1, Budget: budget{Breaks: 2, Crashes: 1, Stalls: 1, Full: 1}, Door: true},
	"cut off with a deadline":           {Requests: 1, Budget: budget{Breaks: 1, Forgets: 1, PlannerCrashes: 1}, Door: true, Deadlines: true},
	"nobody serves":                     {Requests: 2, Budget: budget{PlannerCrashes: 1, Cancels: 1, Losses: 1}, Deadlines: true, Idle: true},
	"no planner for a minute":           {Requests: 1, Budget: budget{Crashes: 1, PlannerCrashes: 1, Ages: 1}, Deadlines: true},
	"two requests, a server forgets":    {Requests: 2, Budget: budget{Forgets: 1}, Door: true},
	"a publisher that insists":          {Requests: 1, Budget: budget{Crashes: 2, Losses: 2, Stalls: 1, Retries: 2}},
	"two requests, a crash and a loss":  {Requests: 2, Budget: budget{Crashes: 1, Losses: 1}},
	"two requests, two crashes":         {Requests: 2, Budget: budget{Crashes: 2}},
	"two requests, one cancelled":       {Requests: 2, Budget: budget{Cancels: 1, Drains: 1}},
	"two requests with deadlines":       {Requests: 2, Budget: budget{Crashes: 1}, Deadlines: true},
	"two requests, draining":            {Requests: 2, Budget: budget{Crashes: 1, Drains: 2}},
	"two requests, slowness":            {Requests: 2, Budget: budget{Stalls: 1, Retries: 1, Losses: 1}},
}

func TestNothingIsLostAndNothingIsAcceptedTwice(t *testing.T) {
	taken := map[life.Transition]bool{}
	states := 0
	for name, cfg := range systems {
		t.Run(name, func(t *testing.T) {
			cfg.Rules = lifetest.OurRules()
			found, err := lifetest.Explore(cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d states", found.States)
			states += found.States
			for tr := range found.Taken {
				taken[tr] = true
			}
		})
	}
	t.Logf("%d states in all", states)
	for _, tr := range life.Transitions() {
		if !taken[tr] {
			t.Errorf("no system takes %+v: it is not checked", tr)
		}
	}
}

// What each rule is for: without it, the search finds the way to the harm.
func TestWithoutARuleThereIsHarm(t *testing.T) {
	for _, c := range []struct {
		name string
		drop func(*lifetest.Rules)
		cfg  lifetest.Config
		want error
	}{
		{"acknowledged before it is answered", func(r *lifetest.Rules) {
			r.Answer = []lifetest.Act{lifetest.Remove, lifetest.Tell}
		}, lifetest.Config{Budget: budget{Crashes: 1}}, lifetest.ErrLost},
		{"acknowledged although the reply was not sent", func(r *lifetest.Rules) {
			r.Acknowledge = func(life.Sent) bool { return true }
		}, lifetest.Config{Budget: budget{Outages: 1}}, lifetest.ErrLost},
		{"every reply accepted", func(r *lifetest.Rules) {
			r.Hear = func(f life.Fate, w life.Word) (life.Fate, bool) { return f, w == life.Reply }
		}, lifetest.Config{Budget: budget{Stalls: 1}}, lifetest.ErrTwice},
		{"a reply accepted after its client has left", func(r *lifetest.Rules) {
			r.Hear = func(f life.Fate, w life.Word) (life.Fate, bool) {
				next, ok := f.Hear(w)
				return next, ok || f == life.Abandoned && w == life.Reply
			}
		}, lifetest.Config{Budget: budget{Cancels: 1}, Door: true}, lifetest.ErrTwice},
		{"nobody buries the dead", func(r *lifetest.Rules) { r.Buries = false }, lifetest.Config{Budget: budget{Crashes: 3}}, lifetest.ErrStuck},
		{"deleted before the dead letter is written", func(r *lifetest.Rules) {
			r.Burial = []lifetest.Act{lifetest.Remove, lifetest.Letter, lifetest.Tell}
		}, lifetest.Config{Budget: budget{Crashes: 3, PlannerCrashes: 1}}, lifetest.ErrLost},
		{"buried without a word", func(r *lifetest.Rules) {
			r.Burial = []lifetest.Act{lifetest.Letter, lifetest.Remove}
		}, lifetest.Config{Budget: budget{Crashes: 3}}, lifetest.ErrSilent},
		{"removed before its client is told", func(r *lifetest.Rules) {
			r.Removal = []lifetest.Act{lifetest.Remove, lifetest.Tell}
		}, lifetest.Config{Budget: budget{Cancels: 1, PlannerCrashes: 1}}, lifetest.ErrLost},
		{"nobody looks after what nobody fetches", func(r *lifetest.Rules) { r.Sweeps = false }, lifetest.Config{Idle: true, Deadlines: true}, lifetest.ErrStuck},
		{"not published again", func(r *lifetest.Rules) { r.Again = false }, lifetest.Config{Budget: budget{Forgets: 1}, Door: true}, lifetest.ErrSilent},
		{"published again under the same id alone", func(r *lifetest.Rules) { r.Attempts = false }, lifetest.Config{Budget: budget{Breaks: 1}, Door: true}, lifetest.ErrSilent},
		{"published again under another id", func(r *lifetest.Rules) { r.SameMsgID = false }, lifetest.Config{Budget: budget{Losses: 1, Retries: 1}}, lifetest.ErrCopied},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := c.cfg
			cfg.Requests, cfg.Rules = 1, lifetest.OurRules()
			if _, err := lifetest.Explore(cfg); err != nil {
				t.Fatalf("with all rules: %v", err)
			}
			c.drop(&cfg.Rules)
			_, err := lifetest.Explore(cfg)
			var harm *lifetest.Counterexample
			if !errors.As(err, &harm) || !errors.Is(err, c.want) {
				t.Fatalf("%v: expected a way to %q", err, c.want)
			}
			t.Log(err)
		})
	}
}

// The way to the harm is the shortest, and says what happens.
func TestACounterexampleCanBeFollowed(t *testing.T) {
	cfg := lifetest.Config{Requests: 1, Budget: budget{Crashes: 1}, Rules: lifetest.OurRules()}
	cfg.Rules.Answer = []lifetest.Act{lifetest.Remove, lifetest.Tell}
	_, err := lifetest.Explore(cfg)
	var harm *lifetest.Counterexample
	if !errors.As(err, &harm) {
		t.Fatal(err)
	}
	// Which of the two gpu-lets it is, and which way it is answered, does not matter.
	for i, step := range harm.Trace {
		step, _, _ = strings.Cut(step, " it: ")
		harm.Trace[i] = strings.NewReplacer("gpu-let 2", "gpu-let 1").Replace(step)
	}
	want := []string{
		"request 1: it is stored",
		"request 1: gpu-let 1 fetches it",
		"request 1: gpu-let 1 answers",
		"request 1: the server has gpu-let 1's acknowledgement",
		"gpu-let 1 dies, and starts anew",
	}
	if d := cmp.Diff(want, harm.Trace); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A system without gpu-lets to serve it would be a system in which nothing can go wrong.
func TestTheSearchGoesEverywhere(t *testing.T) {
	small, err := lifetest.Explore(lifetest.Config{Requests: 1, Rules: lifetest.OurRules()})
	if err != nil {
		t.Fatal(err)
	}
	var ends []life.State
	for tr := range small.Taken {
		if tr.Status != "" {
			ends = append(ends, life.State(tr.Status))
		}
	}
	slices.Sort(ends)
	if d := cmp.Diff([]life.State{"bad_request", "expired", "failed", "ok"}, ends); d != "" {
		t.Errorf("answers without any fault (-want +got):\n%s", d)
	}
	_, err = lifetest.Explore(lifetest.Config{Requests: 2, Budget: budget{Crashes: 1}, Rules: lifetest.OurRules(), Limit: 1000})
	if err == nil || !strings.Contains(err.Error(), "more than 1000 states") {
		t.Errorf("%v: expected a complaint about the bounds", err)
	}
}
