package plannercmd

import (
	"fmt"
	"sort"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
)

// planTable lists a plan's gpu-lets, one line per model.
func planTable(p plan.Plan) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "gpu\tshare\tmodel\tbatch\treq/s\tbatch ms\tcycle ms\tworst ms\t")
	for _, g := range p.Gpulets {
		for i, a := range g.Models {
			place := fmt.Sprintf("%s\t%s", g.Device(), g.Shares())
			if i > 0 {
				place = "\t+"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%.1f\t%.2f\t%.2f\t%.2f\t\n", place, a.Model, a.Batches(), a.RateRPS, a.ExecMs, a.DutyMs, a.DutyMs+a.ExecMs)
		}
	}
	w.Flush() // into a Builder: cannot fail
	fmt.Fprintf(&b, "%s, %s\n", problem.Count(p.GPUsUsed, "GPU"), problem.Count(len(p.Gpulets), "gpu-let"))
	return b.String()
}

// drawingWidth is the width of a whole GPU, in characters.
const drawingWidth = 90

// maxDrawn bounds how many GPUs are drawn.
const maxDrawn = 32

// planDrawing draws the GPUs cut into gpu-lets, as wide as their shares; GPUs cut alike follow each
// other, idle ones are counted.
func planDrawing(gpus []problem.GPU, p plan.Plan) string {
	byDevice := map[string][]plan.Gpulet{}
	for _, g := range p.Gpulets {
		byDevice[g.Device()] = append(byDevice[g.Device()], g)
	}
	names := make([]string, 0, len(gpus))
	width, idle := 0, 0
	for _, g := range gpus {
		if len(byDevice[g.Name()]) == 0 {
			idle++
			continue
		}
		names = append(names, g.Name())
		width = max(width, len(g.Name()))
	}
	var b strings.Builder
	for i, name := range names {
		if i == maxDrawn {
			fmt.Fprintf(&b, "… and %d more\n", len(names)-maxDrawn)
			break
		}
		fmt.Fprintf(&b, "%-*s %s\n", width, name, drawGPU(byDevice[name]))
	}
	if idle > 0 {
		fmt.Fprintf(&b, "%d idle\n", idle)
	}
	return b.String()
}

// drawGPU is one bar: |40% resnet50 b8      |20% bert+lenet|         |.
func drawGPU(gpulets []plan.Gpulet) string {
	sort.SliceStable(gpulets, func(i, j int) bool { return gpulets[i].Share > gpulets[j].Share })
	var b strings.Builder
	used := 0
	for _, g := range gpulets {
		names := make([]string, len(g.Models))
		for i, a := range g.Models {
			names[i] = a.Model
			if len(g.Models) == 1 {
				names[i] += " b" + a.Batches()
			}
		}
		label := fmt.Sprintf("%d%% %s", g.Share, strings.Join(names, "+"))
		b.WriteString("│" + fit(label, columns(used+g.Share)-columns(used)-1))
		used += g.Share
	}
	if used < 100 {
		b.WriteString("│" + strings.Repeat("·", max(0, drawingWidth-columns(used)-1)))
	}
	return b.String() + "│"
}

func columns(share int) int { return share * drawingWidth / 100 }

// fit cuts or pads text to n characters.
func fit(text string, n int) string {
	if n <= 0 {
		return ""
	}
	if have := utf8.RuneCountInString(text); have <= n {
		return text + strings.Repeat(" ", n-have)
	}
	if n == 1 {
		return "…"
	}
	return string([]rune(text)[:n-1]) + "…"
}
