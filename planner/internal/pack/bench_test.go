package pack

import (
	"fmt"
	"testing"
	"time"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/interference"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/profile"
)

// fleet makes a problem of n GPUs and m models that needs about fill of them: the shipped profiles
// under m names, with rates that differ by a factor of up to 16.
func fleet(t testing.TB, n, m int, fill float64) problem.Input {
	t.Helper()
	shippedSet := shipped(t)
	dev, _ := shippedSet.Device("rtx2080ti")
	fitted, _ := shippedSet.Interference("rtx2080ti")
	set := &profile.Set{}
	set.AddInterference(fitted)
	in := problem.Input{Profiles: set}
	names := shippedSet.Models("rtx2080ti")
	for i := range m {
		base := names[i%len(names)]
		p, _ := shippedSet.Get("rtx2080ti", base)
		q := *p
		q.Model = fmt.Sprintf("%s-%d", base, i)
		set.Add(&q)
		rate := float64(int(1) << (i * 7 % 5))
		in.Models = append(in.Models, problem.Model{Name: q.Model, SLO: time.Duration(paperSLO[base]) * time.Millisecond, Rate: rate})
	}
	for i := range n {
		in.GPUs = append(in.GPUs, problem.GPU{Host: fmt.Sprintf("h%d", i/8), Index: i % 8, Type: "rtx2080ti", MemBytes: dev.MemBytes})
	}
	s, err := interference.New(set)
	if err != nil {
		t.Fatal(err)
	}
	in.Interference = s
	if fill < 0 {
		for i := range in.Models {
			in.Models[i].Rate *= 100
		}
		return in
	}
	scale := fill * float64(n) / Bound(in)
	for i := range in.Models {
		in.Models[i].Rate *= scale
	}
	return in
}

// BenchmarkGpulet measures the first sound plan (steps=-1) and the default search over sizes.
func BenchmarkGpulet(b *testing.B) {
	for _, size := range []struct{ gpus, models int }{{4, 9}, {10, 9}, {100, 20}, {1000, 200}, {10000, 200}} {
		in := fleet(b, size.gpus, size.models, 0.8)
		bound := Bound(in)
		for _, steps := range []int{-1, 0} {
			b.Run(fmt.Sprintf("gpus=%d/models=%d/steps=%d", size.gpus, size.models, steps), func(b *testing.B) {
				b.ReportAllocs()
				var res Result
				for b.Loop() {
					res = Gpulet(in, Options{Steps: steps})
				}
				if v := check.Plan(in, res.Plan); len(v) > 0 {
					b.Fatal(v[0])
				}
				if !check.Complete(res.Plan) {
					b.Fatalf("unserved: %v", res.Reasons)
				}
				b.ReportMetric(float64(res.Plan.GPUsUsed), "gpus")
				b.ReportMetric(100*(float64(res.Plan.GPUsUsed)/bound-1), "gap-%")
			})
		}
	}
}
