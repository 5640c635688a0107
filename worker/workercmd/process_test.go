package workercmd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

// asWorker set to 1 makes the test program the worker: its agent starts its children by starting
// itself, so all of them are.
const asWorker = "GPULET_TEST_AS_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(asWorker) == "1" {
		Main()
	}
	goleak.VerifyTestMain(m)
}

// site is a bus with models registered and agents as processes.
type site struct {
	t       *testing.T
	srv     *embedded.Server
	planner *bus.Bus
	client  *bus.Bus
	inbox   *bus.Inbox
	models  string // repository
	profile string // cache
	planRev uint64
	agents  []*program

	mu      sync.Mutex // guards the fields below
	sent    int
	replies map[string]int // request → how often it was answered
	bad     []string       // answers that are wrong
	changed chan struct{}  // closed at every reply
}

// newSite starts a bus with a reference model for each name, which doubles its input.
func newSite(t *testing.T, names ...string) *site {
	t.Helper()
	s := &site{t: t, models: t.TempDir(), profile: t.TempDir(), replies: map[string]int{}, changed: make(chan struct{})}
	s.srv = embeddedtest.StartTest(t)
	s.planner = embeddedtest.Connect(t, s.srv, bus.RolePlanner)
	if err := s.planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		s.write(name+"/model.yaml", "name: "+name+"\nslo: 15s\nmax_batch: 8\n"+
			"inputs: [{name: x, dtype: FP32, shape: [4]}]\noutputs: [{name: y, dtype: FP32, shape: [4]}]\n")
		s.write(name+"/1/model.pt", "gpulet-ref 1\n# "+name+"\ninput x FP32\naffine y FP32 0 2 x\n")
		s.register(name)
	}
	s.client = embeddedtest.Connect(t, s.srv, bus.RoleClient)
	var err error
	if s.inbox, err = s.client.NewInbox(s.receive); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.inbox.Close)
	return s
}

func (s *site) write(path, content string) {
	s.t.Helper()
	path = filepath.Join(s.models, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) register(name string) model.Model {
	s.t.Helper()
	m, err := model.Load(s.models, name)
	if err != nil {
		s.t.Fatal(err)
	}
	q := bus.Queue{Model: name, MaxMsgs: 100_000, MaxBytes: 1 << 30, MaxAge: time.Minute, AckWait: time.Second, MaxAckPending: 1000}
	if err := s.planner.EnsureQueue(s.t.Context(), q); err != nil {
		s.t.Fatal(err)
	}
	if err := s.planner.PutModel(s.t.Context(), m); err != nil {
		s.t.Fatal(err)
	}
	return m
}

// publish publishes a plan of gpu-lets, each given as "id share model...", on host h1 or as "id@host ...".
func (s *site) publish(gpulets ...string) {
	s.t.Helper()
	s.planRev++
	p := plan.Plan{Revision: s.planRev, Unserved: map[string]float64{}}
	for _, spec := range gpulets {
		f := strings.Fields(spec)
		share, err := strconv.Atoi(f[1])
		if err != nil {
			s.t.Fatal(err)
		}
		id, host, ok := strings.Cut(f[0], "@")
		if !ok {
			host = "h1"
		}
		g := plan.Gpulet{ID: id, Host: host, GPUType: "cpu", Share: share}
		for _, m := range f[2:] {
			g.Models = append(g.Models, plan.Assignment{Model: m, Batch: 4, ExecMs: 1})
		}
		p.Gpulets = append(p.Gpulets, g)
	}
	_, rev, err := s.planner.GetPlan(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.planner.PutPlan(s.t.Context(), p, rev); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) receive(rep bus.Reply) {
	got, err := wire.DecodeReply(rep.Get, rep.Body)
	wrong := ""
	switch {
	case err != nil:
		wrong = err.Error()
	case got.Status != wire.StatusOK:
		wrong = fmt.Sprintf("%s: %s", got.Status, got.Detail)
	case !bytes.Equal(got.Outputs[0].Data, make([]byte, 16)):
		wrong = fmt.Sprintf("outputs %v", got.Outputs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replies[rep.Token]++
	if wrong != "" {
		s.bad = append(s.bad, rep.Token+": "+wrong)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// send sends n requests to the model.
func (s *site) send(mdl string, n int) {
	s.t.Helper()
	for range n {
		if err := s.sendOne(mdl); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) sendOne(mdl string) error {
	body, err := wire.EncodeRequest(wire.TypeMsgpack, wire.Request{Inputs: []tensor.Tensor{
		{Name: "x", DType: tensor.FP32, Shape: []int64{1, 4}, Data: make([]byte, 16)},
	}})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.sent++
	id := fmt.Sprintf("%s-%d", mdl, s.sent)
	s.mu.Unlock()
	return s.client.Publish(s.t.Context(), &bus.Message{Model: mdl, RequestID: id, ReplyTo: s.inbox.Address(id), Body: body})
}

// load sends requests to the models in turn until it is told to stop.
func (s *site) load(models ...string) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
				if err := s.sendOne(models[i%len(models)]); err != nil {
					s.t.Error(err)
					return
				}
			case <-quit:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(quit); <-done })
}

// waitAnswered waits until everything that was sent has been answered, rightly.
func (s *site) waitAnswered() {
	s.t.Helper()
	limit := time.After(60 * time.Second)
	for {
		s.mu.Lock()
		sent, answered, bad, changed := s.sent, len(s.replies), slices.Clone(s.bad), s.changed
		s.mu.Unlock()
		if len(bad) > 0 {
			s.t.Fatalf("%d wrong answers, the first: %s", len(bad), bad[0])
		}
		if answered == sent {
			return
		}
		select {
		case <-changed:
		case <-limit:
			s.t.Fatalf("waited 60s: %d of %d requests were answered", answered, sent)
		}
	}
}

// answered is how many requests have been answered.
func (s *site) answered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.replies)
}

// waitAnswers waits for n more answers.
func (s *site) waitAnswers(n int) {
	s.t.Helper()
	limit := time.After(60 * time.Second)
	for want := s.answered() + n; ; {
		s.mu.Lock()
		changed, got := s.changed, len(s.replies)
		s.mu.Unlock()
		if got >= want {
			return
		}
		select {
		case <-changed:
		case <-limit:
			s.t.Fatalf("waited 60s for %d answers more", want-got)
		}
	}
}

// waitGpulets waits until the reports on the bus satisfy ok.
func (s *site) waitGpulets(what string, ok func([]plan.GpuletReport) bool) []plan.GpuletReport {
	s.t.Helper()
	for limit := time.Now().Add(60 * time.Second); ; {
		reps, err := s.planner.Gpulets(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		if ok(reps) {
			return reps
		}
		if time.Now().After(limit) {
			s.t.Fatalf("waited 60s for %s: %+v", what, reps)
		}
	}
}

// waitReady waits until exactly these gpu-lets are ready at the last plan's revision.
func (s *site) waitReady(ids ...string) []plan.GpuletReport {
	s.t.Helper()
	return s.waitGpulets(fmt.Sprintf("%v to be ready at revision %d", ids, s.planRev), func(reps []plan.GpuletReport) bool {
		var ready []string
		for _, r := range reps {
			if r.State != plan.Ready || r.Revision != s.planRev {
				return false
			}
			ready = append(ready, r.ID)
		}
		return slices.Equal(ready, ids)
	})
}

// program is a worker as a process.
type program struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  *output
	done chan struct{} // closed when it has exited
	err  error         // how; valid then
}

// output keeps what a process writes.
type output struct {
	mu      sync.Mutex // guards the fields below
	buf     bytes.Buffer
	changed chan struct{} // closed at every write
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.buf.Write(p)
}

func (o *output) state() (string, chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String(), o.changed
}

// worker starts a process of the worker.
func worker(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{t: t, log: &output{changed: make(chan struct{})}, done: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Env = append(os.Environ(), asWorker+"=1")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.WaitDelay = 20 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			text, _ := p.log.state()
			t.Logf("worker %s\n%s", args[0], text)
		}
	})
	return p
}

// agent starts an agent, of host h1 unless flags say otherwise, that serves on the CPU with the reference
// engine.
func (s *site) agent(flags ...string) *program {
	s.t.Helper()
	args := []string{
		"run", "--host", "h1", "--device", "cpu", "--engine", "ref", "--engine-lib", enginetest.ReferenceLibrary(s.t),
		"--models", s.models, "--profile-cache", s.profile, "--profile-budget", "20ms", "--metrics-addr", "127.0.0.1:0",
		"--nats-url", s.srv.URL(), "--state-dir", s.srv.StateDir(),
	}
	p := worker(s.t, append(args, flags...)...)
	s.agents = append(s.agents, p)
	return p
}

func (p *program) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// wait waits for the process to exit and returns its exit code.
func (p *program) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(60 * time.Second):
		p.t.Fatal("waited 60s for the worker to exit")
	}
	return p.cmd.ProcessState.ExitCode()
}

// waitLog waits for a line of the log that matches and returns its submatches.
func (p *program) waitLog(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.After(60 * time.Second)
	for {
		text, changed := p.log.state()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		select {
		case <-changed:
		case <-limit:
			p.t.Fatalf("waited 60s for %q in the log", pattern)
		}
	}
}

// alive reports whether a process runs; one that waits to be buried does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	after := string(stat[bytes.LastIndexByte(stat, ')')+1:])
	return !strings.HasPrefix(strings.TrimSpace(after), "Z")
}

func waitGone(t *testing.T, pids []int) {
	t.Helper()
	for limit := time.Now().Add(60 * time.Second); slices.ContainsFunc(pids, alive); {
		if time.Now().After(limit) {
			t.Fatalf("waited 60s for %v to be gone", pids)
		}
	}
}

func pids(reps []plan.GpuletReport) []int {
	var list []int
	for _, r := range reps {
		list = append(list, r.PID)
	}
	return list
}

func TestServesWhatThePlanSaysAndDrainsAtTheEnd(t *testing.T) {
	s := newSite(t, "a", "b")
	agent := s.agent()
	s.publish("g1 50 a", "g2 50 a b")
	reps := s.waitReady("g1", "g2")
	s.send("a", 100)
	s.send("b", 100)
	s.waitAnswered()

	addr := agent.waitLog(`addr=(127\.0\.0\.1:\d+)`)[1]
	text := get(t, "http://"+addr+"/metrics")
	for _, want := range []string{
		`gpulet_worker_gpulet_state{gpulet="g1",host="h1",state="ready"} 1`,
		`gpulet_worker_plan_revision{host="h1"} 1`,
		`gpulet_worker_gpulet_restarts_total{gpulet="g2",host="h1"} 0`,
		`gpulet_worker_model_loaded{gpulet="g2",host="h1",model="b"} 1`,
		`gpulet_worker_requests_total{gpulet="g2",host="h1",model="b",status="expired"} 0`,
		`gpulet_worker_exec_seconds_total{gpulet="g2",host="h1",model="b"}`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	hosts, err := s.planner.Hosts(t.Context())
	if err != nil || len(hosts) != 1 || hosts[0].Revision != 1 || len(hosts[0].Devices) != 1 || !strings.Contains(hosts[0].Engine, "ref") {
		t.Errorf("hosts %+v, %v", hosts, err)
	}

	agent.signal(syscall.SIGTERM)
	if code := agent.wait(); code != 0 {
		t.Errorf("exit code %d: expected 0", code)
	}
	waitGone(t, pids(reps))
	s.waitGpulets("no reports", func(reps []plan.GpuletReport) bool { return len(reps) == 0 })
	if hosts, err := s.planner.Hosts(t.Context()); err != nil || len(hosts) != 0 {
		t.Errorf("hosts %+v, %v: expected none", hosts, err)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url) //nolint:noctx // a test's own server
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(data)
}

func TestAKilledGpuletLosesNoRequest(t *testing.T) {
	s := newSite(t, "a")
	s.agent()
	s.publish("g1 50 a", "g2 50 a")
	reps := s.waitReady("g1", "g2")
	stop := s.load("a")
	defer stop()
	s.waitAnswers(50)
	for range 3 {
		victim := reps[0].PID
		if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.waitGpulets("a new process", func(now []plan.GpuletReport) bool {
			return len(now) == 2 && now[0].State == plan.Ready && now[0].PID != victim
		})
		reps = s.waitReady("g1", "g2")
		s.waitAnswers(50)
	}
	stop()
	s.waitAnswered()
	if reps[0].Restarts != 3 {
		t.Errorf("%d restarts reported: expected 3", reps[0].Restarts)
	}
}

func TestAProcessThatStandsByBecomesAGpulet(t *testing.T) {
	s := newSite(t, "a")
	agent := s.agent("--standby", "on")
	s.publish("g1 50 a")
	first := s.waitReady("g1")[0]
	s.send("a", 20)
	const line = `a process stands by[^\n]* pid=`
	after := func(pid string) string { return agent.waitLog(line + pid + `\n(?s:.*)` + line + `(\d+)`)[1] }
	standby := agent.waitLog(line + `(\d+)`)[1]
	if standby == strconv.Itoa(first.PID) { // it was there before the plan
		standby = after(standby)
	}
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.waitGpulets("the one that stood by", func(now []plan.GpuletReport) bool {
		return len(now) == 1 && now[0].State == plan.Ready && strconv.Itoa(now[0].PID) == standby
	})
	s.send("a", 20)
	s.waitAnswered()
	last, err := strconv.Atoi(after(standby))
	if err != nil {
		t.Fatal(err)
	}
	agent.signal(syscall.SIGTERM)
	if code := agent.wait(); code != 0 {
		t.Errorf("exit code %d: expected 0", code)
	}
	waitGone(t, []int{last})
}

func TestAGpuletWhoseDeviceFailsSaysSoAndStartsAgain(t *testing.T) {
	s := newSite(t, "a")
	s.write("a/1/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\nfault x 1000\n")
	s.register("a")
	agent := s.agent()
	s.publish("g1 100 a")
	before := s.waitReady("g1")[0].PID
	body, err := wire.EncodeRequest(wire.TypeMsgpack, wire.Request{Inputs: []tensor.Tensor{
		{Name: "x", DType: tensor.FP32, Shape: []int64{1, 4}, Data: enginetest.Floats(0, 0, 0, 1001)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	// It is delivered again, but too late to do it again.
	if err := s.client.Publish(t.Context(), &bus.Message{Model: "a", Body: body, Timeout: 900 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	agent.waitLog("device failed: all gpu-lets on it start again")
	s.waitGpulets("a new process", func(now []plan.GpuletReport) bool {
		return len(now) == 1 && now[0].State == plan.Ready && now[0].PID != before
	})
	s.send("a", 20)
	s.waitAnswered()
}

func TestAKilledAgentLeavesNoProcess(t *testing.T) {
	s := newSite(t, "a")
	agent := s.agent()
	s.publish("g1 50 a", "g2 50 a")
	reps := s.waitReady("g1", "g2")
	s.send("a", 20)
	s.waitAnswered()
	agent.signal(syscall.SIGKILL)
	agent.wait()
	waitGone(t, pids(reps))
	s.send("a", 20) // they wait in the queue
	s.agent()
	s.waitGpulets("new processes", func(now []plan.GpuletReport) bool {
		return len(now) == 2 && now[0].State == plan.Ready && now[0].PID != reps[0].PID
	})
	s.waitAnswered()
}

func TestTheSecondSignalKills(t *testing.T) {
	s := newSite(t, "a")
	agent := s.agent()
	s.publish("g1 100 a")
	reps := s.waitReady("g1")
	// A process that is stopped cannot drain.
	if err := syscall.Kill(reps[0].PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	agent.signal(syscall.SIGTERM)
	agent.waitLog(`gpu-let: drain`)
	agent.signal(syscall.SIGTERM)
	agent.wait()
	waitGone(t, pids(reps))
}

func TestPlansChangeUnderLoad(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.agent()
	s.publish("g1 50 a b", "g2 50 c")
	s.waitReady("g1", "g2")
	stop := s.load("a", "b", "c")
	defer stop()
	s.waitAnswers(30)
	s.publish("g1 50 b c", "g3 50 a") // g1 swaps, g2 goes, g3 comes
	s.waitReady("g1", "g3")
	s.waitAnswers(30)
	s.publish("g4 100 a b c")
	s.waitReady("g4")
	s.waitAnswers(30)
	stop()
	s.waitAnswered()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, n := range s.replies {
		if n != 1 {
			t.Errorf("%s was answered %d times", id, n)
		}
	}
}

// TestAModelMovesBetweenHosts: the one that it leaves serves it for as long as the other does not, whose
// agent is stopped meanwhile and knows of nothing.
func TestAModelMovesBetweenHosts(t *testing.T) {
	s := newSite(t, "a")
	s.agent()
	other := s.agent("--host", "h2")
	s.publish("g1 100 a")
	s.waitReady("g1")
	stop := s.load("a")
	defer stop()
	s.waitAnswers(30)
	other.waitLog(`msg=plan.*plan_rev=1`)
	other.signal(syscall.SIGSTOP)
	s.publish("g2@h2 100 a")
	s.waitGpulets("g1 to stay", func(reps []plan.GpuletReport) bool {
		hosts, err := s.planner.Hosts(t.Context())
		return err == nil && len(hosts) > 0 && hosts[0].Host == "h1" && hosts[0].Revision == 2
	})
	s.waitAnswers(100)
	other.signal(syscall.SIGCONT)
	s.waitReady("g2")
	s.waitAnswers(30)
	stop()
	s.waitAnswered()
}

// TestStreamsServeWhatThePlanSays: with a loop per model, plans change under load as they do without, and
// the gpu-let reports itself as one.
func TestStreamsServeWhatThePlanSays(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	agent := s.agent("--streams")
	s.publish("g1 100 a b")
	s.waitReady("g1")
	stop := s.load("a", "b", "c")
	defer stop()
	s.waitAnswers(30)
	s.publish("g1 100 b c") // a's loop goes, c's comes; requests to a wait
	s.waitGpulets("b and c, loaded, without a", func(reps []plan.GpuletReport) bool {
		m := reps[0].Models
		return reps[0].State == plan.Ready && len(m) == 2 && m[0].Model == "b" && m[0].Loaded && m[1].Model == "c" && m[1].Loaded
	})
	s.waitAnswers(30)
	s.publish("g1 100 a b c")
	s.waitReady("g1")
	stop()
	s.waitAnswered()
	s.publish("g1 100") // lives on without a model
	s.waitReady("g1")
	agent.signal(syscall.SIGTERM)
	if code := agent.wait(); code != 0 {
		t.Errorf("exit code %d: expected 0", code)
	}
}

func TestStreamsReportOneFailureOfMany(t *testing.T) {
	s := newSite(t, "good", "corrupt")
	s.write("corrupt/1/model.pt", "PK not a model")
	s.register("corrupt")
	s.agent("--streams")
	s.publish("g1 100 corrupt good")
	reps := s.waitReady("g1")
	if m := reps[0].Models; len(m) != 2 || m[0].Loaded || !strings.Contains(reps[0].Detail, "corrupt") || !m[1].Loaded {
		t.Errorf("report %+v: expected that corrupt is not loaded, and why", reps[0])
	}
	s.send("good", 10)
	s.waitAnswered()
}

func TestAModelThatCannotBeServedIsReported(t *testing.T) {
	s := newSite(t, "good", "corrupt", "missing")
	s.write("corrupt/1/model.pt", "PK not a model")
	s.register("corrupt")
	if err := os.RemoveAll(filepath.Join(s.models, "missing")); err != nil {
		t.Fatal(err)
	}
	s.agent()
	s.publish("g1 100 good corrupt missing unheard")
	reps := s.waitGpulets("g1", func(reps []plan.GpuletReport) bool {
		return len(reps) == 1 && reps[0].State == plan.Ready && len(reps[0].Models) == 4
	})
	for i, want := range []string{"", "corrupt", "missing", "not registered"} {
		m := reps[0].Models[i]
		if m.Loaded != (want == "") || !strings.Contains(m.Error, want) {
			t.Errorf("%s: loaded %v, error %q: expected %q", m.Model, m.Loaded, m.Error, want)
		}
	}
	s.send("good", 10)
	s.waitAnswered()
	s.waitProblems("model corrupt", "model missing", "model unheard")

	// What was wrong is mended: it is served without anybody touching the plan.
	s.write("corrupt/1/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\n")
	s.register("corrupt")
	s.send("corrupt", 10)
	s.waitAnswered()
}

// waitProblems waits until the host reports problems that contain all of words.
func (s *site) waitProblems(words ...string) {
	s.t.Helper()
	for limit := time.Now().Add(60 * time.Second); ; {
		hosts, err := s.planner.Hosts(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		text := ""
		if len(hosts) > 0 {
			text = strings.Join(hosts[0].Problems, "\n")
		}
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) }) {
			return
		}
		if time.Now().After(limit) {
			s.t.Fatalf("waited 60s for problems with %q: %s", words, text)
		}
	}
}

func TestMeasuresItselfOnce(t *testing.T) {
	s := newSite(t, "a", "b")
	s.agent()
	waitProfiles := func(want map[string]string) []profile.Profile {
		t.Helper()
		for limit := time.Now().Add(60 * time.Second); ; {
			list, err := s.planner.Profiles(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, p := range list {
				got[p.Model] = p.ModelHash
			}
			if maps.Equal(want, got) {
				return list
			}
			if time.Now().After(limit) {
				t.Fatalf("waited 60s for profiles %v: %v", want, got)
			}
		}
	}
	hashes := map[string]string{"a": s.register("a").Hash, "b": s.register("b").Hash}
	for _, p := range waitProfiles(hashes) {
		if err := p.Validate(); err != nil || len(p.Points) < 4 || !strings.HasPrefix(p.GPUType, "cpu-") {
			t.Errorf("profile %+v, %v", p, err)
		}
	}
	s.agents[0].signal(syscall.SIGTERM)
	s.agents[0].wait()

	// The next agent finds them in the cache, but for the one whose archive has changed.
	s.write("b/1/model.pt", "gpulet-ref 1\n# new\ninput x FP32\naffine y FP32 0 2 x\n")
	hashes["b"] = s.register("b").Hash
	next := s.agent()
	waitProfiles(hashes)
	next.waitLog(`profile refused, measuring again.*model=b.*found a profile of the archive`)
	if text, _ := next.log.state(); regexp.MustCompile(`measuring again.*model=a`).MatchString(text) {
		t.Error("a was measured again")
	}
}

func TestServesSimulatedGPUs(t *testing.T) {
	s := newSite(t, "a")
	profiles := t.TempDir()
	p := &profile.Profile{Model: "a", GPUType: "h100", Points: []profile.Point{
		{Share: 20, Batch: 1, P50Ms: 2}, {Share: 20, Batch: 8, P50Ms: 4}, {Share: 100, Batch: 1, P50Ms: 1}, {Share: 100, Batch: 8, P50Ms: 2},
	}}
	if err := profile.Save(profiles, p); err != nil {
		t.Fatal(err)
	}
	s.agent("--device", "sim:h100x2", "--profiles", profiles)
	s.publish("g1 50 a")
	s.waitReady("g1")
	s.send("a", 20)
	s.waitAnswered()
	hosts, err := s.planner.Hosts(t.Context())
	if err != nil || len(hosts) != 1 || len(hosts[0].Devices) != 2 || !hosts[0].Devices[1].Sim || hosts[0].Devices[1].GPUType != "h100" {
		t.Errorf("hosts %+v, %v", hosts, err)
	}
}

func TestServesOnWhileTheBusIsAway(t *testing.T) {
	s := newSite(t, "a")
	agent := s.agent()
	s.publish("g1 100 a")
	reps := s.waitReady("g1")
	s.send("a", 5)
	s.waitAnswered()

	port, err := strconv.Atoi(s.srv.URL()[strings.LastIndexByte(s.srv.URL(), ':')+1:])
	if err != nil {
		t.Fatal(err)
	}
	back := make(chan struct{}, 1)
	s.client.OnReconnect(func() { back <- struct{}{} })
	embeddedtest.Stop(t, s.srv)
	agent.waitLog(`cannot report`)
	s.srv = embeddedtest.Start(t, embedded.Config{Port: port, StateDir: s.srv.StateDir()})
	for s.planner.EnsureBase(t.Context()) != nil { // what was in memory is gone; the planner makes it again
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
	}
	s.register("a")
	agent.waitLog(`reporting again`)
	select { // the agent may be back before the client is
	case <-back:
	case <-time.After(60 * time.Second):
		t.Fatal("waited 60s for the client to reconnect")
	}
	s.send("a", 5)
	s.waitAnswered()
	if now := s.waitReady("g1"); now[0].PID != reps[0].PID {
		t.Error("the gpu-let was restarted")
	}
}

func TestSaysWhatIsWrongAtTheStart(t *testing.T) {
	lib := enginetest.ReferenceLibrary(t)
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"device":      {[]string{"run", "--device", "tpu"}, 2, `device "tpu": expected auto, cuda, cpu or sim:`},
		"sim":         {[]string{"run", "--device", "sim:a100x2", "--profiles", t.TempDir()}, 1, "no profile of this GPU type"},
		"host":        {[]string{"run", "--host", "My Host"}, 2, `host "My Host": expected`},
		"engine":      {[]string{"run", "--engine", "onnx"}, 2, `engine "onnx": expected torch or ref`},
		"no library":  {[]string{"run", "--device", "cpu", "--engine", "torch", "--engine-lib", t.TempDir()}, 1, "make engine"},
		"no engine":   {[]string{"run", "--device", "cpu", "--engine", "torch", "--engine-lib", lib}, 1, "engine torch cannot be used"},
		"log level":   {[]string{"run", "--log-level", "loud"}, 2, `log level "loud"`},
		"gpulet id":   {[]string{"gpulet"}, 2, "--gpulet-id is missing"},
		"share":       {[]string{"profile", "--shares", "0"}, 2, "--shares: found 0"},
		"no model":    {[]string{"profile", "--device", "cpu", "--models", "nets", "--repository", t.TempDir()}, 1, "nets"},
		"no models":   {[]string{"profile", "--device", "cpu", "--repository", t.TempDir()}, 1, "no models in"},
		"measure sim": {[]string{"profile", "--device", "sim:h100"}, 2, "nothing to measure"},
	} {
		t.Run(name, func(t *testing.T) {
			p := worker(t, c.args...)
			if code := p.wait(); code != c.code {
				t.Errorf("exit code %d: expected %d", code, c.code)
			}
			if text, _ := p.log.state(); !strings.Contains(text, c.want) {
				t.Errorf("output lacks %q:\n%s", c.want, text)
			}
		})
	}
}

func TestProfileWritesWhatThePlannerReads(t *testing.T) {
	s := newSite(t, "a")
	out := t.TempDir()
	args := []string{
		"profile", "--quick", "--repository", s.models, "--out", out, "--device", "cpu", "--budget", "20ms", "--json",
		"--engine", "ref", "--engine-lib", enginetest.ReferenceLibrary(t),
	}
	var stdout bytes.Buffer
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), asWorker+"=1")
	cmd.Stdout = &stdout
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	var printed []profile.Profile
	if err := json.Unmarshal(stdout.Bytes(), &printed); err != nil || len(printed) != 1 {
		t.Fatalf("printed %q: %v", stdout.String(), err)
	}
	set, problems := profile.LoadDir(out)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p, ok := set.Get(printed[0].GPUType, "a")
	if !ok {
		t.Fatalf("no profile of a on %s: %v", printed[0].GPUType, set.Types())
	}
	if ms, err := p.Latency(100, 3); err != nil || ms <= 0 {
		t.Errorf("latency of a batch of 3: %v, %v", ms, err)
	}
}

func TestHelpShowsExamples(t *testing.T) {
	for _, c := range newRootCommand().Commands() {
		if !c.Hidden && c.Example == "" {
			t.Errorf("worker %s: no examples", c.Name())
		}
	}
	if newRunCommand().Flags().Lookup("metrics-addr").DefValue != ":8003" {
		t.Error("metrics are not on :8003 by default")
	}
}

func TestAProcessThatStandsByEndsWhenTold(t *testing.T) {
	cmd := exec.Command(os.Args[0], "standby", "--engine", "ref", "--engine-lib", enginetest.ReferenceLibrary(t))
	cmd.Env = append(os.Environ(), asWorker+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(60*time.Second, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	// More than a pipe holds: once that is written, it is being read.
	if _, err := in.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: expected success", err)
	}
}

func TestWhatStandsByOnACPUKnowsItsCores(t *testing.T) {
	// OpenMP reads these settings when the engine's library is loaded, and wastes cores without them.
	t.Setenv("OMP_WAIT_POLICY", "")
	args := standbyArgs(&runConfig{Engine: engineConfig{Engine: "ref", EngineLib: enginetest.ReferenceLibrary(t)}}, []int{0, 1})
	root := newRootCommand()
	root.SetIn(strings.NewReader(""))
	if code := cli.Run(t.Context(), root, args, io.Discard, os.Stderr); code != 0 {
		t.Fatalf("worker %s: exit code %d", args, code)
	}
	if got := os.Getenv("OMP_WAIT_POLICY"); got != "passive" {
		t.Errorf("OpenMP waits %q: expected passive", got)
	}
}

// TestEndsWithItsInput starts one gpu-let by hand: the end of its input ends it, whatever it does.
func TestEndsWithItsInput(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	// Nobody listens there: it is still trying to connect when its agent goes.
	cmd := exec.CommandContext(ctx, os.Args[0], "gpulet", "--gpulet-id", "a", "--engine", "ref",
		"--engine-lib", enginetest.ReferenceLibrary(t), "--nats-url", "nats://127.0.0.1:1", "--state-dir", t.TempDir())
	cmd.Env = append(os.Environ(), asWorker+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
