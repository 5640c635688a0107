package profiler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/gpulet/gpulet/shared/profile"
)

// Place is where a process is to run.
type Place struct {
	Share int // percent
	// Beside is the sum of the shares that others have at the same time.
	Beside int
}

// Starter starts a process that serves as a Bench at a place. When ctx ends, so does the process.
type Starter func(ctx context.Context, at Place) (*Process, error)

// Process is the near end of a Bench in another process. One goroutine at a time may use it.
type Process struct {
	Hello    Hello
	requests io.WriteCloser
	answers  *json.Decoder
	wait     func() error
}

// Attach makes a Process of a Bench's streams and waits for its hello. wait waits for the process's
// end and says why it ended, if that is to be told.
func Attach(requests io.WriteCloser, answers io.Reader, wait func() error) (*Process, error) {
	p := &Process{requests: requests, answers: json.NewDecoder(answers), wait: wait}
	var a Answer
	if err := p.answers.Decode(&a); err != nil || a.Hello == nil {
		return nil, p.gone(err)
	}
	p.Hello = *a.Hello
	return p, nil
}

// errGone: the process ended before it answered.
var errGone = errors.New("the measuring process ended")

// errMemory: the device has no room for what was asked.
var errMemory = errors.New("out of device memory")

// gone waits for the process and says how it ended.
func (p *Process) gone(err error) error {
	if end := p.Close(); end != nil {
		return fmt.Errorf("%w: %w", errGone, end)
	}
	if err == nil || errors.Is(err, io.EOF) {
		return errGone
	}
	return fmt.Errorf("%w: %w", errGone, err)
}

// Ask asks and waits for the answer. The error wraps errGone when there is nobody to answer, then or
// ever after, and errMemory when memory did not suffice.
func (p *Process) Ask(r Request) (Answer, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return Answer{}, err
	}
	if _, err := p.requests.Write(append(line, '\n')); err != nil {
		return Answer{}, p.gone(err)
	}
	var a Answer
	if err := p.answers.Decode(&a); err != nil {
		return Answer{}, p.gone(err)
	}
	switch {
	case a.Fatal:
		_ = p.Close()
		return a, fmt.Errorf("%w: %s", errGone, a.Error)
	case a.OutOfMemory:
		return a, fmt.Errorf("%w: %s", errMemory, a.Error)
	case a.Error != "":
		return a, errors.New(a.Error)
	}
	return a, nil
}

// Close ends the process and waits for it. Closing twice is harmless.
func (p *Process) Close() error {
	_ = p.requests.Close()
	wait := p.wait
	p.wait = func() error { return nil }
	return wait()
}

// load has a process load a model.
func (p *Process) load(s subject, batches []int, layout string) (Loaded, error) {
	a, err := p.Ask(Request{
		Op: opLoad, Model: s.Name, Config: &s.Model, Path: s.Path, Batches: batches, ChannelsLast: layout != "",
	})
	if err != nil {
		return Loaded{}, err
	}
	if a.Loaded == nil {
		return Loaded{}, fmt.Errorf("load %s: found no answer to it: expected what it took", s.Name)
	}
	return *a.Loaded, nil
}

// unload has a process forget a model.
func (p *Process) unload(name string) error {
	_, err := p.Ask(Request{Op: opUnload, Model: name})
	return err
}

// measure times one batch size.
func (p *Process) measure(name string, batch int, rule Rule) (profile.Point, error) {
	return p.timed(Request{Op: opMeasure, Model: name, Batch: batch, Rule: rule})
}

func (p *Process) timed(r Request) (profile.Point, error) {
	a, err := p.Ask(r)
	if err != nil {
		return profile.Point{}, err
	}
	if a.Point == nil {
		return profile.Point{}, fmt.Errorf("%s %s: found no answer to it: expected a point", r.Op, r.Model)
	}
	return *a.Point, nil
}
