package workercmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/telemetry"
	"github.com/gpulet/gpulet/worker/internal/affinity"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/gpulet"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// gpuletConfig are the settings of `worker gpulet`. The agent sets them all.
type gpuletConfig struct {
	Bus       bus.Config
	Telemetry telemetry.Config
	Engine    engineConfig
	ID        string        `env:"GPULET_ID" usage:"id of the gpu-let in the plan"`
	Host      string        `env:"HOST" usage:"id of the host"`
	GPU       int           `env:"GPU" envDefault:"0" usage:"index of the device on its host"`
	GPUType   string        `env:"GPU_TYPE" usage:"type of the device"`
	Device    string        `env:"DEVICE" envDefault:"cpu" usage:"device for the engine: cpu, cuda:0 or sim"`
	Share     int           `env:"SHARE" envDefault:"100" usage:"percent of the device"`
	Limit     int           `env:"LIMIT" envDefault:"0" usage:"percent of the device that it may use at most; 0: its share"`
	SMs       int           `env:"SMS" envDefault:"0" usage:"SMs of the whole GPU, to tell whether the share holds; 0: not known"`
	Unlimited bool          `env:"ALLOW_UNPARTITIONED" usage:"serve although the share does not hold"`
	Cores     []int         `env:"CORES" usage:"cores to run on (default: all)"`
	Profiles  string        `env:"PROFILES" envDefault:"profiles" usage:"folder of profiles, for the simulated engine"`
	BlackBox  int           `env:"BLACK_BOX" envDefault:"0" usage:"file descriptor of the box to write into what is being worked on; 0: none"`
	Streams   bool          `env:"STREAMS" usage:"serve every model by an executor of its own, side by side"`
	Grace     time.Duration `env:"GRACE" envDefault:"25s" usage:"time to drain in"`
	HangAfter time.Duration `env:"HANG_AFTER" envDefault:"10s" usage:"time after which, at the earliest, a batch that does not return is reported; 0: never"`
}

// Validate reports the first setting that makes no sense.
func (c *gpuletConfig) Validate() error {
	switch {
	case c.ID == "":
		return errors.New("--gpulet-id is missing: the agent sets it")
	case c.Share < 1 || c.Share > 100:
		return fmt.Errorf("share %d: expected 1 to 100 percent", c.Share)
	case c.Limit != 0 && (c.Limit < c.Share || c.Limit > 100):
		return fmt.Errorf("limit %d: expected %d to 100 percent, or 0", c.Limit, c.Share)
	case c.Grace <= 0:
		return fmt.Errorf("grace %v: expected more than 0", c.Grace)
	}
	return errors.Join(c.Telemetry.Validate(), c.Engine.Validate())
}

func newGpuletCommand() *cobra.Command {
	cfg := &gpuletConfig{}
	cmd := &cobra.Command{
		Use:   "gpulet",
		Short: "Serve as one gpu-let (started by the agent)",
		Long: `One gpu-let: a process that holds a share of a device and serves models on it. The agent starts
it, says on its standard input what to serve, one JSON object per line, and reads reports from its
standard output. The end of the input means: drain and exit.`,
		Example: `  echo '{"op":"assign","revision":1,"models":[]}' | worker gpulet --gpulet-id a --engine ref`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return runGpulet(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

func runGpulet(cmd *cobra.Command, cfg *gpuletConfig) error {
	cli.CollectSeldom()
	ctx := cmd.Context()
	log := telemetry.NewLogger(cfg.Telemetry, cmd.ErrOrStderr(), "gpulet").With("gpulet", cfg.ID)
	commands := make(chan link.Command, 16)
	ctx, orphaned := context.WithCancel(ctx)
	defer orphaned()
	// From here on the agent may go at any time: then there is nothing to start for.
	go readCommands(cmd.InOrStdin(), commands, orphaned, log)
	if len(cfg.Cores) > 0 {
		if err := affinity.Set(cfg.Cores); err != nil {
			return err
		}
	}
	opening := time.Now()
	eng, err := openEngine(cfg)
	if err != nil {
		return err
	}
	sms, err := cfg.checkShare(eng, log)
	if err != nil {
		return err
	}
	var box *blackbox.Recorder
	if cfg.BlackBox > 0 {
		if box, err = blackbox.Open(cfg.BlackBox); err != nil {
			return err
		}
	}
	connecting := time.Now()
	b, err := bus.Connect(ctx, cfg.Bus, bus.RoleWorker, "gpulet "+cfg.ID, log)
	if ctx.Err() != nil {
		return nil // told to end before there was anything to drain
	}
	if err != nil {
		return err
	}
	defer b.Close()
	connected := time.Now()
	defer followClock(ctx, b, log)()
	reports := startReports(cmd.OutOrStdout(), log)
	defer reports.stop()
	// Whatever hangs, a process whose agent is gone must end.
	dead := context.AfterFunc(ctx, func() {
		time.AfterFunc(cfg.Grace+2*time.Second, func() {
			log.Error("could not drain in time, ending at once")
			os.Exit(cli.ExitFailed)
		})
	})
	defer dead()
	log.Info("serving", "engine", eng.Info().Version, "share", cfg.Share, "cores", cfg.Cores, "sms", sms,
		"engine_took", connecting.Sub(opening), "connect_took", connected.Sub(connecting))
	serve := gpulet.Run
	if cfg.Streams {
		serve = runStreams
	}
	err = serve(ctx, gpulet.Config{
		ID: cfg.ID, Host: cfg.Host, GPU: cfg.GPU, Share: cfg.Share, Device: cfg.Device, PID: os.Getpid(),
		Engine: eng, Bus: b, Commands: commands, Report: reports.put, Decoders: len(cfg.Cores), Grace: cfg.Grace, HangAfter: cfg.HangAfter, Box: box, Log: log,
	})
	if errors.Is(err, gpulet.ErrDevice) {
		return deviceFailed(err)
	}
	return err
}

// followClock compares this host's clock with the server's, and goes on doing so until it is stopped.
func followClock(ctx context.Context, b *bus.Bus, log *slog.Logger) (stop func()) {
	if err := b.CompareClocks(ctx); err != nil {
		log.Warn("cannot compare this host's clock with the server's, taking it for right", "error", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	following.Go(func() { b.FollowClock(ctx) })
	return func() {
		cancel()
		following.Wait()
	}
}

// deviceExit is how long a process may take to end after its device failed.
const deviceExit = time.Second

// deviceFailed makes the process end with link.ExitDeviceFailed, soon, whatever else hangs: the GPU
// takes no new process until this one has gone. Threads that wait in the driver are left where they
// are, and nothing of CUDA or LibTorch is torn down, since os.Exit runs no destructors.
func deviceFailed(err error) error {
	time.AfterFunc(deviceExit, func() { os.Exit(link.ExitDeviceFailed) })
	return cli.WithCode(link.ExitDeviceFailed, err)
}

// checkShare refuses to serve on more of a GPU than the share, or the limit: neighbours would be slower than
// planned, and nobody would know why. It returns how many SMs the process sees.
func (c *gpuletConfig) checkShare(eng engine.Engine, log *slog.Logger) (sms int, err error) {
	if !strings.HasPrefix(c.Device, "cuda") {
		return 0, nil
	}
	seen, err := eng.Device(c.Device)
	if err != nil {
		return 0, err
	}
	switch why := unpartitioned(max(c.Share, c.Limit), c.SMs, seen); {
	case why == "":
	case c.Unlimited:
		log.Warn("serving unpartitioned", "reason", why)
	default:
		return 0, errors.New(why)
	}
	return seen.SMs, nil
}

// readCommands hands on what the agent says, and says when it has gone.
func readCommands(in io.Reader, commands chan<- link.Command, gone context.CancelFunc, log *slog.Logger) {
	defer gone()
	r := link.NewCommandReader(in)
	for {
		c, err := r.Read()
		switch {
		case err == nil:
			commands <- c
		case link.IsLineError(err):
			log.Error("command refused", "error", err)
		case errors.Is(err, io.EOF):
			return
		default:
			log.Error("cannot read commands", "error", err)
			return
		}
	}
}

func openEngine(cfg *gpuletConfig) (engine.Engine, error) {
	o := engine.Options{Library: cfg.Engine.EngineLib, Threads: len(cfg.Cores)}
	if cfg.Engine.Engine == engine.Simulated {
		set, problems := profile.LoadDir(cfg.Profiles)
		if len(set.Models(cfg.GPUType)) == 0 {
			return nil, errors.Join(append(problems, fmt.Errorf("no profile of %s in %s", cfg.GPUType, cfg.Profiles))...)
		}
		o.Sim = simulate(set, cfg.GPUType, cfg.Share)
	}
	return engine.Open(cfg.Engine.Engine, o)
}

// simulate answers after the profiled latency. A batch larger than any that was profiled takes as
// long as several of the largest.
func simulate(set *profile.Set, gpuType string, share int) engine.SimOptions {
	return engine.SimOptions{
		Latency: func(model string, samples int) (time.Duration, error) {
			p, ok := set.Get(gpuType, model)
			if !ok {
				return 0, fmt.Errorf("no profile of %s on %s", model, gpuType)
			}
			batches := p.Batches()
			least, most := batches[0], batches[len(batches)-1]
			ms, err := p.Latency(share, min(max(samples, least), most))
			if samples > most {
				ms *= float64(samples) / float64(most)
			}
			return time.Duration(ms * float64(time.Millisecond)), err
		},
		MemBytes: func(model string) int64 {
			if p, ok := set.Get(gpuType, model); ok {
				return p.MemBytes(1)
			}
			return 0
		},
	}
}

// reports writes the newest report to the agent. A reader that is slow or gone holds up nothing.
type reports struct {
	next chan plan.GpuletReport // holds the newest
	quit chan struct{}
	done sync.WaitGroup
}

func startReports(out io.Writer, log *slog.Logger) *reports {
	r := &reports{next: make(chan plan.GpuletReport, 1), quit: make(chan struct{})}
	w := link.NewWriter(out)
	write := func(rep plan.GpuletReport) {
		if err := w.Write(rep); err != nil {
			log.Debug("report not written", "error", err)
		}
	}
	r.done.Go(func() {
		for {
			select {
			case rep := <-r.next:
				write(rep)
			case <-r.quit:
				select {
				case rep := <-r.next:
					write(rep)
				default:
				}
				return
			}
		}
	})
	return r
}

// put replaces a report that has not been written yet. Only one goroutine may call it.
func (r *reports) put(rep plan.GpuletReport) {
	select {
	case <-r.next:
	default:
	}
	r.next <- rep
}

func (r *reports) stop() {
	close(r.quit)
	r.done.Wait()
}
