// Package admit decides which requests enter the queue.
//
// What is refused here costs neither queue nor GPU. The checks are pure: they take values, among
// them the time, and return a Refusal that says what was found and what was expected.
package admit

import (
	"fmt"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// Refusal is why a request was not taken. Its text is for the client.
type Refusal struct {
	Status   wire.Status
	TooLarge bool          // a bad request for its size alone
	Retry    time.Duration // when it may be worth trying again; 0: never as it is
	Detail   string
}

func (r *Refusal) Error() string { return r.Detail }

// Refusef returns a Refusal with a formatted text.
func Refusef(status wire.Status, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Detail: fmt.Sprintf(format, args...)}
}

// BadRequest refuses a request because of err, which says what is wrong with it.
func BadRequest(err error) *Refusal { return &Refusal{Status: wire.BadRequest, Detail: err.Error()} }

// Body refuses a body of n bytes over limit.
func Body(n, limit int64) error {
	if n <= limit {
		return nil
	}
	return &Refusal{
		Status: wire.BadRequest, TooLarge: true,
		Detail: fmt.Sprintf("request body of %d bytes: expected at most %d", n, limit),
	}
}

// Bodies refuses a body that makes all bodies held at once n bytes, over limit.
func Bodies(n, limit int64) error {
	if n <= limit {
		return nil
	}
	return &Refusal{
		Status: wire.Overloaded, Retry: time.Second,
		Detail: fmt.Sprintf("request bodies of %d bytes are in flight: expected at most %d", n, limit),
	}
}

// headroom is what headers may add to a message: names, ids, addresses.
const headroom = 1024

// Message refuses an encoded request of n bytes that does not fit a message of maxPayload bytes.
func Message(n int, maxPayload int64) error {
	if int64(n)+headroom <= maxPayload {
		return nil
	}
	return &Refusal{
		Status: wire.BadRequest, TooLarge: true,
		Detail: fmt.Sprintf("body of %d bytes as queued: expected at most %d (the server's max_payload of %d less %d for headers)",
			n, maxPayload-headroom, maxPayload, headroom),
	}
}

// Tensors refuses a request whose inputs or wanted outputs are not those of m, or that has more
// samples than m takes. Inputs may come in every type that m's preprocess accepts.
func Tensors(req wire.Request, m *model.Model) error {
	samples, err := req.Check(m.Accepted())
	if err != nil {
		return BadRequest(fmt.Errorf("model %s: %w", m.Name, err))
	}
	if samples > int64(m.MaxBatch) {
		return Refusef(wire.BadRequest, "model %s: %d samples: expected at most %d, the model's max_batch", m.Name, samples, m.MaxBatch)
	}
	return outputs(req, m)
}

func outputs(req wire.Request, m *model.Model) error {
	if err := req.CheckOutputs(m.Outputs); err != nil {
		return BadRequest(fmt.Errorf("model %s: %w", m.Name, err))
	}
	return nil
}

// Image refuses an image for a model that takes none, and a choice of outputs (the value of
// wire.HeaderOutputs) that it does not have.
func Image(m *model.Model, chosen string) error {
	if _, err := m.ImageInput(); err != nil {
		return BadRequest(fmt.Errorf("model %s: %w", m.Name, err))
	}
	var req wire.Request
	if err := req.ChooseOutputs(chosen); err != nil {
		return BadRequest(err)
	}
	return outputs(req, m)
}

// Deadline returns when the request is given up: what its headers say, else its model's timeout
// from now; and never later than parameter from now, where that is not zero. A deadline that has
// passed is refused as expired, one that cannot be read, or is later than the model's queue keeps
// requests, as a bad request.
func Deadline(header func(string) string, parameter time.Duration, m *model.Model, now time.Time) (time.Time, error) {
	fallback := m.Timeout
	if parameter > 0 {
		fallback = parameter
	}
	at, err := wire.ResolveDeadline(header, now, fallback)
	if err != nil {
		return time.Time{}, BadRequest(err)
	}
	if end := now.Add(parameter); parameter > 0 && end.Before(at) {
		at = end
	}
	if !at.After(now) {
		return time.Time{}, Refusef(wire.Expired, "the deadline passed %v before the request came", now.Sub(at).Round(time.Microsecond))
	}
	if at.After(now.Add(m.MaxWait())) {
		return time.Time{}, Refusef(wire.BadRequest, "model %s: deadline %v from now: expected at most %v, the model's timeout plus %v",
			m.Name, at.Sub(now).Round(time.Millisecond), m.MaxWait(), model.QueueGrace)
	}
	return at, nil
}

// InFlight refuses one more request beyond limit of them.
func InFlight(n, limit int64) error {
	if n <= limit {
		return nil
	}
	return &Refusal{Status: wire.Overloaded, Retry: time.Second, Detail: fmt.Sprintf("%d requests are in flight: expected at most %d", n, limit)}
}
