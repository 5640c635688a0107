package batch_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/shared/batch"
)

// TestAgreesWithDumbModel runs random histories through the batcher and through a version that
// keeps one flat list and searches it anew for every question.
func TestAgreesWithDumbModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		d := &dumb{models: h.models, used: map[string]bool{}}
		b := batch.New(h.models)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				model, it := h.item(t)
				b.Add(model, it, h.now)
				d.add(model, it)
			},
			"next": func(t *rapid.T) {
				h.advance(t)
				h.compare(t, d.next(h.now), b.Next(h.now))
			},
			"expire": func(t *rapid.T) {
				h.advance(t)
				h.compare(t, batch.Decision{Expired: d.expire(h.now)}, b.Expire(h.now))
			},
			"remove": func(t *rapid.T) {
				model, id := rapid.SampledFrom(h.models).Draw(t, "model").Name, rapid.IntRange(0, h.ids).Draw(t, "id")
				if want, got := d.takeOut(model, id), b.Remove(model, id); want != got {
					t.Fatalf("removed %d of %s: %v, expected %v", id, model, got, want)
				}
			},
			"next, ahead of time": func(t *rapid.T) {
				h.advance(t)
				h.compare(t, batch.Decision{Launch: d.nextFull(h.now)}, batch.Decision{Launch: b.NextFull(h.now)})
			},
			"": func(t *rapid.T) {
				if len(d.held) != b.Len() {
					t.Fatalf("holds %d items: expected %d", b.Len(), len(d.held))
				}
			},
		})
	})
}

// TestEveryItemComesOutOnce checks what a caller relies on, without saying which item goes first.
func TestEveryItemComesOutOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		b := batch.New(h.models)
		in, out := map[any]string{}, map[any]string{}
		note := func(how string, items []batch.Item) {
			for _, it := range items {
				if out[it.Payload] != "" {
					t.Fatalf("%v came out twice: %s, then %s", it.Payload, out[it.Payload], how)
				}
				if in[it.Payload] != it.Model {
					t.Fatalf("%v went in for %q and came out for %q", it.Payload, in[it.Payload], it.Model)
				}
				out[it.Payload] = how
			}
		}
		next := func(t *rapid.T) {
			h.advance(t)
			d := b.Next(h.now)
			note("expired", d.Expired)
			note("launched", d.Launch.Items)
			h.checkLaunch(t, d.Launch)
			if len(d.Launch.Items) == 0 && b.Len() > 0 {
				t.Fatalf("the executor is free, %d items are held, and nothing is launched", b.Len())
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				model, it := h.item(t)
				if !b.Add(model, it, h.now) {
					t.Fatalf("model %q refused", model)
				}
				in[it.Payload] = model
			},
			"next": next,
			"expire": func(t *rapid.T) {
				h.advance(t)
				note("expired", b.Expire(h.now).Expired)
			},
			"drop a model": func(t *rapid.T) {
				k := rapid.IntRange(0, len(h.models)-1).Draw(t, "kept")
				note("dropped", b.SetModels(h.models[k:k+1]))
				note("dropped", b.SetModels(h.models))
			},
			"": func(t *rapid.T) {
				if len(in)-len(out) != b.Len() {
					t.Fatalf("%d in, %d out, %d held", len(in), len(out), b.Len())
				}
			},
		})
		for b.Len() > 0 {
			next(t)
		}
		if len(in) != len(out) {
			t.Fatalf("%d in, %d out", len(in), len(out))
		}
	})
}

// TestNeverStarves keeps every model supplied, with deadlines that make them jump as they like.
func TestNeverStarves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		b := batch.New(h.models)
		since := map[string]map[string]int{} // model → runs of the others since its own
		for _, m := range h.models {
			since[m.Name] = map[string]int{}
		}
		for range rapid.IntRange(1, 60).Draw(t, "launches") {
			for _, m := range h.models {
				for b.Held(m.Name) < m.Batch {
					slack := rapid.IntRange(200, 1000).Draw(t, "slack ms")
					h.ids++
					b.Add(m.Name, batch.Item{Payload: h.ids, Deadline: h.now.Add(time.Duration(slack) * time.Millisecond)}, h.now)
				}
			}
			ran := b.Next(h.now).Launch.Model
			for model, runs := range since {
				runs[ran]++
				if model != ran && runs[ran] > 2 {
					t.Fatalf("%s ran %d times while %s waited", ran, runs[ran], model)
				}
			}
			since[ran] = map[string]int{}
		}
	})
}

// TestGivesUpOnlyForMore: an item that could still have run alone is given up only for a batch
// that answers more requests than the largest batch with it would have.
func TestGivesUpOnlyForMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		m := h.models[0]
		b := batch.New(h.models[:1])
		for range rapid.IntRange(1, 12).Draw(t, "items") {
			_, it := h.item(t)
			it.Samples = 1 // then what runs together is a matter of numbers only
			b.Add(m.Name, it, h.now)
		}
		d := b.Next(h.now)
		for _, it := range d.Expired {
			left := it.Deadline.Sub(h.now)
			if left < m.Exec(it.Samples) {
				continue
			}
			samples, with := it.Samples, 1
			for _, other := range d.Launch.Items {
				if samples += other.Samples; samples > m.Batch || m.Exec(samples) > left {
					break
				}
				with++
			}
			if with >= len(d.Launch.Items) {
				t.Fatalf("%v was given up for a batch of %d: with it, %d could run", it.Payload, len(d.Launch.Items), with)
			}
		}
	})
}

// TestWakesWhenAnItemIsLost: just before Wake nothing is lost, at Wake something is.
func TestWakesWhenAnItemIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		b := batch.New(h.models)
		for range rapid.IntRange(1, 8).Draw(t, "items") {
			model, it := h.item(t)
			b.Add(model, it, h.now)
		}
		d := b.Expire(h.now)
		if d.Wake.IsZero() {
			if b.Len() > 0 {
				t.Fatalf("%d items are held and none will expire", b.Len())
			}
			return
		}
		if early := b.Expire(d.Wake.Add(-1)); len(early.Expired) > 0 {
			t.Fatalf("%v expired before %v", early.Expired, d.Wake)
		}
		if late := b.Expire(d.Wake); len(late.Expired) == 0 {
			t.Fatalf("nothing expired at %v", d.Wake)
		}
	})
}

func TestWantsNoMoreBatchesThanItIsTold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		b := batch.New(h.models)
		for range rapid.IntRange(0, 20).Draw(t, "items") {
			model, it := h.item(t)
			it.Samples = 1
			b.Add(model, it, h.now)
		}
		if diff := cmp.Diff(b.WantAhead(1), b.Want()); diff != "" {
			t.Fatal(diff)
		}
		ahead := rapid.IntRange(1, 4).Draw(t, "batches")
		wants := map[string]int{}
		for _, w := range b.WantAhead(ahead) {
			wants[w.Model] = w.N
		}
		for _, m := range h.models {
			if want := max(0, ahead*m.Batch-b.Held(m.Name)); wants[m.Name] != want {
				t.Fatalf("%s holds %d of %d x %d and wants %d", m.Name, b.Held(m.Name), ahead, m.Batch, wants[m.Name])
			}
		}
	})
}

func TestRefusesUnknownModel(t *testing.T) {
	b := batch.New([]batch.Model{{Name: "a", Batch: 1}})
	if b.Add("b", batch.Item{}, epoch) {
		t.Error("took an item for a model that is not bound")
	}
	if b.Len() != 0 || b.Held("b") != 0 {
		t.Errorf("holds %d items", b.Len())
	}
}

// TestSlackCountsOnPlannedBatches: those that are only allowed while more wait were not promised to anybody.
func TestSlackCountsOnPlannedBatches(t *testing.T) {
	exec := func(n int) time.Duration { return time.Duration(n) * 10 * time.Millisecond }
	for planned, want := range map[int]time.Duration{0: 30 * time.Millisecond, 1: 45 * time.Millisecond, 4: 30 * time.Millisecond} {
		b := batch.New([]batch.Model{{Name: "a", Batch: 4, Planned: planned, Exec: exec, SLO: 100 * time.Millisecond}})
		if got := b.Slack(); got != want {
			t.Errorf("planned %d of 4: slack of %v: expected %v", planned, got, want)
		}
	}
}

func TestEmptyBatcherRests(t *testing.T) {
	for _, b := range []*batch.Batcher{batch.New(nil), batch.New([]batch.Model{{Name: "a", Batch: 1}})} {
		if diff := cmp.Diff(batch.Decision{}, b.Next(epoch)); diff != "" {
			t.Error(diff)
		}
	}
}

// history draws models, items and a clock that never goes back.
type history struct {
	models []batch.Model
	now    time.Time
	ids    int
}

func newHistory(t *rapid.T) *history {
	h := &history{now: epoch}
	for i := range rapid.IntRange(1, 4).Draw(t, "models") {
		base := time.Duration(rapid.IntRange(0, 20).Draw(t, "base ms")) * time.Millisecond
		each := time.Duration(rapid.IntRange(0, 5).Draw(t, "per sample ms")) * time.Millisecond
		h.models = append(h.models, batch.Model{
			Name:  fmt.Sprint("m", i),
			Batch: rapid.IntRange(1, 6).Draw(t, "batch"),
			Exec:  func(n int) time.Duration { return base + time.Duration(n)*each },
		})
	}
	return h
}

func (h *history) advance(t *rapid.T) {
	h.now = h.now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "ms")) * time.Millisecond)
}

func (h *history) item(t *rapid.T) (model string, it batch.Item) {
	h.ids++
	it = batch.Item{Payload: h.ids, Samples: 1, Arrived: h.now}
	if rapid.Bool().Draw(t, "large") {
		it.Samples = rapid.IntRange(1, 8).Draw(t, "samples")
	}
	it.Deadline = h.now.Add(time.Duration(rapid.IntRange(0, 120).Draw(t, "slack ms")) * time.Millisecond)
	return rapid.SampledFrom(h.models).Draw(t, "model").Name, it
}

func (h *history) compare(t *rapid.T, want, got batch.Decision) {
	got.Wake = want.Wake // has its own test
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("at %v, -dumb +batcher:\n%s", h.now.Sub(epoch), diff)
	}
}

func (h *history) checkLaunch(t *rapid.T, l batch.Launch) {
	if len(l.Items) == 0 {
		return
	}
	i := slices.IndexFunc(h.models, func(m batch.Model) bool { return m.Name == l.Model })
	m, samples := h.models[i], 0
	for _, it := range l.Items {
		samples += it.Samples
	}
	if samples != l.Samples || l.Exec != m.Exec(samples) {
		t.Fatalf("says %d samples in %v: has %d in %v", l.Samples, l.Exec, samples, m.Exec(samples))
	}
	if samples > m.Batch && len(l.Items) > 1 {
		t.Fatalf("%d samples in %d items: expected at most %d", samples, len(l.Items), m.Batch)
	}
	for _, it := range l.Items {
		if it.Deadline.Before(h.now.Add(l.Exec)) {
			t.Fatalf("%v is launched to finish after its deadline", it.Payload)
		}
	}
}
