package profiler

import (
	"fmt"
	"math"
	"strings"
)

// The size of a chart and of its margins, in the units of its SVG.
const (
	chartWidth, chartHeight = 320.0, 220.0
	marginLeft, marginRight = 42.0, 32.0
	marginTop, marginBottom = 28.0, 34.0
)

// tones are how many colours a scale of batches has; page.html defines them.
const tones = 8

// tone spreads n lines over the colours.
func tone(i, n int) int {
	if n < 2 {
		return tones - 1
	}
	return i * (tones - 1) / (n - 1)
}

// chart is a figure over the share of a device, 0 to 100 percent, ready to be drawn.
type chart struct {
	Y      string // what goes up
	Lines  []line
	XTicks []tick
	YTicks []tick
	Mark   *mark

	scale scale
}

type xy struct{ x, y float64 }

type line struct {
	Label   string
	Tone    int
	Path    string
	Dots    []dot
	Titles  []string
	LabelAt dot

	points []xy
}

type dot struct {
	X, Y  float64
	Title string
}

type tick struct {
	At    float64
	Label string
}

type mark struct {
	X, Y  float64
	Label string
	Left  bool // the label stands on the left
}

// scale maps values to 0..1 and has ticks.
type scale struct {
	at    func(v float64) float64
	ticks []float64
}

// Frame is the chart's area in its SVG.
func (chart) Frame() struct{ Width, Height, Left, Right, Top, Bottom float64 } {
	return struct{ Width, Height, Left, Right, Top, Bottom float64 }{
		chartWidth, chartHeight, marginLeft, chartWidth - marginRight, marginTop, chartHeight - marginBottom,
	}
}

func (c *chart) x(share float64) float64 {
	return round1(marginLeft + (chartWidth-marginLeft-marginRight)*share/100)
}

func (c *chart) y(v float64) float64 {
	return round1(chartHeight - marginBottom - (chartHeight-marginTop-marginBottom)*c.scale.at(v))
}

func round1(v float64) float64 { return math.Round(v*10) / 10 }

// draw places the lines.
func (c *chart) draw(s scale) {
	c.scale = s
	for share := 0; share <= 100; share += 20 {
		c.XTicks = append(c.XTicks, tick{c.x(float64(share)), fmt.Sprint(share)})
	}
	for _, v := range s.ticks {
		c.YTicks = append(c.YTicks, tick{c.y(v), figure(v)})
	}
	for i := range c.Lines {
		l := &c.Lines[i]
		var path strings.Builder
		for k, p := range l.points {
			d := dot{X: c.x(p.x), Y: c.y(p.y), Title: l.Titles[k]}
			op := "L"
			if k == 0 {
				op = "M"
			}
			fmt.Fprintf(&path, "%s%.1f %.1f", op, d.X, d.Y)
			l.Dots = append(l.Dots, d)
			l.LabelAt = dot{X: d.X + 7, Y: d.Y + 4}
		}
		l.Path = path.String()
	}
	c.spread()
}

// labelGap is the least distance between the labels of two lines.
const labelGap = 12

// spread keeps the labels at the ends of lines from covering each other: those that are too near are
// moved up, from the lowest line on.
func (c *chart) spread() {
	last := math.Inf(1)
	for i := range c.Lines { // larger batches take longer: each line is above the one before
		l := &c.Lines[i]
		if len(l.Dots) == 0 {
			continue
		}
		l.LabelAt.Y = min(l.LabelAt.Y, last-labelGap)
		last = l.LabelAt.Y
	}
}

// logarithmic spans whole decades' 1, 2, 5 around low and high, which are above 0.
func logarithmic(low, high float64) scale {
	if !(low > 0) {
		low, high = 1, 10
	}
	var steps []float64
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for _, m := range []float64{1, 2, 5} {
			steps = append(steps, m*math.Pow(10, e))
		}
	}
	from, to := 0, len(steps)-1
	for from+1 < len(steps) && steps[from+1] <= low {
		from++
	}
	for to > from+1 && steps[to-1] >= high {
		to--
	}
	a, b := math.Log(steps[from]), math.Log(steps[to])
	ticks := steps[from : to+1]
	if len(ticks) > 8 { // the decades will do
		var tens []float64
		for _, v := range ticks {
			if r := math.Log10(v); math.Abs(r-math.Round(r)) < 1e-9 {
				tens = append(tens, v)
			}
		}
		ticks = tens
	}
	return scale{func(v float64) float64 { return (math.Log(max(v, 1e-9)) - a) / (b - a) }, ticks}
}

// linearScale spans 0 to a round number from most on.
func linearScale(most float64) scale {
	if !(most > 0) {
		most = 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(most/4)))
	step := 10 * unit
	for _, m := range []float64{1, 2, 2.5, 5} {
		if m*unit*5 >= most {
			step = m * unit
			break
		}
	}
	top := math.Ceil(most/step-1e-9) * step
	var ticks []float64
	for v := 0.0; v <= top*1.0001; v += step {
		ticks = append(ticks, v)
	}
	return scale{func(v float64) float64 { return v / top }, ticks}
}

// figure writes a number with at most three digits that matter.
func figure(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.3gk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
