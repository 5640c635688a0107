package gpulet

import (
	"slices"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/link"
)

func TestBatchesMayBurst(t *testing.T) {
	for _, c := range []struct {
		batch, burst, maxBatch int
		most                   int
		prepared               []int
	}{
		{4, 0, 8, 4, []int{1, 2, 4}},
		{1, 4, 8, 4, []int{1, 2, 4}},
		{3, 5, 8, 5, []int{1, 2, 3, 4, 5}},
		{1, 4, 2, 2, []int{1, 2}},
		{5, 0, 8, 5, []int{1, 2, 4, 5}},
	} {
		const execMs = 7
		m := newBound(link.Assignment{
			Assignment: plan.Assignment{Model: "m", Batch: c.batch, Burst: c.burst, ExecMs: execMs}, Config: model.Model{Config: model.Config{MaxBatch: c.maxBatch}},
		})
		if got := m.batch(); got != c.most {
			t.Errorf("batch %d, burst %d of a model that takes %d: at most %d: expected %d", c.batch, c.burst, c.maxBatch, got, c.most)
		}
		if got := m.batched(); got.Batch != c.most || got.Planned != min(c.batch, c.maxBatch) {
			t.Errorf("batch %d, burst %d of a model that takes %d: the batcher is told %d and planned %d", c.batch, c.burst, c.maxBatch, got.Batch, got.Planned)
		}
		if got := m.wanted("cpu").Batches; !slices.Equal(got, c.prepared) {
			t.Errorf("batch %d, burst %d of a model that takes %d: prepared for %v: expected %v", c.batch, c.burst, c.maxBatch, got, c.prepared)
		}
		if got := m.estimate.exec(c.most); got != execMs*time.Millisecond {
			t.Errorf("batch %d, burst %d: %v for the largest: expected the plan's %d ms until one is measured", c.batch, c.burst, got, execMs)
		}
	}
}
