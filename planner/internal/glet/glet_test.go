package glet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/shared/profile"
)

// latencyCSV writes the shipped RTX 2080 Ti profiles in glet's format.
func latencyCSV(t testing.TB) string {
	t.Helper()
	set, problems := profile.LoadDir("../../../profiles")
	for _, err := range problems {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, name := range set.Models("rtx2080ti") {
		p, _ := set.Get("rtx2080ti", name)
		if name == "lenet" {
			name = "lenet1"
		}
		for _, q := range p.Points {
			fmt.Fprintf(&b, "%s,%d,%d,%g\n", name, q.Share, q.Batch, q.P50Ms)
		}
	}
	return file(t, "latency.csv", b.String())
}

func file(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func files(t testing.TB) Files {
	return Files{
		Tasks: "testdata/tasks.csv", Config: "testdata/sched-config.json", Devices: "testdata/device-config.json",
		Latency: latencyCSV(t), Mem: "testdata/mem-config.json",
	}
}

func TestOriginalElasticWritesGletsOwnModelList(t *testing.T) {
	in, warnings, err := Load(files(t))
	if err != nil {
		t.Fatal(err)
	}
	res := pack.Elastic(in, pack.Options{Original: true})
	want, err := os.ReadFile("testdata/ModelList.golden")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), ModelList(in.GPUs, res.Plan)); diff != "" {
		t.Error(diff)
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], `"Incremental" has no effect`) || !strings.Contains(warnings[1], `"SLO Ratio" has no effect`) {
		t.Errorf("warnings %q: expected the two keys without effect", warnings)
	}
}

func TestEveryAlgorithmPlansGletsFiles(t *testing.T) {
	f := files(t)
	f.Tasks = file(t, "tasks.csv", "4\n0,50,5,\n6,100,66,\n7,200,108,\n13,20,22,\n")
	in, _, err := Load(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range pack.Names() {
		algorithm, _ := pack.ByName(name)
		p := algorithm(in, pack.Options{}).Plan
		for _, v := range check.Plan(in, p) {
			t.Errorf("%s: %v", name, v)
		}
		if list := ModelList(in.GPUs, p); !strings.Contains(list, "resnet50") {
			t.Errorf("%s: no resnet50 in\n%s", name, list)
		}
	}
}

func TestKeysAreHonoured(t *testing.T) {
	f := files(t)
	f.Config = file(t, "c.json", `{"GPUs": [{"Type": "2080ti", "Num": 3}], "Max Model": 2, "Part": 0, "Latency Ratio": 1.5, "Self Tuning": 1, "Hm": 2}`)
	in, warnings, err := Load(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(in.GPUs) != 3 || in.GPUs[0].MemBytes != 11000<<20 || in.Buffer != 1.5 || in.Interference != nil || in.MaxModels != 1 {
		t.Errorf("gpus %d, memory %d, buffer %v, interference %v, max models %d", len(in.GPUs), in.GPUs[0].MemBytes, in.Buffer, in.Interference, in.MaxModels)
	}
	if diff := cmp.Diff([]int{100}, in.GPUs[0].Shares); diff != "" {
		t.Errorf("without Part a GPU is not cut: %s", diff)
	}
	if text := strings.Join(warnings, "\n"); !strings.Contains(text, `"Hm" is unknown`) || !strings.Contains(text, `"Self Tuning"`) {
		t.Errorf("warnings %q", warnings)
	}
}

func TestPercentile99IsThePrototypes(t *testing.T) {
	for rate, want := range map[float64]float64{0: 0, 1: 5, 50: 68, 551: 606, 1000: 1100} {
		if got := Percentile99(rate); got != want {
			t.Errorf("Percentile99(%v) = %v: expected %v", rate, got, want)
		}
	}
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name, want string
		edit       func(*testing.T, *Files)
	}{
		{"missing file", "no such file", func(_ *testing.T, f *Files) { f.Tasks = "nowhere.csv" }},
		{"too few tasks", `line 1: found "3": expected the number of models`, func(t *testing.T, f *Files) { f.Tasks = file(t, "t", "3\n9,50,142,\n") }},
		{"unknown id", `line 2: found id "14": expected 0..13`, func(t *testing.T, f *Files) { f.Tasks = file(t, "t", "1\n14,50,142,\n") }},
		{"NaN rate", `line 2: found rate "nan": expected a number of 0..1e+07`, func(t *testing.T, f *Files) { f.Tasks = file(t, "t", "1\n9,nan,142,\n") }},
		{"no SLO", "line 2: found 2 fields: expected id,rate,SLO", func(t *testing.T, f *Files) { f.Tasks = file(t, "t", "1\n9,50\n") }},
		{"twice", "line 3: found vgg16 again", func(t *testing.T, f *Files) { f.Tasks = file(t, "t", "2\n9,50,142\n9,50,142\n") }},
		{"no GPUs", `key "GPUs": found none`, func(t *testing.T, f *Files) { f.Config = file(t, "c", `{}`) }},
		{"broken JSON", "line 2: not readable as JSON", func(t *testing.T, f *Files) { f.Config = file(t, "c", "{\n]") }},
		{"wrong kind", `key "Latency Ratio": found a JSON string: expected float64`, func(t *testing.T, f *Files) {
			f.Config = file(t, "c", `{"GPUs": [{"Type": "2080ti", "Num": 1}], "Latency Ratio": "x"}`)
		}},
		{"low ratio", `key "Latency Ratio": found 0.5: expected 1 or more`, func(t *testing.T, f *Files) {
			f.Config = file(t, "c", `{"GPUs": [{"Type": "2080ti", "Num": 1}], "Latency Ratio": 0.5}`)
		}},
		{"no parts", `key "Avail_Parts": found none`, func(t *testing.T, f *Files) {
			f.Config = file(t, "c", `{"GPUs": [{"Type": "2080ti", "Num": 1}], "Part": 1}`)
		}},
		{"unknown device", `found no type "3090"`, func(t *testing.T, f *Files) { f.Config = file(t, "c", `{"GPUs": [{"Type": "3090", "Num": 1}]}`) }},
		{"no latency", `found no model "vgg16"`, func(t *testing.T, f *Files) { f.Latency = file(t, "l", "resnet50,100,1,5\n") }},
		{"bad latency", `line 1: found latency "-3"`, func(t *testing.T, f *Files) { f.Latency = file(t, "l", "resnet50,100,1,-3\n") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := files(t)
			c.edit(t, &f)
			if _, _, err := Load(f); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v\nexpected %q", err, c.want)
			}
		})
	}
}
