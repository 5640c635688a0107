package harness

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo answers every byte with itself.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	return ln.Addr().String()
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// say sends a byte and reads it back.
func say(t *testing.T, c net.Conn, within time.Duration) error {
	t.Helper()
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(within))
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func TestProxyCutsAndHeals(t *testing.T) {
	p := NewProxy(t, echo(t))
	c := dial(t, p)
	if err := say(t, c, Patience); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if err := say(t, c, Patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a cut connection: %v, expected it to break", err)
	}
	lost := dial(t, p) // taken, and leads nowhere
	if err := say(t, lost, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection into a cut network: %v, expected silence", err)
	}
	p.Heal()
	if err := say(t, dial(t, p), Patience); err != nil {
		t.Errorf("healed: %v", err)
	}
}

func TestProxyStallsAndHeals(t *testing.T) {
	for name, stall := range map[string]func(*Proxy){"both ways": (*Proxy).Stall, "down": (*Proxy).StallDown} {
		p := NewProxy(t, echo(t))
		c := dial(t, p)
		if err := say(t, c, Patience); err != nil {
			t.Fatal(err)
		}
		stall(p)
		if err := say(t, c, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v, expected silence", name, err)
		}
		p.Heal()
		_ = c.SetReadDeadline(time.Now().Add(Patience))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("%s: healed: %v: what was held up is lost", name, err)
		}
	}
}
