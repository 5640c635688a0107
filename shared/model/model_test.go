package model

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/tensor"
)

func TestParseConfigFillsDefaults(t *testing.T) {
	got, err := ParseConfig("model.yaml", []byte(resnet+`preprocess: {input: {accept: [UINT8], scale: 0.5, mean: [0.1, 0.2, 0.3], std: [1]}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Name: "resnet50", SLO: 108 * time.Millisecond, Timeout: 216 * time.Millisecond, MaxBatch: 32,
		Precision: "stored", Weight: 1, Class: "interactive", Storage: "memory",
		Inputs:     []tensor.Spec{{Name: "input", DType: tensor.FP32, Shape: []int64{3, 224, 224}}},
		Outputs:    []tensor.Spec{{Name: "output", DType: tensor.FP32, Shape: []int64{1000}}},
		Preprocess: map[string]Preprocess{"input": {Accept: []tensor.DType{tensor.UINT8}, Scale: 0.5, Mean: []float64{0.1, 0.2, 0.3}, Std: []float64{1}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseConfigSaysWhatIsWrong(t *testing.T) {
	edit := func(old, new string) string { return strings.Replace(resnet, old, new, 1) }
	for _, c := range []struct{ name, yaml, want string }{
		{"unknown key", resnet + "sloo: 3ms\n", `line 6: unknown key "sloo": expected one of name, slo`},
		{"unknown key inside", edit("{name: input,", "{nam: input,"), `unknown key "inputs[0].nam": expected one of name, dtype, shape`},
		{"missing key", edit("slo: 108ms\n", ""), `key "slo" is missing: expected a duration such as 100ms`},
		{"missing inputs", edit("inputs:  [{name: input,  dtype: FP32, shape: [3, 224, 224]}]\n", ""), `key "inputs" is missing`},
		{"not a duration", edit("108ms", "108"), `key "slo": found "108": expected a duration`},
		{"negative duration", edit("108ms", "-1ms"), `key "slo": found "-1ms"`},
		{"bad name", edit("resnet50", "Res Net"), `key "name": found "Res Net": expected a name of [a-z0-9_-]{1,64}`},
		{"zero batch", edit("max_batch: 32", "max_batch: 0"), `key "max_batch": found 0: expected 1..4096`},
		{"unknown dtype", edit("FP32", "FP31"), `key "inputs[0].dtype": found dtype "FP31": expected one of FP32`},
		{"zero dimension", edit("[3, 224, 224]", "[3, 0, 224]"), `key "inputs[0].shape": dimension 1: found 0: expected a size above 0, or -1`},
		{"too large", edit("[3, 224, 224]", "[4611686018427387904, 4]"), `key "inputs[0].shape"`},
		{"timeout below slo", resnet + "timeout: 5ms\n", `key "timeout": found 5ms: expected at least the slo, 108ms`},
		{"bad precision", resnet + "precision: int8\n", `key "precision": found "int8": expected one of stored, fp32, fp16, bf16`},
		{"bad storage", resnet + "storage: disk\n", `key "storage": found "disk": expected one of memory, file`},
		{"bad weight", resnet + "weight: -1\n", `key "weight": found -1: expected a number above 0`},
		{"NaN weight", resnet + "weight: .nan\n", `key "weight": found NaN`},
		{"preprocess of nothing", resnet + "preprocess: {img: {accept: [UINT8]}}\n", `key "preprocess.img": found no such input`},
		{"wrong channels", resnet + "preprocess: {input: {accept: [UINT8], mean: [1, 2]}}\n", `key "preprocess.input.mean": found 2 numbers: expected one, or one per channel`},
		{"empty", "", "found 0 documents"},
		{"a list", "- a\n", "expected a mapping"},
		{"broken", "name: [", "not readable as YAML"},
		{"twice", resnet + "slo: 3ms\n", "slo"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseConfig("m/model.yaml", []byte(c.yaml))
			if err == nil || !strings.HasPrefix(err.Error(), "m/model.yaml: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v\nexpected %q", err, c.want)
			}
		})
	}
}

func TestRequestsWaitWhereTheirClassSaysUnlessTold(t *testing.T) {
	for yaml, want := range map[string]string{
		"":                                  "memory",
		"class: offline\n":                  "file",
		"class: offline\nstorage: memory\n": "memory",
		"storage: file\n":                   "file",
	} {
		c, err := ParseConfig("", []byte(resnet+yaml))
		if err != nil || c.Storage != want {
			t.Errorf("%q: storage %q, %v; expected %q", yaml, c.Storage, err, want)
		}
	}
}

func TestVaryingDimensionsAreKept(t *testing.T) {
	c, err := ParseConfig("", []byte(strings.Replace(resnet, "[3, 224, 224]", "[-1]", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int64{-1}, c.Inputs[0].Shape); diff != "" {
		t.Error(diff)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestScanFindsTheNewestVersionAndHidesNothing(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "resnet50/model.yaml"), resnet)
	write(t, filepath.Join(root, "resnet50/2/model.pt"), "two")
	write(t, filepath.Join(root, "resnet50/10/model.pt"), "ten")
	write(t, filepath.Join(root, "resnet50/11/readme"), "no archive")
	write(t, filepath.Join(root, "broken/model.yaml"), "name: broken\n")
	write(t, filepath.Join(root, "empty/model.yaml"), strings.Replace(resnet, "resnet50", "empty", 1))
	write(t, filepath.Join(root, "other/model.yaml"), resnet)
	write(t, filepath.Join(root, "other/1/model.pt"), "x")
	write(t, filepath.Join(root, ".git/config"), "")
	r := &Repository{Root: root}
	models, problems := r.Scan()
	if len(models) != 1 || models[0].Version != 10 || models[0].Path != filepath.Join(root, "resnet50/10/model.pt") {
		t.Errorf("models %+v: expected resnet50 version 10", models)
	}
	var text []string
	for _, err := range problems {
		text = append(text, strings.TrimPrefix(err.Error(), root+"/"))
	}
	want := []string{
		`broken/model.yaml: key "slo" is missing: expected a duration such as 100ms`,
		`empty: found no version with an archive: expected <version>/model.pt2 or <version>/model.pt`,
		`other/model.yaml: key "name": found "resnet50": expected the folder's name, "other"`,
	}
	if diff := cmp.Diff(want, text); diff != "" {
		t.Error(diff)
	}
}

func TestNamesDoNotLeaveTheRepository(t *testing.T) {
	root := filepath.Join(t.TempDir(), "models")
	write(t, filepath.Join(root, "resnet50/model.yaml"), resnet)
	write(t, filepath.Join(root, "resnet50/1/model.pt"), "x")
	write(t, filepath.Join(root, "../secret/model.yaml"), strings.Replace(resnet, "resnet50", "secret", 1))
	write(t, filepath.Join(root, "../secret/1/model.pt"), "x")
	for _, name := range []string{"../secret", "..", ".", "", "/", "resnet50/../../secret", "resnet50/", filepath.Join(root, "../secret"), "a\x00b", "Resnet50", strings.Repeat("a", 65)} {
		if m, err := Load(root, name); err == nil || !strings.Contains(err.Error(), "expected a name of") {
			t.Errorf("%q: %+v, %v: expected a refusal of the name", name, m, err)
		}
		if _, err := ParseConfig("", []byte(strings.Replace(resnet, "resnet50", strconv.Quote(name), 1))); err == nil {
			t.Errorf("a model.yaml may give the name %q", name)
		}
	}
	write(t, filepath.Join(root, "inner/model.yaml"), strings.Replace(resnet, "resnet50", "../secret", 1))
	if _, err := Load(root, "inner"); err == nil {
		t.Error("a model.yaml names another folder")
	}
}

func TestWhatIsNoDescriptionIsNotRead(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "large/model.yaml"), resnet+"#"+strings.Repeat("x", 2<<20))
	if err := os.MkdirAll(filepath.Join(root, "folder/model.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "pipe"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "pipe/model.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"large": "found more than 1048576 bytes", "folder": "expected a file", "pipe": "expected a file"} {
		if _, err := Load(root, name); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name+"/model.yaml") {
			t.Errorf("%s: error %v, expected %q", name, err, want)
		}
	}
}

func TestHashFollowsTheFile(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "resnet50/model.yaml"), resnet)
	archive := filepath.Join(root, "resnet50/1/model.pt")
	write(t, archive, "one")
	r := &Repository{Root: root}
	first, _ := r.Scan()
	same, _ := r.Scan()
	write(t, archive, "other")
	second, _ := r.Scan()
	if first[0].Hash != same[0].Hash || first[0].Hash == second[0].Hash {
		t.Errorf("hashes %s, %s, %s: expected the first two alike and the third another", first[0].Hash, same[0].Hash, second[0].Hash)
	}
	if want := "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"; first[0].Hash != want {
		t.Errorf("hash %s: expected the archive's sha256", first[0].Hash)
	}
}

func TestPinnedVersionServes(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "resnet50/model.yaml"), resnet+"version: 1\n")
	write(t, filepath.Join(root, "resnet50/1/model.pt"), "one")
	write(t, filepath.Join(root, "resnet50/2/model.pt"), "two")
	m, err := Load(root, "resnet50")
	if err != nil || m.Version != 1 {
		t.Errorf("version %d, %v: expected the pinned 1", m.Version, err)
	}
}
