package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestWhatDoesNotStoreAResultNowMayLater(t *testing.T) {
	for err, passes := range map[error]bool{
		fmt.Errorf("publish: %w", context.DeadlineExceeded):       true, // the store says nothing
		apiError(&jetstream.APIError{ErrorCode: codeStoreFailed}): true,
		apiError(&jetstream.APIError{ErrorCode: codeNoResources}): true,
		ErrUnacknowledged: true,
		ErrTooLarge:       false,
		ErrConflict:       false,
	} {
		if got := notStored(err); errors.Is(got, ErrUnavailable) != passes || !errors.Is(got, err) {
			t.Errorf("%v becomes %v", err, got)
		}
	}
	if err := notStored(nil); err != nil {
		t.Error(err)
	}
}

func TestLateAcknowledgementsAreGivenUp(t *testing.T) {
	a := newAcks(nil)
	var got []error
	wait := func(age time.Duration) {
		a.next++
		a.waiting[a.next] = waitingAck{func(_ *nats.Msg, err error) { got = append(got, err) }, time.Now().Add(-age)}
	}
	wait(2 * ackTimeout)
	wait(0)
	a.expire()
	if len(got) != 1 || !errors.Is(got[0], ErrUnavailable) || len(a.waiting) != 1 || a.sweep == nil {
		t.Fatalf("given up %v, %d left, expected one each and another look at the rest", got, len(a.waiting))
	}
	a.sweep.Stop()
	a.fail(ErrClosed)
	a.expire()
	if len(got) != 2 || a.sweep != nil {
		t.Errorf("given up %v, expected no further look at nothing", got)
	}
}

func TestAcknowledgementsAreRead(t *testing.T) {
	for _, c := range []struct {
		header nats.Header
		body   string
		want   error
	}{
		{nil, `{"stream":"INFER_error","seq":1}`, nil},
		{nil, `{"stream":"INFER_m","seq":1,"duplicate":true}`, nil},
		{nats.Header{"Status": {"503"}}, "", ErrUnavailable},
		{nil, `{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"INFER_m","seq":0}`, ErrFull},
		{nil, `{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"INFER_m","seq":0}`, ErrOverloaded},
		{nil, `{"error":{"code":429,"err_code":10167,"description":"too many requests"}}`, ErrOverloaded},
		{nil, `{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}`, ErrTooLarge},
		{nil, `{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"}}`, ErrConflict},
		{nil, `{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}`, ErrUnavailable},
		{nil, `{"error":`, ErrUnavailable},
	} {
		err := ackError(&nats.Msg{Header: c.header, Data: []byte(c.body)})
		if !errors.Is(err, c.want) || errors.Is(err, ErrFull) != (c.want == ErrFull) {
			t.Errorf("%v %s: error %v, expected %v", c.header, c.body, err, c.want)
		}
	}
}

func TestReceiptsAreRead(t *testing.T) {
	for body, want := range map[string]Receipt{
		`{"stream":"INFER_m","seq":1}`:                                 {Seq: 1},
		`{"stream":"INFER_m", "seq":18446744073709551615}`:             {Seq: 1<<64 - 1},
		`{"stream":"INFER_m","seq":70,"duplicate": true}`:              {Seq: 70, Duplicate: true},
		`{"stream":"INFER_m","domain":"hub","seq":5,"duplicate":true}`: {Seq: 5, Duplicate: true},
		``: {},
	} {
		if got := readReceipt([]byte(body)); got != want {
			t.Errorf("%s: %+v, expected %+v", body, got, want)
		}
	}
}

func TestEndsOfPullsAreRead(t *testing.T) {
	for _, c := range []struct {
		status, description string
		want                error
	}{
		{"404", "No Messages", nil},
		{"408", "Request Timeout", nil},
		{"408", "Requests Pending", nil},
		{"409", "Message Size Exceeds MaxBytes", nil},
		{"409", "Batch Completed", nil},
		{"409", "Consumer Deleted", ErrUnavailable},
		{"409", "Leadership Change", ErrUnavailable},
		{"409", "Exceeded MaxWaiting", ErrUnavailable},
		{"423", "Nats-Wrong-Pin-Id", ErrUnavailable},
		{"503", "", ErrUnavailable},
	} {
		if err := statusError("m", c.status, c.description); !errors.Is(err, c.want) {
			t.Errorf("%s %s: error %v, expected %v", c.status, c.description, err, c.want)
		}
	}
	if err := statusError("m", "400", "Bad Request - Priority Group missing"); err == nil || !strings.Contains(err.Error(), "Priority Group missing") {
		t.Errorf("400: error %v, expected what the server said", err)
	}
}

func TestPullRequestsSayWhatTheyWant(t *testing.T) {
	p := &Puller{rank: 4, maxBytes: 1000}
	for want, got := range map[string][]byte{
		`{"batch":8,"expires":5000000000,"no_wait":true,"max_bytes":1000,"group":"workers","priority":4}`: p.request(8, true, 5*time.Second),
		`{"batch":3,"expires":2000000,"max_bytes":1000,"group":"workers","priority":0}`:                   p.request(3, false, 2*time.Millisecond),
		`{"batch":1,"no_wait":true,"max_bytes":1000,"group":"workers","priority":4}`:                      p.request(1, true, 0),
	} {
		if string(got) != want {
			t.Errorf("request %s, expected %s", got, want)
		}
	}
}

func TestOlderRevisionsAreIgnored(t *testing.T) {
	now := time.Now()
	at := func(rev uint64, after time.Duration) entry { return entry{rev: rev, created: now.Add(after)} }
	for _, c := range []struct {
		what     string
		e, old   entry
		expected bool
	}{
		{"the first", at(1, 0), entry{}, true},
		{"the next", at(6, 1), at(5, 0), true},
		{"the next of a leader whose clock is behind", at(6, -1), at(5, 0), true},
		{"the same", at(5, 0), at(5, 0), false},
		{"an older one from a replica that lags", at(4, -1), at(5, 0), false},
		{"the first of a bucket that was made anew", at(1, time.Second), at(5, 0), true},
	} {
		if got := c.e.newer(c.old); got != c.expected {
			t.Errorf("%s: newer is %v, expected %v", c.what, got, c.expected)
		}
	}
}

func TestErrorsOfTheClientLibrarySayWhatToBranchOn(t *testing.T) {
	for _, c := range []struct{ err, want error }{
		{nil, nil},
		{jetstream.ErrStreamNotFound, ErrNotFound},
		{jetstream.ErrConsumerNotFound, ErrNotFound},
		{jetstream.ErrBucketNotFound, ErrNotFound},
		{nats.ErrNoResponders, ErrUnavailable},
		{nats.ErrConnectionClosed, ErrUnavailable},
	} {
		if err := jsError(c.err); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%v becomes %v, expected %v", c.err, err, c.want)
		}
	}
}
