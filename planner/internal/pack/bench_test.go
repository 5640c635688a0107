package pack

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/interference"
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
	scale := fill * float64(n) / Bound(in)
	for i := range in.Models {
		in.Models[i].Rate *= scale
	}
	return in
}

// BenchmarkGpulet measures the first sound plan (steps=-1) and the default search over sizes, and
// how many GPUs more than the lower bound they take.
func BenchmarkGpulet(b *testing.B) {
	for _, size := range []struct{ gpus, models int }{
		{10, 9}, {100, 9}, {100, 20}, {300, 20}, {300, 60}, {1000, 20}, {1000, 60}, {1000, 200}, {3000, 200}, {10000, 200},
	} {
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

// BenchmarkFourGPUsNineModels plans the paper's 19,682 scenarios' sample: every 97th of the grid
// {0, 100, 200} over nine models, one per iteration, and reports the median time of a first plan.
func BenchmarkFourGPUsNineModels(b *testing.B) {
	set := shipped(b)
	var inputs []problem.Input
	for i := 1; i < 19683; i += 97 {
		rates := map[string]float64{}
		n := i
		for _, name := range set.Models("rtx2080ti") {
			rates[name] = float64(n%3) * 100
			n /= 3
		}
		inputs = append(inputs, turing(b, set, 4, rates, true))
	}
	var took []time.Duration
	i, unserved := 0, 0
	for b.Loop() {
		in := inputs[i%len(inputs)]
		begin := time.Now()
		res := Gpulet(in, Options{Steps: -1})
		took = append(took, time.Since(begin))
		if !check.Complete(res.Plan) {
			unserved++
		}
		i++
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "median-ms")
	b.ReportMetric(float64(unserved)/float64(len(took)), "unserved")
}

// BenchmarkSettle is the primitive that everything else calls.
func BenchmarkSettle(b *testing.B) {
	set := shipped(b)
	in := turing(b, set, 1, map[string]float64{"resnet50": 200, "vgg16": 90, "googlenet": 300, "bert": 100, "lenet": 500}, true)
	e := newEnv(&in)
	si := slices.Index(e.classes[0].shares, 20)
	var parts []part
	for m := range e.models {
		parts = append(parts, part{si, []slot{{m: m, rate: e.models[m].rate}}})
	}
	b.ReportAllocs()
	for b.Loop() {
		if !e.settle(0, parts) {
			b.Fatal("does not settle")
		}
	}
}
