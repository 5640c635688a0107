// Package link is how an agent and the gpu-let processes it started talk: JSON lines, commands on
// the child's stdin and reports on its stdout.
//
// The end of stdin is a command too: the agent is gone, so the child drains and exits. That is what
// keeps a host free of orphans even when the agent is killed. The package moves values; it decides
// nothing about them.
package link

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// BoxVariable names the environment variable by which an agent tells a gpu-let the file descriptor
// of its black box.
const BoxVariable = "GPULET_BLACK_BOX"

// Op is what a command asks for.
type Op string

// The commands.
const (
	// Assign replaces what the gpu-let serves. Models that stay are served throughout.
	Assign Op = "assign"
	// Drain stops taking requests, finishes those that were taken and exits with 0.
	Drain Op = "drain"
)

// Command is one line from the agent.
type Command struct {
	Op       Op           `json:"op"`
	Revision uint64       `json:"revision,omitempty"` // of the plan
	Models   []Assignment `json:"models,omitempty"`   // in duty order
}

// Become is the one line that a process that stands by waits for: the arguments and the further
// environment of the gpu-let that it is to be. What follows on its standard input is for that.
type Become struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"` // "NAME=value"
}

// ReadBecome reads that line and nothing behind it. io.EOF: nothing was needed.
func ReadBecome(r io.Reader) (b Become, err error) {
	var line []byte
	for one := make([]byte, 1); ; {
		n, err := r.Read(one)
		switch {
		case n == 1 && one[0] == '\n':
			if err := json.Unmarshal(line, &b); err != nil {
				return b, &LineError{Line: 1, Text: clip(line), Err: err}
			}
			return b, nil
		case n == 1 && len(line) == MaxLine:
			return b, &LineError{Line: 1, Text: clip(line), Err: bufio.ErrTooLong}
		case n == 1:
			line = append(line, one[0])
		case err == io.EOF && len(line) > 0:
			return b, io.ErrUnexpectedEOF
		case err != nil:
			return b, err
		}
	}
}

// Assignment is a model to serve.
type Assignment struct {
	plan.Assignment
	// Config and Archive are what the host knows of the model.
	Config  model.Model `json:"config"`
	Archive string      `json:"archive,omitempty"` // path of the file to load
	// Problem is why the model cannot be served on this host; nothing is loaded then.
	Problem string `json:"problem,omitempty"`
}

// ExitDeviceFailed is the exit code of a gpu-let whose device failed: nothing more can run in its
// process, and what shares the device with it is likely to have failed too.
const ExitDeviceFailed = 3

// MaxLine bounds one line: a plan of hundreds of models fits many times.
const MaxLine = 16 << 20

// Reader reads lines of values of type T.
type Reader[T any] struct {
	lines *bufio.Scanner
	n     int
}

// NewCommandReader reads what the agent sends.
func NewCommandReader(r io.Reader) *Reader[Command] { return newReader[Command](r) }

// NewReportReader reads what a gpu-let sends.
func NewReportReader(r io.Reader) *Reader[plan.GpuletReport] { return newReader[plan.GpuletReport](r) }

func newReader[T any](r io.Reader) *Reader[T] {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), MaxLine)
	return &Reader[T]{lines: lines}
}

// Read returns the next value, io.EOF at the end, and a *LineError for a line that is none; after
// that the next line can be read.
func (r *Reader[T]) Read() (v T, err error) {
	for r.lines.Scan() {
		r.n++
		line := bytes.TrimSpace(r.lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if err := json.Unmarshal(line, &v); err != nil {
			return v, &LineError{Line: r.n, Text: clip(line), Err: err}
		}
		return v, nil
	}
	if err := r.lines.Err(); err != nil {
		return v, fmt.Errorf("line %d: %w", r.n+1, err)
	}
	return v, io.EOF
}

// LineError is a line that could not be read as JSON of the expected kind.
type LineError struct {
	Line int
	Text string // its beginning
	Err  error
}

func (e *LineError) Error() string {
	return fmt.Sprintf("line %d: found %q: expected one JSON object: %v", e.Line, e.Text, e.Err)
}

func (e *LineError) Unwrap() error { return e.Err }

// IsLineError reports whether reading may go on after err.
func IsLineError(err error) bool {
	var line *LineError
	return errors.As(err, &line)
}

func clip(line []byte) string {
	const most = 120
	if len(line) > most {
		return string(line[:most]) + "..."
	}
	return string(line)
}

// Writer writes values as lines, each in one write. It is safe for concurrent use.
type Writer struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

// NewWriter writes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write writes v, a Command or a report.
func (w *Writer) Write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %T: %w", v, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err = w.w.Write(append(line, '\n'))
	return err
}
