package bus

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gpulet/gpulet/shared/wire"
)

// Msg is a fetched request. Exactly one of Ack, DoubleAck, Nak and Term ends it; without one it is
// delivered again after the queue's AckWait.
type Msg struct {
	Subject   string
	Data      []byte
	Seq       uint64    // in the model's queue
	Delivered int       // 1 for the first delivery
	Stored    time.Time // when the server stored it, by this host's clock; see CompareClocks
	Stamped   time.Time // the same by the server's clock: with Seq, it names the request on every host
	Pending   uint64    // requests behind it in the queue

	bus    *Bus
	nc     *nats.Conn
	reply  string // where acknowledgements go
	header nats.Header
}

func newFetched(b *Bus, m *nats.Msg) (*Msg, error) {
	meta, err := m.Metadata()
	if err != nil {
		return nil, fmt.Errorf("reply subject %q: %w", m.Reply, err)
	}
	return &Msg{
		Subject: Subject(modelOf(meta.Stream)), Data: m.Data, Seq: meta.Sequence.Stream,
		Delivered: int(meta.NumDelivered), Stored: b.local(meta.Timestamp), Stamped: meta.Timestamp,
		Pending: meta.NumPending, bus: b, nc: b.nc, reply: m.Reply, header: m.Header,
	}, nil
}

// Deadline is when the request is given up, by this host's clock: what its headers say, else
// fallback after it was stored. A header that cannot be read is an error for the client.
func (m *Msg) Deadline(fallback time.Duration) (time.Time, error) {
	at, err := wire.ResolveDeadline(m.Get, m.Stamped, fallback)
	return m.bus.local(at), err
}

// Get returns a header, "" where there is none.
func (m *Msg) Get(key string) string { return m.header.Get(key) }

// Ack says that the request is done. It does not wait: an acknowledgement that is lost means that
// the request is delivered again.
func (m *Msg) Ack() error { return m.tell("+ACK") }

// DoubleAck is an Ack that waits until the server has it; at most 5 s.
func (m *Msg) DoubleAck(ctx context.Context) error {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	if _, err := m.nc.RequestWithContext(ctx, m.reply, []byte("+ACK")); err != nil {
		return fmt.Errorf("acknowledge %s, sequence %d: %w", m.Subject, m.Seq, unavailable(err))
	}
	return nil
}

// Nak gives the request back, to be delivered again after delay.
func (m *Msg) Nak(delay time.Duration) error {
	if delay <= 0 {
		return m.tell("-NAK")
	}
	return m.tell(`-NAK {"delay":` + strconv.FormatInt(int64(delay), 10) + `}`)
}

// Term gives the request up for ever; write a dead letter before. reason is shown to operators.
func (m *Msg) Term(reason string) error {
	if reason == "" {
		return m.tell("+TERM")
	}
	return m.tell("+TERM " + oneLine(reason))
}

// InProgress restarts the AckWait.
func (m *Msg) InProgress() error { return m.tell("+WPI") }

func (m *Msg) tell(what string) error {
	if err := m.nc.Publish(m.reply, []byte(what)); err != nil {
		return fmt.Errorf("acknowledge %s, sequence %d: %w", m.Subject, m.Seq, unavailable(err))
	}
	return nil
}
