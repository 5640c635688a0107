package arrival

import (
	"bufio"
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Trace is recorded send times by model, as offsets from the trace's start, ascending. The key ""
// holds the times of a trace that names no models.
type Trace map[string][]time.Duration

// ParseTrace reads a trace: one arrival per line, `seconds` or `seconds,model`; blank lines and
// lines that start with # are skipped, as is a first line that is a header. Every line must have
// the same number of fields and times may not go back. Errors name file and line.
func ParseTrace(file string, data []byte) (Trace, error) {
	tr := Trace{}
	var last float64
	fields, lineNo := 0, 0
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		lineNo++
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		parts := strings.Split(line, ",")
		at, err := strconv.ParseFloat(strings.TrimSpace(parts[0]), 64)
		if err != nil && fields == 0 && len(tr) == 0 {
			fields = len(parts) // a header
			continue
		}
		if fields == 0 {
			fields = len(parts)
		}
		if len(parts) != fields || fields > 2 {
			return nil, fmt.Errorf("%s:%d: %d fields: expected seconds or seconds,model, the same on every line", file, lineNo, len(parts))
		}
		if err != nil || !(at >= last) || at > maxTraceSeconds {
			return nil, fmt.Errorf("%s:%d: time %q: expected seconds, not before the line above", file, lineNo, parts[0])
		}
		last = at
		model := ""
		if fields == 2 {
			model = strings.TrimSpace(parts[1])
		}
		tr[model] = append(tr[model], time.Duration(at*float64(time.Second)))
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", file, lineNo+1, err)
	}
	if len(tr) == 0 {
		return nil, fmt.Errorf("%s: no arrivals: expected lines of seconds or seconds,model", file)
	}
	return tr, nil
}

// maxTraceSeconds keeps times well inside a time.Duration.
const maxTraceSeconds = 1e9

// End is the time of the last arrival.
func (tr Trace) End() time.Duration {
	var end time.Duration
	for _, times := range tr {
		end = max(end, times[len(times)-1])
	}
	return end
}

// Models lists the models that the trace names, sorted; empty when it names none.
func (tr Trace) Models() []string {
	var names []string
	for name := range tr {
		if name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Replay sends at the recorded times, up to end. With rps above 0 the time axis is stretched so that
// the mean rate of the recording becomes rps and its shape stays.
func Replay(times []time.Duration, rps float64, end time.Duration) Process {
	stretch := 1.0
	if n := len(times); rps > 0 && n > 1 && times[n-1] > times[0] {
		recorded := float64(n-1) / (times[n-1] - times[0]).Seconds()
		stretch = recorded / rps
	}
	return &replay{times: times, stretch: stretch, end: end}
}

type replay struct {
	times   []time.Duration
	stretch float64
	end     time.Duration
}

func (r *replay) Next() (time.Duration, bool) {
	if len(r.times) == 0 {
		return 0, false
	}
	at := time.Duration(float64(r.times[0]) * r.stretch)
	r.times = r.times[1:]
	return at, at < r.end
}
