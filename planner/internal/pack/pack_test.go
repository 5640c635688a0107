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

func TestPeakRough(t *testing.T) {
	set := shipped(t)
	mixes := map[string]map[string]float64{
		"game":    {"lenet": 6, "resnet50": 1},
		"traffic": {"ssd-mobilenetv1": 1, "googlenet": 1, "vgg16": 1},
		"scen1":   {"googlenet": 1, "bert": 1, "mnasnet1_0": 1, "mobilenet_v2": 1},
		"scen2":   {"densenet161": 1, "vgg16": 1},
		"scen3":   {"resnet50": 1, "vgg16": 1, "mobilenet_v2": 1},
		"scen4":   {"ssd-mobilenetv1": 1, "mnasnet1_0": 1, "densenet161": 1},
		"scen5":   {"lenet": 1, "ssd-mobilenetv1": 1, "vgg16": 1, "mnasnet1_0": 1},
	}
	for _, name := range []string{"game", "traffic", "scen1", "scen2", "scen3", "scen4", "scen5"} {
		line := name
		for _, alg := range Names() {
			lo, hi := 0.0, 8000.0
			start := time.Now()
			n := 0
			for hi-lo > 5 {
				mid := (lo + hi) / 2
				rates := map[string]float64{}
				for m, k := range mixes[name] {
					rates[m] = k * mid
				}
				in := turing(t, set, 4, rates, true)
				for i := range in.Models {
					switch {
					case name == "game":
						in.Models[i].SLO = 108 * time.Millisecond
					case name == "traffic" && in.Models[i].Name == "ssd-mobilenetv1":
						in.Models[i].SLO = 90 * time.Millisecond
					case name == "traffic":
						in.Models[i].SLO = 112 * time.Millisecond
					}
				}
				a, _ := ByName(alg)
				res := a(in, Options{})
				n++
				if v := check.Plan(in, res.Plan); len(v) > 0 {
					t.Fatal(alg, v[0])
				}
				if check.Complete(res.Plan) {
					lo = mid
				} else {
					hi = mid
				}
			}
			line += fmt.Sprintf("  %s %.0f (%.1f ms)", alg, lo, float64(time.Since(start).Microseconds())/1000/float64(n))
		}
		fmt.Println(line)
	}
}

func TestBoundRough(t *testing.T) {
	set := shipped(t)
	mixes := map[string]map[string]float64{
		"game":    {"lenet": 6, "resnet50": 1},
		"traffic": {"ssd-mobilenetv1": 1, "googlenet": 1, "vgg16": 1},
		"scen1":   {"googlenet": 1, "bert": 1, "mnasnet1_0": 1, "mobilenet_v2": 1},
		"scen2":   {"densenet161": 1, "vgg16": 1},
		"scen3":   {"resnet50": 1, "vgg16": 1, "mobilenet_v2": 1},
		"scen4":   {"ssd-mobilenetv1": 1, "mnasnet1_0": 1, "densenet161": 1},
		"scen5":   {"lenet": 1, "ssd-mobilenetv1": 1, "vgg16": 1, "mnasnet1_0": 1},
	}
	for _, interfere := range []bool{true, false} {
		for _, name := range []string{"game", "traffic", "scen1", "scen2", "scen3", "scen4", "scen5"} {
			rates := map[string]float64{}
			for m, k := range mixes[name] {
				rates[m] = k * 1000
			}
			in := turing(t, set, 4, rates, interfere)
			for i := range in.Models {
				switch {
				case name == "game":
					in.Models[i].SLO = 108 * time.Millisecond
				case name == "traffic" && in.Models[i].Name == "ssd-mobilenetv1":
					in.Models[i].SLO = 90 * time.Millisecond
				case name == "traffic":
					in.Models[i].SLO = 112 * time.Millisecond
				}
			}
			start := time.Now()
			b := Bound(in)
			fmt.Printf("%s interference %v: bound %.0f (%v)\n", name, interfere, 1000*4/b, time.Since(start))
		}
	}
}
