package frontendcmd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// graveyard is a system with dead letters.
type graveyard struct {
	*frontendtest.System
	t      *testing.T
	worker *bus.Bus
}

func newGraveyard(t *testing.T) *graveyard {
	other := frontendtest.Toy()
	other.Name = "other"
	s := frontendtest.Start(t, frontendtest.Toy(), other)
	return &graveyard{s, t, embeddedtest.Connect(t, s.NATS, bus.RoleWorker)}
}

// bury makes a dead letter of a request, good or bad.
func (g *graveyard) bury(model, id, reason string, good bool) {
	g.t.Helper()
	body := []byte{0xc1} // not msgpack
	if good {
		var err error
		if body, err = wire.EncodeRequest(wire.TypeMsgpack, wire.Request{Inputs: []tensor.Tensor{
			{Name: "x", DType: tensor.FP32, Shape: []int64{1, 2}, Data: frontendtest.Floats(1, 2)},
		}}); err != nil {
			g.t.Fatal(err)
		}
	}
	if err := g.Bus.Publish(g.t.Context(), &bus.Message{Model: model, RequestID: id, MsgID: id, ReplyTo: "_INBOX_client.gone", Body: body}); err != nil {
		g.t.Fatal(err)
	}
	events := make(chan bus.PullEvent, 4)
	p, err := g.worker.NewPuller(model, bus.PullerOptions{Events: events})
	if err != nil {
		g.t.Fatal(err)
	}
	defer p.Close()
	if err := p.Pull(1, true, time.Minute); err != nil {
		g.t.Fatal(err)
	}
	msg := (<-events).Msg
	extra := map[string]string{bus.HeaderLastWords: "SIGSEGV", bus.HeaderGpulet: "h-0-50"}
	if err := g.worker.DeadLetter(g.t.Context(), model, msg, reason, extra); err != nil {
		g.t.Fatal(err)
	}
	if err := msg.Ack(); err != nil {
		g.t.Fatal(err)
	}
}

func (g *graveyard) run(args ...string) (code int, out, stderr string) {
	g.t.Helper()
	var o, e bytes.Buffer
	args = append(append([]string{"dlq"}, args...), "--nats-url", g.NATS.URL(), "--state-dir", g.NATS.StateDir())
	code = cli.Run(g.t.Context(), New(), args, &o, &e)
	return code, o.String(), e.String()
}

// letters lists what is left as "model id".
func (g *graveyard) letters(args ...string) []string {
	g.t.Helper()
	code, out, stderr := g.run(append([]string{"list", "--json"}, args...)...)
	if code != 0 {
		g.t.Fatalf("exit %d: %s", code, stderr)
	}
	var list []letter
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		g.t.Fatalf("%v in %s", err, out)
	}
	words := []string{}
	for _, l := range list {
		words = append(words, l.Model+" "+l.RequestID)
	}
	return words
}

func (g *graveyard) expect(want []string, args ...string) {
	g.t.Helper()
	if d := cmp.Diff(want, g.letters(args...)); d != "" {
		g.t.Errorf("letters (-want +got):\n%s", d)
	}
}

func TestDeadLettersAreListedAndShown(t *testing.T) {
	g := newGraveyard(t)
	g.expect([]string{})
	g.bury("toy", "a", "it died", true)
	g.bury("other", "b", "it died", true)
	g.bury("toy", "c", "never acknowledged", true)
	g.expect([]string{"toy a", "other b", "toy c"})
	g.expect([]string{"toy a", "toy c"}, "--model", "toy")
	g.expect([]string{"toy a", "other b"}, "--reason", "died")
	g.expect([]string{}, "--model", "none")
	if _, out, _ := g.run("list"); !strings.Contains(out, "LETTER") || !strings.Contains(out, "never acknowledged") {
		t.Errorf("list:\n%s", out)
	}
	body := filepath.Join(t.TempDir(), "body")
	code, out, stderr := g.run("show", "2", "--body", body)
	for _, want := range []string{"b of other, attempt 1, delivered 1 times", "it died", "h-0-50", "SIGSEGV", "Gpulet-Request-Id", "_INBOX_client.gone"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("show: exit %d, %s, lacks %q:\n%s", code, stderr, want, out)
		}
	}
	if data, err := os.ReadFile(body); err != nil || len(data) == 0 {
		t.Errorf("the body: %d bytes, %v", len(data), err)
	}
}

func TestDeadLettersArePurged(t *testing.T) {
	g := newGraveyard(t)
	for _, id := range []string{"a", "b", "c"} {
		g.bury("toy", id, "why "+id, true)
	}
	g.bury("other", "d", "why d", true)
	if code, out, _ := g.run("purge", "1"); code != 0 || out != "1 purged\n" {
		t.Errorf("exit %d: %s", code, out)
	}
	g.expect([]string{"toy b", "toy c", "other d"})
	g.run("purge", "--reason", "why c")
	g.expect([]string{"toy b", "other d"})
	g.run("purge", "--model", "toy")
	g.expect([]string{"other d"})
	g.run("purge", "--all")
	g.expect([]string{})
}

// The request comes within the duplicate window of its first attempt, and is answered here all the same.
func TestAReplayIsAnsweredHere(t *testing.T) {
	g := newGraveyard(t)
	g.bury("toy", "good", "it died", true)
	g.bury("toy", "bad", "it died", false)
	g.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	code, out, stderr := g.run("replay", "--all", "--json")
	var got []replay
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in %s %s", err, out, stderr)
	}
	for i := range got {
		got[i].Detail = ""
	}
	want := []replay{
		{Letter: 1, Model: "toy", RequestID: "good", Attempt: 2, Status: "ok"},
		{Letter: 2, Model: "toy", RequestID: "bad", Attempt: 2, Status: "bad_request"},
	}
	if d := cmp.Diff(want, got); d != "" || code != 1 {
		t.Errorf("exit %d, expected 1 since not all are ok:\n%s", code, d)
	}
	g.expect([]string{"toy bad"})
}

func TestADetachedReplayGoesToTheQueue(t *testing.T) {
	g := newGraveyard(t)
	g.bury("other", "x", "it died", true)
	if code, out, stderr := g.run("replay", "1", "--detach", "--keep"); code != 0 || !strings.Contains(out, "queued") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	g.expect([]string{"other x"})
	if lag, err := g.Planner.Lag(t.Context(), "other"); err != nil || lag.Pending != 1 {
		t.Errorf("lag %+v, %v: expected one request", lag, err)
	}
}

func TestAReplayThatNobodyAnswersStays(t *testing.T) {
	g := newGraveyard(t)
	g.bury("other", "x", "it died", true)
	if code, out, _ := g.run("replay", "1", "--answer", "1ms"); code != 1 || !strings.Contains(out, "unanswered") {
		t.Errorf("exit %d: %s", code, out)
	}
	g.expect([]string{"other x"})
}

func TestWrongUseOfDeadLettersSaysWhatIsExpected(t *testing.T) {
	g := newGraveyard(t)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"purge"}, 2, "expected numbers of letters, or --model, --reason or --all"},
		{[]string{"purge", "1", "--all"}, 2, "expected numbers of letters"},
		{[]string{"show", "x"}, 2, `letter "x": expected a number`},
		{[]string{"show"}, 2, "accepts 1 arg"},
		{[]string{"show", "99"}, 1, "dead letter 99: not found"},
		{[]string{"replay", "--all", "--answer", "0s"}, 2, "expected more than 0"},
		{[]string{"list", "--wait", "0s"}, 2, "expected more than 0"},
	} {
		if code, _, stderr := g.run(c.args...); code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit %d, %s: expected %d, %q", c.args, code, stderr, c.code, c.want)
		}
	}
}
