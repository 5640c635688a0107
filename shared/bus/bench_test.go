package bus_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/gpulet/gpulet/shared/bus"
)

var payloads = []int{1 << 10, 150 << 10}

// echo answers requests with their own body, as a worker without an engine would, until ctx ends.
// It pulls when it is free, and tops nothing up.
func echo(b *testing.B, s system, model string, batch int) {
	w := s.connect(b, bus.RoleWorker)
	events := make(chan bus.PullEvent, 2*batch)
	p, err := w.NewPuller(model, bus.PullerOptions{Events: events})
	if err != nil {
		b.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	b.Cleanup(func() {
		close(stop)
		<-done
	})
	go func() {
		defer close(done)
		defer p.Close()
		for {
			if err := p.Pull(batch, true, 30*time.Second); err != nil {
				b.Error(err)
				return
			}
			for ended := false; !ended; {
				select {
				case <-stop:
					return
				case e := <-events:
					ended = e.Ended
					if e.Err != nil {
						b.Error(e.Err)
						return
					}
					if e.Msg != nil {
						answer(b, w, e.Msg)
					}
				}
			}
		}
	}()
}

func answer(b *testing.B, w *bus.Bus, m *bus.Msg) {
	if err := w.Reply(m.Get("Gpulet-Reply-To"), map[string]string{"Gpulet-Status": "ok"}, m.Data); err != nil {
		b.Error(err)
	}
	if err := m.Ack(); err != nil {
		b.Error(err)
	}
}

// requester sends requests and gets their replies by token.
type requester struct {
	b       *testing.B
	bus     *bus.Bus
	inbox   *bus.Inbox
	mu      sync.Mutex // guards the fields below
	next    int
	waiting map[string]chan []byte
}

func newRequester(b *testing.B, s system) *requester {
	r := &requester{b: b, bus: s.connect(b, bus.RoleClient), waiting: map[string]chan []byte{}}
	in, err := r.bus.NewInbox(func(rep bus.Reply) {
		r.mu.Lock()
		ch := r.waiting[rep.Token]
		delete(r.waiting, rep.Token)
		r.mu.Unlock()
		if ch != nil {
			ch <- rep.Body
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(in.Close)
	r.inbox = in
	return r
}

// do sends one request and waits for its reply.
func (r *requester) do(model string, body []byte) error {
	ch := make(chan []byte, 1)
	r.mu.Lock()
	r.next++
	token := strconv.Itoa(r.next)
	r.waiting[token] = ch
	r.mu.Unlock()
	err := r.bus.PublishAsync(&bus.Message{Model: model, RequestID: token, ReplyTo: r.inbox.Address(token), Body: body}, func(_ bus.Receipt, err error) {
		if err != nil {
			r.b.Error(err)
		}
	})
	if err != nil {
		return err
	}
	select {
	case reply := <-ch:
		if len(reply) != len(body) {
			return fmt.Errorf("%d bytes came back of %d", len(reply), len(body))
		}
		return nil
	case <-time.After(patience):
		return fmt.Errorf("no reply within %v", patience)
	}
}

// coreEcho is the same over core NATS on a server without JetStream: what a round trip costs alone.
func coreEcho(b *testing.B) func(body []byte) error {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, MaxPayload: 8 << 20})
	if err != nil {
		b.Fatal(err)
	}
	srv.Start()
	b.Cleanup(srv.WaitForShutdown)
	b.Cleanup(srv.Shutdown)
	if !srv.ReadyForConnections(patience) {
		b.Fatal("server not ready")
	}
	var conns [2]*nats.Conn
	for i := range conns {
		if conns[i], err = nats.Connect(srv.ClientURL()); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(conns[i].Close)
	}
	if _, err := conns[0].Subscribe("echo", func(m *nats.Msg) {
		if err := m.Respond(m.Data); err != nil {
			b.Error(err)
		}
	}); err != nil {
		b.Fatal(err)
	}
	if err := conns[0].Flush(); err != nil {
		b.Fatal(err)
	}
	return func(body []byte) error {
		m, err := conns[1].Request("echo", body, patience)
		if err == nil && len(m.Data) != len(body) {
			err = fmt.Errorf("%d bytes came back of %d", len(m.Data), len(body))
		}
		return err
	}
}

// queueEcho is a request through a queue: publish, pull, reply, acknowledge.
func queueEcho(b *testing.B, batch int) func(body []byte) error {
	s := newSystem(b)
	s.queue(b, queueOf("m"))
	echo(b, s, "m", batch)
	r := newRequester(b, s)
	return func(body []byte) error { return r.do("m", body) }
}

// BenchmarkRoundTrip is one request at a time.
func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range payloads {
		for name, start := range roundTrips() {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				do, body := start(b), make([]byte, size)
				var took []time.Duration
				b.ReportAllocs()
				b.SetBytes(int64(size))
				for b.Loop() {
					began := time.Now()
					if err := do(body); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(began))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2])/1e3, "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100])/1e3, "p99-µs")
			})
		}
	}
}

// BenchmarkThroughput is 256 requests at a time.
func BenchmarkThroughput(b *testing.B) {
	const inFlight = 256
	for name, start := range roundTrips() {
		b.Run(name+"/1KiB", func(b *testing.B) {
			do, body := start(b), make([]byte, 1<<10)
			work := make(chan struct{})
			var wg sync.WaitGroup
			for range inFlight {
				wg.Go(func() {
					for range work {
						if err := do(body); err != nil {
							b.Error(err)
						}
					}
				})
			}
			b.ReportAllocs()
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
		})
	}
}

func roundTrips() map[string]func(*testing.B) func([]byte) error {
	return map[string]func(*testing.B) func([]byte) error{
		"core":  coreEcho,
		"queue": func(b *testing.B) func([]byte) error { return queueEcho(b, 64) },
	}
}

// BenchmarkPublish is what an acknowledged publish alone costs, many in flight.
func BenchmarkPublish(b *testing.B) {
	s := newSystem(b)
	q := queueOf("m")
	q.MaxMsgs, q.MaxAge = 1<<30, time.Second
	s.queue(b, q)
	c := s.connect(b, bus.RoleClient)
	m := &bus.Message{Model: "m", RequestID: "r", ReplyTo: "_INBOX_client.x.y", Body: make([]byte, 1<<10)}
	slots := make(chan struct{}, 1024)
	b.ReportAllocs()
	for b.Loop() {
		slots <- struct{}{}
		err := c.PublishAsync(m, func(_ bus.Receipt, err error) {
			if err != nil {
				b.Error(err)
			}
			<-slots
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
	if lag, err := s.planner.Lag(context.Background(), "m"); err != nil || lag.LastSeq != uint64(b.N) {
		b.Fatalf("lag %+v, %v, expected %d stored", lag, err, b.N)
	}
}
