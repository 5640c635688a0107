package admit

import (
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

func TestAFullQueueIsFullForAMoment(t *testing.T) {
	var full Full
	now := time.Unix(1000, 0)
	other := &model.Model{Config: model.Config{Name: "other", Timeout: time.Second}}
	if err := full.Check(toy, now); err != nil {
		t.Errorf("before anything is known: %v", err)
	}
	full.Saw(toy, now)
	r := refusal(t, full.Check(toy, now.Add(39*time.Millisecond)), wire.Overloaded, "model toy: overloaded: its queue was full a moment ago")
	if r.Retry != time.Second {
		t.Errorf("retry after %v: expected 1s", r.Retry)
	}
	if err := full.Check(toy, now.Add(40*time.Millisecond)); err != nil {
		t.Errorf("a fiftieth of the timeout later: %v", err)
	}
	if err := full.Check(other, now); err != nil {
		t.Errorf("another model: %v", err)
	}
}

func TestALongTimeoutIsNoReasonToRefuseForLong(t *testing.T) {
	var full Full
	now := time.Unix(1000, 0)
	batch := &model.Model{Config: model.Config{Name: "batch", Timeout: time.Hour}}
	full.Saw(batch, now)
	if err := full.Check(batch, now.Add(mostFull)); err != nil {
		t.Error(err)
	}
}
