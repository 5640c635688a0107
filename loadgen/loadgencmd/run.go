package loadgencmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
	"github.com/gpulet/gpulet/loadgen/internal/drive"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/loadgen/internal/scenario"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/telemetry"
)

// runConfig is the configuration of loadgen run.
type runConfig struct {
	Load loadConfig
	// Rates and Scenario are two ways to say what is sent; exactly one is needed, or a trace that
	// names its models.
	Rates    string `env:"RATES" usage:"requests/s by model, as in lenet=500,bert=20"`
	Scenario string `env:"SCENARIO" usage:"YAML file with rates over time"`
	// Duration is how long requests are sent.
	Duration time.Duration `env:"DURATION" usage:"how long to send (default 30s; a scenario's phases; the length of a trace)"`
	// Warmup is left out of all figures.
	Warmup time.Duration `env:"WARMUP" usage:"part of the duration, at its start, that is sent and not counted"`
	// Strict and MinAccuracy make a run fail that would otherwise only report.
	Strict      bool   `env:"STRICT" usage:"fail unless every request was answered ok"`
	MinAccuracy string `env:"MIN_ACCURACY" usage:"fail when fewer of a model's labelled answers are right, as in 97%"`
	// JSON, CSV and HTML are files to write; - is standard output. They are flags only: one
	// environment does not suit several runs.
	JSON, CSV, HTML string

	minAccuracy float64 // MinAccuracy, parsed
}

// Validate checks what can be checked without the system.
func (c *runConfig) Validate() error {
	if err := c.Load.Validate(); err != nil {
		return err
	}
	if c.Duration < 0 || c.Warmup < 0 {
		return fmt.Errorf("--duration %v, --warmup %v: expected at least 0", c.Duration, c.Warmup)
	}
	if c.Rates != "" && c.Scenario != "" {
		return errors.New("--rates and --scenario: expected one of them")
	}
	if c.Scenario != "" && c.Duration != 0 {
		return errors.New("--duration and --scenario: a scenario's phases say how long it is")
	}
	if c.MinAccuracy != "" {
		share, err := arrival.ParseFraction(c.MinAccuracy)
		if err != nil || share < 0 || share > 1 {
			return fmt.Errorf("--min-accuracy %q: expected a share from 0 to 1, such as 97%%", c.MinAccuracy)
		}
		c.minAccuracy = share
	}
	return nil
}

func newRunCommand() *cobra.Command {
	var cfg runConfig
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Send requests at set rates and report what came of them",
		Long: `Send requests to registered models at set rates, wait for every answer, and report.

A model whose folder under --models has a samples.msgpack is sent its samples, and its answers are
checked against the expected outputs and labels; other models are sent random tensors. With --body jpeg
models that take images are sent JPEGs, with --body random all are sent random tensors, of --samples
samples per request.

Exit status: 0 when every request was answered and no answer was wrong, 1 when a request was lost,
an answer was wrong, or a model answered no request ok, 2 for wrong usage. Errors that the system
answers with (overloaded, expired, ...) are counted and otherwise are a failure of the run only with
--strict.`,
		Example: `  loadgen run --rates lenet=300 --duration 10s
  loadgen run --rates resnet50=100,bert=20 --arrival mmpp:5,20%,1s --slo resnet50=80ms --html run.html
  loadgen run --rates resnet50=100 --body jpeg
  loadgen run --rates resnet50=100 --body random --samples 8
  loadgen run --scenario rush.yaml --json run.json
  loadgen run --arrival trace:monday.csv --via http --http-url http://127.0.0.1:8000
  loadgen run --rates lenet=300 --via grpc --grpc-url 127.0.0.1:8001

A scenario:
  models: {lenet: {slo: 20ms}}
  phases:
    - {name: calm, duration: 20s, rates: {lenet: 100, bert: 10}}
    - {name: rise, duration: 30s, ramp: true, rates: {lenet: 400}}   # bert stays at 10
    - {name: rush, duration: 20s}`,
	}
	cli.Bind(cmd, &cfg)
	cmd.Flags().StringVar(&cfg.JSON, "json", "", "`file` for the run's figures as JSON (- for standard output)")
	cmd.Flags().StringVar(&cfg.CSV, "csv", "", "`file` for the run's figures as CSV (- for standard output)")
	cmd.Flags().StringVar(&cfg.HTML, "html", "", "`file` for the run's report as HTML (- for standard output)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cli.Load(cmd, &cfg); err != nil {
			return err
		}
		return run(cmd.Context(), cfg, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

func run(ctx context.Context, cfg runConfig, stdout, stderr io.Writer) error {
	log := telemetry.NewLogger(cfg.Load.Log, stderr, "loadgen")
	sc, err := cfg.scenario()
	if err != nil {
		return err
	}
	s, err := newSession(cfg.Load, log)
	if err != nil {
		return err
	}
	if sc, err = s.complete(cfg, sc); err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	defer s.close()
	doc, err := s.run(ctx, settings{
		scenario: sc, warmup: cfg.Warmup,
		watch: func(r *drive.Run) func() { return watch(stderr, r, sc.Duration()) },
	})
	if err != nil {
		return err
	}
	if err := cfg.write(stdout, doc); err != nil {
		return err
	}
	return cfg.verdict(doc)
}

// verdict is why the run failed; nil when it did not.
func (c *runConfig) verdict(doc report.Run) error {
	if why := doc.Failure(); why != "" {
		return errors.New(why)
	}
	if n := doc.Total.ErrorCount(); c.Strict && n > 0 {
		return fmt.Errorf("%d of %d requests were answered with an error (--strict)", n, doc.Total.Sent)
	}
	for _, name := range doc.Names() {
		if a := doc.Models[name].Accuracy; a != nil && *a < c.minAccuracy {
			return fmt.Errorf("%s: %.2f%% of the labelled answers are right: expected at least %s (--min-accuracy)", name, 100**a, c.MinAccuracy)
		}
	}
	return nil
}

// scenario reads what is to be sent; it has no phases when that is left to a trace.
func (c *runConfig) scenario() (scenario.Scenario, error) {
	switch {
	case c.Scenario != "":
		data, err := os.ReadFile(c.Scenario)
		if err != nil {
			return scenario.Scenario{}, cli.Usagef("--scenario: %w", err)
		}
		sc, err := scenario.Parse(c.Scenario, data)
		if err != nil {
			return scenario.Scenario{}, cli.Usagef("--scenario: %w", err)
		}
		return sc, nil
	case c.Rates != "":
		rates, err := scenario.ParseRates(c.Rates)
		if err != nil {
			return scenario.Scenario{}, cli.Usagef("--rates: %w", err)
		}
		return scenario.Constant(rates, c.Duration), nil
	}
	return scenario.Scenario{}, nil
}

// defaultDuration is that of a run at constant rates.
const defaultDuration = 30 * time.Second

// complete fills in what a trace says where the flags say nothing: the models and the duration.
func (s *session) complete(cfg runConfig, sc scenario.Scenario) (scenario.Scenario, error) {
	tr, err := s.trace(s.arrival)
	if err != nil || cfg.Scenario != "" {
		return sc, err
	}
	length := cfg.Duration
	if length == 0 {
		length = defaultDuration
		if tr != nil {
			length = tr.End() + time.Nanosecond
		}
	}
	if cfg.Rates != "" {
		sc.Phases[0].Duration = length
		return sc, nil
	}
	if len(tr.Models()) == 0 {
		return sc, cli.Usagef("nothing to send: expected --rates, --scenario, or --arrival with a trace that names models")
	}
	rates := map[string]float64{}
	for _, name := range tr.Models() {
		rates[name] = 0 // as recorded
	}
	return scenario.Constant(rates, length), nil
}

// write puts the run's figures where the flags say, and a table on standard output unless
// something else goes there.
func (c *runConfig) write(stdout io.Writer, doc report.Run) error {
	table := true
	for _, out := range []struct {
		file  string
		write func(io.Writer) error
	}{
		{c.JSON, doc.WriteJSON},
		{c.CSV, doc.WriteCSV},
		{c.HTML, func(w io.Writer) error { return report.WriteHTML(w, []string{title(doc)}, []report.Run{doc}) }},
	} {
		if out.file == "" {
			continue
		}
		table = table && out.file != "-"
		if err := writeFile(out.file, stdout, out.write); err != nil {
			return err
		}
	}
	if !table {
		return nil
	}
	return doc.WriteTable(stdout)
}

func title(doc report.Run) string {
	if doc.Scenario != "" {
		return doc.Scenario
	}
	return "run"
}

// writeFile writes to a file, or to stdout where it is called "-".
func writeFile(file string, stdout io.Writer, write func(io.Writer) error) (err error) {
	if file == "-" {
		return write(stdout)
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return write(f)
}
