package glet

import (
	"io/fs"
	"testing"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/pack"
)

// inMemory serves what a fuzzer made up: files on a disk would take most of its time.
func inMemory(text map[string]string) source {
	return func(path string) ([]byte, error) {
		if data, ok := text[path]; ok {
			return []byte(data), nil
		}
		return nil, fs.ErrNotExist
	}
}

// FuzzLoad: whatever glet's files say, what is accepted can be planned for, and the plan is valid.
func FuzzLoad(f *testing.F) {
	const (
		config  = `{"GPUs": [{"Type": "2080ti", "Num": 2}], "Part": 1, "Avail_Parts": [20, 80, 100], "Interference": 1}`
		devices = `{"device_specs": [{"type": "2080ti", "mem_mb": 11000, "interference_const_file": "constants", "interference_util_file": "util"}]}`
		latency = "vgg16,20,1,11.5\nvgg16,100,1,4.2\n"
	)
	f.Add("1\n9,50,142,\n", config, devices, latency, `{"models": [{"name": "vgg16", "mem": 1200}]}`,
		"a,b,c,d,e\n0.1,0.2,0.3,0.4,1\n", "name,batch,duration,sm,l2,mem\nvgg16,1,4,60,40,30\n")
	f.Add("0\n", `{"GPUs": [{"Type": "2080ti", "Num": 1}], "Max Model": 1, "Latency Ratio": 1.1, "Self Tuning": 1}`, `{}`, latency, `{}`, "", "")
	f.Fuzz(func(t *testing.T, tasks, config, devices, latency, mem, constants, util string) {
		from := inMemory(map[string]string{
			"tasks": tasks, "config": config, "devices": devices, "latency": latency, "mem": mem, "constants": constants, "util": util,
		})
		in, _, err := load(from, Files{Tasks: "tasks", Config: "config", Devices: "devices", Latency: "latency", Mem: "mem"})
		if err != nil || len(in.GPUs) > 8 || len(in.Models) > 4 {
			return
		}
		p := pack.Gpulet(in, pack.Options{Steps: 5}).Plan
		for _, v := range check.Plan(in, p) {
			t.Error(v)
		}
	})
}

// FuzzLoadCoruns: co-runs that are accepted are of models whose latency alone is known.
func FuzzLoadCoruns(f *testing.F) {
	f.Add("model,batch,partition_pct,co_model,co_batch,co_partition_pct,latency_s\nA,1,50,b,2,50,0.02\n",
		"model,batch,partition_pct,latency_s\na,1,50,0.01\nB,2,50,0.02\n",
		"model,batch,partition_pct,l2_util_pct,mem_util_pct\na,1,50,30,20\n")
	f.Fuzz(func(t *testing.T, pairs, latency, util string) {
		from := inMemory(map[string]string{"pairs": pairs, "latency": latency, "util": util})
		set, runs, err := loadCoruns(from, CorunFiles{Pairs: "pairs", Latency: "latency", Util: "util"}, "g")
		if err != nil {
			return
		}
		for _, run := range runs.Runs {
			if _, ok := set.Get("g", run.Self.Model); !ok {
				t.Errorf("%+v: its latency alone is not known", run.Self)
			}
		}
	})
}
