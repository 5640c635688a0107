package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/gpulet/gpulet/shared/wire"
)

// WriteTable prints the run for people: one line per model, one for all, and then what was not as
// it should be.
func (r Run) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", r.headline())
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "model\tSLO ms\tsent\tok\terrors\tlost\tdup\tp50 ms\tp90\tp99\tp99.9\tmax\tviolations\trate/s\tok/s\tgoodput/s\tcorrect\t")
	for _, name := range r.Names() {
		row(tw, name, r.Models[name])
	}
	if len(r.Models) > 1 {
		row(tw, "total", r.Total)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, name := range r.Names() {
		remarks(&b, name, r.Models[name])
	}
	r.phases(&b)
	if !r.Total.KeptUp() {
		fmt.Fprintf(&b, "this client was late itself: %d of %d sends left more than %v after their time (p99 %.1f ms, worst %.1f ms); latencies include that\n",
			r.Total.Late, r.Total.Sent, LateAfter, r.Total.SendLagP99Ms, r.Total.SendLagMaxMs)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r Run) headline() string {
	parts := []string{fmt.Sprintf("%.1f s", r.DurationS)}
	for _, s := range []struct{ name, value string }{{"", r.Arrival}, {"via ", r.Via}, {"scenario ", r.Scenario}} {
		if s.value != "" {
			parts = append(parts, s.name+s.value)
		}
	}
	parts = append(parts, fmt.Sprintf("seed %d", r.Seed))
	if r.WarmupS > 0 {
		parts = append(parts, fmt.Sprintf("after %.1f s of warm-up", r.WarmupS))
	}
	if r.Interrupted {
		parts = append(parts, "interrupted")
	}
	return strings.Join(parts, ", ") + "; latency from the intended send time"
}

func row(w io.Writer, name string, f Figures) {
	slo, correct := "-", "-"
	if f.SLOMs > 0 {
		slo = fmt.Sprintf("%g", f.SLOMs)
	}
	if f.Accuracy != nil {
		correct = fmt.Sprintf("%.2f%%", 100**f.Accuracy)
	}
	fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f%%\t%.1f\t%.1f\t%.1f\t%s\t\n",
		name, slo, f.Sent, f.OK, f.ErrorCount(), f.Lost, f.Duplicates,
		f.P50Ms, f.P90Ms, f.P99Ms, f.P999Ms, f.MaxMs,
		100*f.ViolationShare(), f.RateRPS, f.ThroughputRPS, f.GoodputRPS, correct)
}

// remarks prints a model's errors by code, its wrong answers and where its time went.
func remarks(b *strings.Builder, name string, f Figures) {
	for _, code := range ErrorCodes() {
		if n := f.Errors[code]; n > 0 {
			fmt.Fprintf(b, "%s: %d %s%s\n", name, n, code, because(f.Causes[code]))
		}
	}
	for code, n := range f.Errors {
		if n > 0 && !known(code) {
			fmt.Fprintf(b, "%s: %d with the unknown status %q%s\n", name, n, code, because(f.Causes[code]))
		}
	}
	if f.Wrong > 0 {
		fmt.Fprintf(b, "%s: %d wrong%s\n", name, f.Wrong, because(f.WrongWhy))
	}
	if f.Unasked > 0 {
		fmt.Fprintf(b, "%s: %d answers to requests that were never sent\n", name, f.Unasked)
	}
	if s := f.Stages; s != nil {
		fmt.Fprintf(b, "%s: on average queued %.2f ms, batched %.2f ms, executed %.2f ms in batches of %.1f\n", name, s.QueuedMs, s.BatchedMs, s.ExecMs, s.Batch)
	}
}

func known(code wire.Status) bool {
	for _, c := range ErrorCodes() {
		if c == code {
			return true
		}
	}
	return false
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ", such as: " + why
}

func (r Run) phases(b *strings.Builder) {
	if len(r.Phases) < 2 {
		return
	}
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "phase\tfrom s\tto s\tmodel\tsent\tok\tviolations\t")
	for _, p := range r.Phases {
		for _, name := range r.Names() {
			s := p.Models[name]
			fmt.Fprintf(tw, "%s\t%g\t%g\t%s\t%d\t%d\t%.2f%%\t\n", p.Name, p.FromS, p.ToS, name, s.Sent, s.OK,
				100*Figures{Sent: s.Sent, SLOViolations: s.Violations}.ViolationShare())
		}
	}
	_ = tw.Flush() // a strings.Builder takes everything
}

// WriteComparison prints several runs side by side: one line per model and run.
func WriteComparison(w io.Writer, names []string, runs []Run) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "model\trun\tsent\tok\terrors\tlost\tp50 ms\tp99\tp99.9\tviolations\tgoodput/s\tp99 change\t")
	for _, model := range allModels(runs) {
		var first *Figures
		for i, r := range runs {
			f, ok := r.Models[model]
			if model == totalRow {
				f, ok = r.Total, true
			}
			if !ok {
				continue
			}
			change := ""
			if first == nil {
				first = &f
			} else if first.P99Ms > 0 {
				change = fmt.Sprintf("%+.1f%%", 100*(f.P99Ms/first.P99Ms-1))
			}
			fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%.2f\t%.2f\t%.2f\t%.2f%%\t%.1f\t%s\t\n", model, names[i],
				f.Sent, f.OK, f.ErrorCount(), f.Lost, f.P50Ms, f.P99Ms, f.P999Ms, 100*f.ViolationShare(), f.GoodputRPS, change)
		}
	}
	return tw.Flush()
}

// totalRow stands for all models; no model can be called so, having no blank in its name.
const totalRow = "all models"

func allModels(runs []Run) []string {
	union := Run{Models: map[string]Figures{}}
	for _, r := range runs {
		for name := range r.Models {
			union.Models[name] = Figures{}
		}
	}
	return append(union.Names(), totalRow)
}
