package glet

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// source reads a whole file, as os.ReadFile does.
type source func(path string) ([]byte, error)

type csvRow struct {
	line   int
	fields []string
}

// csv reads rows of any length; empty trailing fields and lines are dropped.
func (from source) csv(path string) ([]csvRow, error) {
	data, err := from(path)
	if err != nil {
		return nil, err
	}
	r := csv.NewReader(bytes.NewReader(data))
	r.FieldsPerRecord, r.TrimLeadingSpace = -1, true
	var rows []csvRow
	for {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		line, _ := r.FieldPos(0)
		for len(rec) > 0 && strings.TrimSpace(rec[len(rec)-1]) == "" {
			rec = rec[:len(rec)-1]
		}
		for i := range rec {
			rec[i] = strings.TrimSpace(rec[i])
		}
		if len(rec) > 0 {
			rows = append(rows, csvRow{line, rec})
		}
	}
}

// json reads one value.
func (from source) json(path string, v any) error {
	data, err := from(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			return fmt.Errorf("%s: line %d: not readable as JSON: %w", path, lineAt(data, syntax.Offset), err)
		case errors.As(err, &kind):
			return fmt.Errorf("%s: line %d: key %q: found a JSON %s: expected %s", path, lineAt(data, kind.Offset), kind.Field, kind.Value, kind.Type)
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func lineAt(data []byte, offset int64) int {
	return 1 + strings.Count(string(data[:min(max(offset, 0), int64(len(data)))]), "\n")
}
