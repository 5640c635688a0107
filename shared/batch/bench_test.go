package batch_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/batch"
)

func BenchmarkNext(b *testing.B) {
	for _, models := range []int{1, 4} {
		for _, size := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("models=%d/batch=%d", models, size), func(b *testing.B) {
				b.ReportAllocs()
				bb, names := benchBatcher(models, size)
				now, items := epoch, 0
				for b.Loop() {
					now = now.Add(time.Millisecond)
					for _, name := range names {
						for bb.Held(name) < size {
							bb.Add(name, batch.Item{Deadline: now.Add(time.Second)}, now)
						}
					}
					n := len(bb.Next(now).Launch.Items)
					if n != size {
						b.Fatalf("launched %d of %d", n, size)
					}
					items += n
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(items), "ns/request")
			})
		}
	}
}

func benchBatcher(models, size int) (*batch.Batcher, []string) {
	var names []string
	var ms []batch.Model
	for i := range models {
		name := fmt.Sprint("m", i)
		names = append(names, name)
		ms = append(ms, batch.Model{Name: name, Batch: size, Exec: func(n int) time.Duration {
			return time.Millisecond + time.Duration(n)*10*time.Microsecond
		}})
	}
	return batch.New(ms), names
}
