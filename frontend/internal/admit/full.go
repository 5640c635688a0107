package admit

import (
	"fmt"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// Full remembers which queues were full a moment ago, so that under overload most requests are refused
// without a look at their body and without a way to the queue. It is safe for concurrent use; the zero
// value knows of none.
type Full struct {
	mu    sync.Mutex // guards until
	until map[string]time.Time
}

// A queue that is full holds most of what is answered within the model's timeout, so a small part of that
// passes without its running empty: all that is lost by refusing meanwhile is room for a few requests,
// which the next ones take. Longer than mostFull nobody should trust what was a moment ago.
const (
	momentOfTimeout = 50
	mostFull        = 50 * time.Millisecond
)

// Saw notes that the queue of m had no room for one more request.
func (f *Full) Saw(m *model.Model, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.until == nil {
		f.until = map[string]time.Time{}
	}
	f.until[m.Name] = now.Add(min(m.Timeout/momentOfTimeout, mostFull))
}

// Check refuses a request to m if its queue was full a moment ago.
func (f *Full) Check(m *model.Model, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !now.Before(f.until[m.Name]) {
		return nil
	}
	return &Refusal{Status: wire.Overloaded, Retry: time.Second, Detail: fmt.Sprintf("model %s: overloaded: its queue was full a moment ago", m.Name)}
}
