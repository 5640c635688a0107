package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/plan"
)

func TestReadsOfOtherHostsWhatItIsAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		for _, id := range []string{"a", "b"} {
			if err := b.PutGpulet(t.Context(), plan.GpuletReport{ID: id, State: plan.Ready}); err != nil {
				t.Fatal(err)
			}
		}
		b.log = nil
		ctx, cancel := context.WithCancel(t.Context())
		p := startPeers(ctx, b, quiet)
		defer p.wait()
		defer cancel()
		time.Sleep(time.Minute) // in the bubble
		if len(b.log) > 0 {
			t.Errorf("without being asked: %v", b.log)
		}
		p.ask([]string{"b", "gone"})
		found := <-p.found
		if diff := cmp.Diff(map[string]plan.GpuletReport{"b": {ID: "b", State: plan.Ready}}, found); diff != "" {
			t.Error(diff)
		}
		b.setAway(true)
		time.Sleep(time.Minute)
		b.setAway(false)
		for again := 0; again < 2; again++ { // it asks again and again
			if found := <-p.found; found["b"].State != plan.Ready {
				t.Errorf("found %v", found)
			}
		}
		p.ask(nil)
		synctest.Wait()
		select {
		case <-p.found: // what it had read by then
			synctest.Wait()
		default:
		}
		b.log = nil
		time.Sleep(time.Minute)
		if len(b.log) > 0 {
			t.Errorf("when nothing is asked any more: %v", b.log)
		}
	})
}
