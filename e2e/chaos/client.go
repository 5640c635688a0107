package chaos

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

// patience is how much longer than its timeout a client waits for a request.
const patience = 3 * time.Second

// atOnce is how many requests a client sends again at once: who comes back with everything it waits
// for is a burden.
const atOnce = 20

// pause is how long a client waits before it sends again what was refused as unavailable.
const pause = 200 * time.Millisecond

// door is a way to send requests; Send does not block.
type door interface {
	Send(m Model, timeout time.Duration)
	// Close ends it; what is outstanding is given up.
	Close()
}

// busDoor is a client on the bus that follows docs/protocol.md: it publishes again, under the same
// message id, what was not acknowledged, and after a reconnect, under a new one, everything that has
// no answer yet: an answer may have come while nobody was there to take it, and under the old id the
// request would be taken for one that is dealt with. It takes the first answer of each request.
type busDoor struct {
	run    string
	ledger *Ledger
	bus    *bus.Bus
	inbox  *bus.Inbox
	stop   chan struct{}
	done   sync.WaitGroup

	mu      sync.Mutex // guards flights
	flights map[uint64]*flight
}

// flight is a request that is not settled.
type flight struct {
	model   Model
	timeout time.Duration
	ends    time.Time
	attempt int
	due     time.Time   // when it is to be published again; zero: not
	last    wire.Status // what the client was last told
}

func newBusDoor(b *bus.Bus, ledger *Ledger, run string) (*busDoor, error) {
	d := &busDoor{run: run, ledger: ledger, bus: b, stop: make(chan struct{}), flights: map[uint64]*flight{}}
	inbox, err := b.NewInbox(d.receive)
	if err != nil {
		return nil, err
	}
	d.inbox = inbox
	b.OnReconnect(d.reconnected)
	d.done.Go(d.sweep)
	return d, nil
}

func (d *busDoor) Send(m Model, timeout time.Duration) {
	seq := d.ledger.Open(m.Name)
	f := &flight{model: m, timeout: timeout, ends: time.Now().Add(timeout)}
	d.mu.Lock()
	d.flights[seq] = f
	d.mu.Unlock()
	d.publish(seq, f)
}

func (d *busDoor) publish(seq uint64, f *flight) {
	d.mu.Lock()
	f.due = time.Time{}
	attempt, left := f.attempt, time.Until(f.ends)
	d.mu.Unlock()
	if left <= 0 {
		return
	}
	body, err := wire.EncodeRequest(wire.TypeMsgpack, f.model.request(seq))
	if err != nil {
		panic(err) // the request is ours
	}
	id := requestID(d.run, seq)
	err = d.bus.PublishAsync(&bus.Message{
		Model: f.model.Name, RequestID: id, MsgID: id + "-" + strconv.Itoa(attempt),
		ReplyTo: d.inbox.Address(strconv.FormatUint(seq, 36)), Timeout: left, Body: body,
	}, func(_ bus.Receipt, err error) { d.acknowledged(seq, f, err) })
	if err != nil {
		d.acknowledged(seq, f, err)
	}
}

// acknowledged takes the queue's word on a publish.
func (d *busDoor) acknowledged(seq uint64, f *flight, err error) {
	if err == nil {
		d.ledger.Stored(seq)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil:
	case errors.Is(err, bus.ErrUnavailable):
		f.last, f.due = wire.Unavailable, time.Now().Add(pause)
	default:
		status := wire.Failed
		if errors.Is(err, bus.ErrOverloaded) {
			status = wire.Overloaded
		}
		delete(d.flights, seq)
		d.ledger.Answered(seq, status, false, "")
	}
}

// reconnected sends again, as another attempt, whatever is not answered.
func (d *busDoor) reconnected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.flights {
		f.due = time.Now().Add(pause)
		f.attempt++
	}
}

// sweep publishes again what is due and gives up what has waited too long.
func (d *busDoor) sweep() {
	tick := time.NewTicker(pause / 4)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case now := <-tick.C:
			for seq, f := range d.due(now) {
				d.ledger.SentAgain(seq)
				d.publish(seq, f)
			}
		}
	}
}

func (d *busDoor) due(now time.Time) map[uint64]*flight {
	d.mu.Lock()
	defer d.mu.Unlock()
	due := map[uint64]*flight{}
	for seq, f := range d.flights {
		switch {
		case now.After(f.ends.Add(patience)):
			delete(d.flights, seq)
			d.ledger.GivenUp(seq, f.last)
		case len(due) < atOnce && !f.due.IsZero() && now.After(f.due) && now.Before(f.ends):
			due[seq] = f
		}
	}
	return due
}

func (d *busDoor) receive(r bus.Reply) {
	seq, err := strconv.ParseUint(r.Token, 36, 64)
	if err != nil {
		return // not an address of ours
	}
	d.mu.Lock()
	f := d.flights[seq]
	delete(d.flights, seq)
	d.mu.Unlock()
	reply, err := wire.DecodeReply(r.Get, r.Body)
	if err != nil {
		d.ledger.Answered(seq, wire.StatusOK, true, err.Error())
		return
	}
	why := ""
	if f != nil && reply.Status == wire.StatusOK {
		why = f.model.judge(seq, floats(reply.Outputs))
	}
	d.ledger.Answered(seq, reply.Status, why != "", why)
}

func (d *busDoor) Close() {
	close(d.stop)
	d.done.Wait()
	d.inbox.Close()
}

// httpDoor is a client of the v2 API. It sends again what it could not deliver, or what came back as
// unavailable, until the request's timeout.
type httpDoor struct {
	url    string
	ledger *Ledger
	client *http.Client
	done   sync.WaitGroup
}

func newHTTPDoor(url string, ledger *Ledger) *httpDoor {
	return &httpDoor{url: url, ledger: ledger, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}}
}

func (d *httpDoor) Send(m Model, timeout time.Duration) {
	seq := d.ledger.Open(m.Name)
	d.done.Go(func() { d.call(seq, m, time.Now().Add(timeout)) })
}

func (d *httpDoor) call(seq uint64, m Model, ends time.Time) {
	var last wire.Status
	for attempt := 0; ; attempt++ {
		left := time.Until(ends)
		if left <= 0 {
			d.ledger.GivenUp(seq, last)
			return
		}
		if attempt > 0 {
			d.ledger.SentAgain(seq)
		}
		status, y, err := d.post(seq, m, left)
		switch {
		case err != nil: // the connection broke: the client knows
			last = wire.Unavailable
		case status == wire.Unavailable:
			last = status
		default:
			why := ""
			if status == wire.StatusOK {
				why = m.judge(seq, y)
			}
			d.ledger.Answered(seq, status, why != "", why)
			return
		}
		time.Sleep(pause)
	}
}

// v2Tensor is what of the API's tensors the suite needs.
type v2Tensor struct {
	Name     string    `json:"name"`
	Shape    []int     `json:"shape"`
	Datatype string    `json:"datatype"`
	Data     []float32 `json:"data"`
}

func (d *httpDoor) post(seq uint64, m Model, timeout time.Duration) (wire.Status, []float32, error) {
	body, err := json.Marshal(map[string]any{"inputs": []v2Tensor{{"x", []int{1, m.Width}, "FP32", m.question(seq)}}})
	if err != nil {
		return "", nil, err
	}
	req, err := http.NewRequest(http.MethodPost, d.url+"/v2/models/"+m.Name+"/infer", bytes.NewReader(body))
	if err != nil {
		return "", nil, err
	}
	req.Header.Set(wire.HeaderTimeout, timeout.String())
	client := *d.client
	client.Timeout = timeout + patience
	resp, err := client.Do(req)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", nil, err
	}
	if resp.StatusCode != http.StatusOK {
		status := wire.Status(resp.Header.Get(wire.HeaderStatus))
		if status == "" {
			return "", nil, fmt.Errorf("HTTP status %d without a status of ours", resp.StatusCode)
		}
		return status, nil, nil
	}
	var answer struct {
		Outputs []v2Tensor `json:"outputs"`
	}
	if err := json.Unmarshal(data, &answer); err != nil || len(answer.Outputs) != 1 {
		return wire.StatusOK, nil, nil // judged as wrong
	}
	return wire.StatusOK, answer.Outputs[0].Data, nil
}

func (d *httpDoor) Close() { d.done.Wait() }
