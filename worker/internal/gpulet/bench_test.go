package gpulet_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

// BenchmarkLoop is a gpu-let with an engine that computes nothing, and with the reference engine,
// which gathers, fed by one client over an embedded server: everything on the same machine.
func BenchmarkLoop(b *testing.B) {
	ref, err := engine.Open(engine.Reference, engine.Options{Library: enginetest.ReferenceLibrary(b)})
	if err != nil {
		b.Fatal(err)
	}
	archive := filepath.Join(b.TempDir(), "model.txt")
	text := "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\nrowsum n INT32 x\n"
	if err := os.WriteFile(archive, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{1, 2, 4, 8, 16, 32} {
		b.Run(fmt.Sprintf("null/batch=%d", size), func(b *testing.B) {
			benchLoop(b, 1, rigOptions{models: []string{"m"}, batch: size, timeout: time.Minute, null: true})
		})
	}
	for _, size := range []int{1, 8} {
		for _, width := range []int{1, 4096} {
			b.Run(fmt.Sprintf("ref/batch=%d/elements=%d", size, width), func(b *testing.B) {
				benchLoop(b, width, rigOptions{models: []string{"m"}, batch: size, timeout: time.Minute, serving: ref, archive: archive})
			})
		}
	}
}

// benchLoop sends requests of one sample with so many elements.
func benchLoop(b *testing.B, width int, o rigOptions) {
	b.ReportAllocs()
	r := newRig(b, o)
	r.waitReady(1)
	body := body(b, 1, make([]float32, width)...)
	const window = 512 // in flight: enough for full batches, not enough to overload the queue
	slots := make(chan struct{}, window)
	var answered, failed atomic.Int64
	done := make(chan struct{}, 1)
	target := int64(-1)
	r.onReply = func(rep bus.Reply) {
		if rep.Get("Gpulet-Status") != "ok" {
			failed.Add(1)
		}
		<-slots
		if answered.Add(1) == atomic.LoadInt64(&target) {
			done <- struct{}{}
		}
	}
	sent := int64(0)
	for b.Loop() {
		slots <- struct{}{}
		sent++
		r.publish(&bus.Message{Model: "m", RequestID: "x", ReplyTo: r.inbox.Address("x"), Body: body})
	}
	atomic.StoreInt64(&target, sent)
	if answered.Load() < sent {
		<-done
	}
	if n := failed.Load(); n > 0 {
		b.Fatalf("%d of %d requests failed", n, sent)
	}
	rep := r.report().Models[0]
	b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "req/s")
	b.ReportMetric(float64(rep.Samples)/float64(rep.Batches), "samples/batch")
}

// BenchmarkRoundTrip is one request at a time, from publishing it to its reply.
func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range []int{1, 8} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			b.ReportAllocs()
			r := newRig(b, rigOptions{models: []string{"m"}, batch: size, timeout: time.Minute, null: true})
			r.waitReady(1)
			body := r.body(1)
			answers := make(chan string, 1)
			r.onReply = func(rep bus.Reply) { answers <- rep.Get("Gpulet-Status") }
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				r.publish(&bus.Message{Model: "m", RequestID: "x", ReplyTo: r.inbox.Address("x"), Body: body})
				if status := <-answers; status != "ok" {
					b.Fatalf("status %s", status)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
}

// BenchmarkOverload sends about twice what the gpu-let can do and shows how much of what it can do
// is answered in time: 1 is all of it.
func BenchmarkOverload(b *testing.B) {
	for _, each := range []time.Duration{500 * time.Microsecond, 4 * time.Millisecond} { // a batch of one
		b.Run(fmt.Sprint(each), func(b *testing.B) {
			for b.Loop() {
				overload(b, each)
			}
		})
	}
}

func overload(b *testing.B, each time.Duration) {
	const lasts = 3 * time.Second
	r := newRig(b, rigOptions{models: []string{"m"}, batch: 1, timeout: 100 * time.Millisecond, execMs: each.Seconds() * 1e3})
	r.engine.takes = each
	r.waitReady(1)
	body := r.body(1)
	var ok atomic.Int64
	r.onReply = func(rep bus.Reply) {
		if rep.Get("Gpulet-Status") == "ok" {
			ok.Add(1)
		}
	}
	start := time.Now()
	for sent := 0; time.Since(start) < lasts; {
		time.Sleep(time.Millisecond)
		for ; time.Duration(sent)*each/2 < time.Since(start); sent++ {
			r.publish(&bus.Message{Model: "m", RequestID: "x", ReplyTo: r.inbox.Address("x"), Body: body})
		}
	}
	r.waitEmpty("m")
	b.ReportMetric(float64(ok.Load())*each.Seconds()/time.Since(start).Seconds(), "of-capacity")
}
