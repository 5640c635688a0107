// Package exec runs a loaded model alone, or several beside each other, again and again, and reports
// how long it takes.
//
// It knows no queue: what it measures is what the models and the engine cost.
package exec

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// warmUps are runs that are not measured: what is made on first use has been made after them.
const warmUps = 5

// Config says what to run.
type Config struct {
	Count    int           // measured runs, at least 1
	Batch    int           // samples per run, at least 1
	Interval time.Duration // between the starts of two runs; 0 runs back to back
	// VaryingDim stands where an input's dimension varies.
	VaryingDim int64
	// Progress, if given, is called after every run, one call at a time.
	Progress func(done int)
}

// Validate reports the first setting that makes no sense.
func (c Config) Validate() error {
	switch {
	case c.Count < 1:
		return fmt.Errorf("count %d: expected 1 or more", c.Count)
	case c.Batch < 1:
		return fmt.Errorf("batch %d: expected 1 or more", c.Batch)
	case c.Interval < 0:
		return fmt.Errorf("interval %v: expected 0 or more", c.Interval)
	case c.VaryingDim < 1:
		return fmt.Errorf("varying dimension %d: expected 1 or more", c.VaryingDim)
	}
	return nil
}

// Report is what was measured, over the runs that were done: Count of them unless ctx ended.
type Report struct {
	Count         int     `json:"count"`
	P50Ms         float64 `json:"p50_ms"`
	P90Ms         float64 `json:"p90_ms"`
	P99Ms         float64 `json:"p99_ms"`
	MinMs         float64 `json:"min_ms"`
	MaxMs         float64 `json:"max_ms"`
	SamplesPerSec float64 `json:"samples_per_s"`
	// The median run's parts: see engine.Timing.
	GatherMs float64 `json:"gather_ms"`
	RunMs    float64 `json:"run_ms"`
	FetchMs  float64 `json:"fetch_ms"`
}

// Run measures m. When ctx ends, the report covers what was done until then, and the error is that
// of ctx.
func Run(ctx context.Context, m engine.Model, inputs []tensor.Spec, c Config) (Report, error) {
	return Together(ctx, []engine.Model{m}, inputs, c)
}

// Together measures models that run at the same time, each on a thread of its own, Count runs of
// each. The report is of all their runs; its throughput is that of all together.
func Together(ctx context.Context, models []engine.Model, inputs []tensor.Spec, c Config) (Report, error) {
	if err := c.Validate(); err != nil {
		return Report{}, err
	}
	in, err := Inputs(inputs, c.Batch, c.VaryingDim)
	if err != nil {
		return Report{}, err
	}
	lanes := make([]lane, len(models))
	var warm, done sync.WaitGroup
	begin := make(chan struct{})
	progress := &progress{tell: c.Progress}
	for i := range lanes {
		l := &lanes[i]
		warm.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			l.err = warmUp(ctx, models[i], in)
			l.failed = l.err != nil && ctx.Err() == nil
			warm.Done()
			if <-begin; l.err == nil {
				l.measure(ctx, models[i], in, c, progress)
			}
		})
	}
	warm.Wait()
	start := time.Now()
	close(begin)
	done.Wait()
	return merge(lanes, c.Batch, time.Since(start))
}

func warmUp(ctx context.Context, m engine.Model, in []engine.Input) error {
	for range warmUps {
		if _, err := once(m, in); err != nil {
			return fmt.Errorf("warm up: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// sample is one measured run.
type sample struct {
	took   time.Duration
	timing engine.Timing
}

// lane is what was measured of one of the models.
type lane struct {
	samples []sample
	err     error // why it ended early
	failed  bool  // the model is why
}

func (l *lane) measure(ctx context.Context, m engine.Model, in []engine.Input, c Config, p *progress) {
	l.samples = make([]sample, 0, c.Count)
	start := time.Now()
	for i := range c.Count {
		if l.err = waitUntil(ctx, start.Add(time.Duration(i)*c.Interval)); l.err != nil {
			return
		}
		s, err := once(m, in)
		if err != nil {
			l.err, l.failed = fmt.Errorf("run %d of %d: %w", i+1, c.Count, err), true
			return
		}
		l.samples = append(l.samples, s)
		p.step()
	}
}

// merge reports on all lanes. A model that failed leaves nothing to report.
func merge(lanes []lane, batch int, elapsed time.Duration) (Report, error) {
	var samples []sample
	var err error
	for _, l := range lanes {
		if l.failed {
			return Report{}, l.err
		}
		if err == nil {
			err = l.err
		}
		samples = append(samples, l.samples...)
	}
	if len(samples) == 0 {
		return Report{}, err
	}
	return summarize(samples, batch, elapsed), err
}

// progress counts the runs of all lanes.
type progress struct {
	mu   sync.Mutex // guards done, and calls of tell
	done int
	tell func(done int) // nil: nobody wants to know
}

func (p *progress) step() {
	if p.tell == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	p.tell(p.done)
}

// waitUntil returns at t, or early with the error of ctx.
func waitUntil(ctx context.Context, t time.Time) error {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func once(m engine.Model, in []engine.Input) (sample, error) {
	start := time.Now()
	r, err := m.Run(in)
	if err != nil {
		return sample{}, err
	}
	s := sample{took: time.Since(start), timing: r.Timing()}
	r.Free()
	return s, nil
}

func summarize(samples []sample, batch int, elapsed time.Duration) Report {
	slices.SortFunc(samples, func(a, b sample) int { return int(a.took - b.took) })
	at := func(q float64) sample { return samples[Rank(q, len(samples))] }
	median := at(0.5)
	return Report{
		Count:         len(samples),
		P50Ms:         ms(median.took),
		P90Ms:         ms(at(0.9).took),
		P99Ms:         ms(at(0.99).took),
		MinMs:         ms(samples[0].took),
		MaxMs:         ms(samples[len(samples)-1].took),
		SamplesPerSec: float64(len(samples)*batch) / elapsed.Seconds(),
		GatherMs:      ms(median.timing.Gather),
		RunMs:         ms(median.timing.Run),
		FetchMs:       ms(median.timing.Fetch),
	}
}

// Rank is the index of quantile q among n sorted values: the least that at least q of them do not
// exceed.
func Rank(q float64, n int) int {
	// The tolerance keeps 0.9 x 10, which is not quite 9 in binary, from being the 10th.
	return min(max(int(math.Ceil(q*float64(n)-1e-9))-1, 0), n-1)
}

// ms is a duration in milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return float64(d.Round(time.Microsecond)) / 1e6 }

// errVarying tells a caller which setting is missing.
var errVarying = errors.New("a dimension varies: expected a size for it")

// Inputs makes a batch of random samples, the same for the same specs: floats in [0, 1), whole
// numbers 0 or 1 (any vocabulary has them), bytes of any value.
func Inputs(specs []tensor.Spec, batch int, varyingDim int64) ([]engine.Input, error) {
	random := rand.New(rand.NewPCG(7, 7))
	in := make([]engine.Input, len(specs))
	for i, s := range specs {
		shape := append([]int64{int64(batch)}, s.Shape...)
		for d, v := range shape {
			if v == -1 && varyingDim < 1 {
				return nil, fmt.Errorf("input %q: %w", s.Name, errVarying)
			}
			if v == -1 {
				shape[d] = varyingDim
			}
		}
		n, err := tensor.Bytes(s.DType, shape)
		if err != nil {
			return nil, fmt.Errorf("input %q: %w", s.Name, err)
		}
		data := make([]byte, n)
		fill(random, s.DType, data)
		in[i] = engine.Input{DType: s.DType, Shape: shape, Segments: [][]byte{data}}
	}
	return in, nil
}

func fill(random *rand.Rand, d tensor.DType, data []byte) {
	size := d.Size()
	for i := 0; i < len(data); i += size {
		put(d, data[i:i+size], random)
	}
}

func put(d tensor.DType, to []byte, random *rand.Rand) {
	switch d {
	case tensor.FP32:
		bits := math.Float32bits(random.Float32())
		to[0], to[1], to[2], to[3] = byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24)
	case tensor.FP64:
		bits := math.Float64bits(random.Float64())
		for b := range to {
			to[b] = byte(bits >> (8 * b))
		}
	case tensor.FP16, tensor.BF16:
		// Any sign and fraction under an exponent that puts both formats between 2^-64 and 2.
		to[0], to[1] = byte(random.Uint32()), 0x38|byte(random.Uint32N(4))
	case tensor.UINT8:
		to[0] = byte(random.Uint32())
	default: // little-endian 0 or 1
		to[0] = byte(random.Uint32N(2))
	}
}
