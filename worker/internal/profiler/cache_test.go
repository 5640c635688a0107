package profiler

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
)

func TestCacheIsOfOneArchiveOnly(t *testing.T) {
	dir := t.TempDir()
	m := model.Model{Config: model.Config{Name: "m"}, Version: 2, Hash: strings.Repeat("ab", 32)}
	if _, err := Cached(dir, "cpu-x-2c", m); !errors.Is(err, ErrNotCached) {
		t.Errorf("error %v: expected that there is none", err)
	}
	p := &profile.Profile{
		Model: "m", ModelHash: m.Hash, GPUType: "cpu-x-2c",
		Points: []profile.Point{{Share: 100, Batch: 1, P50Ms: 1}},
	}
	if err := profile.Save(dir, p); err != nil {
		t.Fatal(err)
	}
	if got, err := Cached(dir, "cpu-x-2c", m); err != nil || len(got.Points) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	m.Hash = strings.Repeat("cd", 32)
	_, err := Cached(dir, "cpu-x-2c", m)
	if err == nil || !strings.Contains(err.Error(), "found a profile of the archive abababababab: expected cdcdcdcdcdcd, version 2 of m") {
		t.Errorf("error %v: expected both archives", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cpu-x-2c", "m.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Cached(dir, "cpu-x-2c", m); err == nil || errors.Is(err, ErrNotCached) {
		t.Errorf("error %v: expected the broken file", err)
	}
}

func TestGoesOnOnlyWithWhatStillHolds(t *testing.T) {
	fresh := profile.Profile{Model: "m", ModelHash: "aa", Torch: "2", Precision: "fp16", Driver: "580", Inputs: map[string]string{"x": "UINT8"}}
	earlier := fresh
	earlier.Points = []profile.Point{{Share: 10, Batch: 1, P50Ms: 1}}
	if got, err := Resume(&earlier, &fresh); err != nil || got != &earlier {
		t.Errorf("got %+v, %v: expected the earlier one", got, err)
	}
	for want, change := range map[string]func(*profile.Profile){
		`the archive "bb": expected "aa"`:       func(p *profile.Profile) { p.ModelHash = "bb" },
		`the engine "1": expected "2"`:          func(p *profile.Profile) { p.Torch = "1" },
		`the precision "fp32": expected "fp16"`: func(p *profile.Profile) { p.Precision = "fp32" },
		`the driver "": expected "580"`:         func(p *profile.Profile) { p.Driver = "" },
		`inputs map[x:FP32]: expected map[x:UI`: func(p *profile.Profile) { p.Inputs = map[string]string{"x": "FP32"} },
	} {
		other := earlier
		change(&other)
		got, err := Resume(&other, &fresh)
		if got != &fresh || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %+v, error %v: expected a fresh one, and %q", got, err, want)
		}
	}
}
