package bus

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/wire"
)

// documents are what buckets hold, and what JetStream reports.
func documents() []any {
	return []any{
		&plan.Plan{}, &plan.HostReport{}, &plan.GpuletReport{}, &plan.PlannerReport{}, &plan.StandbyReport{}, &plan.Lease{},
		&plan.Suspect{}, &model.Model{}, &profile.Profile{}, &advisory{},
	}
}

// FuzzDocuments: a value of a bucket that can be read can be written, and read again as the same.
func FuzzDocuments(f *testing.F) {
	for i, doc := range documents() {
		value, err := json.Marshal(doc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), "", "7", "2026-01-02T03:04:05.678Z", "", value)
	}
	f.Add(uint8(0), "404", "", "", "", []byte(nil))
	f.Add(uint8(0), "", "18446744073709551615", "2026-01-02T03:04:05Z", "DEL", []byte(nil))
	f.Add(uint8(0), "", "7", "2026-01-02T03:04:05Z", "", []byte(`{"gpulets":[{"id":"a","host":"h","share":5,"models":[{"model":"m","batch":1}]}],"unserved":{"x":1}}`))
	f.Add(uint8(7), "", "7", "2026-01-02T03:04:05Z", "", []byte(`{"name":"m","slo":5000000,"inputs":[{"name":"x","dtype":"FP32","shape":[-1,2]}]}`))
	f.Add(uint8(7), "", "0", "2026-01-02T3:04:05Z", "", []byte(`{"name":"m","slo":5000000,"inputs":[{"name":"x","dtyp":"FP32","shape":[-1,2]}]}`))
	f.Fuzz(func(t *testing.T, kind uint8, status, seq, stamp, op string, value []byte) {
		e, err := kvEntry("B", "k", &nats.Msg{Data: value, Header: nats.Header{
			"Status": {status}, headerSequence: {seq}, headerTime: {stamp}, headerKVOp: {op},
		}})
		if err != nil {
			return
		}
		all := documents()
		doc := all[int(kind)%len(all)]
		if json.Unmarshal(e.value, doc) != nil {
			return
		}
		written := marshal(t, doc)
		again := reflect.New(reflect.TypeOf(doc).Elem()).Interface()
		if err := json.Unmarshal(written, again); err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		if twice := marshal(t, again); !bytes.Equal(written, twice) {
			t.Fatalf("%s\n%s", written, twice)
		}
	})
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// FuzzLetter: a dead letter with whatever headers can be shown, and replayed as a request of its own:
// with nothing left of its death, and under another message id.
func FuzzLetter(f *testing.F) {
	f.Add("dlq.m", []byte("NATS/1.0\r\nGpulet-Request-Id: r\r\nGpulet-Attempt: 2\r\nNats-Msg-Id: r.attempt-2.x\r\nOther: 1\r\n\r\n"))
	f.Add("dlq.m", []byte("NATS/1.0\r\nGpulet-Timeout: 250ms\r\nGpulet-Body-Dropped: 9\r\nGpulet-Delivered: 5\r\n\r\n"))
	f.Add("", []byte("NATS/1.0 404 none\r\n\r\n"))
	f.Fuzz(func(t *testing.T, subject string, block []byte) {
		header, err := nats.DecodeHeadersMsg(block)
		if err != nil {
			return
		}
		l := newLetter(&jetstream.RawStreamMsg{Subject: subject, Sequence: 7, Header: header})
		m, err := l.Replay("")
		if (err != nil) != (l.Dropped > 0) {
			t.Fatalf("replayed with error %v, of its body %d bytes are missing", err, l.Dropped)
		}
		if err != nil {
			return
		}
		for _, key := range letterHeaders {
			if v, kept := m.Header[key]; kept && key != HeaderAttempt {
				t.Errorf("%s: %q is left", key, v)
			}
		}
		if m.MsgID == header.Get(nats.MsgIdHdr) {
			t.Errorf("the message id %q is that of the first attempt", m.MsgID)
		}
		if msg, err := m.encode(1 << 20); err == nil && msg.Header.Get(wire.HeaderRequestID) != l.RequestID {
			t.Errorf("request id %q, was %q", msg.Header.Get(wire.HeaderRequestID), l.RequestID)
		}
	})
}

// FuzzFetched: whatever a client put into the headers of a request, and whatever a reply subject says.
func FuzzFetched(f *testing.F) {
	f.Add("$JS.ACK.INFER_m.W.1.2.3.1700000000000000000.4", []byte("NATS/1.0\r\nGpulet-Deadline: 1700000000000000\r\n\r\n"))
	f.Add("$JS.ACK._.hash.INFER_m.W.1.2.3.1700000000000000000.4.x", []byte("NATS/1.0\r\nGpulet-Timeout: 250ms\r\n\r\n"))
	f.Add("$JS.ACK.INFER_m.W.1.2.3.-1.4", []byte("NATS/1.0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, reply string, block []byte) {
		header, err := nats.DecodeHeadersMsg(block)
		if err != nil {
			return
		}
		m, err := newFetched(&Bus{}, &nats.Msg{Subject: "infer.m", Reply: reply, Header: header, Sub: &nats.Subscription{}})
		if err != nil {
			return
		}
		at, err := m.Deadline(time.Second)
		if err == nil && m.Get(wire.HeaderDeadline) == "" && at.Before(m.Stored) {
			t.Errorf("given up %v before it was stored", m.Stored.Sub(at))
		}
	})
}

// FuzzAcknowledgement: whatever a server says of a publish.
func FuzzAcknowledgement(f *testing.F) {
	f.Add("", []byte(`{"stream":"INFER_m", "seq":18446744073709551615,"duplicate": true}`))
	f.Add("", []byte(`{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"INFER_m","seq":0}`))
	f.Add("503", []byte(nil))
	f.Fuzz(func(_ *testing.T, status string, body []byte) {
		_ = ackError(&nats.Msg{Header: nats.Header{"Status": {status}}, Data: body})
		readReceipt(body)
	})
}
