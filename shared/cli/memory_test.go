package cli

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryLimitIsTheLesserOfMachineAndControlGroup(t *testing.T) {
	machine := memoryLimit(t.TempDir())
	if machine <= 1<<20 {
		t.Fatalf("%d bytes: expected those of this machine", machine)
	}
	for text, want := range map[string]int64{"max\n": machine, "1048576\n": 1 << 20, "9223372036854775807\n": machine, "": machine} {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "memory.max"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := memoryLimit(root); got != want {
			t.Errorf("memory.max %q: %d bytes: expected %d", text, got, want)
		}
	}
}
