package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gpulet/gpulet/shared/wire"
)

// Message is a request to publish.
type Message struct {
	Model       string
	RequestID   string        // [A-Za-z0-9_-]{1,128}; empty: none
	ReplyTo     string        // an Inbox.Address; empty: the result is only stored
	ContentType string        // empty: application/msgpack
	Deadline    time.Time     // when the request is given up; zero: Timeout
	Timeout     time.Duration // from when it is stored; zero: the model's own
	Header      map[string]string
	Body        []byte
	// MsgID de-duplicates: within the queue's duplicate window, 10 s or more, a second message of the
	// same id is acknowledged and dropped. Keep it when re-publishing after a lost acknowledgement;
	// change it for a retry.
	MsgID string
	// Idempotent requests have one answer by RequestID, which is also their MsgID: the reply is kept as
	// a result, and when a publish turns out to be a duplicate, AwaitResult has the answer.
	Idempotent bool
}

// Receipt is what a queue says when it has a request.
type Receipt struct {
	Seq       uint64 // in the queue
	Duplicate bool   // it was stored before, under this MsgID
}

// Publish stores m in its model's queue and waits for the acknowledgement. Errors are
// ErrOverloaded, ErrUnavailable, ErrUnacknowledged (retry it with the same MsgID), ErrTooLarge, ErrUnknownModel or ctx's.
func (b *Bus) Publish(ctx context.Context, m *Message) error {
	msg, err := m.encode(b.nc.MaxPayload())
	if err != nil {
		return err
	}
	_, err = b.store(ctx, msg)
	return err
}

// PublishAsync sends m and returns; done is called exactly once, from another goroutine, when the
// message was stored (with a receipt) or refused. An error returned here means that nothing was sent and done
// will not be called. done must not block. m and its Body may be reused once PublishAsync returned.
func (b *Bus) PublishAsync(m *Message, done func(Receipt, error)) error {
	msg, err := m.encode(b.nc.MaxPayload())
	if err != nil {
		return err
	}
	_, err = b.storeAsync(msg, func(ack *nats.Msg, err error) {
		if err != nil {
			done(Receipt{}, err)
			return
		}
		done(readReceipt(ack.Data), nil)
	})
	return err
}

// store publishes to a stream, waits for the acknowledgement and returns it.
func (b *Bus) store(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	type result struct {
		ack *nats.Msg
		err error
	}
	acked := make(chan result, 1)
	id, err := b.storeAsync(msg, func(ack *nats.Msg, err error) { acked <- result{ack, err} })
	if err != nil {
		return nil, err
	}
	select {
	case r := <-acked:
		return r.ack, r.err
	case <-ctx.Done():
		b.acks.take(id)
		return nil, fmt.Errorf("publish to %s: %w", msg.Subject, ctx.Err())
	}
}

// storeAsync calls done exactly once unless it returns an error.
func (b *Bus) storeAsync(msg *nats.Msg, done func(*nats.Msg, error)) (id uint64, err error) {
	if !b.nc.IsConnected() {
		return 0, fmt.Errorf("%w: not connected to NATS", ErrUnavailable)
	}
	msg.Reply, id, err = b.acks.add(done)
	if err != nil {
		return 0, err
	}
	if err := b.nc.PublishMsg(msg); err != nil {
		if _, ours := b.acks.take(id); !ours {
			return id, nil // done has been told already
		}
		return 0, unavailable(err)
	}
	return id, nil
}

// encode checks m before anything is sent: a server that is sent too much closes the connection.
func (m *Message) encode(maxPayload int64) (*nats.Msg, error) {
	if err := CheckModel(m.Model); err != nil {
		return nil, err
	}
	h := make(nats.Header, 6+len(m.Header))
	for k, v := range m.Header {
		h[k] = []string{v}
	}
	set := func(key, value string) {
		if value != "" {
			h[key] = []string{value}
		}
	}
	if m.RequestID != "" {
		if err := CheckToken("request id", m.RequestID); err != nil {
			return nil, err
		}
		set(wire.HeaderRequestID, m.RequestID)
	}
	set(wire.HeaderReplyTo, m.ReplyTo)
	set(wire.HeaderType, m.ContentType)
	set(nats.MsgIdHdr, m.MsgID)
	if m.Idempotent {
		if m.RequestID == "" {
			return nil, errors.New("an idempotent request has no id: expected 1 to 128 of A-Z, a-z, 0-9, _ and -")
		}
		set(nats.MsgIdHdr, m.RequestID)
		set(wire.HeaderKeep, "true")
	}
	if !m.Deadline.IsZero() {
		set(wire.HeaderDeadline, wire.FormatDeadline(m.Deadline))
	} else if m.Timeout > 0 {
		set(wire.HeaderTimeout, m.Timeout.String())
	}
	msg := &nats.Msg{Subject: Subject(m.Model), Header: h, Data: m.Body}
	return msg, checkMsg(msg, maxPayload)
}

// newMsg is a checked message with plain headers.
func newMsg(subject string, header map[string]string, body []byte, maxPayload int64) (*nats.Msg, error) {
	msg := &nats.Msg{Subject: subject, Data: body}
	if len(header) > 0 {
		msg.Header = make(nats.Header, len(header))
		for k, v := range header {
			msg.Header[k] = []string{v}
		}
	}
	return msg, checkMsg(msg, maxPayload)
}

// checkMsg checks header names and the size with headers as it goes over the wire.
func checkMsg(msg *nats.Msg, maxPayload int64) error {
	size := int64(len(msg.Data))
	if len(msg.Header) > 0 {
		size += int64(len("NATS/1.0\r\n\r\n"))
	}
	for k, values := range msg.Header {
		if k == "" || strings.ContainsFunc(k, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }) {
			return fmt.Errorf("header %q: expected a name of printable ASCII without spaces and colons", k)
		}
		for _, v := range values {
			if strings.ContainsAny(v, "\r\n") {
				return fmt.Errorf("header %s: %q has a line break", k, v)
			}
			size += int64(len(k) + len(v) + len(": \r\n"))
		}
	}
	if maxPayload > 0 && size > maxPayload {
		return fmt.Errorf("%w: message of %d bytes to %s: the server takes %d", ErrTooLarge, size, msg.Subject, maxPayload)
	}
	return nil
}
