package bus

import "errors"

// Reply is an answer to a request.
type Reply struct {
	Token string // as given to Inbox.Address
	Body  []byte
	get   func(string) string
}

// Get returns a header of the reply, "" where it has none.
func (r Reply) Get(key string) string { return r.get(key) }

// Inbox receives the replies to a client's requests on one subscription.
type Inbox struct {
	prefix string
}

// NewInbox opens an inbox. receive is called for one reply after the other and must not block.
func (b *Bus) NewInbox(receive func(Reply)) (*Inbox, error) { return nil, errors.ErrUnsupported }

// Address is the reply subject of one request; token is [A-Za-z0-9_-]{1,128} and comes back with
// the reply.
func (i *Inbox) Address(token string) string { return i.prefix + "." + token }

// Close ends the subscription; receive is not called again once it returns.
func (i *Inbox) Close() {}
