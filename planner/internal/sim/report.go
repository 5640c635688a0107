package sim

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// String shows a result as tables: the rows, the models, the sums.
func (r Result) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "until\tarrived/s\tgoodput/s\tviolations\tGPUs\tmoves\t\tplans because of\t")
	for _, row := range r.Rows {
		span := (row.End - row.Begin).Seconds()
		fmt.Fprintf(w, "%.0fs\t%.1f\t%.1f\t%.2f%%\t%.2f\t%d\t\t%s\t\n", row.End.Seconds(), float64(row.Arrived)/span,
			float64(row.OK)/span, 100*row.Violations(), row.GPUs, row.Moves, strings.Join(row.Causes, " "))
	}
	fmt.Fprintln(w, "\nmodel\tarrived\tok\tlate\texpired\tviolations\tp50 ms\tp99 ms\t")
	for _, m := range r.Models {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%.2f%%\t%.1f\t%.1f\t\n", m.Model, m.Arrived, m.OK, m.Late, m.Expired,
			100*m.Violations(), m.P50.Seconds()*1000, m.P99.Seconds()*1000)
	}
	w.Flush()
	fmt.Fprintf(&b, "\n%d requests, %.3f%% violations, %.0f GPU seconds, %d plans, %d moves\n",
		r.Total.Arrived, 100*r.Total.Violations(), r.GPUSeconds, r.Plans, r.Moves)
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "problem: %s\n", p)
	}
	return b.String()
}
