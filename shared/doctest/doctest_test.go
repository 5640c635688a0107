package doctest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
)

func TestDescribesMetrics(t *testing.T) {
	var reg recorder
	labels := prometheus.Labels{"host": "h"}
	reg.MustRegister(
		prometheus.NewCounterVec(prometheus.CounterOpts{Name: "a_total", Help: `A "quoted" help.`, ConstLabels: labels}, []string{"model", "status"}),
		prometheus.NewGauge(prometheus.GaugeOpts{Name: "b", Help: "B."}),
		prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "c_seconds", Help: "C."}, []string{"model"}),
	)
	var got [][]string
	for _, c := range reg.collectors {
		for _, m := range describe(t, c) {
			got = append(got, []string{m.name, m.kind, m.labels, m.help})
		}
	}
	want := [][]string{
		{"a_total", "counter", "`host`, `model`, `status`", `A "quoted" help.`},
		{"b", "gauge", "", "B."},
		{"c_seconds", "histogram", "`model`", "C."},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("metrics (-want +got):\n%s", d)
	}
}

func TestDescribesSettings(t *testing.T) {
	cmd := &cobra.Command{Use: "p"}
	cmd.Flags().Int("most", 5, "most of them [$GPULET_MOST]")
	cmd.Flags().String("out", "", "`file` to write")
	for name, want := range map[string][4]string{
		"most": {"`--most`", "`GPULET_MOST`", "`5`", "most of them"},
		"out":  {"`--out`", "", "", "file to write"},
	} {
		if got := setting(cmd.Flags().Lookup(name)); got != want {
			t.Errorf("--%s: %q, expected %q", name, got, want)
		}
	}
}

func TestTablesAreSortedAndEscaped(t *testing.T) {
	rows := [][]string{{"b", "x | y"}, {"a", "<dir>"}}
	const want = "| name | meaning |\n| --- | --- |\n| a | \\<dir> |\n| b | x \\| y |\n"
	if d := cmp.Diff(want, table([]string{"name", "meaning"}, rows)); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
}

func TestDifferencesAreFoundByLine(t *testing.T) {
	if d := cmp.Diff([]string{"| c |"}, missing("| a |\n| c |\n", "| b |\n| a |\n")); d != "" {
		t.Errorf("missing (-want +got):\n%s", d)
	}
}
