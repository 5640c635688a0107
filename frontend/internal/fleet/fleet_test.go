package fleet_test

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/frontend/internal/fleet"
	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFollowsModelsAsTheyComeAndGo(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	if m, ok := s.Fleet.Model("toy"); !ok || m.Version != 3 {
		t.Fatalf("toy: %v, %v", m, ok)
	}
	if err := s.Planner.PutModel(t.Context(), frontendtest.Model("late", nil, nil)); err != nil {
		t.Fatal(err)
	}
	frontendtest.Eventually(t, "the late model is known", func() bool { _, ok := s.Fleet.Model("late"); return ok })
	if err := s.Planner.DeleteModel(t.Context(), "toy"); err != nil {
		t.Fatal(err)
	}
	frontendtest.Eventually(t, "toy is forgotten", func() bool { _, ok := s.Fleet.Model("toy"); return !ok })
	if list := s.Fleet.Models(); len(list) != 1 || list[0].Name != "late" {
		t.Errorf("%d models", len(list))
	}
}

func TestReadiness(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	says := func(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
	if err := s.Fleet.Ready(); !says(err, "no plan has been published yet") {
		t.Error(err)
	}
	if err := s.Fleet.ModelReady("toy"); !says(err, "no gpu-let serves it") {
		t.Error(err)
	}
	if err := s.Fleet.ModelReady("none"); !says(err, `unknown model "none"`) {
		t.Error(err)
	}

	s.PublishPlan(t, plan.Draining, "toy")
	frontendtest.Eventually(t, "the system is ready", func() bool { return s.Fleet.Ready() == nil })
	frontendtest.Eventually(t, "the gpu-let is seen", func() bool {
		return says(s.Fleet.ModelReady("toy"), "gpu-let h-0-50 is draining")
	})

	worker := embeddedtest.Connect(t, s.NATS, bus.RoleWorker)
	rep := plan.GpuletReport{ID: "h-0-50", Host: "h", State: plan.Ready, Models: []plan.ModelReport{{Model: "toy", Error: "corrupt archive"}}}
	if err := worker.PutGpulet(t.Context(), rep); err != nil {
		t.Fatal(err)
	}
	frontendtest.Eventually(t, "the gpu-let's error is seen", func() bool {
		return says(s.Fleet.ModelReady("toy"), "gpu-let h-0-50: corrupt archive")
	})
	rep.Models[0] = plan.ModelReport{Model: "toy", Loaded: true}
	if err := worker.PutGpulet(t.Context(), rep); err != nil {
		t.Fatal(err)
	}
	frontendtest.Eventually(t, "the model is ready", func() bool { return s.Fleet.ModelReady("toy") == nil })

	s.Bus.Close()
	if err := s.Fleet.Ready(); !says(err, "not connected to NATS") {
		t.Error(err)
	}
}

func TestReadsLagOfModelsThatHaveAQueue(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy(), frontendtest.Model("other", nil, nil))
	if err := s.Planner.DeleteQueue(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	if err := s.Bus.Publish(t.Context(), &bus.Message{Model: "toy"}); err != nil {
		t.Fatal(err)
	}
	frontendtest.Eventually(t, "the lag is read", func() bool {
		lag := s.Fleet.State().Lag
		_, other := lag["other"]
		return lag["toy"].Pending == 1 && !lag["toy"].Oldest.IsZero() && !other
	})
}

// A queue that is made anew has lost what it held, whoever took it away; one that is only changed has not.
func TestALostQueueIsNoticed(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy(), frontendtest.Model("other", nil, nil))
	f := fleet.New(s.Bus, 10*time.Millisecond, slog.New(slog.DiscardHandler))
	lost := make(chan string, 4)
	f.OnLostQueue(func(model string) { lost <- model })
	var done sync.WaitGroup
	done.Go(func() {
		if err := f.Run(t.Context()); err != nil {
			t.Errorf("fleet: %v", err)
		}
	})
	t.Cleanup(done.Wait)
	reads := func(n int) {
		t.Helper()
		for range n {
			last := f.State().Read
			frontendtest.Eventually(t, "both queues are read", func() bool {
				return f.State().Read.After(last) && len(f.State().Lag) == 2
			})
		}
	}
	reads(1)
	larger := frontendtest.Queue("other")
	larger.MaxMsgs *= 2
	if err := s.Planner.EnsureQueue(t.Context(), larger); err != nil {
		t.Fatal(err)
	}
	reads(2)
	if err := s.Planner.DeleteQueue(t.Context(), "toy"); err != nil {
		t.Fatal(err)
	}
	frontendtest.Eventually(t, "toy has no queue", func() bool { _, ok := f.State().Lag["toy"]; return !ok })
	if err := s.Planner.EnsureQueue(t.Context(), frontendtest.Queue("toy")); err != nil {
		t.Fatal(err)
	}
	reads(2)
	if len(lost) != 1 || <-lost != "toy" {
		t.Errorf("%d queues were lost: expected that of toy", len(lost))
	}
}
