package chaos

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/gpulet/gpulet/e2e/harness"
)

// What these measure is reported, not judged: machines differ. They run where their flag is given.
var (
	changes  = flag.Int("repartitions", 0, "measure service during so many changes of the plan under 70 % load")
	overload = flag.Duration("overload", 0, "measure goodput at, above and far above capacity for so long each")
	soak     = flag.Duration("soak", 0, "measure memory and handles for so long, at 50 % load with a plan change each minute")
)

// The simulated GPU of the measurements: on the whole of it a batch of 8 takes 20 ms.
const (
	simBase = 4 * time.Millisecond
	simEach = 2 * time.Millisecond
	simSLO  = 200 * time.Millisecond
)

// simModel is a model whose requests are of no use after its SLO.
func simModel(name string) Model {
	return Model{Name: name, Factor: 1, Width: 4, Class: "interactive", Timeout: simSLO.String(), SLO: simSLO, Weight: 1}
}

// capacity is what gpu-lets of share percent carry together, in requests/s at full batches.
func capacity(share, gpulets int) float64 {
	whole := simBase + planBatch*simEach
	return float64(gpulets) * planBatch / (whole.Seconds() * 100 / float64(share))
}

// newSimulated is a site of two simulated GPUs that serve all models on share percent each.
func newSimulated(t *testing.T, share int, models ...Model) *site {
	t.Helper()
	return simulatedOn(t, 0, share, models...)
}

// simulatedOn is newSimulated with so many NATS servers of their own; 0: inside the frontend.
func simulatedOn(t *testing.T, servers, share int, models ...Model) *site {
	t.Helper()
	s := newSite(t, layout{
		nats: servers, engine: "sim", device: "sim:h100x1", models: models, profiles: simulatedProfiles(t, models, simBase, simEach),
		batch: simBase + planBatch*simEach,
	}, *seed)
	s.apply(share)
	s.serving()
	return s
}

// during sends requests/s to m through a door while f runs, and returns when that was.
func (s *site) during(rates map[string]float64, through door, f func()) (from, until time.Duration) {
	ending := make(chan struct{})
	var load sync.WaitGroup
	for i, m := range s.models {
		if rates[m.Name] > 0 {
			rng := rand.New(rand.NewPCG(s.seed, uint64(100+i)))
			d, err := time.ParseDuration(m.Timeout)
			if err != nil {
				s.t.Fatal(err)
			}
			load.Go(func() { poisson(ending, rates[m.Name], rng, func() { through.Send(m, d) }) })
		}
	}
	from = s.ledger.Now()
	f()
	until = s.ledger.Now()
	close(ending)
	load.Wait()
	harness.Eventually(s.t, "every request is settled", func() error {
		if n := s.ledger.Waiting(); n > 0 {
			return fmt.Errorf("%d are not", n)
		}
		return nil
	})
	return from, until
}

// table prints lines of service.
type table struct{ w *tabwriter.Writer }

func newTable() table {
	t := table{tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)}
	fmt.Fprintln(t.w, "what\tmodel\tsent/s\tgoodput/s\tviolations\trefused\trefused p99\tp50\tp99\tgap p99\tlongest gap\tfailed\t")
	return t
}

func (t table) add(what string, s Service) {
	fmt.Fprintf(t.w, "%s\t%s\t%.0f\t%.0f\t%.2f %%\t%d\t%.1f ms\t%.1f ms\t%.1f ms\t%.1f ms\t%.1f ms\t%d\t\n",
		what, s.Model, s.RPS, s.Goodput, 100*s.Missed, s.Refused, s.RefusedP99Ms, s.P50Ms, s.P99Ms, s.GapP99Ms, s.GapMs, s.Failed)
}

// TestRepartitions changes the plan again and again at 70 % of what the smaller plan carries: first every
// host serves both models, always on other gpu-lets, then each serves one, which it hands to the other,
// and at last both again, where no GPU has memory for an old gpu-let and a new one.
func TestRepartitions(t *testing.T) {
	if *changes == 0 {
		t.Skip("a measurement: -repartitions N")
	}
	s := newSimulated(t, 40, simModel("a"), simModel("b"))
	through, err := newBusDoor(s.connect(s.target(), "client"), s.ledger, "r")
	if err != nil {
		t.Fatal(err)
	}
	each := 0.7 * capacity(40, 2) / 2
	rates := map[string]float64{"a": each, "b": each}
	out := newTable()
	measure := func(what string, f func()) {
		from, until := s.during(rates, through, f)
		for _, m := range s.models {
			service := s.ledger.Service(m.Name, m.SLO, from, until)
			out.add(what, service)
			if service.Failed > 0 || service.Good == 0 {
				t.Errorf("%s, %s: %d requests failed, %d were answered in time", what, m.Name, service.Failed, service.Good)
			}
		}
		fmt.Printf("%s: %.2f s each\n", what, (until-from).Seconds()/float64(*changes))
	}
	s.during(rates, through, func() { hold(3 * time.Second) })
	measure("without changes", func() { hold(time.Duration(*changes) * planGap / 4) })
	measure(fmt.Sprintf("%d changes", *changes), func() {
		for range *changes {
			s.apply(s.shares()[(s.made+1)%2])
			s.serving()
		}
	})
	measure(fmt.Sprintf("%d moves", *changes), func() {
		for range *changes {
			s.move(40)
			s.serving()
		}
	})
	s.memBytes = 60 << 30 // of 80
	measure(fmt.Sprintf("%d, no room for both", *changes), func() {
		for range *changes {
			s.apply(s.shares()[(s.made+1)%2])
			s.serving()
		}
	})
	through.Close()
	_ = out.w.Flush()
}

// TestOverload measures goodput at 1, 2 and 5 times the capacity, who is shed, and what offline
// requests do to interactive ones.
func TestOverload(t *testing.T) {
	if *overload == 0 {
		t.Skip("a measurement: -overload DURATION")
	}
	out := newTable()
	defer out.w.Flush()
	t.Run("goodput", func(t *testing.T) {
		s := newSimulated(t, 40, simModel("a"))
		for _, way := range []string{"http", "bus"} {
			through := s.door(way)
			s.during(map[string]float64{"a": capacity(40, 2) / 2}, through, func() { hold(3 * time.Second) })
			for _, times := range []float64{0.8, 0.9, 1, 2, 5} {
				from, until := s.during(map[string]float64{"a": times * capacity(40, 2)}, through, func() { hold(*overload) })
				out.add(fmt.Sprintf("%s, %gx of %.0f/s", way, times, capacity(40, 2)), s.ledger.Service("a", simSLO, from+*overload/5, until))
			}
			through.Close()
		}
	})
	t.Run("weights", func(t *testing.T) {
		heavy, light := simModel("heavy"), simModel("light")
		heavy.Weight = 4
		s := newSimulated(t, 40, heavy, light)
		s.resume()
		through := s.door("http")
		most := capacity(100, 2) // the planner may use all of both GPUs
		rates := map[string]float64{"heavy": most, "light": most}
		s.during(rates, through, func() { hold(max(*overload, 20*time.Second)) }) // the planner sees it
		from, until := s.during(rates, through, func() { hold(*overload) })
		through.Close()
		for _, m := range s.models {
			out.add(fmt.Sprintf("2x, weight %g", m.Weight), s.ledger.Service(m.Name, simSLO, from, until))
		}
	})
	t.Run("offline", func(t *testing.T) {
		live, batch := simModel("live"), simModel("batch")
		batch.Class, batch.Timeout, batch.SLO = "offline", "5m", 5*time.Minute
		s := newSimulated(t, 40, live, batch)
		through := s.door("bus")
		half := capacity(40, 2) / 2
		from, until := s.during(map[string]float64{"live": half}, through, func() { hold(*overload) })
		out.add("live alone, 0.5x", s.ledger.Service("live", simSLO, from, until))
		from, until = s.during(map[string]float64{"live": half, "batch": half / 2}, through, func() { hold(*overload) })
		out.add("live beside offline", s.ledger.Service("live", simSLO, from, until))
		out.add("offline, 0.25x", s.ledger.Service("batch", batch.SLO, from, until))
		through.Close()
	})
}

// door opens a door of the site: http or bus.
func (s *site) door(way string) door {
	if way == "http" {
		return newHTTPDoor(s.HTTP, s.ledger)
	}
	d, err := newBusDoor(s.connect(s.target(), "client"), s.ledger, "d")
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// resume takes the pin off the plan.
func (s *site) resume() {
	cmd := s.Start(s.t, "planner", "rollback", "--resume", "--nats-url", s.NATS, "--state-dir", s.StateDir)
	if code := cmd.Wait(s.t); code != 0 {
		s.t.Fatalf("planner rollback --resume: exit %d\n%s", code, cmd.Tail(20))
	}
}
