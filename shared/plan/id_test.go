package plan_test

import (
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/plan"
)

func TestHostPartFitsAnID(t *testing.T) {
	for host, want := range map[string]string{
		"node-1":                 "node-1",
		"GPU.Example.com":        "gpu-example-com",
		"rechner_ü":              "rechner--",
		"":                       "host",
		strings.Repeat("a", 100): strings.Repeat("a", 60),
	} {
		if got := plan.HostPart(host); got != want {
			t.Errorf("HostPart(%q) = %q: expected %q", host, got, want)
		}
	}
}
