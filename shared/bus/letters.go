package bus

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/wire"
)

// Letter is a dead letter: a request that nobody will serve, and why.
type Letter struct {
	Seq       uint64 // of the letter
	Model     string
	RequestID string // empty: the client gave none
	Reason    string
	LastWords string // the end of the log of the process that died over it; empty: none did
	Gpulet    string // whose process that was
	Buried    time.Time
	Stored    time.Time // when the request was published; zero: not known
	Delivered int
	Attempt   int // 1, unless it was replayed before
	Dropped   int // size in bytes of a body for which there was no room; 0: Body is complete
	Body      []byte

	header nats.Header
}

// Header returns the request's own headers and those of the letter, by name.
func (l Letter) Header() map[string]string {
	h := make(map[string]string, len(l.header))
	for k := range l.header {
		h[k] = l.header.Get(k)
	}
	return h
}

// DeadLetters reads the dead letters of a model, or of all with model empty, oldest first. After an
// error there are no more. Planner and frontend only.
func (b *Bus) DeadLetters(ctx context.Context, model string) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		subject := "dlq.>"
		if model != "" {
			if err := CheckModel(model); err != nil {
				yield(Letter{}, err)
				return
			}
			subject = DLQSubject(model)
		}
		for seq := uint64(1); ; seq++ {
			l, err := b.letter(ctx, seq, jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, ErrNotFound) {
				return
			}
			if !yield(l, err) || err != nil {
				return
			}
			seq = l.Seq
		}
	}
}

// DeadLetterAt reads one dead letter; ErrNotFound when there is none of that number. Planner and
// frontend only.
func (b *Bus) DeadLetterAt(ctx context.Context, seq uint64) (Letter, error) {
	return b.letter(ctx, seq)
}

func (b *Bus) letter(ctx context.Context, seq uint64, opts ...jetstream.GetMsgOpt) (Letter, error) {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	stream, err := b.js.Stream(ctx, StreamDLQ)
	if err != nil {
		return Letter{}, named("dead letters", err)
	}
	msg, err := stream.GetMsg(ctx, seq, opts...)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Letter{}, fmt.Errorf("dead letter %d: %w", seq, ErrNotFound)
	}
	if err != nil {
		return Letter{}, named(fmt.Sprintf("dead letter %d", seq), err)
	}
	return newLetter(msg), nil
}

func newLetter(msg *jetstream.RawStreamMsg) Letter {
	h := msg.Header
	number := func(key string) int {
		n, _ := strconv.Atoi(h.Get(key)) // what others wrote may lack it
		return n
	}
	stored, _ := time.Parse(time.RFC3339Nano, h.Get(HeaderStored))
	return Letter{
		Seq: msg.Sequence, Model: strings.TrimPrefix(msg.Subject, DLQSubject("")), RequestID: h.Get(wire.HeaderRequestID),
		Reason: h.Get(HeaderReason), LastWords: h.Get(HeaderLastWords), Gpulet: h.Get(HeaderGpulet), Buried: msg.Time, Stored: stored,
		Delivered: number(HeaderDelivered), Attempt: max(1, number(HeaderAttempt)), Dropped: number(HeaderBodyDropped),
		Body: msg.Data, header: h,
	}
}

// CountDeadLetters counts the dead letters of each model that has any. Planner and frontend only.
func (b *Bus) CountDeadLetters(ctx context.Context) (map[string]uint64, error) {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	stream, err := b.js.Stream(ctx, StreamDLQ)
	if err != nil {
		return nil, named("dead letters", err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter("dlq.>"))
	if err != nil {
		return nil, named("dead letters", err)
	}
	counts := map[string]uint64{}
	for subject, n := range info.State.Subjects {
		counts[strings.TrimPrefix(subject, DLQSubject(""))] = n
	}
	return counts, nil
}

// DeleteDeadLetter takes one dead letter away; none is fine. Planner and frontend only.
func (b *Bus) DeleteDeadLetter(ctx context.Context, seq uint64) error {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	stream, err := b.js.Stream(ctx, StreamDLQ)
	if err == nil {
		err = stream.DeleteMsg(ctx, seq)
	}
	if gone(err) {
		return nil
	}
	return named(fmt.Sprintf("delete dead letter %d", seq), err)
}

// gone reports whether a message could not be deleted because it is not there any more. Streams in memory
// and on disk say it differently, and of what they say the client library keeps the text alone.
func gone(err error) bool {
	return err != nil && (errors.Is(err, jetstream.ErrMsgNotFound) || strings.Contains(err.Error(), "no message found") ||
		strings.Contains(err.Error(), fmt.Sprintf("err_code=%d ", codeSequenceNotFound)))
}

// letterHeaders are those of a request's death, which a replay leaves behind, and those of its first
// attempt that would be wrong for the next: its reply address, its deadline and its message id.
var letterHeaders = []string{
	HeaderReason, HeaderSubject, HeaderSequence, HeaderStored, HeaderDelivered, HeaderMsgID, HeaderLastWords, HeaderGpulet,
	HeaderBodyDropped, HeaderAttempt, wire.HeaderReplyTo, wire.HeaderDeadline, wire.HeaderTimeout, nats.MsgIdHdr,
}

// Replay is a dead letter as a request that may be published: the same body, headers and request id, one
// attempt further, with a message id of its own, so that no de-duplication takes it for the first, or for
// an earlier replay.
// The reply goes to replyTo; empty: it is only stored as a result, since the first client has long
// been answered. A letter without its body is an error.
func (l Letter) Replay(replyTo string) (*Message, error) {
	if l.Dropped > 0 {
		return nil, fmt.Errorf("dead letter %d: its body of %d bytes was dropped: it cannot be replayed", l.Seq, l.Dropped)
	}
	m := &Message{Model: l.Model, RequestID: l.RequestID, ReplyTo: replyTo, Body: l.Body, Header: l.Header()}
	for _, k := range append(letterHeaders, wire.HeaderRequestID) {
		delete(m.Header, k)
	}
	attempt := strconv.Itoa(l.Attempt + 1)
	m.Header[HeaderAttempt] = attempt
	m.MsgID = l.replayID() + ".attempt-" + attempt + "." + strconv.FormatInt(time.Now().UnixNano(), 36)
	return m, nil
}

// replayID is what all attempts of a letter have in common.
func (l Letter) replayID() string {
	id := l.header.Get(HeaderMsgID)
	if id == "" {
		id = l.header.Get(nats.MsgIdHdr)
	}
	if id == "" {
		id = l.Model + "." + strconv.FormatUint(l.Seq, 10)
	}
	id, _, _ = strings.Cut(id, ".attempt-")
	return id
}
