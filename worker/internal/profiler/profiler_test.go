package profiler

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/tensor"
)

func TestBatchesArePowersOfTwoAndTheLargest(t *testing.T) {
	for most, want := range map[int][]int{1: {1}, 6: {1, 2, 4, 6}, 64: {1, 2, 4, 8, 16, 32, 64}} {
		if diff := cmp.Diff(want, Batches(most)); diff != "" {
			t.Errorf("%d: %s", most, diff)
		}
	}
}

// TestIntervalHoldsTheMedian draws many samples of a skewed distribution whose median is known: the
// interval has to hold it in about 95 of 100.
func TestIntervalHoldsTheMedian(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3))
	for _, n := range []int{10, 30, 200} {
		held := 0
		const samples = 2000
		for range samples {
			var took []time.Duration
			for range n {
				took = append(took, time.Duration(random.ExpFloat64()*1e9))
			}
			slices.Sort(took)
			low, high := interval(n)
			if median := time.Duration(693_147_181); took[low] <= median && median <= took[high] {
				held++
			}
		}
		if got := float64(held) / samples; got < 0.94 {
			t.Errorf("of %d values: held the median in %.1f %%: expected at least 94", n, 100*got)
		}
	}
}

func TestHalfInterval(t *testing.T) {
	for _, c := range []struct {
		sorted []time.Duration
		want   time.Duration
	}{{nil, 0}, {[]time.Duration{5}, 0}, {[]time.Duration{10, 20}, 5}, {slices.Repeat([]time.Duration{7}, 50), 0}} {
		if got := halfInterval(c.sorted); got != c.want {
			t.Errorf("%v: %v: expected %v", c.sorted, got, c.want)
		}
	}
}

func TestRuleIsContentWithAPreciseMedian(t *testing.T) {
	r := Rule{MinRuns: 3, Enough: 10, MaxRuns: 40, Precision: 0.01, Budget: time.Second}
	steady, rough := slices.Repeat([]time.Duration{time.Millisecond}, 100), []time.Duration{}
	for i := range 100 {
		rough = append(rough, time.Duration(1+i%7)*time.Millisecond)
	}
	for _, c := range []struct {
		name    string
		took    []time.Duration
		elapsed time.Duration
		want    bool
	}{
		{"too few", steady[:2], time.Hour, false},
		{"out of time", rough[:3], time.Second, true},
		{"not enough", steady[:9], 0, false},
		{"precise", steady[:10], 0, true},
		{"not precise", rough[:30], 0, false},
		{"the most", rough[:40], 0, true},
	} {
		if got := r.done(c.took, c.elapsed); got != c.want {
			t.Errorf("%s: done %v", c.name, got)
		}
	}
}

func TestSendsBytesWhereTheyAreAccepted(t *testing.T) {
	m := model.Model{Config: model.Config{
		Inputs:     []tensor.Spec{{Name: "image", DType: tensor.FP32, Shape: []int64{3, 4, 4}}, {Name: "scale", DType: tensor.FP32, Shape: []int64{1}}},
		Preprocess: map[string]model.Preprocess{"image": {Accept: []tensor.DType{tensor.UINT8}}},
	}}
	if diff := cmp.Diff(map[string]string{"image": "UINT8", "scale": "FP32"}, Inputs(m)); diff != "" {
		t.Error(diff)
	}
	if m.Inputs[0].DType != tensor.FP32 {
		t.Error("the model's own specs were changed")
	}
}

func TestMergesShares(t *testing.T) {
	p := &profile.Profile{}
	Merge(p, []profile.Point{{Share: 100, Batch: 1}, {Share: 100, Batch: 2, N: 1}}, []profile.Memory{{Batch: 2, Bytes: 5}})
	Merge(p, []profile.Point{{Share: 50, Batch: 1}, {Share: 100, Batch: 2, N: 2}}, []profile.Memory{{Batch: 1, Bytes: 3}, {Batch: 2, Bytes: 7}})
	want := &profile.Profile{
		Points: []profile.Point{{Share: 50, Batch: 1}, {Share: 100, Batch: 1}, {Share: 100, Batch: 2, N: 2}},
		Memory: []profile.Memory{{Batch: 1, Bytes: 3}, {Batch: 2, Bytes: 7}},
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Error(diff)
	}
}
