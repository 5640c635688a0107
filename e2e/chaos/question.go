package chaos

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// Model is a model of the reference engine: its output is Factor times its input, element by
// element.
type Model struct {
	Name    string
	Factor  float32
	Width   int    // elements of a sample
	Class   string // interactive: queued in memory; offline: on disk
	Timeout string // of a request
	SLO     time.Duration
	Weight  float64
	// Answers: the engine computes. A simulated one does not, and its answers cannot be wrong.
	Answers bool
}

// yaml is the model's model.yaml.
func (m Model) yaml() string {
	return fmt.Sprintf(`name: %s
slo: %v
timeout: %s
max_batch: 8
class: %s
weight: %g
inputs: [{name: x, dtype: FP32, shape: [%d]}]
outputs: [{name: y, dtype: FP32, shape: [%d]}]
`, m.Name, cmp.Or(m.SLO, Disturbed), m.Timeout, m.Class, cmp.Or(m.Weight, 1), m.Width, m.Width)
}

// archive is the model's archive, for the reference engine.
func (m Model) archive() string {
	return fmt.Sprintf("gpulet-ref 1\ninput x FP32\naffine y FP32 0 %g x\n", m.Factor)
}

// half is how much of a request's number one element holds: floats hold integers of 24 bits.
const half = 12

// question are the inputs of request seq: its number in the first two elements, and the model's
// factor beyond.
func (m Model) question(seq uint64) []float32 {
	x := make([]float32, m.Width)
	for i := range x {
		switch i {
		case 0:
			x[i] = float32(seq & (1<<half - 1))
		case 1:
			x[i] = float32(seq >> half)
		default:
			x[i] = m.Factor + float32(i%97)
		}
	}
	return x
}

func (m Model) request(seq uint64) wire.Request {
	var data []byte
	for _, v := range m.question(seq) {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return wire.Request{Inputs: []tensor.Tensor{{Name: "x", DType: tensor.FP32, Shape: []int64{1, int64(m.Width)}, Data: data}}}
}

// judge says what is wrong with the answer to request seq; "" when nothing is.
func (m Model) judge(seq uint64, y []float32) string {
	if !m.Answers {
		return ""
	}
	x := m.question(seq)
	if len(y) != len(x) {
		return fmt.Sprintf("%s, request %d: %d elements: expected %d", m.Name, seq, len(y), len(x))
	}
	for i, v := range x {
		if y[i] != m.Factor*v {
			return fmt.Sprintf("%s, request %d: element %d is %g: expected %g", m.Name, seq, i, y[i], m.Factor*v)
		}
	}
	return ""
}

// floats are the elements of the first output.
func floats(outputs []tensor.Tensor) []float32 {
	if len(outputs) == 0 {
		return nil
	}
	y := make([]float32, len(outputs[0].Data)/4)
	for i := range y {
		y[i] = math.Float32frombits(binary.LittleEndian.Uint32(outputs[0].Data[4*i:]))
	}
	return y
}

func requestID(run string, seq uint64) string { return run + "-" + strconv.FormatUint(seq, 36) }
