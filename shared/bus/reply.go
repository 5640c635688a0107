package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/wire"
)

// Reply sends an answer to a request's Gpulet-Reply-To. It does not wait; an address outside the
// inboxes is an error, and so is a reply that is too large (ErrTooLarge). During a reconnect up
// to 8 MiB of replies are kept and sent afterwards.
func (b *Bus) Reply(to string, header map[string]string, body []byte) error {
	if !isInbox(to) {
		return fmt.Errorf("reply address %q: expected an inbox such as %s.xyz", to, InboxPrefix(RoleClient))
	}
	msg, err := newMsg(to, header, body, b.nc.MaxPayload())
	if err != nil {
		return err
	}
	if err := b.nc.PublishMsg(msg); err != nil {
		return fmt.Errorf("reply to %s: %w", to, unavailable(err))
	}
	return nil
}

// StoreResult stores an answer for 15 minutes under result.<model>.<request id> and waits for the
// acknowledgement, at most 5 s. The first result of a request stands: another one is not stored, which
// is no error. Only "poisoned" gives way, to the result of a dead letter that is tried again. Errors are
// ErrUnavailable, after which another try may succeed, ErrTooLarge, or that of a name or a header that no
// try can store.
func (b *Bus) StoreResult(model, requestID string, header map[string]string, body []byte) error {
	if err := checkResult(model, requestID); err != nil {
		return err
	}
	ctx, cancel := apiContext(context.Background())
	defer cancel()
	err := b.storeOver(ctx, 0, model, requestID, header, body)
	if errors.Is(err, ErrConflict) {
		err = b.storeAgain(ctx, model, requestID, header, body)
	}
	if err != nil {
		return fmt.Errorf("store result %s of %s: %w", requestID, model, err)
	}
	return nil
}

// storeOver stores a result in the place of the one with sequence seq; 0: of none.
func (b *Bus) storeOver(ctx context.Context, seq uint64, model, requestID string, header map[string]string, body []byte) error {
	msg, err := newMsg(ResultSubject(model, requestID), header, body, 0)
	if err != nil {
		return err
	}
	if msg.Header == nil {
		msg.Header = nats.Header{}
	}
	msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(seq, 10))
	if err := checkMsg(msg, b.nc.MaxPayload()); err != nil {
		return err
	}
	_, err = b.store(ctx, msg)
	return notStored(err)
}

// notStored says of an error of the store that it passes: also when the store has no room, or says nothing
// in time.
func notStored(err error) error {
	if err == nil || errors.Is(err, ErrConflict) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// storeAgain stores a result where there is one already, if that one gives way.
func (b *Bus) storeAgain(ctx context.Context, model, requestID string, header map[string]string, body []byte) error {
	old, err := b.Result(ctx, model, requestID)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: another result came and went", ErrUnavailable)
	}
	if err != nil || old.Get(wire.HeaderStatus) != string(wire.Poisoned) {
		return err
	}
	seq, err := strconv.ParseUint(old.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return fmt.Errorf("%w: header %s: %w", ErrUnavailable, jetstream.SequenceHeader, err)
	}
	if err := b.storeOver(ctx, seq, model, requestID, header, body); !errors.Is(err, ErrConflict) {
		return err
	}
	return nil // somebody else was faster
}

func checkResult(model, requestID string) error {
	if err := CheckModel(model); err != nil {
		return err
	}
	return CheckToken("request id", requestID)
}

// Result reads a stored answer; ErrNotFound when there is none (yet, or any more).
func (b *Bus) Result(ctx context.Context, model, requestID string) (Reply, error) {
	if err := checkResult(model, requestID); err != nil {
		return Reply{}, err
	}
	if !b.nc.IsConnected() {
		return Reply{}, fmt.Errorf("result %s of %s: %w: not connected to NATS", requestID, model, ErrUnavailable)
	}
	ctx, cancel := apiContext(ctx)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+StreamResults+"."+ResultSubject(model, requestID), nil)
	if err != nil {
		return Reply{}, fmt.Errorf("result %s of %s: %w", requestID, model, unavailable(err))
	}
	switch status := m.Header.Get("Status"); status {
	case "":
		return Reply{Body: m.Data, get: m.Header.Get}, nil
	case "404":
		return Reply{}, fmt.Errorf("result %s of %s: %w", requestID, model, ErrNotFound)
	default:
		return Reply{}, fmt.Errorf("result %s of %s: %w: status %s %s", requestID, model, ErrUnavailable,
			status, m.Header.Get("Description"))
	}
}

// How often AwaitResult looks: at once, and then at growing intervals.
const (
	firstLook = time.Millisecond
	lastLook  = 50 * time.Millisecond
)

// AwaitResult reads a stored answer and waits for it until ctx ends; the bus may be away meanwhile.
func (b *Bus) AwaitResult(ctx context.Context, model, requestID string) (Reply, error) {
	if err := checkResult(model, requestID); err != nil {
		return Reply{}, err
	}
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		r, err := b.Result(ctx, model, requestID)
		if err == nil {
			return r, nil
		}
		if lifecycle.Sleep(ctx, wait) != nil {
			return Reply{}, fmt.Errorf("await result: %w", err)
		}
	}
}

// DeadLetter keeps a request that nobody will serve, with its headers, the reason and extra
// headers, in dlq.<model>, and waits for the acknowledgement. Call it before Msg.Term. The same
// request buried twice within two minutes is kept once.
func (b *Bus) DeadLetter(ctx context.Context, model string, msg *Msg, reason string, extra map[string]string) error {
	return b.bury(ctx, letter{
		model: model, subject: msg.Subject, seq: msg.Seq, delivered: msg.Delivered, stored: msg.Stamped,
		header: msg.header, body: msg.Data, reason: reason, extra: extra,
	})
}

type letter struct {
	model, subject, reason string
	seq                    uint64
	delivered              int
	stored                 time.Time
	header                 nats.Header
	extra                  map[string]string
	body                   []byte
}

func (b *Bus) bury(ctx context.Context, l letter) error {
	if err := CheckModel(l.model); err != nil {
		return err
	}
	msg := &nats.Msg{Subject: DLQSubject(l.model), Data: l.body, Header: l.headers()}
	if err := checkMsg(msg, b.nc.MaxPayload()); err != nil {
		// A request near the limit has no room for more headers: the reason matters more.
		msg.Data = nil
		msg.Header.Set(HeaderBodyDropped, strconv.Itoa(len(l.body)))
	}
	ctx, cancel := apiContext(ctx)
	defer cancel()
	if _, err := b.store(ctx, msg); err != nil {
		return fmt.Errorf("dead letter of %s, sequence %d: %w", l.model, l.seq, err)
	}
	return nil
}

// natsHeaders is what the headers begin with that speak to JetStream, or come from the server. A request's
// own were meant for its queue: that it expects to be in a certain stream, at a certain place.
const natsHeaders = "Nats-"

func (l letter) headers() nats.Header {
	h := nats.Header{}
	for k, v := range l.header {
		if k != HeaderLastWords && k != HeaderGpulet && k != HeaderBodyDropped && !strings.HasPrefix(k, natsHeaders) { // those are ours to say
			h[k] = v
		}
	}
	for k, v := range l.extra {
		h.Set(k, oneLine(v))
	}
	if id := l.header.Get(nats.MsgIdHdr); id != "" {
		h.Set(HeaderMsgID, id)
	}
	h.Set(HeaderReason, oneLine(l.reason))
	h.Set(HeaderSubject, l.subject)
	h.Set(HeaderSequence, strconv.FormatUint(l.seq, 10))
	h.Set(HeaderDelivered, strconv.Itoa(l.delivered))
	h.Set(HeaderStored, l.stored.UTC().Format(time.RFC3339Nano))
	h.Set(nats.MsgIdHdr, fmt.Sprintf("%s.%d.%d", l.model, l.seq, l.stored.UnixNano()))
	return h
}

func oneLine(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' {
			b[i] = ' '
		}
	}
	return string(b)
}
