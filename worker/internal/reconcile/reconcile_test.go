package reconcile_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/reconcile"
)

var (
	rewrite = flag.Bool("rewrite", false, "rewrite the expected parts of testdata")
	epoch   = time.Unix(1000, 0)
)

// TestCases runs testdata/*.txt: blocks of commands, a line "----" and the actions they lead to.
// Actions are carried out on the children as an agent would.
//
//	plan REV ID=model,model ...    the plan's gpu-lets (share 50; ID@20=... has share 20, ID@20..40=... may use 40; ID@20/1=... is on GPU 1;
//	                               h2:ID=... is on host h2)
//	at 3s                          sets the clock
//	ready ID... | failed ID...     the child reports so, serving what it was last told, or nothing
//	short ID...                    the child reports that it failed for lack of memory
//	hung ID...                     the child repeats its last report, and that its engine hangs
//	alive ID...                    the child repeats its last report
//	exit ID...                     the process ends
//	fault ID...                    the process ends because its device failed
//	next                           prints and does what is decided
//	unseen                         prints whose reports have to be read of other hosts
//	says STATE ID=model...         the gpu-let of another host reports so under this plan, and that it has the models
//	                               loaded; STATE may be restarting, and STATE@REV is of that revision
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runCase(t, string(data))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(data), got); diff != "" && !*rewrite {
				t.Errorf("-want +got (rewrite with go test -rewrite):\n%s", diff)
			}
		})
	}
}

func runCase(t *testing.T, text string) string {
	var out strings.Builder
	h := &host{now: epoch, lim: reconcile.DefaultLimits}
	for _, block := range strings.Split(strings.TrimRight(text, "\n"), "\n\n") {
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		input, _, _ := strings.Cut(block, "----")
		input = strings.TrimRight(input, "\n")
		fmt.Fprintf(&out, "%s\n----\n", input)
		for _, line := range strings.Split(input, "\n") {
			if f := strings.Fields(line); !strings.HasPrefix(line, "#") {
				h.run(t, &out, f[0], f[1:])
			}
		}
	}
	return out.String()
}

// host is an agent without processes.
type host struct {
	now      time.Time
	lim      reconcile.Limits
	want     reconcile.Desired
	memory   map[int]int64
	children []reconcile.Child
}

func (h *host) run(t *testing.T, out *strings.Builder, cmd string, args []string) {
	switch cmd {
	case "at":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			t.Fatal(err)
		}
		h.now = epoch.Add(d)
	case "plan":
		h.plan(t, args)
	case "memory": // of GPU 0
		h.memory = map[int]int64{0: number(t, args[0])}
	case "ready", "failed", "short", "hung", "alive", "exit", "fault":
		for _, id := range args {
			i := h.index(id)
			if i < 0 {
				t.Fatalf("no child %q", id)
			}
			h.event(cmd, &h.children[i])
		}
	case "unseen":
		fmt.Fprintf(out, "unseen %v\n", reconcile.Unseen(h.want, h.children))
	case "says":
		h.says(t, args[0], args[1:])
	case "next":
		actions := reconcile.Next(h.now, h.want, h.children, h.lim)
		for _, a := range actions {
			out.WriteString(describe(a))
		}
		for _, a := range actions {
			h.do(a)
		}
	default:
		t.Fatalf("unknown command %q", cmd)
	}
}

func (h *host) plan(t *testing.T, args []string) {
	rev, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	h.want = reconcile.Desired{Revision: rev, Since: h.now, Memory: h.memory, Reports: map[string]plan.GpuletReport{}}
	for _, arg := range args[1:] {
		other, arg, elsewhere := cutHost(arg)
		place, models, _ := strings.Cut(arg, "=")
		place, memory, heavy := strings.Cut(place, "+")
		id, share, ok := strings.Cut(place, "@")
		share, gpu, second := strings.Cut(share, "/")
		g := plan.Gpulet{ID: id, Host: other, Share: 50}
		if heavy {
			g.MemBytes = number(t, memory)
		}
		if second {
			if g.GPU, err = strconv.Atoi(gpu); err != nil {
				t.Fatal(err)
			}
		}
		if ok {
			share, limit, more := strings.Cut(share, "..")
			g.Share = int(number(t, share))
			if more {
				g.Limit = int(number(t, limit))
			}
		}
		for _, m := range strings.Split(models, ",") {
			g.Models = append(g.Models, plan.Assignment{Model: m, Batch: 1})
		}
		if elsewhere {
			h.want.Elsewhere = append(h.want.Elsewhere, g)
		} else {
			h.want.Gpulets = append(h.want.Gpulets, g)
		}
	}
}

func number(t *testing.T, text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// cutHost takes the host off a gpu-let that is on another one.
func cutHost(arg string) (other, gpulet string, elsewhere bool) {
	if before, after, ok := strings.Cut(arg, ":"); ok {
		return before, after, true
	}
	return "", arg, false
}

// says is what a gpu-let of another host reports.
func (h *host) says(t *testing.T, state string, args []string) {
	for _, arg := range args {
		id, models, _ := strings.Cut(arg, "=")
		r := plan.GpuletReport{ID: id, Revision: h.want.Revision}
		name, rev, old := strings.Cut(state, "@")
		if r.State = plan.GpuletState(name); name == "restarting" {
			r.State, r.Restarts = plan.Starting, 1
		}
		if old {
			var err error
			if r.Revision, err = strconv.ParseUint(rev, 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range strings.Split(models, ",") {
			r.Models = append(r.Models, plan.ModelReport{Model: m, Loaded: true})
		}
		h.want.Reports[id] = r
	}
}

func (h *host) event(what string, c *reconcile.Child) {
	switch what {
	case "ready":
		c.Hear(h.now, report(c, plan.Ready, true))
	case "failed":
		c.Hear(h.now, report(c, plan.Failed, false))
	case "short":
		r := report(c, plan.Failed, false)
		for i := range r.Models {
			r.Models[i].OutOfMemory = true
		}
		c.Hear(h.now, r)
	case "alive", "hung":
		r := report(c, c.State, c.State == plan.Ready)
		r.Revision = c.Revision
		if what == "hung" {
			r.Hung = "batch of 8 of lenet has run for 11s, expected 20ms"
		}
		c.Hear(h.now, r)
	case "exit":
		c.Exit(h.now, h.lim)
	case "fault":
		c.Fault(h.now, h.lim)
	}
}

// report is what a child says that has loaded everything or nothing.
func report(c *reconcile.Child, state plan.GpuletState, loaded bool) plan.GpuletReport {
	r := plan.GpuletReport{State: state, Revision: c.Assigned}
	for _, a := range c.Models {
		r.Models = append(r.Models, plan.ModelReport{Model: a.Model, Loaded: loaded})
	}
	return r
}

func (h *host) index(id string) int {
	return slices.IndexFunc(h.children, func(c reconcile.Child) bool { return c.ID == id })
}

// do is what an agent does, without a process.
func (h *host) do(a reconcile.Action) {
	i := h.index(a.ID)
	switch a.Verb {
	case reconcile.Start:
		crashes := 0
		if i >= 0 {
			crashes = h.children[i].Crashes
			h.children = slices.Delete(h.children, i, i+1)
		}
		h.children = append(h.children, reconcile.Child{
			ID: a.ID, GPU: a.Gpulet.GPU, Share: a.Gpulet.Share, Limit: a.Gpulet.Limit, State: plan.Starting, StartedAt: h.now, Heard: h.now,
			Assigned: h.want.Revision, Models: a.Gpulet.Models, MemBytes: a.Gpulet.MemBytes, Crashes: crashes,
		})
	case reconcile.Assign:
		c := &h.children[i]
		c.Assigned, c.Models, c.MemBytes = h.want.Revision, a.Gpulet.Models, a.Gpulet.MemBytes
	case reconcile.Drain:
		h.children[i].DrainedAt = h.now
	case reconcile.Kill:
		h.children[i].KilledAt = h.now
	case reconcile.Forget:
		h.children = slices.Delete(h.children, i, i+1)
	}
}

func describe(a reconcile.Action) string {
	line := string(a.Verb) + " " + a.ID
	for i, m := range a.Gpulet.Models {
		if i == 0 {
			line += " share=" + strings.TrimSuffix(a.Gpulet.Shares(), "%")
		}
		line += " " + m.Model
	}
	if !a.Until.IsZero() {
		line += fmt.Sprintf(" until %v", a.Until.Sub(epoch))
	}
	return line + ": " + a.Reason + "\n"
}

// TestReachesThePlan: whatever happened before, once processes behave, the host runs exactly what
// the plan says, each gpu-let with exactly its models.
func TestReachesThePlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &host{now: epoch, lim: reconcile.DefaultLimits}
		rev := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"plan": func(t *rapid.T) {
				rev++
				h.want = drawPlan(t, rev)
				h.want.Memory = map[int]int64{0: 100}
				for i := range h.want.Gpulets {
					h.want.Gpulets[i].MemBytes = rapid.SampledFrom([]int64{0, 20, 60, 120}).Draw(t, "memory")
				}
			},
			"time": func(t *rapid.T) {
				h.now = h.now.Add(time.Duration(rapid.IntRange(0, 30_000).Draw(t, "ms")) * time.Millisecond)
			},
			"event": func(t *rapid.T) {
				if len(h.children) > 0 {
					i := rapid.IntRange(0, len(h.children)-1).Draw(t, "child")
					if h.children[i].ExitedAt.IsZero() {
						h.event(rapid.SampledFrom([]string{"ready", "failed", "alive", "exit", "fault"}).Draw(t, "event"), &h.children[i])
					}
				}
			},
			"next": func(*rapid.T) { h.step() },
		})
		for range 20 { // every behaviour below takes a bounded number of steps
			h.behave()
			h.step()
		}
		if diff := cmp.Diff(planned(h.want), h.runs()); diff != "" {
			t.Fatalf("-plan +host:\n%s", diff)
		}
	})
}

// TestServesThroughout: while processes behave, a model that the old and the new plan serve is
// ready on some gpu-let of some host at every moment in between.
func TestServesThroughout(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := fleet{{now: epoch, lim: reconcile.DefaultLimits}, {now: epoch, lim: reconcile.DefaultLimits}}
		f.follow(t, 1)
		for range 10 {
			f.behave()
			f.step()
		}
		before := f.ready()
		f.follow(t, 2)
		after := map[string]bool{}
		for _, h := range f {
			for _, g := range h.want.Gpulets {
				for _, a := range g.Models {
					after[a.Model] = true
				}
			}
		}
		for range 15 {
			for _, h := range f {
				f.tell(h)
				h.step()
				for model := range before {
					if ready := f.ready(); after[model] && !ready[model] {
						t.Fatalf("nobody serves %s while plan 2 comes: %v %v", model, f[0].runs(), f[1].runs())
					}
				}
			}
			f.behave()
		}
		for _, h := range f {
			if diff := cmp.Diff(planned(h.want), h.runs()); diff != "" {
				t.Fatalf("-plan +host:\n%s", diff)
			}
		}
	})
}

// fleet is hosts that know of each other what they report.
type fleet []*host

// follow gives every host its part of a new plan.
func (f fleet) follow(t *rapid.T, rev uint64) {
	for i, h := range f {
		h.want = placed(drawPlan(t, rev))
		for j := range h.want.Gpulets {
			h.want.Gpulets[j].ID = fmt.Sprint("h", i, h.want.Gpulets[j].ID)
		}
		h.want.Since, h.want.Reports = h.now, map[string]plan.GpuletReport{}
	}
	for _, h := range f {
		for _, o := range f {
			if o != h {
				h.want.Elsewhere = append(h.want.Elsewhere, o.want.Gpulets...)
			}
		}
	}
}

// tell lets h read what it has to of the others' reports.
func (f fleet) tell(h *host) {
	unseen := reconcile.Unseen(h.want, h.children)
	for _, o := range f {
		for _, c := range o.children {
			if !slices.Contains(unseen, c.ID) {
				continue
			}
			r := plan.GpuletReport{State: c.State, Revision: c.Revision}
			for _, m := range c.Loaded {
				r.Models = append(r.Models, plan.ModelReport{Model: m, Loaded: true})
			}
			h.want.Reports[c.ID] = r
		}
	}
}

func (f fleet) step() {
	for _, h := range f {
		f.tell(h)
		h.step()
	}
}

func (f fleet) behave() {
	for _, h := range f {
		h.behave()
	}
}

func (f fleet) ready() map[string]bool {
	all := map[string]bool{}
	for _, h := range f {
		for m, ok := range h.ready() {
			all[m] = all[m] || ok
		}
	}
	return all
}

func TestSameInputSameActions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &host{now: epoch, lim: reconcile.DefaultLimits}
		h.want = drawPlan(t, 1)
		h.step()
		h.want = drawPlan(t, 2)
		once := reconcile.Next(h.now, h.want, h.children, h.lim)
		slices.Reverse(h.children)
		again := reconcile.Next(h.now, h.want, h.children, h.lim)
		if diff := cmp.Diff(once, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func drawPlan(t *rapid.T, rev uint64) reconcile.Desired {
	want := reconcile.Desired{Revision: rev}
	for _, id := range []string{"a", "b", "c", "d"} {
		if !rapid.Bool().Draw(t, id) {
			continue
		}
		g := plan.Gpulet{ID: id, Share: rapid.SampledFrom([]int{20, 50}).Draw(t, "share")}
		for _, m := range []string{"m1", "m2", "m3"} {
			if rapid.Bool().Draw(t, m) {
				g.Models = append(g.Models, plan.Assignment{Model: m, Batch: 1})
			}
		}
		want.Gpulets = append(want.Gpulets, g)
	}
	return want
}

// placed gives gpu-lets of another share another id, as planners do.
func placed(want reconcile.Desired) reconcile.Desired {
	for i, g := range want.Gpulets {
		want.Gpulets[i].ID = fmt.Sprint(g.ID, g.Share)
	}
	return want
}

func (h *host) step() {
	for _, a := range reconcile.Next(h.now, h.want, h.children, h.lim) {
		h.do(a)
	}
}

// behave lets every process do what it was told, and enough time pass for any wait.
func (h *host) behave() {
	h.now = h.now.Add(h.lim.Silence - time.Second)
	for i := range h.children {
		c := &h.children[i]
		switch {
		case !c.ExitedAt.IsZero():
			c.ExitedAt = c.ExitedAt.Add(-h.lim.BackoffMax)
		case !c.KilledAt.IsZero() || !c.DrainedAt.IsZero():
			h.event("exit", c)
		default:
			h.event("ready", c)
		}
	}
}

func planned(want reconcile.Desired) map[string][]string {
	m := map[string][]string{}
	for _, g := range want.Gpulets {
		m[fmt.Sprint(g.ID, "@", g.Share)] = names(g.Models)
	}
	return m
}

func (h *host) runs() map[string][]string {
	m := map[string][]string{}
	for _, c := range h.children {
		m[fmt.Sprint(c.ID, "@", c.Share)] = names(c.Models)
	}
	return m
}

// ready lists the models of gpu-lets that serve them now. One that has just been told more still
// serves what it served.
func (h *host) ready() map[string]bool {
	m := map[string]bool{}
	for _, c := range h.children {
		if c.State == plan.Ready && c.DrainedAt.IsZero() && c.ExitedAt.IsZero() {
			for _, a := range c.Models {
				m[a.Model] = m[a.Model] || c.Revision == c.Assigned || c.Revision == 1
			}
		}
	}
	return m
}

func names(as []plan.Assignment) []string {
	list := []string{}
	for _, a := range as {
		list = append(list, a.Model)
	}
	return list
}
