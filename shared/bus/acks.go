package bus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// acks matches the stream's acknowledgements to what was published, on one subscription.
//
// The client library has the same; this one takes no semaphore, makes no timer per message, and
// says at once when the connection was lost, after which no acknowledgement can come.
type acks struct {
	bus *Bus

	mu      sync.Mutex // guards the fields below
	sub     *nats.Subscription
	prefix  string // "<inbox>.<unique>."
	next    uint64
	waiting map[uint64]waitingAck
	sweep   *time.Timer
}

type waitingAck struct {
	done func(*nats.Msg, error) // the message only without an error
	sent time.Time
}

// ackTimeout is how long an acknowledgement may take: long enough for a cluster to elect a leader.
const ackTimeout = 5 * time.Second

func newAcks(b *Bus) *acks { return &acks{bus: b, waiting: map[uint64]waitingAck{}} }

// add registers done under a new reply subject.
func (a *acks) add(done func(*nats.Msg, error)) (reply string, id uint64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sub == nil {
		if err := a.subscribe(); err != nil {
			return "", 0, err
		}
	}
	a.next++
	a.waiting[a.next] = waitingAck{done, time.Now()}
	if a.sweep == nil {
		a.sweep = time.AfterFunc(ackTimeout, a.expire)
	}
	return a.prefix + strconv.FormatUint(a.next, 36), a.next, nil
}

func (a *acks) subscribe() error {
	inbox := a.bus.nc.NewInbox()
	sub, err := a.bus.nc.Subscribe(inbox+".*", a.receive)
	if err != nil {
		return unavailable(err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return unavailable(err)
	}
	a.sub, a.prefix = sub, inbox+"."
	return nil
}

// take removes a registration; ok is false when somebody else took it before.
func (a *acks) take(id uint64) (w waitingAck, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w, ok = a.waiting[id]
	delete(a.waiting, id)
	return w, ok
}

func (a *acks) receive(m *nats.Msg) {
	id, err := strconv.ParseUint(m.Subject[len(a.prefix):], 36, 64)
	if err != nil {
		return
	}
	if w, ok := a.take(id); ok {
		w.done(m, ackError(m))
	}
}

// fail ends everything that waits.
func (a *acks) fail(err error) { a.failWhere(err, func(waitingAck) bool { return true }) }

// expire ends what has waited too long and comes again while anything waits.
func (a *acks) expire() {
	oldest := time.Now().Add(-ackTimeout)
	a.failWhere(fmt.Errorf("%w within %v", ErrUnacknowledged, ackTimeout),
		func(w waitingAck) bool { return w.sent.Before(oldest) })
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) == 0 {
		a.sweep = nil
		return
	}
	a.sweep = time.AfterFunc(ackTimeout/10, a.expire)
}

func (a *acks) failWhere(err error, match func(waitingAck) bool) {
	a.mu.Lock()
	var failed []waitingAck
	for id, w := range a.waiting {
		if match(w) {
			failed = append(failed, w)
			delete(a.waiting, id)
		}
	}
	a.mu.Unlock()
	for _, w := range failed {
		w.done(nil, err)
	}
}

// ackError reads an acknowledgement.
func ackError(m *nats.Msg) error {
	if status := m.Header.Get("Status"); status != "" && len(m.Data) == 0 {
		return fmt.Errorf("%w (status %s)", ErrNotStored, status)
	}
	if !bytes.Contains(m.Data, []byte(`"error"`)) {
		return nil
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &ack); err != nil {
		return fmt.Errorf("%w: acknowledgement %.100q: %w", ErrUnavailable, m.Data, err)
	}
	return apiError(ack.Error)
}

// readReceipt reads an acknowledgement that is no error: {"stream":"S", "seq":7,"duplicate": true}. It
// comes with every request; a decoder would take longer than the rest of the acknowledgement.
func readReceipt(ack []byte) Receipt {
	value := func(key string) []byte {
		_, rest, _ := bytes.Cut(ack, []byte(key))
		return bytes.TrimLeft(rest, " ")
	}
	r := Receipt{Duplicate: bytes.HasPrefix(value(`"duplicate":`), []byte("true"))}
	for _, c := range value(`"seq":`) {
		if c < '0' || c > '9' {
			break
		}
		r.Seq = r.Seq*10 + uint64(c-'0')
	}
	return r
}

// Codes of JetStream errors that the client library does not name.
const (
	codeStoreFailed       = 10077 // limits of the stream
	codeTooManyRequests   = 10167
	codeNoResources       = 10023
	codeMemoryExceeded    = 10028
	codeStorageExceeded   = 10047
	codeAccountExceeded   = 10002
	codeWrongLastConstant = 10164
	codeSequenceNotFound  = 10043
)

// maxMsgsExceeded is how JetStream says which of a stream's limits was reached.
const maxMsgsExceeded = "maximum messages exceeded"

// apiError turns an error of JetStream into one that callers branch on.
func apiError(e *jetstream.APIError) error {
	if e == nil {
		return nil
	}
	kind := ErrUnavailable
	switch e.ErrorCode {
	case codeStoreFailed:
		kind = ErrOverloaded
		if e.Description == maxMsgsExceeded {
			kind = ErrFull
		}
	case codeTooManyRequests, codeNoResources, codeMemoryExceeded, codeStorageExceeded, codeAccountExceeded:
		kind = ErrOverloaded
	case jetstream.JSErrCodeStreamMessageExceedsMaximum:
		kind = ErrTooLarge
	case jetstream.JSErrCodeStreamWrongLastSequence, codeWrongLastConstant:
		kind = ErrConflict
	case jetstream.JSErrCodeStreamNotFound, jetstream.JSErrCodeConsumerNotFound, jetstream.JSErrCodeMessageNotFound:
		kind = ErrNotFound
	}
	return fmt.Errorf("%w: %s (JetStream error %d)", kind, e.Description, e.ErrorCode)
}

// jsError does the same for an error that the client library returned.
func jsError(err error) error {
	var js jetstream.JetStreamError
	if errors.As(err, &js) && js.APIError() != nil {
		return apiError(js.APIError())
	}
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted),
		errors.Is(err, jetstream.ErrBucketNotFound), errors.Is(err, jetstream.ErrStreamNotFound),
		errors.Is(err, jetstream.ErrNoKeysFound), errors.Is(err, jetstream.ErrMsgNotFound):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return unavailable(err)
}
