package agent

import (
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/reconcile"
)

// ending is how a process ends that does as script says.
func ending(t *testing.T, script string) error {
	t.Helper()
	return exec.Command("/bin/sh", "-c", script).Run()
}

func running(mdl string, seqs ...uint64) blackbox.Work {
	w := blackbox.Work{Model: mdl}
	for _, seq := range seqs {
		w.Requests = append(w.Requests, blackbox.Request{Seq: seq, Stored: time.Unix(1, 0)})
	}
	return w
}

// accusing is an agent with a gpu-let on GPU 0 that serves two models.
func accusing() (*Agent, *child, *board) {
	b := newBoard()
	a := New(Config{Host: "h", Log: quiet}, b, prometheus.NewRegistry())
	c := &child{Child: reconcile.Child{ID: "g"}, gpulet: plan.Gpulet{Models: []plan.Assignment{{Model: "m"}, {Model: "n"}}}}
	a.children["g"] = c
	return a, c, b
}

func TestOnlyWhatWasRunningIsAccused(t *testing.T) {
	for _, c := range []struct {
		name, script string
		work         []blackbox.Work
		want         map[string]bool // suspects: alone
	}{
		{"a batch", "exit 2", []blackbox.Work{running("m", 1, 2)}, map[string]bool{"m1": false, "m2": false}},
		{"one request", "kill -ABRT $$", []blackbox.Work{running("m", 1)}, map[string]bool{"m1": true}},
		{"one beside another's image", "exit 2", []blackbox.Work{running("m", 1), running("n", 5)}, map[string]bool{"m1": false, "n5": false}},
		{"nothing", "exit 2", nil, map[string]bool{}},
		{"a model being loaded", "exit 2", []blackbox.Work{running("m")}, map[string]bool{}},
		{"killed from outside", "kill -KILL $$", []blackbox.Work{running("m", 1)}, map[string]bool{}},
		{"an orderly end", "exit 1", []blackbox.Work{running("m", 1)}, map[string]bool{}},
		{"its device failed", "exit 3", []blackbox.Work{running("m", 1)}, map[string]bool{"m1": true}},
	} {
		a, g, b := accusing()
		g.work = c.work
		a.accuse(g, event{err: ending(t, c.script), tail: "words"}, time.Unix(2, 0))
		a.accusing.Wait()
		got := map[string]bool{}
		for key, s := range b.suspects {
			got[key] = s.Alone
			if s.Deaths != 1 || s.Gpulet != "g" || s.LastWords != "words" || s.Reason == "" {
				t.Errorf("%s: suspect %+v", c.name, s)
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s:\n%s", c.name, d)
		}
	}
}

// What hangs is killed by its agent, and its device may let go of it first: it is to blame all the same.
func TestWhatHungIsAccused(t *testing.T) {
	for _, script := range []string{"kill -KILL $$", "exit 3", "exit 1"} {
		a, c, b := accusing()
		a.children["other"] = &child{Child: reconcile.Child{ID: "other"}, work: []blackbox.Work{running("m", 7)}}
		c.work, c.hung = []blackbox.Work{running("m", 1)}, "hung: batch of 1 of m has run for 12s, expected 20ms"
		a.accuse(c, event{err: ending(t, script), tail: "words"}, time.Unix(2, 0))
		a.accusing.Wait()
		if s := b.suspects["m1"]; s.Deaths != 1 || !s.Alone || s.Reason != c.hung {
			t.Errorf("%s: suspect %+v", script, s)
		}
	}
}

func TestADeviceThatFailedUnderSeveralAccusesNobodyAlone(t *testing.T) {
	a, c, b := accusing()
	a.children["other"] = &child{Child: reconcile.Child{ID: "other"}, work: []blackbox.Work{running("m", 7)}}
	c.work = []blackbox.Work{running("m", 1)}
	a.accuse(c, event{err: ending(t, "exit 3")}, time.Unix(2, 0))
	a.accusing.Wait()
	if s := b.suspects["m1"]; s.Deaths != 1 || s.Alone {
		t.Errorf("suspect %+v: expected one death, not alone", s)
	}
	// On another GPU it has nothing to do with it.
	a.children["other"].GPU = 1
	a.accuse(c, event{err: ending(t, "exit 3")}, time.Unix(2, 0))
	a.accusing.Wait()
	if s := b.suspects["m1"]; s.Deaths != 2 || !s.Alone || !s.Convicted() {
		t.Errorf("suspect %+v: expected two deaths, the last one alone", s)
	}
}

func TestAModelIsQuarantinedForATimeOrUntilItsArchiveChanges(t *testing.T) {
	a, c, _ := accusing()
	a.models = map[string]resolved{"m": {model: model.Model{Hash: "1"}}}
	a.plan.Gpulets = []plan.Gpulet{{ID: "g", Host: "h", Models: c.gpulet.Models}}
	a.cfg.Inventory.Devices = []plan.Device{{}}
	dies := func(at time.Time, work ...blackbox.Work) {
		c.work = work
		a.accuse(c, event{err: ending(t, "exit 2")}, at)
		a.accusing.Wait()
	}
	ids := func() (list []string) {
		for _, g := range a.desired().Gpulets {
			list = append(list, g.ID)
		}
		return list
	}
	start := time.Unix(1000, 0)
	dies(start, running("m", 1))
	dies(start, running("m", 2))
	dies(start, running("m", 3), running("n", 4)) // whose fault was that?
	dies(start.Add(quarantineTime), running("m", 5))
	if d := cmp.Diff([]string{"g"}, ids()); d != "" {
		t.Fatalf("after three deaths that are too far apart:\n%s", d)
	}
	c.Crashes = 5
	dies(start.Add(quarantineTime), running("m"))
	dies(start.Add(quarantineTime), running("m"))
	if d := cmp.Diff([]string{"g", "g-q0"}, ids()); d != "" || c.Crashes != 0 {
		t.Fatalf("after three deaths, %d crashes:\n%s", c.Crashes, d)
	}
	if next := a.release(start.Add(2*quarantineTime - 1)); !next.Equal(start.Add(2 * quarantineTime)) {
		t.Errorf("looks again at %v", next)
	}
	a.release(start.Add(2 * quarantineTime))
	if d := cmp.Diff([]string{"g"}, ids()); d != "" {
		t.Fatalf("after the time:\n%s", d)
	}
	for range 3 {
		dies(start.Add(3*quarantineTime), running("m"))
	}
	a.models["m"] = resolved{model: model.Model{Hash: "2"}}
	a.release(start.Add(3 * quarantineTime))
	if d := cmp.Diff([]string{"g"}, ids()); d != "" {
		t.Fatalf("with another archive:\n%s", d)
	}
}
