package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
)

// exposition is what a program answers on /metrics.
type exposition string

// metrics reads a program's metrics, wherever its log says that they are, and checks that the
// manual knows every one of gpulet's own, with its type.
func metrics(t *testing.T, p *harness.Process) exposition {
	t.Helper()
	addr := p.WaitEvent(t, "serving metrics").Text("addr")
	code, body, err := harness.Get("http://" + addr + "/metrics")
	if err != nil || code != 200 {
		t.Fatalf("%s: metrics: HTTP status %d, %v", p.Name, code, err)
	}
	manual, err := os.ReadFile(filepath.Join(harness.Root(t), "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (gpulet_\w+) (\w+)$`).FindAllStringSubmatch(body, -1) {
		if row := fmt.Sprintf("| `%s` | %s |", m[1], m[2]); !strings.Contains(string(manual), row) {
			t.Errorf("docs/operations.md lacks %s", row)
		}
	}
	return exposition(body)
}

var sampleRE = regexp.MustCompile(`(?m)^(\w+)(?:\{(.*)\})? (\S+)$`)

// sum adds up the samples of a metric that have the given labels, as key, value, key, value.
func (e exposition) sum(name string, labels ...string) float64 {
	var sum float64
	for _, m := range sampleRE.FindAllStringSubmatch(string(e), -1) {
		if m[1] != name {
			continue
		}
		fits := true
		for i := 0; i+1 < len(labels); i += 2 {
			fits = fits && strings.Contains(","+m[2]+",", fmt.Sprintf(",%s=%q,", labels[i], labels[i+1]))
		}
		if v, err := strconv.ParseFloat(m[3], 64); fits && err == nil {
			sum += v
		}
	}
	return sum
}
