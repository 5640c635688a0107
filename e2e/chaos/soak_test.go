package chaos

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gpulet/gpulet/e2e/harness"
)

// TestSoak runs for long and writes what each program holds as CSV, for scripts/soak.py to draw. NATS
// is a process of its own, so that what JetStream holds is not mixed up with what the frontend holds.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("a measurement: -soak DURATION")
	}
	buildNATS(t)
	s := simulatedOn(t, 1, 40, simModel("a"), simModel("b"))
	through := s.door("http")
	rate := 0.5 * capacity(40, 2) / 2
	file := *jsonFile
	if file == "" {
		file = "soak.csv"
	}
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	fmt.Fprintln(out, "seconds,program,rss_mib,goroutines,fds,jetstream_memory_mib,jetstream_file_mib")
	from, until := s.during(map[string]float64{"a": rate, "b": rate}, through, func() {
		end := time.After(*soak)
		sample, change := time.NewTicker(5*time.Second), time.NewTicker(time.Minute)
		defer sample.Stop()
		defer change.Stop()
		for {
			select {
			case <-end:
				return
			case <-change.C:
				s.apply(s.shares()[(s.made+1)%2])
			case <-sample.C:
				s.holdings(out)
			}
		}
	})
	through.Close()
	rows := newTable()
	for _, m := range s.models {
		rows.add("soak", s.ledger.Service(m.Name, m.SLO, from, until))
	}
	_ = rows.w.Flush()
}

var metricLine = regexp.MustCompile(`(?m)^(process_resident_memory_bytes|go_goroutines|process_open_fds) (\S+)$`)

// holdings writes a line per program.
func (s *site) holdings(out *os.File) {
	for _, p := range []struct {
		name string
		from *harness.Process
	}{{"frontend", s.Frontend}, {"planner", s.Planner}, {"agent a", s.hosts[0].worker}, {"agent b", s.hosts[1].worker}} {
		addr := p.from.WaitEvent(s.t, "serving metrics").Text("addr")
		code, body, err := harness.Get("http://" + addr + "/metrics")
		if err != nil || code != http.StatusOK {
			continue // a sample less
		}
		v := map[string]float64{}
		for _, m := range metricLine.FindAllStringSubmatch(body, -1) {
			v[m[1]], _ = strconv.ParseFloat(m[2], 64)
		}
		fmt.Fprintf(out, "%.0f,%s,%.1f,%.0f,%.0f,,\n", s.ledger.Now().Seconds(), p.name,
			v["process_resident_memory_bytes"]/(1<<20), v["go_goroutines"], v["process_open_fds"])
	}
	s.storage(out)
	reports, err := s.watch.Gpulets(s.t.Context())
	if err != nil {
		return
	}
	for _, g := range reports {
		rss, fds := footprint(g.PID)
		fmt.Fprintf(out, "%.0f,gpu-let %s,%.1f,,%d,,\n", s.ledger.Now().Seconds(), g.Host, rss, fds)
	}
}

// storage writes a line for NATS, with what JetStream keeps in memory and on disk.
func (s *site) storage(out *os.File) {
	n := s.nats[0]
	_, body, err := harness.Get("http://" + n.http + "/jsz")
	var v struct{ Memory, Storage float64 }
	if err != nil || json.Unmarshal([]byte(body), &v) != nil {
		return // a sample less
	}
	rss, fds := footprint(n.PID())
	fmt.Fprintf(out, "%.0f,nats,%.1f,,%d,%.3f,%.3f\n", s.ledger.Now().Seconds(), rss, fds, v.Memory/(1<<20), v.Storage/(1<<20))
}

// footprint is a process's resident memory in MiB and its open files.
func footprint(pid int) (rss float64, fds int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &rss); err == nil {
			rss /= 1 << 10
			break
		}
	}
	files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return rss, len(files)
}
