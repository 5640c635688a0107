package profiler

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/profile"
)

// Page is a report on a GPU type that needs nothing else: curves of latency and rate by share, memory,
// demand, interference, and what was measured where.
type Page struct {
	GPUType  string
	Profiles *profile.Set
	// SLOs bound the batches that count for a model's rate; a model without one has no bound.
	SLOs map[string]time.Duration
}

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"mib":     func(b int64) string { return fmt.Sprintf("%.0f", float64(b)/(1<<20)) },
	"percent": func(v float64) string { return fmt.Sprintf("%.1f", 100*v) },
}).Parse(pageText))

// Write writes the page.
func (p Page) Write(w io.Writer) error {
	v := view{GPUType: p.GPUType}
	if d, ok := p.Profiles.Device(p.GPUType); ok {
		v.Device = d
	}
	for _, name := range p.Profiles.Models(p.GPUType) {
		prof, _ := p.Profiles.Get(p.GPUType, name)
		v.Models = append(v.Models, p.model(prof))
	}
	v.Batches = batchesOf(v.Models)
	if runs, ok := p.Profiles.Corun(p.GPUType); ok {
		v.Heat = heatOf(runs)
	}
	v.Fit, _ = p.Profiles.Interference(p.GPUType)
	return pageTemplate.Execute(w, v)
}

// view is what the template shows.
type view struct {
	GPUType string
	Device  *profile.Device
	Models  []modelView
	Batches []int // with a figure of memory
	Heat    *heat
	Fit     *profile.Interference
}

type modelView struct {
	*profile.Profile
	Latency chart
	Rate    chart
	Limit   time.Duration // half the SLO; 0: none
	Knee    int           // percent; 0: none
	KneeRPS string
}

// Extent is what was measured, in words.
func (m modelView) Extent() string {
	shares, batches := m.Profile.Shares(), m.Profile.Batches()
	return fmt.Sprintf("%s %% x %s", joinInts(shares), joinInts(batches))
}

// InputTypes are the element types that were sent.
func (m modelView) InputTypes() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(m.Inputs)) {
		words = append(words, name+" "+m.Inputs[name])
	}
	return strings.Join(words, ", ")
}

// Bytes is the memory at a measured batch; 0: not measured.
func (m modelView) Bytes(batch int) int64 {
	for _, x := range m.Memory {
		if x.Batch == batch {
			return x.Bytes
		}
	}
	return 0
}

func joinInts(list []int) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ", ")
}

func batchesOf(models []modelView) []int {
	var all []int
	for _, m := range models {
		for _, x := range m.Memory {
			all = append(all, x.Batch)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (p Page) model(prof *profile.Profile) modelView {
	m := modelView{Profile: prof, Latency: latencyChart(prof)}
	limitMs := profile.MaxMs
	if slo := p.SLOs[prof.Model]; slo > 0 {
		m.Limit = slo / 2
		limitMs = float64(m.Limit) / float64(time.Millisecond)
	}
	var rates []profile.RateAt
	var sizes []int
	for _, share := range prof.Shares() {
		rps, batch := prof.BestRate(share, limitMs, 0)
		rates, sizes = append(rates, profile.RateAt{Share: share, RPS: rps}), append(sizes, batch)
	}
	knee := profile.Knee(rates)
	if knee >= 0 {
		m.Knee, m.KneeRPS = rates[knee].Share, figure(rates[knee].RPS)
	}
	m.Rate = rateChart(rates, sizes, knee)
	return m
}

// latencyChart has a line for every batch, on a logarithmic axis.
func latencyChart(p *profile.Profile) chart {
	c := chart{Y: "ms, p50"}
	batches := p.Batches()
	low, high := 0.0, 0.0
	for i, batch := range batches {
		l := line{Label: fmt.Sprint(batch), Tone: tone(i, len(batches))}
		for _, q := range p.Points {
			if q.Batch != batch {
				continue
			}
			l.points = append(l.points, xy{float64(q.Share), q.P50Ms})
			l.Titles = append(l.Titles, fmt.Sprintf("batch %d on %d %%: p50 %.3f ± %.3f ms, p95 %.3f, p99 %.3f, n %d", batch, q.Share, q.P50Ms, q.CIMs, q.P95Ms, q.P99Ms, q.N))
			if low == 0 || q.P50Ms < low {
				low = q.P50Ms
			}
			high = max(high, q.P50Ms)
		}
		c.Lines = append(c.Lines, l)
	}
	c.draw(logarithmic(low, high))
	return c
}

// rateChart has the best rate by share, and marks the knee.
func rateChart(rates []profile.RateAt, sizes []int, knee int) chart {
	c := chart{Y: "samples/s"}
	l := line{Tone: tones - 1}
	most := 0.0
	for i, r := range rates {
		if r.RPS <= 0 {
			continue
		}
		l.points = append(l.points, xy{float64(r.Share), r.RPS})
		l.Titles = append(l.Titles, fmt.Sprintf("%d %%: %s samples/s in batches of %d", r.Share, figure(r.RPS), sizes[i]))
		most = max(most, r.RPS)
	}
	c.Lines = []line{l}
	c.draw(linearScale(most))
	if knee >= 0 {
		c.Mark = &mark{X: c.x(float64(rates[knee].Share)), Y: c.y(rates[knee].RPS), Label: fmt.Sprintf("knee %d %%", rates[knee].Share)}
		c.Mark.Left = c.Mark.X > chartWidth/2
	}
	return c
}

// heat is how much models slow down beside one other, as a table.
type heat struct {
	Models []string
	Rows   []heatRow
	Pairs  int // measurements in the table
	More   int // measurements beside several others, which are not
}

type heatRow struct {
	Model string
	Cells []heatCell
}

type heatCell struct {
	N                int
	Median, Min, Max float64
	Heat             int // percent of the colour
	Strong           bool
}

func heatOf(runs *profile.Corun) *heat {
	type key struct{ self, other string }
	by := map[key][]float64{}
	names := map[string]bool{}
	h := &heat{}
	for _, m := range runs.Runs {
		if len(m.Others) != 1 {
			h.More++
			continue
		}
		h.Pairs++
		k := key{m.Self.Model, m.Others[0].Model}
		names[k.self], names[k.other] = true, true
		by[k] = append(by[k], m.Slowdown)
	}
	h.Models = slices.Sorted(maps.Keys(names))
	for _, self := range h.Models {
		row := heatRow{Model: self}
		for _, other := range h.Models {
			row.Cells = append(row.Cells, cellOf(by[key{self, other}]))
		}
		h.Rows = append(h.Rows, row)
	}
	return h
}

func cellOf(list []float64) heatCell {
	if len(list) == 0 {
		return heatCell{}
	}
	slices.SortFunc(list, cmp.Compare)
	c := heatCell{N: len(list), Median: list[len(list)/2], Min: list[0], Max: list[len(list)-1]}
	c.Heat = int(min(1, max(0, c.Median-1)) * 100) // twice the time is the strongest colour
	c.Strong = c.Heat > 55
	return c
}
