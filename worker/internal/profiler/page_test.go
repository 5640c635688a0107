package profiler

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/profile"
)

// measuredSet is a GPU type with everything a report shows.
func measuredSet() *profile.Set {
	set := &profile.Set{}
	for i, name := range []string{"bert", "resnet50"} {
		p := &profile.Profile{
			Model: name, GPUType: "h100", GPU: "NVIDIA H100", Driver: "driver 580", Torch: "libtorch 2.11", Precision: "fp16",
			Layout: []string{"", profile.ChannelsLast}[i], Inputs: map[string]string{"x": "UINT8"}, Notes: []string{"a note < of the engine"},
			Memory: []profile.Memory{{Batch: 1, Bytes: 100 << 20}, {Batch: 64, Bytes: 300 << 20}},
			Demand: []profile.Demand{{Share: 40, Batch: 8, SM: 0.36, DRAM: 0.123}},
		}
		for _, share := range grid {
			for _, batch := range Batches(64) {
				at := roofline(1, 0.1, 40)(share, batch)
				p.Points = append(p.Points, profile.Point{Share: share, Batch: batch, P50Ms: at})
			}
		}
		set.Add(p)
	}
	pair := func(a, b string, f float64) profile.Measurement {
		return profile.Measurement{Self: profile.Running{Model: a, Share: 50, Batch: 8}, Others: []profile.Running{{Model: b, Share: 50, Batch: 8}}, Slowdown: f}
	}
	triple := pair("bert", "bert", 9)
	triple.Others = append(triple.Others, triple.Others[0])
	set.AddCorun(&profile.Corun{GPUType: "h100", Runs: []profile.Measurement{
		pair("bert", "resnet50", 1.1), pair("bert", "resnet50", 1.75), pair("bert", "resnet50", 1.3), pair("resnet50", "resnet50", 1.62), triple,
	}})
	set.AddInterference(&profile.Interference{GPUType: "h100", Kind: "pairwise", HeldOut: &profile.FitError{Pairs: 4, P50: 0.021, P90: 0.077}})
	set.AddDevice(&profile.Device{GPUType: "h100", Name: "NVIDIA H100", SMs: 132, ContextBytes: 512 << 20})
	return set
}

func TestPageShowsWhatWasMeasured(t *testing.T) {
	var out bytes.Buffer
	page := Page{GPUType: "h100", Profiles: measuredSet(), SLOs: map[string]time.Duration{"resnet50": 20 * time.Millisecond}}
	if err := page.Write(&out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{
		"NVIDIA H100, 132 SMs", "512 MiB", "libtorch 2.11", "driver 580", "channels_last", "x UINT8", "a note &lt; of the engine",
		"batches within 10ms", ">1.30</td>", `class="strong"`, "(4 measurements; 1 more beside several", "off by 2.1 % at p50 and 7.7 % at p90",
		"<td>100<td>300", "<td>36.0", "<td>12.3", "prefers-color-scheme: dark",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	// The planner's knee, of the rates within half the SLO.
	p, _ := page.Profiles.Get("h100", "resnet50")
	var rates []profile.RateAt
	for _, share := range p.Shares() {
		rps, _ := p.BestRate(share, 10, 0)
		rates = append(rates, profile.RateAt{Share: share, RPS: rps})
	}
	if want := fmt.Sprintf(">knee %d %%</text>", rates[profile.Knee(rates)].Share); !strings.Contains(text, want) {
		t.Errorf("the page lacks %q", want)
	}
	if n := strings.Count(text, "<svg"); n != 4 {
		t.Errorf("%d charts: expected two of each model", n)
	}
	for _, outside := range []string{"http:", "https:", "<script", "<link", "@import", "url(", "ZgotmplZ"} {
		if strings.Contains(text, outside) {
			t.Errorf("the page has %q: expected it to need nothing else", outside)
		}
	}
}

// TestChartsAreWellFormedAndWithinTheirFrame reads the SVGs of the page.
func TestChartsAreWellFormedAndWithinTheirFrame(t *testing.T) {
	var out bytes.Buffer
	if err := (Page{GPUType: "h100", Profiles: measuredSet()}).Write(&out); err != nil {
		t.Fatal(err)
	}
	circles := 0
	for _, part := range strings.Split(out.String(), "<svg")[1:] {
		svg, _, _ := strings.Cut("<svg"+part, "</svg>")
		dec := xml.NewDecoder(strings.NewReader(svg + "</svg>"))
		for {
			token, err := dec.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			e, ok := token.(xml.StartElement)
			if !ok || e.Name.Local != "circle" {
				continue
			}
			circles++
			for _, a := range e.Attr {
				var v float64
				if n, _ := fmt.Sscan(a.Value, &v); n == 1 && (a.Name.Local == "cx" && (v < marginLeft || v > chartWidth-marginRight) ||
					a.Name.Local == "cy" && (v < marginTop || v > chartHeight-marginBottom)) {
					t.Errorf("circle with %s=%v is outside of its chart", a.Name.Local, v)
				}
			}
		}
	}
	if want := 2 * (8*7 + 8 + 1); circles != want {
		t.Errorf("%d points: expected %d", circles, want)
	}
}

func TestAPageOfNothingIsAPage(t *testing.T) {
	var out bytes.Buffer
	if err := (Page{GPUType: "none", Profiles: &profile.Set{}}).Write(&out); err != nil || !strings.Contains(out.String(), "Profile of none") {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestScalesCoverTheirValues(t *testing.T) {
	for _, c := range [][2]float64{{0.1, 0.1}, {0.37, 80}, {1, 10}, {3, 3000}, {0.001, 3e6}, {0, 0}} {
		s := logarithmic(c[0], c[1])
		if c[0] > 0 && (s.at(c[0]) < -1e-9 || s.at(c[1]) > 1+1e-9) {
			t.Errorf("%v: from %v to %v: expected 0..1", c, s.at(c[0]), s.at(c[1]))
		}
		if len(s.ticks) < 2 || len(s.ticks) > 12 {
			t.Errorf("%v: ticks %v", c, s.ticks)
		}
	}
	for _, most := range []float64{0, 0.3, 1, 7, 99, 100, 101, 12345} {
		s := linearScale(most)
		if s.at(0) != 0 || s.at(most) > 1+1e-9 || len(s.ticks) < 2 || len(s.ticks) > 8 {
			t.Errorf("%v: at %v, ticks %v", most, s.at(most), s.ticks)
		}
		if last := s.ticks[len(s.ticks)-1]; math.Abs(s.at(last)-1) > 1e-9 {
			t.Errorf("%v: the last tick, %v, is at %v", most, last, s.at(last))
		}
	}
}

func TestFiguresAreShort(t *testing.T) {
	got := map[float64]string{}
	want := map[float64]string{0: "0", 0.05: "0.05", 1.2345: "1.23", 123.4: "123", 9999: "9999", 12345: "12.3k", 2.5e6: "2.5M"}
	for v := range want {
		got[v] = figure(v)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
