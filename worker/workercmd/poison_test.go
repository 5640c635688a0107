package workercmd

import (
	"regexp"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

// poisonous sends a request that brings down or breaks what runs it, and returns where its reply comes.
func (s *site) poisonous(mdl, id string) <-chan wire.Reply {
	s.t.Helper()
	body, err := wire.EncodeRequest(wire.TypeMsgpack, wire.Request{Inputs: []tensor.Tensor{
		{Name: "x", DType: tensor.FP32, Shape: []int64{1, 4}, Data: enginetest.Floats(0, 0, 0, 1e9)},
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	replies := make(chan wire.Reply, 16)
	inbox, err := s.client.NewInbox(func(r bus.Reply) {
		reply, err := wire.DecodeReply(r.Get, r.Body)
		if err != nil {
			s.t.Error(err)
		}
		replies <- reply
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(inbox.Close)
	if err := s.client.Publish(s.t.Context(), &bus.Message{Model: mdl, RequestID: id, ReplyTo: inbox.Address(id), Body: body}); err != nil {
		s.t.Fatal(err)
	}
	return replies
}

func (s *site) letters() (list []bus.Letter) {
	s.t.Helper()
	for l, err := range s.planner.DeadLetters(s.t.Context(), "") {
		if err != nil {
			s.t.Fatal(err)
		}
		list = append(list, l)
	}
	return list
}

func TestAPoisonousRequestTakesNobodyWithIt(t *testing.T) {
	s := newSite(t, "a")
	s.write("a/1/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\ncrash x 1000\n")
	s.register("a")
	s.agent()
	s.publish("g1 50 a", "g2 50 a")
	s.waitReady("g1", "g2")
	s.send("a", 100)
	replies := s.poisonous("a", "killer")
	s.send("a", 200)
	reply := <-replies
	if reply.Status != wire.Poisoned || !strings.Contains(reply.Detail, "2 processes died over it") {
		t.Errorf("the poisonous one: %s: %s: expected poisoned", reply.Status, reply.Detail)
	}
	s.waitAnswered()
	letters := s.letters()
	if len(letters) != 1 {
		t.Fatalf("%d dead letters: expected one, of the killer", len(letters))
	}
	l := letters[0]
	if l.RequestID != "killer" || !strings.Contains(l.LastWords, "assertion failed: the model says crash") || !strings.HasPrefix(l.Gpulet, "g") {
		t.Errorf("letter of %s, by %q, last words %q", l.RequestID, l.Gpulet, l.LastWords)
	}
	restarts := 0
	for _, g := range s.waitReady("g1", "g2") {
		restarts += g.Restarts
	}
	if restarts != 2 {
		t.Errorf("%d restarts: expected 2", restarts)
	}
}

// The device breaks under both of its gpu-lets, whichever had the request.
func TestARequestThatBreaksTheDeviceIsBuried(t *testing.T) {
	s := newSite(t, "a")
	s.write("a/1/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\nfault x 1000\n")
	s.register("a")
	s.agent()
	s.publish("g1 50 a", "g2 50 a")
	s.waitReady("g1", "g2")
	s.send("a", 100)
	replies := s.poisonous("a", "breaker")
	s.send("a", 100)
	if reply := <-replies; reply.Status != wire.Poisoned {
		t.Errorf("the poisonous one: %s: %s: expected poisoned", reply.Status, reply.Detail)
	}
	s.waitAnswered()
	if letters := s.letters(); len(letters) != 1 || letters[0].RequestID != "breaker" {
		t.Errorf("letters %+v: expected one, of the breaker", letters)
	}
}

func TestAModelThatKeepsKillingItsGpuletGetsOneOfItsOwn(t *testing.T) {
	s := newSite(t, "good", "bad")
	s.write("bad/1/model.pt", "gpulet-ref 1\nbrittle\n")
	s.register("bad")
	agent := s.agent()
	s.publish("g1 100 good bad")
	agent.waitLog("model quarantined: its gpu-lets keep dying")
	reps := s.waitGpulets("good alone, bad apart", func(now []plan.GpuletReport) bool {
		return len(now) == 2 && now[0].ID == "g1" && now[0].State == plan.Ready && len(now[0].Models) == 1 && now[0].Models[0].Model == "good" &&
			now[1].ID == "g1-q1" && strings.HasPrefix(now[1].Note, "quarantine")
	})
	s.send("good", 50)
	s.waitAnswered()
	agent.waitLog("gpu-let crashed.*g1-q1") // it goes on dying, alone
	s.send("good", 50)
	s.waitAnswered()
	if now := s.waitReady("g1"); now[0].PID != reps[0].PID {
		t.Error("the good model's gpu-let was restarted again")
	}
	s.waitProblems("g1-q1: quarantine")
	// Another archive gets another chance.
	s.write("bad/1/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\n")
	s.register("bad")
	agent.waitLog("model back from quarantine")
	s.send("bad", 20)
	s.waitGpulets("one gpu-let again", func(now []plan.GpuletReport) bool { return len(now) == 1 && now[0].ID == "g1" })
	s.waitAnswered()
}

// What should replace a gpu-let does not come up: it goes on serving, and says why.
func TestAPlanThatDoesNotComeUpTakesNothingAway(t *testing.T) {
	s := newSite(t, "a")
	agent := s.agent()
	s.publish("old 50 a")
	before := s.waitReady("old")[0].PID
	// The next version cannot be loaded, but the running process has no need to.
	s.write("a/1/model.pt", "not a model")
	s.publish("new 40 a")
	agent.waitLog("gpu-let kept: what should replace it does not come up")
	s.send("a", 50)
	s.waitAnswered()
	s.waitGpulets("the reason", func(now []plan.GpuletReport) bool {
		return len(now) == 2 && now[1].ID == "old" && now[1].PID == before && strings.Contains(now[1].Note, "kept: new")
	})
	s.waitProblems("old: kept: new, which is to serve a, does not come up")
	s.write("a/1/model.pt", "gpulet-ref 1\n# a\ninput x FP32\naffine y FP32 0 2 x\n")
	s.waitGpulets("new alone", func(now []plan.GpuletReport) bool {
		return len(now) == 1 && now[0].ID == "new" && now[0].State == plan.Ready
	})
	s.send("a", 50)
	s.waitAnswered()
}

// TestARequestThatHangsIsBuried: a batch that never returns is ended like one that crashes, and whoever
// hangs alone as well is convicted. What was beside it is answered.
func TestARequestThatHangsIsBuried(t *testing.T) {
	s := newSite(t, "a")
	s.write("a/1/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\nhang x 1000\n")
	s.register("a")
	agent := s.agent("--hang-after", "1s")
	s.publish("g1 100 a")
	s.waitReady("g1")
	s.send("a", 50)
	s.waitAnswered()
	replies := s.poisonous("a", "hanger")
	s.send("a", 50)
	reply := <-replies
	if want := regexp.MustCompile(`2 processes died over it.*hung: batch of 1 of a has run for \d+s, expected`); reply.Status != wire.Poisoned || !want.MatchString(reply.Detail) {
		t.Errorf("the one that hangs: %s: %s: expected poisoned", reply.Status, reply.Detail)
	}
	s.waitAnswered()
	letters := s.letters()
	if len(letters) != 1 || letters[0].RequestID != "hanger" || !strings.Contains(letters[0].LastWords, "engine hangs") {
		t.Errorf("letters %+v: expected one, of the one that hangs, with the last words of its process", letters)
	}
	addr := agent.waitLog(`addr=(127\.0\.0\.1:\d+)`)[1]
	if text := get(t, "http://"+addr+"/metrics"); !strings.Contains(text, `gpulet_worker_hangs_total{host="h1"} 2`) {
		t.Error("metrics lack two hangs")
	}
}
