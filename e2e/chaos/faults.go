package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
)

// How long what is stopped or cut stays so.
const (
	stopFor  = 5 * time.Second
	cutFor   = 10 * time.Second
	fullFor  = 3 * time.Second
	skewFor  = 5 * time.Second
	skewBy   = 5 * time.Second
	planGap  = time.Second
	shortOne = 3 * time.Second // timeout of the requests that a wrong clock is to harm
)

// fault is a kind of fault.
type fault struct {
	kind string
	// told: requests may be answered with an error while it lasts. Others must all be answered ok.
	told bool
	// inject breaks something and mends it again; kinds that come in series mark the beginning of each
	// fault. An error says that the fault did not do what it is to do.
	inject func(s *site) error
}

// hold keeps a fault for as long as it is to last. The time is part of the fault, and nothing waits
// for something to happen meanwhile.
func hold(d time.Duration) { <-time.After(d) }

func killGpulet(s *site) error {
	g := s.anyGpulet()
	s.burst()
	return syscall.Kill(g.PID, syscall.SIGKILL)
}

func stopGpulet(s *site) error {
	g := s.anyGpulet()
	if err := syscall.Kill(g.PID, syscall.SIGSTOP); err != nil {
		return err
	}
	hold(stopFor)
	return syscall.Kill(g.PID, syscall.SIGCONT)
}

// burst sends many requests at once, so that what is killed next has its hands full.
func (s *site) burst() {
	const requests = 100
	for i := range requests {
		s.doors[0].Send(s.models[i%min(2, len(s.models))], s.timeout)
	}
}

func (s *site) anyGpulet() plan.GpuletReport {
	ready := s.ready(1)
	return ready[s.rng.IntN(len(ready))]
}

func (s *site) anyHost() *host { return s.hosts[s.rng.IntN(len(s.hosts))] }

// killAgent kills an agent alone; its gpu-lets notice.
func killAgent(s *site) error {
	h := s.anyHost()
	h.worker.Signal(syscall.SIGKILL)
	s.startWorker(h, "worker")
	return nil
}

// killHost kills an agent and all its gpu-lets at once, as a power failure does.
func killHost(s *site) error {
	h := s.anyHost()
	s.burst()
	h.worker.Kill()
	s.startWorker(h, "worker")
	return nil
}

func killPlanner(s *site) error {
	s.Planner.Kill()
	s.Planner = s.StartPlanner(s.t)
	s.Planner.WaitEvent(s.t, "connected to NATS")
	return nil
}

// killFrontend kills the frontend, and where NATS is inside it NATS too.
func killFrontend(s *site) error {
	s.burst()
	s.Frontend.Kill()
	args := []string{"--http-addr", strings.TrimPrefix(s.HTTP, "http://")}
	if len(s.nats) == 0 {
		_, port, _ := strings.Cut(s.target(), ":")
		args = append(args, "--nats-port", port)
	}
	s.Frontend = s.StartFrontend(s.t, args...)
	s.Frontend.WaitEvent(s.t, "frontend is up")
	return nil
}

func killNATS(s *site) error {
	s.burst()
	s.nats[0].Kill()
	s.nats[0].start(s.t)
	return nil
}

// stop is SIGSTOP, and after a while SIGCONT, of one program.
func stop(which func(*site) *harness.Process) func(*site) error {
	return func(s *site) error {
		p := which(s)
		p.Signal(syscall.SIGSTOP)
		hold(stopFor)
		p.Signal(syscall.SIGCONT)
		return nil
	}
}

func cutHost(s *site) error {
	h := s.anyHost()
	h.proxy.Cut()
	hold(cutFor)
	h.proxy.Heal()
	return nil
}

// stallHost lets no byte pass between a host and NATS for a while, and keeps the connections.
func stallHost(s *site) error {
	h := s.anyHost()
	h.proxy.Stall()
	hold(stopFor)
	h.proxy.Heal()
	return nil
}

// slowConsumer makes a client with large answers take none, until the server has cut it off.
func slowConsumer(s *site) error {
	before := s.nats[0].slowConsumers(s.t)
	s.slow.StallDown()
	defer s.slow.Heal()
	for range 150 { // 10 MB of answers
		s.doors[1].Send(s.models[len(s.models)-1], s.timeout)
	}
	harness.Eventually(s.t, "the server cuts the slow consumer off", func() error {
		if s.nats[0].slowConsumers(s.t) == before {
			return fmt.Errorf("it has not")
		}
		return nil
	})
	s.t.Logf("cut off after %v", s.ledger.Now()-s.marks[0])
	return nil
}

// changePlans publishes another plan each second: every gpu-let is replaced by one of another share.
func changePlans(n int) func(*site) error {
	return func(s *site) error {
		for i := range n {
			if i > 0 {
				hold(planGap)
			}
			s.mark()
			s.apply(s.shares()[s.made%2])
		}
		return nil
	}
}

// shares are two that gpu-lets of the site may have.
func (s *site) shares() [2]int {
	if strings.HasPrefix(s.device, "sim") {
		return [2]int{40, 60}
	}
	return [2]int{100, 50}
}

// killLeader kills the server that leads a model's queue. The others elect another.
func killLeader(s *site) error {
	name, err := s.leader(bus.StreamName(s.models[0].Name))
	if err != nil {
		return err
	}
	for i, n := range s.nats {
		if serverName(i) == name {
			n.Kill()
			hold(planGap) // clients and queues find another server meanwhile
			n.start(s.t)
			s.whole()
			return nil
		}
	}
	return fmt.Errorf("the leader is %q: expected one of the site's servers", name)
}

// fillDisk leaves the server no space for what it stores on disk. It then turns its JetStream off;
// an operator makes room and starts it again.
func fillDisk(s *site) error {
	filler := filepath.Join(s.store(), "filler")
	if err := fill(filler); err != nil {
		return err
	}
	hold(fullFor)
	if err := os.Remove(filler); err != nil {
		return err
	}
	s.nats[0].Kill()
	s.nats[0].start(s.t)
	return nil
}

// fill writes to a file until its disk is full.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 20; size >= 1; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return nil
}

// skewClock starts a host's worker anew with a clock that is five seconds off, ahead or behind in
// turn, and sends requests whose timeouts are shorter than that.
func skewClock(s *site) error {
	h := s.anyHost()
	off := [2]time.Duration{skewBy, -skewBy}[s.skews%2]
	s.skews++
	s.swap(h, skewed, fmt.Sprintf("%s=%d", clockVariable, int(off.Seconds())))
	s.t.Logf("the clock of host %s is off by %v", h.id, off)
	defer s.swap(h, "worker")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(skewFor); ; {
		select {
		case <-end:
			return nil
		case <-tick.C:
			s.doors[0].Send(s.models[0], shortOne)
		}
	}
}

// swap drains a host's worker and starts another program as the same host.
func (s *site) swap(h *host, program string, env ...string) {
	h.worker.Signal(syscall.SIGTERM)
	h.worker.Wait(s.t)
	s.startWorker(h, program, env...)
	s.serving()
}

func frontend(s *site) *harness.Process { return s.Frontend }
func planner(s *site) *harness.Process  { return s.Planner }
func server(s *site) *harness.Process   { return s.nats[0].Process }
func agent(s *site) *harness.Process    { return s.anyHost().worker }
