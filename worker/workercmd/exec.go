package workercmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/telemetry"
	"github.com/gpulet/gpulet/worker/internal/affinity"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/exec"
)

// execConfig are the settings of `worker exec`.
type execConfig struct {
	Models    string `env:"MODELS" envDefault:"models" usage:"model repository"`
	Device    string `env:"DEVICE" envDefault:"auto" usage:"auto, cpu, cuda or cuda:N"`
	Engine    string `env:"ENGINE" envDefault:"torch" usage:"torch or ref"`
	EngineLib string `env:"ENGINE_LIB" usage:"the engine's shared library, or its folder (default: beside the program)"`
	Precision string `env:"PRECISION" usage:"stored, fp32, fp16 or bf16 (default: the model's own)"`
	Dim       int64  `env:"DIM" envDefault:"128" usage:"size of dimensions that vary"`
	Layout    string `env:"LAYOUT" usage:"channels_last: keep images in NHWC order (default: as they come)"`
	Eager     bool   `env:"EAGER" usage:"capture no CUDA graphs"`
	Together  int    `env:"CONCURRENCY" envDefault:"1" usage:"copies of the model that run at the same time, each with a thread and a CUDA stream of its own"`
	Hold      bool   `env:"HOLD" usage:"once the model is loaded, run only at the end of standard input: several processes can so begin at once"`
	MPS       mpsConfig
}

// Validate reports the first setting that makes no sense.
func (c *execConfig) Validate() error {
	choice, err := device.Parse(c.Device)
	switch {
	case err != nil || choice.Kind == device.Sim || len(choice.GPUs) > 1:
		return fmt.Errorf("device %q: expected auto, cpu, cuda or cuda:N", c.Device)
	case c.Engine != engine.Torch && c.Engine != engine.Reference:
		return fmt.Errorf("engine %q: expected %s or %s", c.Engine, engine.Torch, engine.Reference)
	case c.Layout != "" && c.Layout != engine.ChannelsLast:
		return fmt.Errorf("layout %q: expected %s, or none", c.Layout, engine.ChannelsLast)
	case c.Together < 1 || c.Together > maxTogether:
		return fmt.Errorf("concurrency %d: expected 1 to %d", c.Together, maxTogether)
	}
	return nil
}

// maxTogether is more than a GPU runs at the same time.
const maxTogether = 128

// execArgs are its arguments.
type execArgs struct {
	model string
	share int // percent
	run   exec.Config
}

// execReport is what `worker exec --json` prints. Fields may be added, not renamed.
type execReport struct {
	Model     string `json:"model"`
	Batch     int    `json:"batch"`
	Share     int    `json:"share"`
	Device    string `json:"device"`
	Name      string `json:"device_name"`
	Cores     int    `json:"cores,omitempty"` // on a CPU: those in the share
	SMs       int    `json:"sms,omitempty"`   // on a GPU: those the process sees
	Engine    string `json:"engine"`
	Precision string `json:"precision"`
	Layout    string `json:"layout,omitempty"`
	Eager     bool   `json:"eager,omitempty"` // no CUDA graphs were captured
	// Together is how many copies of the model ran at the same time. Latencies are of all their
	// runs, throughput and memory of all together.
	Together int `json:"concurrency"`
	exec.Report
	LoadMs   float64  `json:"load_ms"`
	MemBytes int64    `json:"mem_bytes"`
	Notes    []string `json:"notes,omitempty"`
}

func newExecCommand() *cobra.Command {
	var config execConfig
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "exec MODEL COUNT BATCH INTERVAL [SHARE]",
		Short: "Run a model alone and print its latencies",
		Long: `Run a model alone, without queue and neighbours, and print its latencies.

MODEL is a name in the model repository, or the path of a model's folder. COUNT batches of BATCH
random samples are run, INTERVAL seconds apart (0: back to back), on SHARE percent of the GPU, or
of the cores where there is no GPU (default: 100). For a share of a GPU it
starts an MPS daemon, or uses the one that is there.`,
		Example: `  worker exec lenet 1000 1 0
  worker exec resnet50 1000 1 0.1 50
  worker exec resnet50 1000 1 0 --eager
  worker exec mobilenet_v2 1000 8 0 --layout channels_last --concurrency 4
  worker exec ./models/lenet 100 8 0 --device cpu --json`,
		Args: cobra.RangeArgs(4, 5),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cli.Load(cmd, &config); err != nil {
				return err
			}
			parsed, err := parseExecArgs(args)
			if err != nil {
				return err
			}
			parsed.run.VaryingDim = config.Dim
			return runExec(cmd, config, parsed, asJSON)
		},
	}
	cli.Bind(cmd, &config)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

func parseExecArgs(args []string) (execArgs, error) {
	a := execArgs{model: args[0], share: 100}
	whole := func(name, raw string, low, high int) (int, error) {
		n, err := strconv.Atoi(raw)
		if err != nil || n < low || n > high {
			return 0, cli.Usagef("%s %q: expected a whole number from %d to %d", name, raw, low, high)
		}
		return n, nil
	}
	var err error
	if a.run.Count, err = whole("COUNT", args[1], 1, 1e9); err != nil {
		return a, err
	}
	if a.run.Batch, err = whole("BATCH", args[2], 1, model.MaxBatch); err != nil {
		return a, err
	}
	seconds, err := strconv.ParseFloat(args[3], 64)
	if err != nil || !(seconds >= 0 && seconds <= 86400) {
		return a, cli.Usagef("INTERVAL %q: expected seconds from 0 to 86400", args[3])
	}
	a.run.Interval = time.Duration(seconds * float64(time.Second))
	if len(args) == 5 {
		a.share, err = whole("SHARE", args[4], 1, 100)
	}
	return a, err
}

func runExec(cmd *cobra.Command, config execConfig, args execArgs, asJSON bool) error {
	m, err := findModel(config.Models, args.model)
	if err != nil {
		return err
	}
	report := execReport{Model: m.Name, Batch: args.run.Batch, Share: args.share}
	done, err := restrict(cmd, config, args.share, &report)
	if done || err != nil {
		return err
	}
	eng, err := openForExec(config, &report)
	if err != nil {
		return err
	}
	defer eng.Close()

	loaded, err := loadForExec(cmd, eng, m, config, args.run.Batch, &report)
	for _, l := range loaded {
		defer l.Close()
	}
	if err != nil {
		return err
	}
	if config.Hold {
		if err := held(cmd.Context(), cmd.InOrStdin()); err != nil {
			return err
		}
	}
	show := newProgress(cmd.ErrOrStderr(), args.run.Count*config.Together)
	args.run.Progress = show.update
	report.Report, err = exec.Together(cmd.Context(), loaded, m.Inputs, args.run)
	show.clear()
	if report.Count > 0 {
		if printErr := printExec(cmd.OutOrStdout(), report, asJSON); printErr != nil {
			return printErr
		}
	}
	if err != nil {
		return fmt.Errorf("after %d of %d runs: %w", report.Count, args.run.Count*config.Together, err)
	}
	return nil
}

// held waits for the end of what is read, or of ctx. What is read counts for nothing.
func held(ctx context.Context, in io.Reader) error {
	end := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, in)
		end <- err
	}()
	select {
	case err := <-end:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// findModel takes a name in the repository, or the path of a model's folder.
func findModel(repository, name string) (model.Model, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		folder, err := filepath.Abs(name)
		if err != nil {
			return model.Model{}, err
		}
		repository, name = filepath.Split(folder)
	}
	return model.Load(repository, name)
}

// restrict keeps the process to its share of the device, which must come before the engine's library
// is opened. done: a process of its own has run the model instead, as an MPS client.
func restrict(cmd *cobra.Command, config execConfig, share int, report *execReport) (done bool, err error) {
	if config.Device == "cpu" || config.Engine == engine.Reference || config.Device == "auto" && !hasGPU() {
		report.Device = "cpu"
		return false, restrictCores(share, report)
	}
	report.Device = "cuda:0" // the only GPU that the process is going to see
	if isMPSClient() {
		return false, nil
	}
	gpu, err := findGPU(config.Device)
	if err != nil {
		return false, err
	}
	if share == 100 {
		return false, os.Setenv("CUDA_VISIBLE_DEVICES", gpu.UUID)
	}
	log := telemetry.NewLogger(telemetry.Config{LogLevel: "warn"}, cmd.ErrOrStderr(), "exec")
	return true, runAsMPSClient(cmd, config.MPS.daemon(gpu.UUID, log), share)
}

func restrictCores(share int, report *execReport) error {
	cores, err := affinity.Cores()
	if err != nil {
		return err
	}
	cores = cores[:device.CoresOf(share, len(cores))]
	report.Cores = len(cores)
	return affinity.Set(cores)
}

// findGPU is the GPU that "auto", "cuda" or "cuda:N" means.
func findGPU(name string) (device.GPU, error) {
	found, _, err := device.GPUs()
	if err != nil {
		return device.GPU{}, fmt.Errorf("device %s: %w", name, err)
	}
	index := 0
	if choice, err := device.Parse(name); err == nil && len(choice.GPUs) > 0 {
		index = choice.GPUs[0]
	}
	if index >= len(found) {
		return device.GPU{}, fmt.Errorf("device %s: found %d GPUs: expected an index below that", name, len(found))
	}
	return found[index], nil
}

// openForExec opens the engine and notes what it sees.
func openForExec(config execConfig, report *execReport) (engine.Engine, error) {
	eng, err := engine.Open(config.Engine, engine.Options{Library: config.EngineLib, Threads: max(1, report.Cores)})
	if err != nil {
		return nil, err
	}
	seen, err := eng.Device(report.Device)
	if err != nil {
		return nil, err
	}
	report.Engine, report.Name, report.SMs = eng.Info().Version, seen.Name, seen.SMs
	return eng, nil
}

// hasGPU asks the driver's own file, so that nothing is loaded before the process is restricted.
func hasGPU() bool {
	_, err := os.Stat("/proc/driver/nvidia/version")
	return err == nil
}

// loadForExec loads the copies of the model. Those that were loaded are returned with an error too.
func loadForExec(cmd *cobra.Command, eng engine.Engine, m model.Model, config execConfig, batch int, report *execReport) ([]engine.Model, error) {
	start := time.Now()
	var loaded []engine.Model
	for range config.Together {
		l, err := eng.Load(cmd.Context(), engine.Spec{
			Model:        m,
			Device:       report.Device,
			Precision:    config.Precision,
			MaxBatch:     max(batch, m.MaxBatch),
			Batches:      []int{batch},
			ChannelsLast: config.Layout == engine.ChannelsLast,
			Eager:        config.Eager,
		})
		if err != nil {
			return loaded, err
		}
		loaded = append(loaded, l)
		report.MemBytes += l.MemBytes()
		report.Notes = l.Notes()
	}
	report.LoadMs = float64(time.Since(start).Microseconds()) / 1e3
	report.Layout, report.Eager, report.Together = config.Layout, config.Eager, config.Together
	report.Precision = config.Precision
	if report.Precision == "" {
		report.Precision = m.Precision
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s is on %s (%s, %s) after %.0f ms\n", m.Name, report.Device, report.Name, report.Engine, report.LoadMs)
	return loaded, nil
}

func printExec(w io.Writer, r execReport, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	where := fmt.Sprintf("%d%% of %s", r.Share, r.Device)
	switch {
	case r.Cores > 0:
		where += fmt.Sprintf(", %d cores", r.Cores)
	case r.SMs > 0:
		where += fmt.Sprintf(", %d SMs", r.SMs)
	}
	if r.Layout != "" {
		where += ", " + r.Layout
	}
	if r.Eager {
		where += ", eager"
	}
	if r.Together > 1 {
		where += fmt.Sprintf(", %d at a time", r.Together)
	}
	_, err := fmt.Fprintf(w, `%s  batch %d  %s  %s
  runs       %d
  p50        %.3f ms  (gather %.3f, run %.3f, fetch %.3f)
  p90        %.3f ms
  p99        %.3f ms
  min, max   %.3f ms, %.3f ms
  throughput %.1f samples/s
  memory     %.1f MB
`, r.Model, r.Batch, where, r.Engine, r.Count, r.P50Ms, r.GatherMs, r.RunMs, r.FetchMs,
		r.P90Ms, r.P99Ms, r.MinMs, r.MaxMs, r.SamplesPerSec, float64(r.MemBytes)/1e6)
	for _, note := range r.Notes {
		_, noteErr := fmt.Fprintf(w, "  note       %s\n", note)
		err = errors.Join(err, noteErr)
	}
	return err
}

// progress shows how far long work is, on a terminal only.
type progress struct {
	w     io.Writer // nil: not a terminal
	total int
	last  time.Time
}

func newProgress(w io.Writer, total int) *progress {
	p := &progress{total: total, last: time.Now()}
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			p.w = w
		}
	}
	return p
}

func (p *progress) update(done int) {
	if p.w == nil || time.Since(p.last) < 200*time.Millisecond {
		return
	}
	p.last = time.Now()
	fmt.Fprintf(p.w, "\r%d of %d", done, p.total)
}

// clear removes the line.
func (p *progress) clear() {
	if p.w != nil {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
