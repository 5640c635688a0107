package blackbox_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/worker/internal/blackbox"
)

func open(t testing.TB) (*blackbox.Box, *blackbox.Recorder) {
	t.Helper()
	box, err := blackbox.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(box.Close)
	r, err := blackbox.Open(int(box.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return box, r
}

func requests(n int) []blackbox.Request {
	var list []blackbox.Request
	for i := range n {
		list = append(list, blackbox.Request{Seq: uint64(i + 1), Stored: time.Unix(1e9, int64(i))})
	}
	return list
}

func TestShowsWhatIsBeingDoneAndNothingElse(t *testing.T) {
	box, r := open(t)
	read := func(want ...blackbox.Work) {
		t.Helper()
		got, err := box.Read()
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Error(err, d)
		}
	}
	read()
	first, second := r.Slot(), r.Slot()
	batch := blackbox.Work{Model: "resnet50", Requests: requests(8)}
	first.Begin(batch)
	read(batch)
	loading := blackbox.Work{Model: "bert"}
	second.Begin(loading)
	read(batch, loading)
	first.End()
	read(loading)
	one := blackbox.Work{Model: "m", Requests: requests(1)}
	first.Begin(one) // shorter than what was there before
	read(one, loading)
	second.End()
	read(one)
}

func TestABatchThatDoesNotFitIsCutShort(t *testing.T) {
	box, r := open(t)
	neighbour, slot := r.Slot(), r.Slot()
	slot.Begin(blackbox.Work{Model: "m", Requests: requests(10_000)})
	neighbour.Begin(blackbox.Work{Model: "n"})
	got, err := box.Read()
	if err != nil || len(got) != 2 || got[0].Model != "n" {
		t.Fatalf("%d records, %v: expected 2, the neighbour's first", len(got), err)
	}
	if n := len(got[1].Requests); n < 2000 || got[1].Requests[n-1].Seq != uint64(n) {
		t.Errorf("%d requests: expected about 2,000, the first ones", n)
	}
}

func TestMoreThreadsThanSlotsRecordNothing(t *testing.T) {
	box, r := open(t)
	for range 200 {
		r.Slot().Begin(blackbox.Work{Model: "m"})
	}
	if got, err := box.Read(); err != nil || len(got) != 128 {
		t.Errorf("%d records, %v: expected 128", len(got), err)
	}
	var none *blackbox.Recorder
	none.Slot().Begin(blackbox.Work{Model: "m"})
	none.Slot().End()
}

func BenchmarkBegin(b *testing.B) {
	_, r := open(b)
	slot, w := r.Slot(), blackbox.Work{Model: "resnet50", Requests: requests(32)}
	b.ReportAllocs()
	for b.Loop() {
		slot.Begin(w)
		slot.End()
	}
}
