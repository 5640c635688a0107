package bus

import (
	"fmt"

	"github.com/nats-io/nats.go"
)

// Reply is an answer to a request.
type Reply struct {
	Token string // as given to Inbox.Address; empty for a stored result
	Body  []byte
	get   func(string) string
}

// Get returns a header of the reply, "" where it has none.
func (r Reply) Get(key string) string {
	if r.get == nil {
		return ""
	}
	return r.get(key)
}

// Inbox receives the replies to a client's requests on one subscription.
type Inbox struct {
	prefix string
	sub    *nats.Subscription
	done   chan struct{}
}

// NewInbox opens an inbox. receive is called for one reply after the other and must not block;
// it owns the reply's body. After a reconnect the inbox keeps its address; replies that were sent
// while the connection was down are lost.
func (b *Bus) NewInbox(receive func(Reply)) (*Inbox, error) {
	i := &Inbox{prefix: b.nc.NewInbox(), done: make(chan struct{})}
	skip := len(i.prefix) + 1
	sub, err := b.nc.Subscribe(i.prefix+".*", func(m *nats.Msg) {
		receive(Reply{Token: m.Subject[skip:], Body: m.Data, get: m.Header.Get})
	})
	if err != nil {
		return nil, fmt.Errorf("open inbox: %w", unavailable(err))
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, fmt.Errorf("open inbox: %w", unavailable(err))
	}
	sub.SetClosedHandler(func(string) { close(i.done) })
	i.sub = sub
	return i, b.Flush() // the server knows the inbox before the first request names it
}

// Address is the reply subject of one request; token is [A-Za-z0-9_-]{1,128} and comes back with
// the reply.
func (i *Inbox) Address(token string) string { return i.prefix + "." + token }

// Close ends the subscription; receive is not called again once it returns. It must not be called
// from receive.
func (i *Inbox) Close() {
	if i.sub.Unsubscribe() == nil {
		<-i.done
	}
}
