package drive

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

// Publisher is the part of the bus that sending needs.
type Publisher interface {
	PublishAsync(m *bus.Message, done func(bus.Receipt, error)) error
	NewInbox(receive func(bus.Reply)) (*bus.Inbox, error)
}

// natsSender publishes requests into the models' queues and takes the replies on one inbox.
type natsSender struct {
	bus     Publisher
	inbox   *bus.Inbox
	sink    Sink
	run     string // starts every request id
	streams []natsStream
}

type natsStream struct {
	model  string
	bodies []natsBody
}

type natsBody struct {
	data        []byte
	contentType string            // empty: msgpack
	header      map[string]string // of an image: its choice of outputs
}

// NATS returns a Sender over the bus. run makes the request ids of this run its own:
// <run>-<stream>-<number>.
func NATS(b Publisher, run string, streams []Stream, sink Sink) (Sender, error) {
	s := &natsSender{bus: b, sink: sink, run: run}
	for _, st := range streams {
		ns := natsStream{model: st.Model}
		for i, it := range st.Items {
			if it.Image != nil {
				ns.bodies = append(ns.bodies, natsBody{it.Image, it.ContentType, imageHeaders(it)})
				continue
			}
			body, err := wire.EncodeRequest(wire.TypeMsgpack, it.Request)
			if err != nil {
				return nil, fmt.Errorf("model %s: request %d: %w", st.Model, i, err)
			}
			ns.bodies = append(ns.bodies, natsBody{data: body})
		}
		s.streams = append(s.streams, ns)
	}
	inbox, err := b.NewInbox(s.receive)
	if err != nil {
		return nil, err
	}
	s.inbox = inbox
	return s, nil
}

// imageHeaders are what an image's body has no place for.
func imageHeaders(it payload.Item) map[string]string {
	if len(it.Request.Outputs) == 0 {
		return nil
	}
	return map[string]string{wire.HeaderOutputs: strings.Join(it.Request.Outputs, ",")}
}

// Send implements Sender.
func (s *natsSender) Send(r Request) {
	st := &s.streams[r.Stream]
	body := st.bodies[r.Item]
	token := token(r.Stream, r.Seq)
	id := s.run + "-" + token
	s.sink.Left(r.Stream, r.Seq, time.Now())
	err := s.bus.PublishAsync(&bus.Message{
		Model: st.model, RequestID: id, MsgID: id,
		ReplyTo: s.inbox.Address(token), Timeout: r.Timeout,
		ContentType: body.contentType, Header: body.header, Body: body.data,
	}, func(_ bus.Receipt, err error) {
		if err != nil {
			s.sink.Refused(r.Stream, r.Seq, statusOf(err), err.Error(), !errors.Is(err, bus.ErrUnavailable))
		}
	})
	if err != nil {
		s.sink.Refused(r.Stream, r.Seq, statusOf(err), err.Error(), true)
	}
}

// statusOf is the error code that stands for an error of a publish.
func statusOf(err error) wire.Status {
	switch {
	case errors.Is(err, bus.ErrOverloaded):
		return wire.Overloaded
	case errors.Is(err, bus.ErrUnknownModel):
		return wire.UnknownModel
	case errors.Is(err, bus.ErrTooLarge):
		return wire.BadRequest
	default:
		return wire.Unavailable
	}
}

func (s *natsSender) receive(r bus.Reply) {
	at := time.Now()
	stream, seq, ok := parseToken(r.Token, len(s.streams))
	if !ok {
		return // not an address of ours: nothing was sent under it
	}
	reply, err := wire.DecodeReply(r.Get, r.Body)
	if err != nil {
		reply = wire.Reply{Status: wire.Failed, Detail: err.Error()}
	}
	s.sink.Answered(stream, seq, at, reply)
}

// Close implements Sender.
func (s *natsSender) Close() { s.inbox.Close() }

// token names a request within its run, in the characters that an inbox takes.
func token(stream int, seq uint64) string {
	b := strconv.AppendInt(make([]byte, 0, 16), int64(stream), 36)
	b = append(b, '-')
	return string(strconv.AppendUint(b, seq, 36))
}

func parseToken(t string, streams int) (stream int, seq uint64, ok bool) {
	a, b, ok := strings.Cut(t, "-")
	i, err := strconv.ParseUint(a, 36, 31)
	seq, err2 := strconv.ParseUint(b, 36, 64)
	if !ok || err != nil || err2 != nil || i >= uint64(streams) {
		return 0, 0, false
	}
	return int(i), seq, true
}
