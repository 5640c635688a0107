package chaos

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// skewed is a worker whose clock can be set off, in bin/; clockVariable says by how many seconds.
const (
	skewed        = "worker-skewed"
	clockVariable = "CHAOS_CLOCK"
)

// nowLine is the line of the Go runtime's time.Now that reads the clock.
const nowLine = "\tsec, nsec, mono := runtimeNow()\n"

// skewSource goes into Go's own time package.
const skewSource = `
var skew = func() (seconds int64) {
	text, _ := syscall.Getenv("` + clockVariable + `")
	negative := text != "" && text[0] == '-'
	for _, c := range text {
		if c >= '0' && c <= '9' {
			seconds = 10*seconds + int64(c-'0')
		}
	}
	if negative {
		return -seconds
	}
	return seconds
}()
`

// buildSkewed builds a worker whose wall clock is off, all of it, its libraries too: by another
// time.Now in Go's own library. Programs of Go do not read their clock through the C library, so it
// cannot be put in their way from outside; and there is nothing in the product that only a test
// would use. The monotonic clock is right, as that of a host with a wrong date is.
func buildSkewed(t testing.TB) {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		build(t, skewed)
		return
	}
	folder := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	now := filepath.Join(folder, "time.go")
	text, err := os.ReadFile(now)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(text), nowLine) == 0 {
		t.Fatalf("%s: time.Now does not read the clock by %q: adapt nowLine to this Go", now, nowLine)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for target, source := range map[string]string{
		now:                              strings.Replace(string(text), nowLine, nowLine+"\tsec += skew\n", 1),
		filepath.Join(folder, "skew.go"): "package time\n\nimport \"syscall\"\n" + skewSource,
	} {
		replace[target] = filepath.Join(dir, filepath.Base(target))
		if err := os.WriteFile(replace[target], []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	document, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, document, 0o644); err != nil {
		t.Fatal(err)
	}
	build(t, skewed, "-overlay", overlay, "./worker")
}
