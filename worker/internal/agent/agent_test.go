package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/link"
	"github.com/gpulet/gpulet/worker/internal/reconcile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// board is a bus of one process: it keeps what was written, unless it is away.
type board struct {
	mu       sync.Mutex // guards the fields below
	away     bool
	log      []string
	hosts    map[string]plan.HostReport
	gpulets  map[string]plan.GpuletReport
	profiles []string
	suspects map[string]plan.Suspect
	hooks    []func()
}

func newBoard() *board {
	return &board{hosts: map[string]plan.HostReport{}, gpulets: map[string]plan.GpuletReport{}, suspects: map[string]plan.Suspect{}}
}

var errAway = errors.New("the bus is away")

func (b *board) do(what string, f func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return errAway
	}
	b.log = append(b.log, what)
	f()
	return nil
}

func (b *board) setAway(away bool) {
	b.mu.Lock()
	b.away = away
	hooks := b.hooks
	b.mu.Unlock()
	if !away {
		for _, f := range hooks {
			f()
		}
	}
}

func (b *board) WatchPlan(context.Context) (<-chan plan.Plan, error)       { return nil, errAway }
func (b *board) WatchModels(context.Context) (<-chan []model.Model, error) { return nil, errAway }
func (b *board) OnReconnect(f func())                                      { b.hooks = append(b.hooks, f) }

func (b *board) PutHost(_ context.Context, r plan.HostReport) error {
	return b.do("put "+r.Host, func() { b.hosts[r.Host] = r })
}

func (b *board) DeleteHost(_ context.Context, host string) error {
	return b.do("delete "+host, func() { delete(b.hosts, host) })
}

func (b *board) PutGpulet(_ context.Context, r plan.GpuletReport) error {
	return b.do("put "+r.ID, func() { b.gpulets[r.ID] = r })
}

func (b *board) DeleteGpulet(_ context.Context, id string) error {
	return b.do("delete "+id, func() { delete(b.gpulets, id) })
}

func (b *board) Gpulet(_ context.Context, id string) (r plan.GpuletReport, err error) {
	err = b.do("get "+id, func() { r = b.gpulets[id] })
	if err == nil && r.ID == "" {
		err = bus.ErrNotFound
	}
	return r, err
}

func (b *board) PutProfile(_ context.Context, p profile.Profile) error {
	return b.do("profile "+p.Model, func() { b.profiles = append(b.profiles, p.Model) })
}

func (b *board) Suspect(_ context.Context, model string, seq uint64, _ time.Time) (plan.Suspect, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.suspects[fmt.Sprint(model, seq)]
	if !ok {
		return s, bus.ErrNotFound
	}
	return s, nil
}

func (b *board) PutSuspect(_ context.Context, s plan.Suspect) error {
	return b.do("suspect", func() { b.suspects[fmt.Sprint(s.Model, s.Seq)] = s })
}

// published lists the models of all profiles that were ever published, sorted.
func (b *board) published() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(slices.Values(b.profiles))
}

func TestReportsTheNewestOnceTheBusIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		r := startReporter(b, quiet)
		r.host(plan.HostReport{Host: "h", Revision: 1})
		r.gpulet(plan.GpuletReport{ID: "a", Restarts: 1})
		synctest.Wait()
		b.setAway(true)
		for n := 2; n < 5; n++ {
			r.host(plan.HostReport{Host: "h", Revision: uint64(n)})
			r.gpulet(plan.GpuletReport{ID: "a", Restarts: n})
			r.gpulet(plan.GpuletReport{ID: "b"})
			synctest.Wait()
		}
		r.forget("b")
		b.setAway(false)
		time.Sleep(10 * time.Second) // more than the longest back-off, in the bubble's time
		synctest.Wait()
		if b.hosts["h"].Revision != 4 || b.gpulets["a"].Restarts != 4 {
			t.Errorf("host at revision %d, a with %d restarts: expected the newest, 4", b.hosts["h"].Revision, b.gpulets["a"].Restarts)
		}
		if _, ok := b.gpulets["b"]; ok {
			t.Error("b is reported although it is gone")
		}
		r.forget("a")
		r.stop("h")
		if len(b.hosts)+len(b.gpulets) != 0 {
			t.Errorf("left behind: %v %v", b.hosts, b.gpulets)
		}
	})
}

func TestPublishesProfilesOnceAllAreMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		ctx, cancel := context.WithCancel(t.Context())
		cfg := Config{Log: quiet, Profile: func(_ context.Context, m model.Model) (*profile.Profile, error) {
			if m.Path != "/archive/"+m.Name {
				t.Errorf("%s: path %q", m.Name, m.Path)
			}
			time.Sleep(3 * time.Second)
			if err := b.do("measured "+m.Name, func() {}); err != nil {
				t.Error(err)
			}
			if m.Name == "broken" {
				return nil, errors.New("corrupt")
			}
			return &profile.Profile{Model: m.Name}, nil
		}}
		m := startMeasuring(ctx, cfg, b)
		defer m.wait()
		defer cancel()
		set := map[string]resolved{}
		for _, name := range []string{"b", "a", "broken", "missing"} {
			set[name] = resolved{model: model.Model{Config: model.Config{Name: name}, Hash: name}, archive: "/archive/" + name}
		}
		set["missing"] = resolved{problem: "not here"}
		m.measure(set)
		if diff := cmp.Diff(map[string]string{"broken": "corrupt"}, <-m.problems); diff != "" {
			t.Error(diff)
		}
		slices.Sort(b.log[3:])
		if diff := cmp.Diff([]string{"measured a", "measured b", "measured broken", "profile a", "profile b"}, b.log); diff != "" {
			t.Error(diff)
		}
		// A bus that was away has what it lost again.
		b.setAway(true)
		b.setAway(false)
		<-m.problems
		if diff := cmp.Diff([]string{"a", "a", "b", "b"}, b.published()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestPublishesProfilesWhenTheBusComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.away = true
		ctx, cancel := context.WithCancel(t.Context())
		cfg := Config{Log: quiet, Profile: func(_ context.Context, m model.Model) (*profile.Profile, error) {
			return &profile.Profile{Model: m.Name}, nil
		}}
		m := startMeasuring(ctx, cfg, b)
		defer m.wait()
		defer cancel()
		m.measure(map[string]resolved{"a": {model: model.Model{Config: model.Config{Name: "a"}, Hash: "a"}}})
		<-m.problems
		b.mu.Lock()
		b.away = false // without a word
		b.mu.Unlock()
		for len(b.published()) == 0 {
			<-m.problems
		}
	})
}

func TestResolvesModelsAgainWhenTheyChange(t *testing.T) {
	root := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	yaml := func(name string) string {
		return "name: " + name + "\nslo: 10ms\nmax_batch: 8\ninputs: [{name: x, dtype: FP32, shape: [4]}]\noutputs: [{name: y, dtype: FP32, shape: [4]}]\n"
	}
	write("good/model.yaml", yaml("good"))
	write("good/1/model.pt", "one")
	write("old/model.yaml", yaml("old"))
	write("old/1/model.pt", "old")
	good, err := model.Load(root, "good")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		registered := make(chan []model.Model)
		r := newResolver(root)
		defer r.wait()
		defer cancel()
		found := r.run(ctx, registered)
		late := model.Model{Config: model.Config{Name: "late"}, Hash: "x"}
		old := model.Model{Config: model.Config{Name: "old"}, Version: 2, Hash: "0123456789abcdef"}
		registered <- []model.Model{good, late, old}
		got := <-found
		if got["good"].problem != "" || got["good"].archive != filepath.Join(root, "good/1/model.pt") {
			t.Errorf("good: %+v", got["good"])
		}
		if !strings.Contains(got["late"].problem, "late/model.yaml") {
			t.Errorf("late: problem %q", got["late"].problem)
		}
		if want := "expected 0123456789ab, version 2 as registered"; !strings.Contains(got["old"].problem, want) {
			t.Errorf("old: problem %q: expected %q", got["old"].problem, want)
		}
		write("late/model.yaml", yaml("late"))
		write("late/1/model.pt", "late")
		got = <-found // it looks again by itself
		if !strings.Contains(got["late"].problem, "expected x, version 0 as registered") {
			t.Errorf("late: %+v", got["late"])
		}
	})
}

// shell starts a shell in place of a gpu-let.
func shell(t *testing.T, script string) (*process, chan event) {
	t.Helper()
	events := make(chan event, 64)
	p, err := startProcess("g", exec.Command("/bin/sh", "-c", script), events, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return p, events
}

func TestPassesOnWhatAProcessSays(t *testing.T) {
	p, events := shell(t, `
		read line
		echo 'not a report'
		echo '{"id":"g","state":"ready","revision":7}'
		echo 'time=1 level=INFO msg=fine' >&2
		echo 'terminate called after throwing an instance' >&2
		echo 'time=2 level=INFO msg=bye' >&2
		exit 3`)
	p.send(link.Command{Op: link.Assign, Revision: 7})
	if e := <-events; e.report == nil || e.report.Revision != 7 || e.report.State != plan.Ready {
		t.Fatalf("event %+v: expected the report", e)
	}
	e := <-events
	var exit *exec.ExitError
	if !e.exited || !errors.As(e.err, &exit) || exit.ExitCode() != 3 {
		t.Fatalf("event %+v: expected the exit", e)
	}
	if got := exitWords(e); got != "exited: exit status 3: terminate called after throwing an instance" {
		t.Errorf("words %q", got)
	}
	for range 100 {
		p.send(link.Command{Op: link.Drain}) // harmless, however late
	}
}

func TestAProcessThatTakesNoCommandsIsKilled(t *testing.T) {
	p, events := shell(t, `while true; do sleep 1000; done`)
	big := link.Command{Op: link.Assign, Models: []link.Assignment{{Problem: strings.Repeat("x", 1<<20)}}}
	for range 100 { // more than the pipe and the channel hold
		p.send(big)
	}
	e := <-events
	var exit *exec.ExitError
	if !errors.As(e.err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL { //nolint:forcetypeassert // on Linux
		t.Errorf("event %+v: expected that it was killed", e)
	}
}

func TestForwardsLogLines(t *testing.T) {
	p := &process{id: "g1"}
	var out bytes.Buffer
	p.forward(strings.NewReader("time=1 level=INFO msg=a\n{\"msg\":\"b\"}\n\nSegmentation fault\nlast"), &out)
	want := "time=1 level=INFO msg=a\n{\"msg\":\"b\"}\ng1: Segmentation fault\ng1: last\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	if got := p.words.String(); got != "last" {
		t.Errorf("last words %q", got)
	}
}

func TestLastWordsSurviveWhatTheRuntimeSaysAfterwards(t *testing.T) {
	var w lastWords
	for range 100 {
		w.add("time=1 level=INFO msg=working")
	}
	w.add("terminate called: what(): bad tensor")
	w.add("SIGABRT: abort")
	for i := range 500 {
		w.add(fmt.Sprintf("goroutine %d [running]:", i))
	}
	if got := w.String(); got != "terminate called: what(): bad tensor" {
		t.Errorf("last words %q", got)
	}
	lines := strings.Split(w.tail(), "\n")
	if len(lines) != keptLines+keptCrash || lines[4] != "terminate called: what(): bad tensor" || lines[5] != "SIGABRT: abort" {
		t.Errorf("tail %q", lines)
	}
	var alone lastWords
	alone.add("time=1 level=INFO msg=working")
	alone.add("panic: index out of range")
	alone.add("goroutine 1 [running]:")
	if got := alone.String(); got != "panic: index out of range" {
		t.Errorf("last words %q", got)
	}
}

func TestGpuletsOfThePlanShareNoCores(t *testing.T) {
	a := New(Config{
		Host: "h", Log: quiet,
		Inventory: device.Inventory{Kind: device.CPU, Cores: []int{0, 1, 2, 3}, Devices: []plan.Device{{}}},
	}, newBoard(), prometheus.NewRegistry())
	a.plan = plan.Plan{Gpulets: []plan.Gpulet{
		{ID: "new", Host: "h", Share: 50}, {ID: "kept", Host: "h", Share: 50}, {ID: "elsewhere", Host: "i", Share: 100},
	}}
	proc := &process{}
	a.children["kept"] = &child{cores: []int{1, 2}, proc: proc}
	a.children["going"] = &child{cores: []int{0, 3}, proc: proc}
	if got := a.allot(a.plan.Gpulets[0]); !slices.Equal(got, []int{0, 3}) {
		t.Errorf("new got cores %v: expected those that kept does not have", got)
	}
}

func TestMetricsShowWhatGpuletsReport(t *testing.T) {
	reg := prometheus.NewRegistry()
	a := New(Config{Host: "h", Log: quiet}, newBoard(), reg)
	a.plan.Revision = 9
	a.children["g"] = &child{
		Child:    reconcile.Child{ID: "g", State: plan.Ready},
		gpulet:   plan.Gpulet{Models: []plan.Assignment{{Model: "m", Batch: 8}}},
		proc:     &process{cmd: &exec.Cmd{Process: &os.Process{Pid: 1}}},
		restarts: 2,
		last: plan.GpuletReport{Models: []plan.ModelReport{
			{Model: "m", Loaded: true, Requests: 40, Samples: 60, Batches: 10, Expired: 3, Rejected: 4, Failed: 5, Redelivered: 6, BusyMs: 500, ExecMs: 50},
		}},
	}
	a.metrics.set(a.snapshot())
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.Metric {
			labels := ""
			for _, l := range m.Label {
				if l.GetName() != "host" {
					labels += " " + l.GetValue()
				}
			}
			if v := m.GetCounter().GetValue() + m.GetGauge().GetValue(); v != 0 {
				got = append(got, fmt.Sprintf("%s%s %v", strings.TrimPrefix(f.GetName(), "gpulet_worker_"), labels, v))
			}
		}
	}
	want := []string{
		"batch_exec_seconds g m 0.05",
		"batch_fill_ratio g m 0.75",
		"batches_total g m 10",
		"exec_seconds_total g m 0.5",
		"gpulet_restarts_total g 2",
		"gpulet_state g ready 1",
		"model_loaded g m 1",
		"plan_revision 9",
		"redelivered_requests_total g m 6",
		"requests_total g m expired 3",
		"requests_total g m failed 5",
		"requests_total g m rejected 4",
		"requests_total g m run 40",
		"samples_total g m 60",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
