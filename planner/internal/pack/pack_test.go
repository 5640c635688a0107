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

// paperSLO are the objectives of the ATC 2022 paper, in ms.
var paperSLO = map[string]int{
	"googlenet": 66, "lenet": 5, "resnet50": 108, "ssd-mobilenetv1": 202, "vgg16": 142,
	"mnasnet1_0": 62, "mobilenet_v2": 64, "densenet161": 202, "bert": 22,
}

func shipped(t testing.TB) *profile.Set {
	t.Helper()
	set, problems := profile.LoadDir("../../../profiles")
	for _, err := range problems {
		t.Fatal(err)
	}
	return set
}

func turing(t testing.TB, set *profile.Set, gpus int, rates map[string]float64, interfere bool) problem.Input {
	t.Helper()
	dev, ok := set.Device("rtx2080ti")
	if !ok {
		t.Fatal("no device.json for rtx2080ti")
	}
	in := problem.Input{Profiles: set, ContextBytes: dev.ContextBytes}
	for i := range gpus {
		in.GPUs = append(in.GPUs, problem.GPU{Host: "h", Index: i, Type: "rtx2080ti", MemBytes: dev.MemBytes})
	}
	for _, name := range set.Models("rtx2080ti") {
		if rate := rates[name]; rate > 0 {
			in.Models = append(in.Models, problem.Model{Name: name, SLO: time.Duration(paperSLO[name]) * time.Millisecond, Rate: rate})
		}
	}
	if interfere {
		s, err := interference.New(set)
		if err != nil {
			t.Fatal(err)
		}
		in.Interference = s
	}
	return in
}

func TestElasticServesAllNineModels(t *testing.T) {
	set := shipped(t)
	rates := map[string]float64{}
	for m := range paperSLO {
		rates[m] = 200
	}
	in := turing(t, set, 4, rates, true)
	res := Elastic(in, Options{})
	for _, v := range check.Plan(in, res.Plan) {
		t.Error(v)
	}
	if !check.Complete(res.Plan) {
		t.Errorf("unserved %v: %v", res.Plan.Unserved, res.Reasons)
	}
	for _, g := range res.Plan.Gpulets {
		fmt.Println(g)
	}
}
