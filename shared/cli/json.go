package cli

import (
	"encoding/json"
	"io"
)

// PrintJSON prints v for programs and people alike.
func PrintJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
