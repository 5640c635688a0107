package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpulet/gpulet/e2e/harness"
)

// Workers whose clock is off, in bin/.
const (
	skewedAhead  = "worker-clock-ahead"
	skewedBehind = "worker-clock-behind"
)

// nowLine is the line of the Go runtime's time.Now that reads the clock.
const nowLine = "\tsec, nsec, mono := runtimeNow()\n"

// buildSkewed builds a worker whose wall clock is off by offset, all of it, its libraries too: by
// another time.Now in Go's own library. Programs of Go do not read their clock through the C
// library, so it cannot be put in their way from outside; and there is nothing in the product that
// only a test would use. The monotonic clock is right, as that of a host with a wrong date is.
func buildSkewed(t testing.TB, program string, offset time.Duration) {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(text), nowLine) == 0 {
		t.Fatalf("%s: time.Now does not read the clock by %q: adapt nowLine to this Go", source, nowLine)
	}
	skewed := strings.Replace(string(text), nowLine, nowLine+fmt.Sprintf("\tsec += %d\n", int(offset.Seconds())), 1)
	dir := t.TempDir()
	file, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	document, err := json.Marshal(map[string]map[string]string{"Replace": {source: file}})
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{file: []byte(skewed), overlay: document} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-overlay", overlay, "-o", filepath.Join("bin", program), "./worker")
	cmd.Dir = harness.Root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a worker with another clock: %v\n%s", err, out)
	}
}
