package chaos

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// timeout is that of requests: longer than any single fault lasts. A cluster may take long to find
// out that a server has gone, and to agree on another.
const (
	timeout        = 15 * time.Second
	clusterTimeout = 40 * time.Second
)

// models of the real engines' sites: queued in memory, on disk, and with large answers.
func models(timeout time.Duration) []Model {
	text := timeout.String()
	return []Model{
		{Name: "double", Factor: 2, Width: 4, Class: "interactive", Timeout: text, Answers: true},
		{Name: "triple", Factor: 3, Width: 4, Class: "offline", Timeout: text, Answers: true},
		{Name: "wide", Factor: 5, Width: 16 << 10, Class: "interactive", Timeout: text, Answers: true},
	}
}

// host is a worker's, with the network between it and NATS.
type host struct {
	id     string
	proxy  *harness.Proxy
	worker *harness.Process
	cache  string // of what it measured
}

// site is a running system, its NATS and its clients.
type site struct {
	*harness.System
	t        testing.TB
	models   []Model
	hosts    []*host
	nats     []*natsServer // none: NATS is in the frontend
	ledger   *Ledger
	rng      *rand.Rand
	seed     uint64
	engine   string
	device   string
	watch    *bus.Bus
	slow     *harness.Proxy // between the third client and NATS
	made     int            // plans
	memBytes int64          // what plans say that a gpu-let takes of its GPU
	timeout  time.Duration  // of every request
	skews    int            // clocks set off
	marks    []time.Duration
	layout   layout

	doors  []door
	ending chan struct{}
	load   sync.WaitGroup
}

// layout is what a site is made of.
type layout struct {
	engine, device string
	models         []Model
	nats           int    // servers of their own; 0: inside the frontend
	store          string // of the first server; empty: a folder of the test
	profiles       string
	batch          time.Duration // of a full batch on a whole GPU, where it is simulated
}

// newSite brings a system up: two hosts, each behind a network of its own.
func newSite(t testing.TB, l layout, seed uint64) *site {
	t.Helper()
	s := &site{
		t: t, models: l.models, ledger: NewLedger(), seed: seed, layout: l, timeout: timeout, engine: l.engine, device: l.device,
		rng: rand.New(rand.NewPCG(seed, 1)), ending: make(chan struct{}),
	}
	if l.nats > 0 {
		s.startNATS(l)
	}
	if l.nats > 1 {
		s.timeout = clusterTimeout
	}
	s.System = harness.Up(t, harness.Config{Models: s.repository(l), NATS: s.urls(), Profiles: l.profiles, PlannerArgs: s.replicas()})
	for _, id := range []string{"a", "b"} {
		h := &host{id: id, proxy: harness.NewProxy(t, s.target()), cache: t.TempDir()}
		s.hosts = append(s.hosts, h)
		s.startWorker(h, "worker")
	}
	s.watch = s.connect(s.target(), bus.RoleFrontend)
	for _, m := range s.models {
		s.WaitReady(t, m.Name)
	}
	return s
}

// startNATS starts l.nats servers, as a cluster where they are several.
func (s *site) startNATS(l layout) {
	var routes []string
	for range l.nats {
		routes = append(routes, freeAddr(s.t))
	}
	for i := range l.nats {
		cfg := natsConfig{name: serverName(i), store: l.store}
		if cfg.store == "" {
			cfg.store = s.t.TempDir()
		}
		if l.nats > 1 {
			cfg.cluster, cfg.routes = routes[i], routes
		}
		s.nats = append(s.nats, newNATS(s.t, cfg))
	}
}

// urls are all servers; "" where NATS is in the frontend.
func (s *site) urls() string {
	var urls []string
	for _, n := range s.nats {
		urls = append(urls, n.url())
	}
	return strings.Join(urls, ",")
}

func (s *site) replicas() []string {
	if len(s.nats) > 1 {
		return []string{"--replicas", fmt.Sprint(len(s.nats))}
	}
	return nil
}

// target is what a proxy leads to: the first server.
func (s *site) target() string {
	if len(s.nats) > 0 {
		return s.nats[0].addr
	}
	u, err := url.Parse(s.NATS)
	if err != nil {
		s.t.Fatal(err)
	}
	return u.Host
}

// repository writes the models, and where the engine is simulated their profiles.
func (s *site) repository(l layout) string {
	dir := s.t.TempDir()
	write := func(path, text string) {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, m := range l.models {
		write(m.Name+"/model.yaml", m.yaml())
		write(m.Name+"/1/model.pt", m.archive())
	}
	return dir
}

// startWorker starts the agent of h from program, on its network. Workers of a cluster know all
// servers, and need no network of their own to break.
func (s *site) startWorker(h *host, program string, env ...string) {
	address := "nats://" + h.proxy.Addr()
	if len(s.nats) > 1 {
		address = s.urls()
	}
	args := []string{
		"run", "--metrics-addr", "127.0.0.1:0", "--models", s.Models(), "--device", s.device, "--engine", s.engine, "--host", h.id,
		"--nats-url", address, "--state-dir", s.StateDir, "--profile-cache", h.cache, "--profile-budget", "500ms",
	}
	if p := s.Profiles(); p != "" {
		args = append(args, "--profiles", p)
	}
	h.worker = s.StartWith(s.t, env, program, args...)
}

// connect is a connection of the suite's own.
func (s *site) connect(addr string, role bus.Role) *bus.Bus {
	s.t.Helper()
	b, err := bus.Connect(s.t.Context(), bus.Config{URL: addr, StateDir: s.StateDir}, role, "chaos", slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(b.Close)
	return b
}

// open opens the doors and begins to send rate requests a second through them: a client on the bus,
// one of HTTP, and one on the bus behind a network of its own, which gets the large answers.
func (s *site) open(rate float64) {
	address := s.target()
	if len(s.nats) > 1 {
		address = s.urls()
	}
	s.slow = harness.NewProxy(s.t, s.target())
	for _, d := range []struct {
		addr string
		run  string
	}{{address, "m"}, {s.slow.Addr(), "s"}} {
		run := fmt.Sprintf("%s%x", d.run, s.seed)
		d, err := newBusDoor(s.connect(d.addr, bus.RoleClient), s.ledger, run)
		if err != nil {
			s.t.Fatal(err)
		}
		s.doors = append(s.doors, d)
	}
	s.doors = append(s.doors, newHTTPDoor(s.HTTP, s.ledger))
	rng := rand.New(rand.NewPCG(s.seed, 2))
	s.load.Go(func() { poisson(s.ending, rate, rng, func() { s.sendAny(rng) }) })
}

// poisson calls send at the times of a Poisson process until ending is closed, however long earlier
// calls took.
func poisson(ending <-chan struct{}, rate float64, rng *rand.Rand, send func()) {
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next = next.Add(time.Duration(rng.ExpFloat64() / rate * float64(time.Second)))
		timer.Reset(time.Until(next))
		select {
		case <-ending:
			return
		case <-timer.C:
		}
		send()
	}
}

// sendAny sends a request to any model, through any door but where answers are large.
func (s *site) sendAny(rng *rand.Rand) {
	m := s.models[rng.IntN(len(s.models))]
	through := s.doors[2*rng.IntN(2)] // the bus or HTTP
	if m.Width > 1<<10 {
		through = s.doors[1]
	}
	through.Send(m, s.timeout)
}

// close stops sending, waits until every request is settled, and ends the clients.
func (s *site) close() {
	close(s.ending)
	s.load.Wait()
	harness.Eventually(s.t, "every request is settled", func() error {
		if n := s.ledger.Waiting(); n > 0 {
			return fmt.Errorf("%d are not", n)
		}
		return nil
	})
	for _, d := range s.doors {
		d.Close()
	}
}

// calm waits until the service is undisturbed.
func (s *site) calm() {
	s.t.Helper()
	since := s.ledger.Now()
	harness.Eventually(s.t, "answers come undisturbed again", func() error {
		if !s.ledger.Calm(since) {
			return fmt.Errorf("%d requests wait; gpu-lets: %s", s.ledger.Waiting(), s.describe())
		}
		return nil
	})
}

func (s *site) describe() string {
	gpulets, err := s.watch.Gpulets(s.t.Context())
	if err != nil {
		return err.Error()
	}
	var words []string
	for _, g := range gpulets {
		words = append(words, fmt.Sprintf("%s %s", g.ID, g.State))
	}
	return strings.Join(words, ", ")
}

// ready waits until n gpu-lets report themselves ready and returns them.
func (s *site) ready(n int) []plan.GpuletReport {
	s.t.Helper()
	var ready []plan.GpuletReport
	harness.Eventually(s.t, fmt.Sprintf("%d gpu-lets are ready", n), func() error {
		all, err := s.watch.Gpulets(s.t.Context())
		if err != nil {
			return err
		}
		ready = nil
		for _, g := range all {
			if g.State == plan.Ready && alive(g.PID) {
				ready = append(ready, g)
			}
		}
		if len(ready) < n {
			return fmt.Errorf("%d are", len(ready))
		}
		return nil
	})
	return ready
}

// mark notes the beginning of a fault.
func (s *site) mark() { s.marks = append(s.marks, s.ledger.Now()) }

// alive reports whether a process runs; one that has ended and that nobody has waited for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ") // the program's name may hold anything else
	return !strings.HasPrefix(after, "Z")
}

// planBatch is the batch of every model in the suite's plans.
const planBatch = 8

// batchTime is what a full batch takes on share percent: as simulated, or about that of the reference
// engine.
func (s *site) batchTime(share int) time.Duration {
	if s.layout.batch == 0 {
		return time.Millisecond
	}
	return s.layout.batch * 100 / time.Duration(share)
}

func ms(d time.Duration) float64 { return 1e3 * d.Seconds() }

// simulatedProfiles is a folder with profiles that the simulated engine answers by: on the whole GPU
// a batch takes base and each of its samples each, on a share of it longer in proportion.
func simulatedProfiles(t testing.TB, models []Model, base, each time.Duration) string {
	t.Helper()
	dir := t.TempDir()
	for _, m := range models {
		p := &profile.Profile{Model: m.Name, GPUType: "h100"}
		for _, share := range []int{20, 50, 100} {
			for _, batch := range []int{1, 8} {
				whole := base + time.Duration(batch)*each
				p.Points = append(p.Points, profile.Point{Share: share, Batch: batch, P50Ms: 1e3 * whole.Seconds() * 100 / float64(share)})
			}
		}
		if err := profile.Save(dir, p); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// apply publishes a plan in which every host serves every model, each gpu-let with share.
func (s *site) apply(share int) {
	s.t.Helper()
	s.made++
	var p plan.Plan
	for _, h := range s.hosts {
		p.Gpulets = append(p.Gpulets, s.gpulet(h, share, s.models...))
	}
	s.publish(p)
}

// move publishes a plan in which every host serves one model, another one than in the plan before.
func (s *site) move(share int) {
	s.t.Helper()
	s.made++
	var p plan.Plan
	for i, h := range s.hosts {
		p.Gpulets = append(p.Gpulets, s.gpulet(h, share, s.models[(i+s.made)%len(s.models)]))
	}
	s.publish(p)
}

// gpulet is one of the plan that is being made.
func (s *site) gpulet(h *host, share int, models ...Model) plan.Gpulet {
	g := plan.Gpulet{ID: fmt.Sprintf("%s-0-%d-%d", h.id, share, s.made), Host: h.id, Share: share, MemBytes: s.memBytes}
	for _, m := range models {
		g.Models = append(g.Models, plan.Assignment{
			Model: m.Name, Batch: planBatch, ExecMs: ms(s.batchTime(share)), DutyMs: ms(s.batchTime(share)) * float64(len(models)),
			RateRPS: planBatch / (s.batchTime(share).Seconds() * float64(len(models))),
		})
	}
	return g
}

// publish publishes and pins a plan.
func (s *site) publish(p plan.Plan) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "plan.json")
	text, err := json.Marshal(p)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		s.t.Fatal(err)
	}
	cmd := s.Start(s.t, "planner", "apply", file, "--force", "--nats-url", s.NATS, "--state-dir", s.StateDir)
	if code := cmd.Wait(s.t); code != 0 {
		s.t.Fatalf("planner apply: exit %d\n%s", code, cmd.Tail(20))
	}
}

// serving waits until every gpu-let of the plan is ready.
func (s *site) serving() {
	s.t.Helper()
	harness.Eventually(s.t, "every gpu-let of the plan is ready", func() error {
		p, _, err := s.watch.GetPlan(s.t.Context())
		if err != nil {
			return err
		}
		reports, err := s.watch.Gpulets(s.t.Context())
		if err != nil {
			return err
		}
		ready := map[string]bool{}
		for _, g := range reports {
			ready[g.ID] = g.State == plan.Ready && alive(g.PID)
		}
		for _, g := range p.Gpulets {
			if !ready[g.ID] {
				return fmt.Errorf("%s is not; %v", g.ID, ready)
			}
		}
		return nil
	})
}
