package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// TestBadRequestsAreAnsweredAndHarmNobody sends every kind of bad request over HTTP and NATS while
// good requests go on: each gets a clear error, and no good one is lost or wrong.
func TestBadRequestsAreAnsweredAndHarmNobody(t *testing.T) {
	r := newRepository(t, "double", "twice")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double", "twice")
	loadgen := s.StartLoadgen(t, "--rates", "double=50,twice=50", "--duration", "8s")

	t.Run("HTTP", func(t *testing.T) { badOverHTTP(t, s) })
	t.Run("NATS", func(t *testing.T) { badOverNATS(t, s) })

	if code := loadgen.Wait(t); code != 0 {
		t.Errorf("good requests beside bad ones: loadgen exits with %d\n%s", code, loadgen.Tail(30))
	}
	allRight(t, "afterwards", load(t, s, "--rates", "double=50,twice=50", "--duration", "1s").Total)
}

const goodJSON = `{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}`

func badOverHTTP(t *testing.T, s *harness.System) {
	if code, body, err := harness.Post(s.HTTP+"/v2/models/double/infer", goodJSON); err != nil || code != http.StatusOK || !strings.Contains(body, "[2,4,6,8]") {
		t.Fatalf("a good request: HTTP status %d, %v: %s", code, err, body)
	}
	tensor := func(name, shape, dtype, data string) string {
		return fmt.Sprintf(`{"inputs":[{"name":%q,"shape":%s,"datatype":%q,"data":%s}]}`, name, shape, dtype, data)
	}
	for name, c := range map[string]struct {
		model, body string
		headers     []string
		code        int
		want        []string // in the error
	}{
		"unknown model":      {"nets", goodJSON, nil, 404, []string{`unknown model "nets"`}},
		"wrong dtype":        {"double", tensor("x", "[1,4]", "INT64", "[1,2,3,4]"), nil, 400, []string{`"x"`, "INT64", "expected FP32"}},
		"unknown dtype":      {"double", tensor("x", "[1,4]", "FP31", "[1,2,3,4]"), nil, 400, []string{"FP31", "FP32"}},
		"wrong shape":        {"double", tensor("x", "[1,5]", "FP32", "[1,2,3,4,5]"), nil, 400, []string{`"x"`, "[1 5]", "[batch 4]"}},
		"too few numbers":    {"double", tensor("x", "[1,4]", "FP32", "[1,2,3]"), nil, 400, []string{"3", "4"}},
		"wrong input":        {"double", tensor("z", "[1,4]", "FP32", "[1,2,3,4]"), nil, 400, []string{`"z"`, `"x"`}},
		"no input":           {"double", `{"inputs":[]}`, nil, 400, []string{`"x"`}},
		"NaN":                {"double", tensor("x", "[1,4]", "FP32", "[1,NaN,3,4]"), nil, 400, []string{"N"}},
		"huge dimension":     {"double", tensor("x", "[4611686018427387904,4]", "FP32", "[1]"), nil, 400, []string{"4611686018427387904", "too large"}},
		"negative dimension": {"double", tensor("x", "[-1,4]", "FP32", "[1,2,3,4]"), nil, 400, []string{"-1"}},
		"no JSON":            {"double", "inputs: none", nil, 400, nil},
		"expired deadline":   {"double", goodJSON, []string{wire.HeaderDeadline, "1000000"}, 504, []string{"deadline"}},
		"bad timeout":        {"double", goodJSON, []string{wire.HeaderTimeout, "soon"}, 400, []string{`"soon"`}},
		"binary cut short":   {"double", `{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}1234`, []string{"Inference-Header-Content-Length", "98"}, 400, nil},
	} {
		code, body, err := harness.Post(s.HTTP+"/v2/models/"+c.model+"/infer", c.body, c.headers...)
		if err != nil || code != c.code {
			t.Errorf("%s: HTTP status %d, %v, expected %d: %s", name, code, err, c.code, body)
			continue
		}
		var e struct {
			Error string `json:"error"`
		}
		if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error == "" {
			t.Errorf("%s: no error in %q", name, body)
		}
		for _, want := range c.want {
			if !strings.Contains(e.Error, want) {
				t.Errorf("%s: error %q, expected %s in it", name, e.Error, want)
			}
		}
	}
	big := tensor("x", "[600000,4]", "FP32", "["+strings.Repeat("1,", 2400000-1)+"1]") // 9.2 MiB of tensor
	code, body, err := harness.Post(s.HTTP+"/v2/models/double/infer", big)
	if err != nil || code != http.StatusRequestEntityTooLarge && code != http.StatusBadRequest || !strings.Contains(body, "expected at most") && !strings.Contains(body, "the server takes") {
		t.Errorf("9 MiB: HTTP status %d, %v: %.300s", code, err, body)
	}
}

// client sends single requests over NATS and takes their replies.
type client struct {
	bus     *bus.Bus
	inbox   *bus.Inbox
	replies chan bus.Reply
	sent    int
}

func newClient(t *testing.T, s *harness.System) *client {
	t.Helper()
	c := &client{bus: s.Bus(t, bus.RoleClient), replies: make(chan bus.Reply, 100)}
	var err error
	if c.inbox, err = c.bus.NewInbox(func(r bus.Reply) { c.replies <- r }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.inbox.Close)
	return c
}

// ask sends m and returns its reply.
func (c *client) ask(t *testing.T, m bus.Message) wire.Reply {
	t.Helper()
	c.sent++
	token := fmt.Sprintf("%s-%d", time.Now().Format("150405"), c.sent)
	m.RequestID, m.ReplyTo = token, c.inbox.Address(token)
	if err := c.bus.Publish(t.Context(), &m); err != nil {
		t.Fatalf("publish: %v", err)
	}
	for {
		select {
		case r := <-c.replies:
			if r.Token != token {
				continue // a second answer to an earlier request
			}
			reply, err := wire.DecodeReply(r.Get, r.Body)
			if err != nil {
				t.Fatalf("reply: %v", err)
			}
			return reply
		case <-time.After(harness.Patience):
			t.Fatalf("no reply to request %s within %v", token, harness.Patience)
		}
	}
}

func encode(t *testing.T, inputs ...tensor.Tensor) []byte {
	t.Helper()
	body, err := wire.EncodeRequest("", wire.Request{Inputs: inputs})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func badOverNATS(t *testing.T, s *harness.System) {
	c := newClient(t, s)
	good := vector(1, 2, 3, 4)
	with := func(change func(*tensor.Tensor)) []byte {
		bad := vector(1, 2, 3, 4)
		change(&bad)
		return encode(t, bad)
	}
	huge := append([]byte{}, encode(t, good)...)
	huge = []byte(strings.Replace(string(huge), "\x92\x01\x04", "\x92\xcf\x40\x00\x00\x00\x00\x00\x00\x00\x04", 1)) // [1 4] becomes [2^62 4]
	for name, req := range map[string]struct {
		message bus.Message
		status  wire.Status
		want    []string
	}{
		"good":             {bus.Message{Body: encode(t, good)}, wire.StatusOK, nil},
		"good JSON":        {bus.Message{ContentType: wire.TypeJSON, Body: []byte(goodJSON)}, wire.StatusOK, nil},
		"good raw":         {bus.Message{ContentType: wire.TypeRaw, Body: good.Data}, wire.StatusOK, nil},
		"not msgpack":      {bus.Message{Body: []byte("\xc1\xc1 garbage")}, wire.BadRequest, nil},
		"empty":            {bus.Message{Body: nil}, wire.BadRequest, nil},
		"cut short":        {bus.Message{Body: encode(t, good)[:20]}, wire.BadRequest, nil},
		"wrong dtype":      {bus.Message{Body: with(func(x *tensor.Tensor) { x.DType = tensor.INT32 })}, wire.BadRequest, []string{`"x"`, "INT32", "FP32"}},
		"wrong shape":      {bus.Message{Body: with(func(x *tensor.Tensor) { x.Shape = []int64{2, 2} })}, wire.BadRequest, []string{`"x"`, "[2 2]", "[batch 4]"}},
		"wrong input":      {bus.Message{Body: with(func(x *tensor.Tensor) { x.Name = "z" })}, wire.BadRequest, []string{`"z"`, `"x"`}},
		"huge dimension":   {bus.Message{Body: huge}, wire.BadRequest, nil},
		"unknown type":     {bus.Message{ContentType: "text/html", Body: []byte("<p>")}, wire.BadRequest, []string{"text/html"}},
		"expired deadline": {bus.Message{Body: encode(t, good), Deadline: time.Now().Add(-time.Second)}, wire.Expired, nil},
		"bad timeout":      {bus.Message{Body: encode(t, good), Header: map[string]string{wire.HeaderTimeout: "soon"}}, wire.BadRequest, []string{"soon"}},
	} {
		req.message.Model = "double"
		reply := c.ask(t, req.message)
		if reply.Status != req.status || req.status != wire.StatusOK && reply.Detail == "" {
			t.Errorf("%s: status %s (%q), expected %s with words", name, reply.Status, reply.Detail, req.status)
		}
		for _, want := range req.want {
			if !strings.Contains(reply.Detail, want) {
				t.Errorf("%s: detail %q, expected %s in it", name, reply.Detail, want)
			}
		}
	}
	nine := bus.Message{Model: "double", Body: make([]byte, 9<<20)}
	if err := c.bus.Publish(t.Context(), &nine); !errors.Is(err, bus.ErrTooLarge) || !strings.Contains(err.Error(), "8388608") {
		t.Errorf("9 MiB: error %v, expected too large with the limit", err)
	}
	nobody := bus.Message{Model: "nets", Body: encode(t, good)}
	if err := c.bus.Publish(t.Context(), &nobody); !errors.Is(err, bus.ErrUnavailable) && !errors.Is(err, bus.ErrUnknownModel) {
		t.Errorf("unknown model: error %v", err)
	}
}

func TestUnknownModelInLoadgen(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir})
	s.Planner.WaitEvent(t, "model registered")
	code, out := s.Loadgen(t, "--rates", "nets=5")
	if code != 2 || !strings.Contains(out, "model nets is not registered: expected one of double") {
		t.Errorf("exit %d\n%s", code, out)
	}
}
