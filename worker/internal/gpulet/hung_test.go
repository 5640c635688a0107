package gpulet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/plan"
)

func TestABatchThatDoesNotReturnIsReportedUntilItDoes(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, hang: time.Second, timeout: time.Minute})
	r.send("a", "first", 1)
	r.ok("first")
	waiting, open := r.engine.stall.shut()
	r.send("a", "stuck", stalls)
	r.await(waiting)
	r.gpulets[0].waitFor("the hung batch", func(p plan.GpuletReport) bool {
		return strings.HasPrefix(p.Hung, "batch of 1 of a has run for ") && p.State == plan.Ready
	})
	open()
	r.ok("stuck")
	r.gpulets[0].waitFor("nothing hung", func(p plan.GpuletReport) bool { return p.Hung == "" })
}
