package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/cli"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type Shared struct {
	URL string `env:"URL" usage:"where"`
}

func (s Shared) Validate() error {
	if s.URL == "bad" {
		return errors.New(`url "bad": expected a good one`)
	}
	return nil
}

type Limit struct {
	Max int `env:"MAX" envDefault:"5" usage:"most"`
}

type config struct {
	Shared
	Limit   Limit         `envPrefix:"LIMIT_"`
	Epoch   time.Duration `env:"EPOCH" envDefault:"10s" usage:"how often a plan is computed"`
	Rate    float64       `env:"RATE" envDefault:"0.5"`
	Dry     bool          `env:"DRY_RUN"`
	On      bool          `env:"ON" envDefault:"true"`
	Models  []string      `env:"MODELS" envDefault:"a,b"`
	Shares  []int         `env:"SHARES"`
	Preset  string        `env:"PRESET"`
	Ignored string
}

func (c config) Validate() error {
	if c.Epoch < time.Second {
		return fmt.Errorf("epoch %v: must be at least 1s", c.Epoch)
	}
	return nil
}

// run runs "program serve ARGS" and returns its config, exit code and output.
func run(t *testing.T, args ...string) (cfg config, code int, stdout, stderr string) {
	t.Helper()
	cfg.Preset = "preset"
	root := &cobra.Command{Use: "program", Short: "a program"}
	serve := &cobra.Command{Use: "serve", Short: "serve it", Example: "  program serve --epoch 5s", RunE: func(cmd *cobra.Command, _ []string) error {
		if err := cli.Load(cmd, &cfg); err != nil {
			return err
		}
		if cfg.Preset == "fail" {
			return errors.New("the work failed")
		}
		fmt.Fprintln(cmd.OutOrStdout(), "served")
		return nil
	}}
	cli.Bind(serve, &cfg)
	files := &cobra.Command{Use: "files FILE...", Args: cobra.MinimumNArgs(1), RunE: func(*cobra.Command, []string) error { return nil }}
	root.AddCommand(serve, files)
	var out, errOut bytes.Buffer
	code = cli.Run(context.Background(), root, args, &out, &errOut)
	return cfg, code, out.String(), errOut.String()
}

func TestFlagBeatsEnvironmentBeatsDefault(t *testing.T) {
	want := config{
		Limit: Limit{Max: 5}, Epoch: 10 * time.Second, Rate: 0.5, On: true, Models: []string{"a", "b"}, Preset: "preset",
	}
	check := func(what string, args ...string) {
		t.Helper()
		got, code, _, stderr := run(t, append([]string{"serve"}, args...)...)
		if diff := cmp.Diff(want, got); diff != "" || code != cli.ExitOK {
			t.Errorf("%s: exit %d, %s%s", what, code, stderr, diff)
		}
	}
	check("defaults")
	for key, value := range map[string]string{
		"EPOCH": "20s", "LIMIT_MAX": "6", "RATE": "1.5", "DRY_RUN": "true", "ON": "false", "MODELS": "c", "SHARES": "10,20", "URL": "x", "PRESET": "y",
	} {
		t.Setenv("GPULET_"+key, value)
	}
	want = config{
		Shared: Shared{URL: "x"}, Limit: Limit{Max: 6}, Epoch: 20 * time.Second, Rate: 1.5, Dry: true, Models: []string{"c"},
		Shares: []int{10, 20}, Preset: "y",
	}
	check("environment")
	want = config{
		Shared: Shared{URL: "z"}, Limit: Limit{Max: 7}, Epoch: 30 * time.Second, Rate: 2.5, On: true, Models: []string{"d", "e"},
		Shares: []int{30}, Preset: "f",
	}
	check("flags", "--epoch=30s", "--limit-max", "7", "--rate=2.5", "--dry-run=false", "--on", "--models", "d,e", "--shares=30", "--url=z", "--preset=f")
	for _, key := range []string{"EPOCH", "LIMIT_MAX", "RATE", "DRY_RUN", "ON", "MODELS", "SHARES", "URL", "PRESET"} {
		t.Setenv("GPULET_"+key, "")
	}
	want = config{
		Limit: Limit{Max: 5}, Epoch: 10 * time.Second, Rate: 0.5, On: true, Models: []string{"a", "b"}, Preset: "preset",
	}
	check("an empty variable is unset")
}

func TestWrongUsageIsNamedAndExitsWith2(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  [2]string
		want string
	}{
		{args: []string{"serve"}, env: [2]string{"EPOCH", "10"}, want: `GPULET_EPOCH="10": expected a duration such as 500ms or 10s`},
		{args: []string{"serve"}, env: [2]string{"LIMIT_MAX", "x"}, want: `GPULET_LIMIT_MAX="x": expected a whole number`},
		{args: []string{"serve"}, env: [2]string{"RATE", "x"}, want: `GPULET_RATE="x": expected a number`},
		{args: []string{"serve"}, env: [2]string{"ON", "maybe"}, want: `GPULET_ON="maybe": expected true or false`},
		{args: []string{"serve"}, env: [2]string{"SHARES", "1,x"}, want: `GPULET_SHARES="1,x": expected values separated by commas`},
		{args: []string{"serve"}, env: [2]string{"URL", "bad"}, want: `url "bad": expected a good one`},
		{args: []string{"serve", "--epoch", "10"}, want: `invalid argument "10" for "--epoch" flag: expected a duration`},
		{args: []string{"serve", "--epoch", "10ms"}, want: "epoch 10ms: must be at least 1s"},
		{args: []string{"serve", "--nonsense"}, want: "unknown flag: --nonsense"},
		{args: []string{"serve", "surplus"}, want: `unexpected argument "surplus"`},
		{args: []string{"nonsense"}, want: `unknown command "nonsense": expected files, serve`},
		{args: []string{"files"}, want: "requires at least 1 arg"},
		{args: nil, want: "missing command: expected files, serve"},
	} {
		t.Run(strings.Join(c.args, " ")+c.env[0], func(t *testing.T) {
			if c.env[0] != "" {
				t.Setenv("GPULET_"+c.env[0], c.env[1])
			}
			_, code, stdout, stderr := run(t, c.args...)
			if code != cli.ExitUsage || stdout != "" || !strings.HasPrefix(stderr, "gpulet program: ") || !strings.Contains(stderr, c.want) {
				t.Errorf("exit %d, stdout %q, stderr %q, expected exit 2 and %q", code, stdout, stderr, c.want)
			}
			if !strings.Contains(stderr, "-h' for usage.") {
				t.Errorf("stderr does not say where help is: %q", stderr)
			}
		})
	}
}

func TestFailedWorkExitsWith1(t *testing.T) {
	_, code, _, stderr := run(t, "serve", "--preset", "fail")
	if code != cli.ExitFailed || stderr != "gpulet program: the work failed\n" {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
}

func TestHelpShowsExamplesAndVariables(t *testing.T) {
	_, code, stdout, _ := run(t, "serve", "-h")
	for _, part := range []string{"program serve --epoch 5s", "--epoch duration", "how often a plan is computed [$GPULET_EPOCH] (default 10s)", "--models list"} {
		if code != cli.ExitOK || !strings.Contains(stdout, part) {
			t.Errorf("exit %d, help lacks %q:\n%s", code, part, stdout)
		}
	}
	if _, code, stdout, _ = run(t, "--version"); code != cli.ExitOK || stdout != "gpulet program dev\n" {
		t.Errorf("exit %d, version %q", code, stdout)
	}
}

func TestAnErrorMayHaveItsOwnExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{{errors.New("the device failed"), "gpulet program: the device failed\n"}, {nil, ""}} {
		root := &cobra.Command{Use: "program", RunE: func(*cobra.Command, []string) error { return cli.WithCode(3, c.err) }}
		var stdout, stderr bytes.Buffer
		if code := cli.Run(t.Context(), root, nil, &stdout, &stderr); code != 3 || stderr.String() != c.want {
			t.Errorf("code %d, %q: expected 3 and %q", code, stderr.String(), c.want)
		}
	}
}

func TestUsagef(t *testing.T) {
	cause := errors.New("cause")
	root := &cobra.Command{Use: "p", RunE: func(*cobra.Command, []string) error {
		return fmt.Errorf("wrapped: %w", cli.Usagef("model %q: %w", "x", cause))
	}}
	var stderr bytes.Buffer
	if code := cli.Run(t.Context(), root, nil, &stderr, &stderr); code != cli.ExitUsage || !strings.Contains(stderr.String(), `wrapped: model "x": cause`) {
		t.Errorf("exit %d, stderr %q", code, stderr.String())
	}
	if !errors.Is(cli.Usagef("%w", cause), cause) {
		t.Error("the cause is lost")
	}
}

func TestWrongConfigStructsPanic(t *testing.T) {
	for name, cfg := range map[string]any{
		"no pointer": config{},
		"bad default": &struct {
			N int `env:"N" envDefault:"x"`
		}{},
		"twice": &struct {
			A int `env:"N"`
			B int `env:"N"`
		}{},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			cli.Bind(&cobra.Command{Use: "p"}, cfg)
		}()
	}
}
