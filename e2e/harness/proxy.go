package harness

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy that stands for the network between a program and a server: it can be cut,
// stalled and healed. It needs no rights on the host.
type Proxy struct {
	target string
	ln     net.Listener
	done   sync.WaitGroup

	mu    sync.Mutex    // guards the fields below
	up    chan struct{} // closed while bytes pass to the server
	down  chan struct{} // and from it
	cut   bool
	conns map[net.Conn]bool
	ended bool
}

// window is the proxy's buffer towards the server, and what it asks of the kernel's: a stalled
// proxy soon takes nothing more.
const window = 32 << 10

// NewProxy starts a proxy to target, host:port; it ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: target, ln: ln, up: make(chan struct{}), down: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(p.up)
	close(p.down)
	p.done.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr is where to connect, host:port.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Cut breaks all connections; new ones are taken and go nowhere, as behind a firewall that drops.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for c := range p.conns {
		_ = c.Close()
	}
}

// Stall holds up every byte in both directions; connections stay open.
func (p *Proxy) Stall() { p.stall(&p.up, &p.down) }

// StallDown holds up what comes from the server: a program that is too slow to take it.
func (p *Proxy) StallDown() { p.stall(&p.down) }

func (p *Proxy) stall(gates ...*chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range gates {
		if open(*g) {
			*g = make(chan struct{})
		}
	}
}

// release ends every stall; p.mu is held.
func (p *Proxy) release() {
	for _, g := range []chan struct{}{p.up, p.down} {
		if !open(g) {
			close(g)
		}
	}
}

// Heal ends Cut, Stall and StallDown. Connections that were taken while the network was cut are broken: their
// first bytes are gone.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		for c := range p.conns {
			_ = c.Close()
		}
	}
	p.cut = false
	p.release()
}

func open(gate chan struct{}) bool {
	select {
	case <-gate:
		return true
	default:
		return false
	}
}

func (p *Proxy) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.done.Go(func() { p.serve(c) })
	}
}

// keep notes a connection; cut says whether the network is.
func (p *Proxy) keep(c net.Conn) (cut, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
	return p.cut, p.ended
}

func (p *Proxy) drop(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *Proxy) serve(c net.Conn) {
	defer p.drop(c)
	cut, ended := p.keep(c)
	if ended {
		return
	}
	if cut {
		_, _ = io.Copy(io.Discard, c) // until it is closed
		return
	}
	server, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		return
	}
	defer p.drop(server)
	if cut, ended := p.keep(server); cut || ended {
		return
	}
	if tcp, ok := server.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(window)
	}
	var both sync.WaitGroup
	both.Go(func() { p.copy(server, c, &p.up) })
	both.Go(func() { p.copy(c, server, &p.down) })
	both.Wait()
}

// copy passes bytes on while gate is open, and closes both ends when one ends.
func (p *Proxy) copy(to, from net.Conn, gate *chan struct{}) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, window)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			p.mu.Lock()
			pass := *gate
			p.mu.Unlock()
			<-pass
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) close() {
	_ = p.ln.Close()
	p.mu.Lock()
	p.ended = true
	for c := range p.conns {
		_ = c.Close()
	}
	p.release()
	p.mu.Unlock()
	p.done.Wait()
}
