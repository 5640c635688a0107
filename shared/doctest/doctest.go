// Package doctest holds docs/operations.md to the programs: its tables of metrics and settings are
// what the code registers, no more and no less. It is for tests.
//
// A table stands between a line <!-- metrics PROGRAM --> (or settings PROGRAM) and a line <!-- end -->.
// GPULET_REWRITE_DOCS=1 writes the tables instead of comparing them:
//
//	GPULET_REWRITE_DOCS=1 go test -count=1 -p 1 ./frontend/frontendcmd ./planner/plannercmd ./worker/workercmd ./loadgen/loadgencmd -run InTheManual
package doctest

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	rewrite = "GPULET_REWRITE_DOCS"
	end     = "<!-- end -->\n"
)

// Metrics compares the manual's table of a program's metrics with what register registers. Names
// have to begin with gpulet_<program>_, and every metric needs a help text.
func Metrics(t *testing.T, program string, register func(prometheus.Registerer)) {
	t.Helper()
	var reg recorder
	register(&reg)
	var rows [][]string
	for _, c := range reg.collectors {
		for _, m := range describe(t, c) {
			if !strings.HasPrefix(m.name, "gpulet_"+program+"_") || m.help == "" {
				t.Errorf("metric %s (%q): expected gpulet_%s_<noun>_<unit> and a help text", m.name, m.help, program)
			}
			rows = append(rows, []string{"`" + m.name + "`", m.kind, m.labels, m.help})
		}
	}
	compare(t, "metrics "+program, []string{"name", "type", "labels", "meaning"}, rows)
}

// recorder is a Registerer that remembers what it was given.
type recorder struct{ collectors []prometheus.Collector }

// Register implements prometheus.Registerer.
func (r *recorder) Register(c prometheus.Collector) error {
	r.collectors = append(r.collectors, c)
	return nil
}

// MustRegister implements prometheus.Registerer.
func (r *recorder) MustRegister(cs ...prometheus.Collector) {
	r.collectors = append(r.collectors, cs...)
}

// Unregister implements prometheus.Registerer.
func (r *recorder) Unregister(prometheus.Collector) bool { return false }

type metric struct{ name, kind, labels, help string }

// descRE takes apart what prometheus.Desc, which has no accessors, prints.
var descRE = regexp.MustCompile(`^Desc\{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"),.* constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// describe lists the metrics of one collector.
func describe(t *testing.T, c prometheus.Collector) []metric {
	t.Helper()
	ch := make(chan *prometheus.Desc)
	go func() {
		c.Describe(ch)
		close(ch)
	}()
	var list []metric
	for d := range ch {
		parts := descRE.FindStringSubmatch(d.String())
		if parts == nil {
			t.Fatalf("found %s: expected a description of another form", d)
		}
		m := metric{}
		m.name, _ = strconv.Unquote(parts[1])
		m.help, _ = strconv.Unquote(parts[2])
		m.kind = kind(c, m.name)
		var labels []string
		for l := range strings.SplitSeq(parts[3]+","+parts[4], ",") {
			if name, _, _ := strings.Cut(l, "="); name != "" {
				labels = append(labels, "`"+name+"`")
			}
		}
		m.labels = strings.Join(labels, ", ")
		list = append(list, m)
	}
	return list
}

// kind is a metric's type: told by its collector where that is of one type, else by the names that
// Prometheus prescribes.
func kind(c prometheus.Collector, name string) string {
	switch c.(type) {
	case prometheus.Histogram, *prometheus.HistogramVec:
		return "histogram"
	case prometheus.Gauge, *prometheus.GaugeVec:
		return "gauge"
	case prometheus.Counter, *prometheus.CounterVec:
		return "counter"
	}
	switch {
	case strings.HasSuffix(name, "_total"):
		return "counter"
	case strings.HasSuffix(name, "_duration_seconds"):
		return "histogram"
	}
	return "gauge"
}

// Settings compares the manual's table of a program's settings with the flags of its commands.
// Every flag needs a help text.
func Settings(t *testing.T, program string, root *cobra.Command) {
	t.Helper()
	commands := map[[4]string][]string{} // who has the same setting
	walk(root, func(cmd *cobra.Command) {
		name := strings.TrimPrefix(cmd.CommandPath(), root.Name()+" ")
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			row := setting(f)
			if row[3] == "" {
				t.Errorf("%s --%s has no help text", cmd.CommandPath(), f.Name)
			}
			commands[row] = append(commands[row], "`"+name+"`")
		})
	})
	var rows [][]string
	for row, of := range commands {
		slices.Sort(of)
		rows = append(rows, []string{row[0], row[1], row[2], strings.Join(of, ", "), row[3]})
	}
	compare(t, "settings "+program, []string{"flag", "variable", "default", "of", "meaning"}, rows)
}

// walk visits the commands that a user sees.
func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	if cmd.Hidden {
		return
	}
	visit(cmd)
	for _, sub := range cmd.Commands() {
		walk(sub, visit)
	}
}

var variableRE = regexp.MustCompile(` ?\[\$(GPULET_[A-Z0-9_]+)\]$`)

// setting is a flag's row: flag, variable, default, meaning.
func setting(f *pflag.Flag) [4]string {
	_, usage := pflag.UnquoteUsage(f)
	variable := ""
	if m := variableRE.FindStringSubmatch(usage); m != nil {
		variable = "`" + m[1] + "`"
		usage = variableRE.ReplaceAllString(usage, "")
	}
	value := ""
	if f.DefValue != "" && f.DefValue != "[]" {
		value = "`" + f.DefValue + "`"
	}
	return [4]string{"`--" + f.Name + "`", variable, value, usage}
}

// compare holds a table of the manual to rows, or writes it.
func compare(t *testing.T, what string, head []string, rows [][]string) {
	t.Helper()
	if len(rows) == 0 {
		t.Fatalf("%s: nothing found in the code", what)
	}
	want := table(head, rows)
	file := filepath.Join(root(t), "docs", "operations.md")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begin := "<!-- " + what + " -->\n"
	before, rest, ok := strings.Cut(string(data), begin)
	got, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s: expected a table between %q and %q", file, begin, end)
	}
	if os.Getenv(rewrite) == "1" {
		if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, line := range missing(got, want) {
		t.Errorf("docs/operations.md, %s: has a line that the code does not: %s", what, line)
	}
	for _, line := range missing(want, got) {
		t.Errorf("docs/operations.md, %s: lacks %s", what, line)
	}
	if t.Failed() {
		t.Logf("%s=1 writes it anew, see the package comment of shared/doctest", rewrite)
	}
}

// table renders rows, sorted.
func table(head []string, rows [][]string) string {
	slices.SortFunc(rows, func(a, b []string) int { return cmp.Or(cmp.Compare(a[0], b[0]), slices.Compare(a, b)) })
	var b strings.Builder
	escape := strings.NewReplacer("|", `\|`, "<", `\<`)
	line := func(cells []string) {
		for _, c := range cells {
			fmt.Fprintf(&b, "| %s ", escape.Replace(c))
		}
		b.WriteString("|\n")
	}
	line(head)
	line(slices.Repeat([]string{"---"}, len(head)))
	for _, r := range rows {
		line(r)
	}
	return b.String()
}

// missing are the lines of a that are not in b, sorted.
func missing(a, b string) []string {
	left := map[string]bool{}
	for line := range strings.Lines(a) {
		left[strings.TrimSpace(line)] = true
	}
	for line := range strings.Lines(b) {
		delete(left, strings.TrimSpace(line))
	}
	return slices.Sorted(maps.Keys(left))
}

// root is the top folder of the repository.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if filepath.Dir(dir) == dir {
			t.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}
