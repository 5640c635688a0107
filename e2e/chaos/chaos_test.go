package chaos

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	full     = flag.Bool("full", false, "inject every kind of fault many times, not once")
	seed     = flag.Uint64("seed", 1, "seed of the faults' order and places, and of the requests")
	bound    = flag.Duration("for", 2*time.Hour, "inject no fault at a site after so long")
	rate     = flag.Float64("rate", 150, "requests/s at each site")
	only     = flag.String("faults", "", "only the kinds of fault that match, as in 'kill|cut', or site/kind")
	jsonFile = flag.String("json", "", "file for the figures as JSON")
)

// trial is a kind of fault at a site, and how often it is injected in a short run and in a full one.
type trial struct {
	fault
	short, full int
}

// place is a site and what is done to it.
type place struct {
	name   string
	layout layout
	share  int // of the first plan; 0: the planner's own
	trials []trial
}

func places() []place {
	simulated := []Model{{Name: "lenet", Factor: 1, Width: 4, Class: "interactive", Timeout: timeout.String()}}
	return []place{
		{"hosts", layout{engine: "ref", device: "cpu", models: models(timeout), nats: 1}, 100, []trial{
			{fault{"kill gpu-let", false, killGpulet}, 1, 100},
			{fault{"stop gpu-let 5 s", false, stopGpulet}, 1, 15},
			{fault{"kill agent", false, killAgent}, 1, 40},
			{fault{"stop agent 5 s", false, stop(agent)}, 0, 15},
			{fault{"kill host", false, killHost}, 1, 30},
			{fault{"kill planner", false, killPlanner}, 1, 40},
			{fault{"stop planner 5 s", false, stop(planner)}, 0, 10},
			{fault{"kill frontend", false, killFrontend}, 1, 40},
			{fault{"stop frontend 5 s", false, stop(frontend)}, 0, 10},
			{fault{"kill NATS", false, killNATS}, 1, 40},
			{fault{"stop NATS 5 s", false, stop(server)}, 0, 10},
			{fault{"cut host 10 s", false, cutHost}, 1, 20},
			{fault{"stall host 5 s", false, stallHost}, 0, 15},
			{fault{"slow consumer", false, slowConsumer}, 1, 10},
			{fault{"disk full", true, fillDisk}, 1, 10},
			{fault{"clock off by 5 s", false, skewClock}, 1, 10},
			{fault{"plan change", false, changePlans(10)}, 1, 10},
		}},
		{"embedded", layout{engine: "ref", device: "cpu", models: models(timeout)}, 0, []trial{
			{fault{"kill gpu-let", false, killGpulet}, 1, 100},
			{fault{"kill planner", false, killPlanner}, 0, 50},
			{fault{"kill frontend and NATS", true, killFrontend}, 1, 60},
			{fault{"stop frontend and NATS 5 s", false, stop(frontend)}, 1, 10},
			{fault{"plan change", false, changePlans(10)}, 0, 10},
		}},
		{"cluster", layout{engine: "ref", device: "cpu", models: models(clusterTimeout), nats: 3}, 100, []trial{
			{fault{"kill NATS leader", true, killLeader}, 1, 40},
			{fault{"kill gpu-let", false, killGpulet}, 0, 30},
			{fault{"plan change", false, changePlans(10)}, 0, 5},
		}},
		{"simulated", layout{engine: "sim", device: "sim:h100x1", models: simulated}, 60, []trial{
			{fault{"kill gpu-let", false, killGpulet}, 1, 100},
			{fault{"kill host", false, killHost}, 0, 30},
			{fault{"plan change", false, changePlans(10)}, 1, 15},
		}},
	}
}

// TestChaos breaks everything and reads off the ledger what became of every request.
func TestChaos(t *testing.T) {
	wanted, err := regexp.Compile(*only)
	if err != nil {
		t.Fatalf("-faults: %v", err)
	}
	buildNATS(t)
	report := &Report{Seed: *seed}
	var mu sync.Mutex // guards report
	started := time.Now()
	t.Run("sites", func(t *testing.T) {
		for i, p := range places() {
			trials := chosen(p, wanted)
			if len(trials) == 0 {
				continue
			}
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				kinds, skipped, s := visit(t, p, trials, *seed+uint64(i))
				mu.Lock()
				defer mu.Unlock()
				report.add(kinds, skipped, s)
			})
		}
	})
	report.Seconds = time.Since(started).Seconds()
	slices.SortStableFunc(report.Kinds, func(a, b Kind) int { return siteOrder(a.Site) - siteOrder(b.Site) })
	if err := report.writeTable(os.Stdout); err != nil {
		t.Error(err)
	}
	if *jsonFile != "" {
		if err := writeJSON(*jsonFile, report); err != nil {
			t.Error(err)
		}
	}
	for i := range report.Kinds {
		if why := report.Kinds[i].broken(); why != "" {
			t.Errorf("%s, %s: %s", report.Kinds[i].Site, report.Kinds[i].Kind, why)
		}
	}
	if report.Faults == 0 {
		t.Error("no fault was injected")
	}
	if a := report.Total; a.Lost+a.Twice+a.Wrong+report.Unasked > 0 {
		t.Errorf("of all requests %d were lost, %d accepted twice, %d answered wrong, %d never sent", a.Lost, a.Twice, a.Wrong, report.Unasked)
	}
}

func siteOrder(name string) int {
	return slices.IndexFunc(places(), func(p place) bool { return p.name == name })
}

// chosen are the trials that are made, in the order of the table.
func chosen(p place, wanted *regexp.Regexp) []trial {
	var out []trial
	for _, tr := range p.trials {
		if wanted.MatchString(p.name+"/"+tr.kind) && tr.times() > 0 {
			out = append(out, tr)
		}
	}
	return out
}

func (t trial) times() int {
	if *full {
		return t.full
	}
	if *only != "" {
		return max(t.short, 1)
	}
	return t.short
}

// visit injects a site's faults in a random order, each into a calm system.
func visit(t *testing.T, p place, trials []trial, seed uint64) ([]Kind, []string, *site) {
	trials, skipped := allowed(t, &p, trials)
	s := newSite(t, p.layout, seed)
	if p.share > 0 {
		s.apply(p.share)
		s.serving()
	}
	s.open(*rate)
	s.calm()
	started := time.Now() // sites may wait for each other
	kinds := make([]Kind, len(trials))
	var order []int
	for i, tr := range trials {
		kinds[i] = Kind{Site: p.name, Kind: tr.kind, told: tr.told}
		order = append(order, slices.Repeat([]int{i}, tr.times())...)
	}
	rand.New(rand.NewPCG(seed, 3)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, i := range order {
		if time.Since(started) > *bound {
			break
		}
		s.marks = nil
		s.mark()
		if err := trials[i].inject(s); err != nil {
			t.Fatalf("%s: %v", trials[i].kind, err)
		}
		s.serving()
		s.calm()
		until := s.ledger.Now()
		from := s.marks[0]
		if len(s.marks) > 1 {
			s.marks = s.marks[1:] // a series, each of which has its own
		}
		kinds[i].add(s.ledger, s.marks, until)
		t.Logf("%-26s %s recovered after %.2f s", trials[i].kind, told(s.ledger.Account(from, until).Told), s.ledger.Recovery(from, until).Seconds())
	}
	s.close()
	return kinds, skipped, s
}

// add enters a site's figures.
func (r *Report) add(kinds []Kind, skipped []string, s *site) {
	r.Kinds = append(r.Kinds, kinds...)
	r.Skipped = append(r.Skipped, skipped...)
	for _, k := range kinds {
		r.Faults += k.Faults
	}
	r.Total.Merge(s.ledger.Account(0, s.ledger.Now()))
	unasked, _ := s.ledger.Strange()
	r.Unasked += unasked
}

// allowed prepares what some faults need of the host, and leaves out those that cannot be had.
func allowed(t *testing.T, p *place, trials []trial) (kept []trial, skipped []string) {
	for _, tr := range trials {
		switch tr.kind {
		case "disk full":
			dir := t.TempDir()
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
				skipped = append(skipped, fmt.Sprintf("%s: a small disk cannot be mounted here: %v (run as root, or in a container with SYS_ADMIN)", tr.kind, err))
				continue
			}
			t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
			p.layout.store = dir
		case "clock off by 5 s":
			buildSkewed(t)
		}
		kept = append(kept, tr)
	}
	if p.layout.engine == "sim" {
		p.layout.profiles = simulatedProfiles(t, p.layout.models, 2*time.Millisecond, 500*time.Microsecond)
		p.layout.batch = 6 * time.Millisecond
	}
	return kept, skipped
}
