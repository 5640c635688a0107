package batch_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/batch"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected parts of testdata")

// TestCases runs testdata/*.txt: blocks of commands, a line "----" and what they print.
//
//	models                      then one line per model: name batch=4 exec=5ms+1ms (base + per sample)
//	                            [slo=50ms] [class=idle]
//	add NAME id=a,b due=50ms [samples=2]
//	at 10ms                     sets the clock
//	next | expire | want
//	idle 15ms                   what NextIdle launches within that; idle slack: within Slack
//	want idle                   what idle models want
//	ahead 20ms                  what NextFull launches for an executor that is busy until then
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runCase(t, string(data))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(data), got); diff != "" && !*rewrite {
				t.Errorf("-want +got (rewrite with go test -rewrite):\n%s", diff)
			}
		})
	}
}

// runCase returns the file with its expected parts replaced by what really happened.
func runCase(t *testing.T, text string) string {
	var out strings.Builder
	s := &script{t: t}
	for _, block := range strings.Split(strings.TrimRight(text, "\n"), "\n\n") {
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		input, _, runs := strings.Cut(block, "----")
		out.WriteString(strings.TrimRight(input, "\n") + "\n")
		if runs {
			out.WriteString("----\n" + s.run(input))
		}
	}
	return out.String()
}

type script struct {
	t   *testing.T
	b   *batch.Batcher
	now time.Time
}

func (s *script) run(input string) string {
	var out strings.Builder
	lines := strings.Split(strings.TrimSpace(input), "\n")
	for i := 0; i < len(lines); i++ {
		f := strings.Fields(lines[i])
		switch {
		case strings.HasPrefix(lines[i], "#"):
		case f[0] == "models":
			s.models(lines[i+1:], &out)
			return out.String()
		case f[0] == "add":
			s.add(f[1], fields(f[2:]))
		case f[0] == "at":
			s.now = epoch.Add(s.duration(f[1]))
		case f[0] == "next":
			s.print(&out, s.b.Next(s.now), true)
		case f[0] == "ahead":
			s.print(&out, batch.Decision{Launch: s.b.NextFull(epoch.Add(s.duration(f[1])))}, true)
		case f[0] == "expire":
			s.print(&out, s.b.Expire(s.now), false)
		case f[0] == "idle":
			within := s.b.Slack()
			if f[1] != "slack" {
				within = s.duration(f[1])
			}
			s.print(&out, s.b.NextIdle(s.now, within), true)
		case f[0] == "slack":
			fmt.Fprintf(&out, "slack %v\n", s.b.Slack())
		case f[0] == "want":
			wants := s.b.Want()
			if len(f) > 1 {
				wants = s.b.WantIdle()
			}
			for _, w := range wants {
				fmt.Fprintf(&out, "want %s %d\n", w.Model, w.N)
			}
		default:
			s.t.Fatalf("unknown command %q", lines[i])
		}
	}
	return out.String()
}

var epoch = time.Unix(1000, 0)

func (s *script) models(lines []string, out *strings.Builder) {
	var models []batch.Model
	for _, line := range lines {
		f := strings.Fields(line)
		v := fields(f[1:])
		base, each, _ := strings.Cut(v["exec"], "+")
		b, e := s.duration(base), time.Duration(0)
		if each != "" {
			e = s.duration(each)
		}
		models = append(models, batch.Model{
			Name: f[0], Batch: s.number(v["batch"]),
			Exec: func(n int) time.Duration { return b + time.Duration(n)*e },
			SLO:  s.optional(v["slo"]), Idle: v["class"] == "idle",
		})
	}
	if s.b == nil {
		s.b, s.now = batch.New(models), epoch
		return
	}
	for _, it := range s.b.SetModels(models) {
		fmt.Fprintf(out, "dropped %s/%v\n", it.Model, it.Payload)
	}
}

func (s *script) add(model string, v map[string]string) {
	samples := 1
	if v["samples"] != "" {
		samples = s.number(v["samples"])
	}
	for _, id := range strings.Split(v["id"], ",") {
		it := batch.Item{Payload: id, Samples: samples}
		if v["due"] != "" {
			it.Deadline = epoch.Add(s.duration(v["due"]))
		}
		if !s.b.Add(model, it, s.now) {
			s.t.Fatalf("model %q is not bound", model)
		}
	}
}

func (s *script) print(out *strings.Builder, d batch.Decision, launch bool) {
	if len(d.Expired) > 0 {
		fmt.Fprintf(out, "expired %s\n", ids(d.Expired))
	}
	switch {
	case len(d.Launch.Items) > 0:
		fmt.Fprintf(out, "launch %s samples=%d exec=%v\n", ids(d.Launch.Items), d.Launch.Samples, d.Launch.Exec)
	case launch:
		out.WriteString("nothing to launch\n")
	}
	if !d.Wake.IsZero() {
		fmt.Fprintf(out, "wake at %v\n", d.Wake.Sub(epoch))
	}
}

func ids(items []batch.Item) string {
	var b strings.Builder
	for i, it := range items {
		switch {
		case i == 0 || items[i-1].Model != it.Model:
			fmt.Fprintf(&b, " %s/%v", it.Model, it.Payload)
		default:
			fmt.Fprintf(&b, ",%v", it.Payload)
		}
	}
	return strings.TrimSpace(b.String())
}

func fields(words []string) map[string]string {
	m := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		m[k] = v
	}
	return m
}

func (s *script) duration(v string) time.Duration {
	d, err := time.ParseDuration(v)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *script) optional(v string) time.Duration {
	if v == "" {
		return 0
	}
	return s.duration(v)
}

func (s *script) number(v string) int {
	n, err := strconv.Atoi(v)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}
