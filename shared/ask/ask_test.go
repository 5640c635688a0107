package ask_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/ask"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
)

func run(t *testing.T, args ...string) (code int, errs string) {
	t.Helper()
	cfg := &struct{ Ask ask.Config }{}
	cmd := ask.Command(&cobra.Command{Use: "ask"}, bus.RolePlanner, cfg, &cfg.Ask,
		func(context.Context, *bus.Bus, []string, io.Writer) error { return nil })
	var out, err bytes.Buffer
	code = cli.Run(t.Context(), cmd, args, &out, &err)
	return code, err.String()
}

func TestAWaitThatIsNoneIsWrongUsage(t *testing.T) {
	if code, errs := run(t, "--wait", "0s"); code != 2 || !strings.Contains(errs, "wait 0s: expected more than 0") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestASystemThatIsNotThereIsNamed(t *testing.T) {
	code, errs := run(t, "--wait", "1ms", "--nats-url", "nats://127.0.0.1:1", "--state-dir", t.TempDir())
	if code != 1 || !strings.Contains(errs, "no system to ask: connect to nats://127.0.0.1:1") {
		t.Errorf("exit %d: %s", code, errs)
	}
}
