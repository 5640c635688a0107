package sim

import (
	"testing"

	"github.com/gpulet/gpulet/planner/internal/interference"
	"github.com/gpulet/gpulet/shared/profile"
)

// bench is what scenarios run on: the shipped profiles.
type bench struct {
	profiles     *profile.Set
	interference *interference.Set
}

func loadBench(t testing.TB) bench {
	t.Helper()
	set, errs := profile.LoadDir("../../../profiles")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	predict, err := interference.New(set)
	if err != nil {
		t.Fatal(err)
	}
	return bench{set, predict}
}
