package plannercmd

import (
	"fmt"
	"time"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/planner/internal/pack"
)

// steerConfig is how epochs decide, the same for a running system and for a simulated one.
type steerConfig struct {
	// Epoch is how often a plan is computed. Shorter reacts faster and moves models more; 10s suits
	// load that shifts over minutes.
	Epoch time.Duration `env:"EPOCH" envDefault:"10s" usage:"time between planning decisions"`
	// Algorithm packs models onto GPUs.
	Algorithm string `env:"ALGORITHM" envDefault:"gpulet" usage:"packing algorithm"`
	// Headroom gives what a plan leaves of its GPUs to their gpu-lets. Bursts find room then; but when
	// rates change, gpu-lets have to be narrowed that would else have stayed.
	Headroom bool `env:"HEADROOM" usage:"give what is left of the GPUs in use to their gpu-lets, or cut as many GPUs for a multiple of the rates: room for bursts (gpulet)"`
	// Interference plans for the slowdown by neighbours on a GPU.
	Interference bool `env:"INTERFERENCE" envDefault:"true" usage:"plan for the slowdown by neighbours on a GPU"`
	// Buffer multiplies every predicted latency: a reserve for what a profile does not see.
	Buffer float64 `env:"BUFFER" envDefault:"1" usage:"factor on every predicted latency, at least 1"`
	// WarmRPS is the least rate that every model is planned for.
	WarmRPS float64 `env:"WARM_RPS" envDefault:"1" usage:"least samples/s that every loaded model is planned for"`
	// IdleAfter takes models off the GPUs that got no request for so long. 0 keeps them warm.
	IdleAfter time.Duration `env:"IDLE_AFTER" envDefault:"0" usage:"take a model off the GPUs after so long without a request; 0: never"`
	// Hold is for how long fewer GPUs must have sufficed before GPUs are given back.
	Hold time.Duration `env:"HOLD" envDefault:"30s" usage:"give GPUs back when fewer have sufficed for so long"`
	// MoveSeconds prices a move against GPUs saved.
	MoveSeconds float64 `env:"MOVE_SECONDS" envDefault:"2" usage:"what loading a model elsewhere is worth, in GPU seconds"`
	// Violations is the share of requests that may miss their SLO by chance.
	Violations float64 `env:"VIOLATIONS" envDefault:"0.005" usage:"share of requests that may miss their SLO by chance"`
	// DrainWithin is how fast a backlog should go.
	DrainWithin time.Duration `env:"DRAIN_WITHIN" envDefault:"10s" usage:"time in which a backlog should be gone"`
}

// Validate names the first setting that is out of range.
func (c steerConfig) Validate() error {
	if _, err := pack.ByName(c.Algorithm); err != nil {
		return err
	}
	switch {
	case c.Epoch < time.Second:
		return fmt.Errorf("epoch %v: must be at least 1s", c.Epoch)
	case !(c.Buffer >= 1):
		return fmt.Errorf("buffer %v: must be at least 1", c.Buffer)
	case !(c.WarmRPS > 0):
		return fmt.Errorf("warm-rps %v: must be positive (use idle-after to take idle models off the GPUs)", c.WarmRPS)
	case c.IdleAfter < 0:
		return fmt.Errorf("idle-after %v: must not be negative", c.IdleAfter)
	case c.Hold < 0:
		return fmt.Errorf("hold %v: must not be negative", c.Hold)
	case !(c.MoveSeconds >= 0):
		return fmt.Errorf("move-seconds %v: must not be negative", c.MoveSeconds)
	}
	return c.demand().Validate()
}

func (c steerConfig) demand() demand.Config {
	d := demand.DefaultConfig(c.Epoch)
	d.Violations = c.Violations
	d.DrainWithin = c.DrainWithin
	return d
}

// wayConfig is what a running system needs beside the engine.
type wayConfig struct {
	// Reserve is kept of every SLO for the way through the queue, decoding and replying.
	Reserve time.Duration `env:"RESERVE" envDefault:"1ms" usage:"part of every SLO kept for what happens outside the engine"`
}

func (c wayConfig) validate() error {
	if c.Reserve < 0 {
		return fmt.Errorf("reserve %v: must not be negative", c.Reserve)
	}
	return nil
}

// reserve is c with the reserve.
func (w wayConfig) reserve(c epoch.Config) epoch.Config {
	c.Reserve = w.Reserve
	return c
}

// decide is the configuration of epoch.Decide; Validate has passed.
func (c steerConfig) decide() epoch.Config {
	algorithm, _ := pack.ByName(c.Algorithm)
	return epoch.Config{
		Algorithm: algorithm, AlgorithmName: c.Algorithm, Options: pack.Options{Headroom: c.Headroom},
		Buffer: c.Buffer, Demand: c.demand(),
		WarmRPS: c.WarmRPS, IdleAfter: c.IdleAfter, Hold: c.Hold, MoveSeconds: c.MoveSeconds,
	}
}
