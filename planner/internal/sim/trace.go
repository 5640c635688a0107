package sim

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"
)

// maxTraceSeconds bounds a trace: a year. More is a mistake in the unit.
const maxTraceSeconds = 366 * 24 * 3600

// ParseTrace reads mean rates over time: a CSV whose first column is the time in seconds and whose
// others are models, in requests per second. Lines that begin with # are comments. It returns the
// traffic of each model and the time of the last line. Errors name the file, line and column.
func ParseTrace(file string, data []byte) (traffic map[string]Traffic, length time.Duration, err error) {
	r := csv.NewReader(bytes.NewReader(data))
	r.Comment, r.TrimLeadingSpace, r.FieldsPerRecord = '#', true, 0
	head, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("%s: found no line: expected a header such as t_sec,resnet50", file)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", file, err)
	}
	if len(head) < 2 {
		return nil, 0, fmt.Errorf("%s: line 1: found %d columns: expected the time and at least one model", file, len(head))
	}
	points := make([][]Point, len(head))
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", file, err)
		}
		line, _ := r.FieldPos(0)
		if length, err = appendRecord(points, head, record); err != nil {
			return nil, 0, fmt.Errorf("%s: line %d: %w", file, line, err)
		}
	}
	traffic = map[string]Traffic{}
	for i, name := range head[1:] {
		t := Traffic{Pattern: Poisson, Trace: points[i+1]}
		if _, again := traffic[name]; again {
			return nil, 0, fmt.Errorf("%s: line 1: found model %q twice", file, name)
		}
		if err := t.Validate(); err != nil {
			return nil, 0, fmt.Errorf("%s: column %q: %w", file, name, err)
		}
		traffic[name] = t
	}
	return traffic, length, nil
}

func appendRecord(points [][]Point, head, record []string) (time.Duration, error) {
	seconds, err := strconv.ParseFloat(record[0], 64)
	if err != nil || !(seconds >= 0 && seconds <= maxTraceSeconds) {
		return 0, fmt.Errorf("column %q: found %q: expected seconds, 0 to %d", head[0], record[0], maxTraceSeconds)
	}
	at := time.Duration(seconds * float64(time.Second))
	for i := 1; i < len(record); i++ {
		rate, err := strconv.ParseFloat(record[i], 64)
		if err != nil || !(rate >= 0) || math.IsInf(rate, 0) {
			return 0, fmt.Errorf("column %q: found %q: expected requests per second, 0 or more", head[i], record[i])
		}
		points[i] = append(points[i], Point{at, rate})
	}
	return at, nil
}
