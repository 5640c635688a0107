package gpulet_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/gpulet"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// occupied is a rig whose first gpu-let runs request "first" of model a until open is called.
func occupied(t *testing.T, o rigOptions) (r *rig, open func()) {
	t.Helper()
	r = newRig(t, o)
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	t.Cleanup(open)
	r.send("a", "first", 1)
	r.await(waiting)
	return r, open
}

// stageNext sends a full batch of a and waits until it is being staged. resume lets that go on.
func (r *rig) stageNext(values ...float32) (ids []string, resume func()) {
	r.t.Helper()
	staging, resume := r.engine.staging.shut()
	r.t.Cleanup(resume)
	for i, v := range values {
		ids = append(ids, fmt.Sprint("next", i))
		r.send("a", ids[i], v)
	}
	r.await(staging)
	return ids, resume
}

// ok waits for the replies to ids and fails unless all succeeded.
func (r *rig) ok(ids ...string) []wire.Reply {
	r.t.Helper()
	replies := r.wait(ids...)
	for _, rep := range replies {
		if rep.Status != wire.StatusOK {
			r.t.Errorf("%s: %s: %s", rep.RequestID, rep.Status, rep.Detail)
		}
	}
	return replies
}

// staged returns how many batches were staged, how many of these were run, and how many are not freed.
func (d *doubler) counted() (staged, ahead, held int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.staged, d.ahead, d.held
}

func TestStagesAFullBatchWhileAnotherRuns(t *testing.T) {
	r, open := occupied(t, rigOptions{models: []string{"a"}, batch: 4})
	ids, resume := r.stageNext(1, 2, 3, 4) // it would hang here if staging waited for what runs
	resume()
	open()
	for i, rep := range r.ok(ids...) {
		if rep.Timing.Batch != 4 || float(rep.Outputs[0], 0) != float32(2*(i+1)) {
			t.Errorf("%s: %v in a batch of %d", rep.RequestID, float(rep.Outputs[0], 0), rep.Timing.Batch)
		}
	}
	r.ok("first")
	if err := r.gpulets[0].stop(); err != nil {
		t.Error(err)
	}
	if staged, ahead, held := r.engine.counted(); staged != 1 || ahead != 1 || held != 0 {
		t.Errorf("staged %d, ran %d of these, and %d are not freed: expected 1, 1 and 0", staged, ahead, held)
	}
}

func TestABatchThatCanGrowIsNotStaged(t *testing.T) {
	r, open := occupied(t, rigOptions{models: []string{"a"}, batch: 4})
	for i := range 3 {
		r.send("a", fmt.Sprint(i), 1)
	}
	r.waitHeld(3)
	open()
	r.ok("0", "1", "2")
	if staged, _, _ := r.engine.counted(); staged != 0 {
		t.Error("a batch of 3 of 4 was staged")
	}
}

func TestWhatCannotBeStagedIsRun(t *testing.T) {
	r, open := occupied(t, rigOptions{models: []string{"a"}, batch: 2})
	ids, resume := r.stageNext(unstageable, 5)
	resume()
	open()
	r.ok(ids...)
	if staged, _, _ := r.engine.counted(); staged != 0 {
		t.Error("it was staged")
	}
}

func TestABadRequestInAStagedBatchFailsAlone(t *testing.T) {
	r, open := occupied(t, rigOptions{models: []string{"a"}, batch: 3})
	ids, resume := r.stageNext(1, poison, 3)
	resume()
	open()
	r.ok(ids[0], ids[2])
	if rep := r.wait(ids[1])[0]; rep.Status != wire.Failed {
		t.Errorf("the bad one: %s", rep.Status)
	}
	r.waitEmpty("a")
	if _, _, held := r.engine.counted(); held != 0 {
		t.Errorf("%d staged batches are not freed", held)
	}
}

// A batch that waits behind one that takes for ever is given up in time, as if it had not been
// handed over.
func TestTellsAtOnceThatAStagedBatchIsTooLate(t *testing.T) {
	r, open := occupied(t, rigOptions{models: []string{"a"}, batch: 2})
	staging, resume := r.engine.staging.shut()
	defer resume()
	for _, id := range []string{"soon0", "soon1"} {
		r.publish(&bus.Message{
			Model: "a", RequestID: id, ReplyTo: r.inbox.Address(id), Body: body(t, 1, 1), Timeout: 300 * time.Millisecond,
		})
	}
	r.await(staging)
	resume()
	for _, rep := range r.wait("soon0", "soon1") { // while the first still runs
		if rep.Status != wire.Expired {
			t.Errorf("%s: %s", rep.RequestID, rep.Status)
		}
	}
	// Others take its place once the executor is free.
	r.send("a", "x", 1)
	r.send("a", "y", 1)
	open()
	r.ok("first", "x", "y")
	r.waitEmpty("a")
	if _, ahead, held := r.engine.counted(); ahead != 0 || held != 0 {
		t.Errorf("%d staged batches ran and %d are not freed: expected none", ahead, held)
	}
}

func TestAStagedBatchRunsAlthoughItsModelGoes(t *testing.T) {
	r, open := occupied(t, rigOptions{models: []string{"a", "b"}, batch: 4})
	ids, resume := r.stageNext(1, 2, 3, 4)
	r.gpulets[0].assign(2, "b")
	r.gpulets[0].waitFor("b to be all that is assigned", func(p plan.GpuletReport) bool { return p.Revision == 2 })
	resume()
	open()
	r.ok(append(ids, "first")...)
	r.gpulets[0].waitFor("a to be unloaded", func(p plan.GpuletReport) bool { return len(p.Models) == 1 })
	if _, ahead, held := r.engine.counted(); ahead != 1 || held != 0 {
		t.Errorf("%d staged batches ran and %d are not freed: expected 1 and 0", ahead, held)
	}
}

func TestAStagedBatchRunsOnTheVersionItWasStagedFor(t *testing.T) {
	r, open := occupied(t, rigOptions{models: []string{"a"}, batch: 4})
	ids, resume := r.stageNext(1, 2, 3, 4)
	next := r.assignment("a")
	next.Config.Version, next.Config.Hash = 8, "another"
	r.gpulets[0].commands <- link.Command{Op: link.Assign, Revision: 2, Models: []link.Assignment{next}}
	r.waitReady(2) // the old version is out of service, and cannot be closed yet
	resume()
	open()
	r.ok(append(ids, "first")...)
	if err := r.gpulets[0].stop(); err != nil {
		t.Error(err)
	}
	if _, models := r.engine.counts("a"); models != 0 {
		t.Errorf("%d models were left loaded", models)
	}
}

func TestDrainFinishesWhatIsStaged(t *testing.T) {
	r, open := occupied(t, rigOptions{models: []string{"a"}, batch: 4})
	ids, resume := r.stageNext(1, 2, 3, 4)
	r.gpulets[0].commands <- link.Command{Op: link.Drain}
	r.gpulets[0].waitFor("draining", func(p plan.GpuletReport) bool { return p.State == plan.Draining })
	resume()
	open()
	if err := r.gpulets[0].ended(); err != nil {
		t.Fatal(err)
	}
	r.ok(append(ids, "first")...)
}

func TestABrokenDeviceAnswersNothingThatIsStaged(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 4})
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	defer open()
	r.send("a", "first", lost)
	r.await(waiting)
	_, resume := r.stageNext(1, 2, 3, 4)
	resume()
	open()
	if err := r.gpulets[0].ended(); !errors.Is(err, gpulet.ErrDevice) {
		t.Fatalf("error %v: expected the device's", err)
	}
	lag, err := r.planner.Lag(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if lag.AckPending+lag.Pending != 5 || len(r.replies) != 0 {
		t.Errorf("lag %+v and %d replies: expected all 5 requests to be in the queue, unanswered", lag, len(r.replies))
	}
}

// serveBatches assigns model a with a planned batch.
func (s *served) serveBatches(rev uint64, batch int, change ...func(*link.Assignment)) {
	a := s.rig.assignment("a")
	a.Batch, a.Config.MaxBatch = batch, 8
	for _, f := range change {
		f(&a)
	}
	s.commands <- link.Command{Op: link.Assign, Revision: rev, Models: []link.Assignment{a}}
}

// growing is a rig whose gpu-let serves a in batches of 2 and has been told to do so in batches of
// 8, which it is being prepared for until resume is called.
func growing(t *testing.T) (r *rig, resume func()) {
	t.Helper()
	r = newRig(t, rigOptions{none: true})
	r.ensure("a")
	s := r.start()
	s.serveBatches(2, 2)
	r.waitReady(2)
	preparing, resume := r.engine.preparing.shut()
	t.Cleanup(resume)
	s.serveBatches(3, 8)
	r.await(preparing)
	return r, resume
}

func TestAModelServesBeforeItIsPreparedForSmallBatches(t *testing.T) {
	r := newRig(t, rigOptions{none: true})
	r.ensure("a")
	preparing, resume := r.engine.preparing.shut()
	t.Cleanup(resume)
	s := r.start()
	s.serveBatches(2, 4)
	r.await(preparing)
	r.send("a", "early", 1)
	if rep := r.ok("early")[0]; rep.Timing.Batch != 1 {
		t.Errorf("a batch of %d: expected the one request", rep.Timing.Batch)
	}
	if got := r.report().Revision; got == 2 {
		t.Error("revision 2 is served before all batches are prepared")
	}
	resume()
	r.waitReady(2)
	if loads, _ := r.engine.counts("a"); loads != 1 {
		t.Errorf("%d loads: expected one", loads)
	}
	if diff := cmp.Diff([][]int{{1, 2, 4}}, r.engine.prepared); diff != "" {
		t.Errorf("prepared after loading (-want +got):\n%s", diff)
	}
}

func TestAGrowingBatchIsPreparedWhileItServes(t *testing.T) {
	r, resume := growing(t)
	var ids []string
	for i := range 40 {
		ids = append(ids, fmt.Sprint(i))
		r.send("a", ids[i], float32(i))
	}
	for _, rep := range r.ok(ids...) {
		if rep.Timing.Batch > 2 {
			t.Errorf("%s ran in a batch of %d before that was prepared", rep.RequestID, rep.Timing.Batch)
		}
	}
	resume()
	r.waitReady(3)
	waiting, open := r.engine.gate.shut()
	r.send("a", "first", 1)
	r.await(waiting)
	ids = nil
	for i := range 8 {
		ids = append(ids, fmt.Sprint("large", i))
		r.send("a", ids[i], 1)
	}
	r.waitHeld(8)
	open()
	for _, rep := range r.ok(ids...) {
		if rep.Timing.Batch != 8 {
			t.Errorf("%s ran in a batch of %d: expected 8", rep.RequestID, rep.Timing.Batch)
		}
	}
	if loads, _ := r.engine.counts("a"); loads != 1 {
		t.Errorf("%d loads: expected that the model stayed", loads)
	}
	if diff := cmp.Diff([][]int{{1, 2}, {1, 2, 4, 8}}, r.engine.prepared); diff != "" {
		t.Errorf("prepared (-want +got):\n%s", diff)
	}
}

func TestAShrinkingBatchNeedsNothingThatIsPrepared(t *testing.T) {
	r, resume := growing(t)
	resume()
	r.waitReady(3)
	r.gpulets[0].serveBatches(4, 4)
	r.waitReady(4)
	if got := len(r.engine.prepared); got != 2 {
		t.Errorf("prepared %d times: expected twice, for 2 and for 8", got)
	}
}

func TestServesOnWhenTheLargerBatchCannotBePrepared(t *testing.T) {
	r, resume := growing(t)
	r.engine.prepares(&engine.Error{Code: engine.EOOM, Msg: "CUDA out of memory"})
	resume()
	rep := r.waitReady(3)
	if m := rep.Models[0]; !m.Loaded || !m.OutOfMemory || m.Error != "CUDA out of memory" {
		t.Errorf("report %+v: expected a loaded model, and why it is not prepared", m)
	}
	for i := range 6 {
		r.send("a", fmt.Sprint(i), 1)
	}
	r.ok("0", "1", "2", "3", "4", "5")
	if r.engine.mostSamples() > 2 {
		t.Errorf("a batch of %d was run", r.engine.mostSamples())
	}
	r.engine.prepares(nil) // others have left
	r.gpulets[0].waitFor("the problem to go", func(p plan.GpuletReport) bool { return p.Models[0].Error == "" })
}

// mostSamples is the largest batch that was run.
func (d *doubler) mostSamples() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.worst
}

func TestAModelThatGoesIsNotClosedWhileItIsPrepared(t *testing.T) {
	r, resume := growing(t)
	r.gpulets[0].assign(4) // nothing
	r.gpulets[0].waitFor("nothing to be assigned", func(p plan.GpuletReport) bool { return p.Revision == 4 })
	if _, models := r.engine.counts("a"); models != 1 {
		t.Errorf("%d models are loaded: expected that it waits", models)
	}
	resume()
	r.gpulets[0].waitFor("a to be unloaded", func(p plan.GpuletReport) bool { return len(p.Models) == 0 })
}

func TestADeviceThatFailsWhileLoadingEndsIt(t *testing.T) {
	failed := &engine.Error{Code: engine.EDEVICE, Msg: "uncorrectable ECC error"}
	t.Run("preparing", func(t *testing.T) {
		r, resume := growing(t)
		r.engine.prepares(failed)
		resume()
		if err := r.gpulets[0].ended(); !errors.Is(err, gpulet.ErrDevice) || !errors.Is(err, failed) {
			t.Errorf("error %v: expected the device's", err)
		}
	})
	t.Run("loading", func(t *testing.T) {
		r := newRig(t, rigOptions{models: []string{"a", "b"}, none: true})
		r.engine.breaks("b", failed)
		if err := r.start("a", "b").ended(); !errors.Is(err, gpulet.ErrDevice) || !errors.Is(err, failed) {
			t.Errorf("error %v: expected the device's", err)
		}
	})
}

func TestTheLayoutOfAnAssignmentReachesTheEngine(t *testing.T) {
	r := newRig(t, rigOptions{none: true})
	r.ensure("a")
	s := r.start()
	layout := func(name string) func(*link.Assignment) {
		return func(a *link.Assignment) { a.Layout = name }
	}
	s.serveBatches(2, 2)
	r.waitReady(2)
	s.serveBatches(3, 2, layout("channels_last"))
	r.waitReady(3)
	s.serveBatches(4, 2, layout("channels_last"))
	r.waitReady(4)
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	var got []bool
	for _, spec := range r.engine.specs {
		got = append(got, spec.ChannelsLast)
	}
	if !slices.Equal(got, []bool{false, true}) {
		t.Errorf("loaded with channels last %v: expected once without and once with", got)
	}
}
