package sim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/profile"
)

func FuzzParseTrace(f *testing.F) {
	f.Add([]byte("t_sec,a,b\n0,1,2\n10,3,4\n"))
	f.Add([]byte("# c\nt,a\n1e3,1e9\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		traffic, length, err := ParseTrace("f", data)
		if err != nil {
			return
		}
		for name, tr := range traffic {
			if rate := tr.At(length); !(rate >= 0) {
				t.Errorf("model %q: rate %v", name, rate)
			}
		}
	})
}

func FuzzParseScenario(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txt")
	for _, file := range files {
		data, _ := os.ReadFile(file)
		text, _, _ := strings.Cut(string(data), "----")
		f.Add(strings.ReplaceAll(text, "steer", "# steer"))
	}
	set := &profile.Set{}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1000 || strings.Contains(text, "gpus") && strings.Contains(text, "00") {
			return // large fleets take long to plan for
		}
		if c, err := ParseScenario("f", text, set, nil); err == nil {
			if err := c.Validate(); err != nil {
				t.Errorf("accepted a scenario that is not valid: %v", err)
			}
		}
	})
}
