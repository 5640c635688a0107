package bus_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

func protocol(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// examples are the code blocks of a kind.
func examples(t *testing.T, page, kind string) []string {
	t.Helper()
	var list []string
	for _, m := range regexp.MustCompile("(?s)```json "+kind+"\n(.*?)```").FindAllStringSubmatch(page, -1) {
		list = append(list, m[1])
	}
	if len(list) == 0 {
		t.Fatalf("the page has no examples of a %s", kind)
	}
	return list
}

func TestProtocolPageNamesEverything(t *testing.T) {
	page := protocol(t)
	names := []string{
		bus.Consumer, bus.PriorityGroup, bus.StreamResults, bus.StreamDLQ, bus.StreamAdvisories, bus.ConsumerBury,
		bus.BucketPlan, bus.BucketLease, bus.BucketState, bus.BucketModels, bus.BucketProfiles, bus.BucketSuspects, bus.KeyPlan, bus.KeyPlanner,
		bus.StreamName("<model>"), bus.Subject("<model>"), bus.DLQSubject("<model>"), bus.ResultSubject("<model>", "<request id>"), bus.CancelSubject("<model>", "<request id>"),
		bus.HeaderReason, bus.HeaderSubject, bus.HeaderSequence, bus.HeaderStored, bus.HeaderDelivered, bus.HeaderMsgID, bus.HeaderBodyDropped, bus.HeaderLastWords, bus.HeaderGpulet, bus.HeaderAttempt,
		wire.HeaderReplyTo, wire.HeaderRequestID, wire.HeaderDeadline, wire.HeaderTimeout, wire.HeaderPriority, wire.HeaderOutputs, wire.HeaderKeep, wire.HeaderStatus, wire.HeaderType,
		wire.TypeMsgpack, wire.TypeJSON, wire.TypeRaw,
		string(wire.StatusOK), string(wire.BadRequest), string(wire.UnknownModel), string(wire.Overloaded), string(wire.Unavailable),
		string(wire.Expired), string(wire.Cancelled), string(wire.Failed), string(wire.Poisoned),
	}
	for _, role := range bus.Roles() {
		names = append(names, string(role))
	}
	for d := tensor.FP32; d.Size() > 0; d++ {
		names = append(names, d.String())
	}
	for _, name := range names {
		if !regexp.MustCompile(`(^|[^A-Za-z0-9_-])` + regexp.QuoteMeta(name) + `($|[^A-Za-z0-9_-])`).MatchString(page) {
			t.Errorf("docs/protocol.md does not name %q", name)
		}
	}
}

func TestProtocolExamplesAreUnderstood(t *testing.T) {
	page := protocol(t)
	for _, text := range examples(t, page, "request") {
		req, err := wire.DecodeRequest("", []byte(text), nil, wire.Limits{})
		if err != nil || len(req.Inputs) == 0 {
			t.Errorf("%v in %s", err, text)
		}
	}
	for _, text := range examples(t, page, "reply") {
		rep, err := wire.DecodeReply(func(string) string { return "" }, []byte(text))
		if err != nil || (rep.Status == wire.StatusOK) != strings.Contains(text, "outputs") {
			t.Errorf("%+v, %v from %s", rep, err, text)
		}
	}
}

// The pulls that the page shows are those that a puller sends.
func TestProtocolPullsAreOurs(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	nc := s.raw(t, bus.RoleWorker)
	for i, text := range examples(t, protocol(t), "pull") {
		var shown map[string]any
		if err := json.Unmarshal([]byte(text), &shown); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"batch", "expires", "max_bytes", "group", "priority"} {
			if shown[key] == nil {
				t.Errorf("example %d lacks %s", i, key)
			}
		}
		if shown["group"] != bus.PriorityGroup || shown["max_bytes"] != float64(bus.MaxPullBytes) {
			t.Errorf("example %d: group %v, max_bytes %v", i, shown["group"], shown["max_bytes"])
		}
		publish(t, s.connect(t, bus.RoleClient), "m", 1)
		m, err := nc.Request("$JS.API.CONSUMER.MSG.NEXT."+bus.StreamName("m")+"."+bus.Consumer, []byte(text), patience)
		if err != nil || m.Header.Get("Status") != "" {
			t.Fatalf("example %d: the server answers %v, %v, expected a request", i, m, err)
		}
		if err := m.Respond([]byte("+ACK")); err != nil {
			t.Fatal(err)
		}
	}
}
