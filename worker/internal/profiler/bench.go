package profiler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/exec"
)

// warmUps are runs of a batch size that are not measured.
const warmUps = 2

// Bench measures models on the share that its process has. One goroutine, locked to its thread, owns
// it.
type Bench struct {
	Engine engine.Engine
	Device string // of the engine: "cpu" or "cuda:0"
	Share  int    // percent, to be noted

	models map[string]*loaded
}

type loaded struct {
	engine.Model
	config model.Model
	inputs map[int][]engine.Input // by batch
}

// Serve says hello, then answers requests until their end, which is no error, or until ctx ends. It
// closes the models.
func (b *Bench) Serve(ctx context.Context, requests io.Reader, answers io.Writer) error {
	b.models = map[string]*loaded{}
	defer func() {
		for name := range b.models {
			b.unload(name)
		}
	}()
	out := json.NewEncoder(answers)
	dev, err := b.Engine.Device(b.Device)
	if err != nil {
		return err
	}
	if err := out.Encode(Answer{Hello: &Hello{Engine: b.Engine.Info().Version, Device: dev.Name, SMs: dev.SMs}}); err != nil {
		return err
	}
	for in := json.NewDecoder(requests); ; {
		var r Request
		if err := in.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		a, err := b.answer(ctx, r)
		if err != nil {
			code := engine.CodeOf(err)
			a = Answer{Error: err.Error(), OutOfMemory: code == engine.EOOM, Fatal: code == engine.EDEVICE}
		}
		if err := out.Encode(a); err != nil {
			return err
		}
		if a.Fatal {
			return err
		}
	}
}

func (b *Bench) answer(ctx context.Context, r Request) (Answer, error) {
	if r.Op == opLoad {
		return b.load(ctx, r)
	}
	m, ok := b.models[r.Model]
	if !ok {
		return Answer{}, fmt.Errorf("%s: model %q is not loaded", r.Op, r.Model)
	}
	switch r.Op {
	case opMeasure:
		return b.point(r, func(in []engine.Input) ([]time.Duration, error) { return measure(ctx, m, in, r.Rule) }, m)
	case opLoop:
		return b.point(r, func(in []engine.Input) ([]time.Duration, error) { return loop(ctx, m, in, r.Settle, r.Window) }, m)
	case opUnload:
		b.unload(r.Model)
		return Answer{}, nil
	}
	return Answer{}, fmt.Errorf("op %q: expected %s, %s, %s or %s", r.Op, opLoad, opMeasure, opLoop, opUnload)
}

func (b *Bench) load(ctx context.Context, r Request) (Answer, error) {
	if r.Config == nil || len(r.Batches) == 0 {
		return Answer{}, fmt.Errorf("load %s: found no config or no batches: expected both", r.Model)
	}
	b.unload(r.Model)
	config := *r.Config
	config.Path = r.Path
	start := time.Now()
	m, err := b.Engine.Load(ctx, engine.Spec{
		Model: config, Device: b.Device, Precision: config.Precision, Batches: r.Batches,
		MaxBatch: max(config.MaxBatch, r.Batches[len(r.Batches)-1]), ChannelsLast: r.ChannelsLast,
	})
	if err != nil {
		return Answer{}, err
	}
	b.models[r.Model] = &loaded{m, config, map[int][]engine.Input{}}
	return Answer{Loaded: &Loaded{MemBytes: m.MemBytes(), Notes: m.Notes(), Ms: ms(time.Since(start))}}, nil
}

func (b *Bench) unload(name string) {
	if m := b.models[name]; m != nil {
		_ = m.Close()
		delete(b.models, name)
	}
}

// point has a batch timed.
func (b *Bench) point(r Request, time func([]engine.Input) ([]time.Duration, error), m *loaded) (Answer, error) {
	in, err := m.batch(r.Batch)
	if err != nil {
		return Answer{}, err
	}
	took, err := time(in)
	if err != nil {
		return Answer{}, fmt.Errorf("%s, batch of %d: %w", r.Model, r.Batch, err)
	}
	p := summarize(b.Share, r.Batch, took)
	return Answer{Point: &p}, nil
}

// distinct is how many different samples a batch is made of: what they hold does not change how long
// it takes, and making them does take time.
const distinct = 4

// batch is a batch as a gpu-let has it: a segment for each sample, in the dtype that clients send.
func (m *loaded) batch(n int) ([]engine.Input, error) {
	if in, ok := m.inputs[n]; ok {
		return in, nil
	}
	few := min(n, distinct)
	in, err := exec.Inputs(sent(m.config), few, VaryingDim)
	if err != nil {
		return nil, err
	}
	for i := range in {
		each := len(in[i].Segments[0]) / few
		data := bytes.Repeat(in[i].Segments[0], (n+few-1)/few)
		in[i].Shape[0], in[i].Segments = int64(n), make([][]byte, n)
		for k := range in[i].Segments {
			in[i].Segments[k] = data[k*each : (k+1)*each]
		}
	}
	m.inputs[n] = in
	return in, nil
}

// measure times runs until the rule is content.
func measure(ctx context.Context, m engine.Model, in []engine.Input, rule Rule) ([]time.Duration, error) {
	for range warmUps {
		if _, err := once(ctx, m, in); err != nil {
			return nil, err
		}
	}
	var took []time.Duration
	for start := time.Now(); !rule.done(took, time.Since(start)); {
		d, err := once(ctx, m, in)
		if err != nil {
			return nil, err
		}
		took = append(took, d)
	}
	return took, nil
}

// loop runs for settle, window and settle, and returns what began within the window: at least one
// run, however long it takes.
func loop(ctx context.Context, m engine.Model, in []engine.Input, settle, window time.Duration) ([]time.Duration, error) {
	var took []time.Duration
	for start := time.Now(); ; {
		at := time.Since(start)
		if at >= settle+window+settle && len(took) > 0 {
			return took, nil
		}
		d, err := once(ctx, m, in)
		if err != nil {
			return nil, err
		}
		if at >= settle && (at < settle+window || len(took) == 0) {
			took = append(took, d)
		}
	}
}

// once is the time of one run as a gpu-let sees it: from host buffers to host buffers.
func once(ctx context.Context, m engine.Model, in []engine.Input) (time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	start := time.Now()
	r, err := m.Run(in)
	if err != nil {
		return 0, err
	}
	d := time.Since(start)
	r.Free()
	return d, nil
}
