package plannercmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/ask"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/plan"
)

type statusConfig struct {
	Online ask.Config
	Watch  bool          `env:"WATCH" envDefault:"false" usage:"print again and again until interrupted"`
	Every  time.Duration `env:"EVERY" envDefault:"2s" usage:"time between prints with --watch"`
}

// Validate names the first setting that is out of range.
func (c *statusConfig) Validate() error {
	if c.Every < 100*time.Millisecond {
		return fmt.Errorf("every %v: must be at least 100ms", c.Every)
	}
	return nil
}

// status is a running system at one moment. Field names are part of the command's output.
type status struct {
	Time     time.Time          `json:"time"`
	Planner  *plannerStatus     `json:"planner"` // null: none leads
	Lease    leaseStatus        `json:"lease"`
	Standbys []string           `json:"standbys"` // planners that would take over
	Plan     planStatus         `json:"plan"`
	Hosts    []plan.HostReport  `json:"hosts"`
	Gpulets  []gpuletStatus     `json:"gpulets"`
	Models   []plan.ModelDemand `json:"models"`
	Problems []string           `json:"problems"`
}

type plannerStatus struct {
	Name     string  `json:"name"`
	Term     uint64  `json:"term"`
	Revision uint64  `json:"revision"`
	AgeS     float64 `json:"age_s"`
}

// leaseStatus is which planner leads, by the lease itself.
type leaseStatus struct {
	Holder string `json:"holder"` // empty: nobody, or nobody yet
	Term   uint64 `json:"term"`
	// SinceS is for how long the term has lasted, AgeS for how long the lease was not written; it is
	// over when that is more than TTLS.
	SinceS float64 `json:"since_s"`
	AgeS   float64 `json:"age_s"`
	TTLS   float64 `json:"ttl_s"`
}

// over reports whether the holder has been silent for too long.
func (l leaseStatus) over() bool { return l.AgeS > l.TTLS }

type planStatus struct {
	Revision    uint64             `json:"revision"`
	Term        uint64             `json:"term"` // of the planner that wrote it
	AgeS        float64            `json:"age_s"`
	Algorithm   string             `json:"algorithm"`
	Reason      string             `json:"reason"`
	Pinned      bool               `json:"pinned"`
	GPUsUsed    int                `json:"gpus_used"`
	DesiredGPUs int                `json:"desired_gpus"`
	Unserved    map[string]float64 `json:"unserved"`
}

// gpuletStatus joins what is planned of a gpu-let with what its agent reports.
type gpuletStatus struct {
	plan.Gpulet
	Planned  bool             `json:"planned"`
	State    plan.GpuletState `json:"state"` // "missing": planned, and no agent reports it
	Serving  uint64           `json:"serving_revision"`
	Restarts int              `json:"restarts"`
	Detail   string           `json:"detail,omitempty"`
	Note     string           `json:"note,omitempty"` // why it is there although the plan does not say so
	Requests uint64           `json:"requests"`
	Expired  uint64           `json:"expired"`
	Failed   uint64           `json:"failed"`
}

const missing plan.GpuletState = "missing"

func newStatusCommand() *cobra.Command {
	cfg := &statusConfig{}
	return ask.Command(&cobra.Command{
		Use:   "status",
		Short: "Show hosts, gpu-lets, rates, queues and problems of a running system",
		Example: `  planner status
  planner status --watch
  planner status --json | jq '.models[] | {model, rate_rps, pending}'`,
	}, bus.RolePlanner, cfg, &cfg.Online, func(ctx context.Context, b *bus.Bus, _ []string, out io.Writer) error {
		for {
			s, err := readStatus(ctx, b)
			if err != nil {
				return err
			}
			if err := s.print(out, cfg.Online.JSON, cfg.Watch); err != nil {
				return err
			}
			if !cfg.Watch || lifecycle.Sleep(ctx, cfg.Every) != nil {
				return nil
			}
		}
	})
}

// readStatus asks for everything. Lag is read from the queues themselves; rates are the planner's.
func readStatus(ctx context.Context, b *bus.Bus) (status, error) {
	var reports []plan.GpuletReport
	s := status{Time: time.Now().UTC()}
	current, _, err := b.GetPlan(ctx)
	if err == nil {
		s.Hosts, err = b.Hosts(ctx)
	}
	if err == nil {
		reports, err = b.Gpulets(ctx)
	}
	if err == nil {
		err = s.readPlanner(ctx, b)
	}
	if err == nil {
		err = s.readLease(ctx, b)
	}
	if err == nil {
		err = s.readModels(ctx, b, current)
	}
	if err != nil {
		return status{}, fmt.Errorf("read the system's state: %w", err)
	}
	s.Plan = planStatus{
		Revision: current.Revision, Term: current.Term, Algorithm: current.Algorithm, Reason: current.Reason, Pinned: current.Pinned,
		GPUsUsed: current.GPUsUsed, DesiredGPUs: current.DesiredGPUs, Unserved: current.Unserved,
	}
	if current.Revision > 0 {
		s.Plan.AgeS = s.Time.Sub(current.Created).Seconds()
	}
	s.Gpulets = join(current, reports)
	s.collectProblems(reports)
	return s, nil
}

func (s *status) readPlanner(ctx context.Context, b *bus.Bus) error {
	r, err := b.Planner(ctx)
	if errors.Is(err, bus.ErrNotFound) {
		s.Problems = append(s.Problems, "no planner leads: the last plan stays")
		return nil
	}
	if err != nil {
		return err
	}
	s.Planner = &plannerStatus{Name: r.Planner, Term: r.Term, Revision: r.Revision, AgeS: s.Time.Sub(r.Time).Seconds()}
	s.Models = r.Models
	s.Problems = append(s.Problems, r.Problems...)
	return nil
}

func (s *status) readLease(ctx context.Context, b *bus.Bus) error {
	l, _, written, err := b.Lease(ctx)
	if err != nil {
		return err
	}
	s.Lease = leaseStatus{Holder: l.Holder, Term: l.Term, TTLS: float64(l.TTLMs) / 1000}
	if l.Term > 0 {
		s.Lease.SinceS, s.Lease.AgeS = s.Time.Sub(l.Since).Seconds(), s.Time.Sub(written).Seconds()
	}
	standbys, err := b.Standbys(ctx)
	s.Standbys = []string{}
	for _, r := range standbys {
		s.Standbys = append(s.Standbys, r.Planner)
	}
	return err
}

// readModels brings the planner's figures up to date with the queues, and stands in for them when
// no planner runs.
func (s *status) readModels(ctx context.Context, b *bus.Bus, current plan.Plan) error {
	registered, err := b.Models(ctx)
	if err != nil {
		return err
	}
	planned := current.Capacities()
	known := map[string]plan.ModelDemand{}
	for _, d := range s.Models {
		known[d.Model] = d
	}
	s.Models = nil
	for _, m := range registered {
		d := known[m.Name]
		d.Model, d.SLOMs, d.PlannedRPS = m.Name, float64(m.SLO)/float64(time.Millisecond), planned[m.Name]
		lag, err := b.Lag(ctx, m.Name)
		switch {
		case errors.Is(err, bus.ErrUnknownModel):
			s.Problems = append(s.Problems, fmt.Sprintf("model %s: has no queue", m.Name))
		case err != nil:
			return err
		}
		d.Pending, d.InFlight, d.OldestMs = lag.Pending, lag.AckPending, 0
		if !lag.Oldest.IsZero() {
			d.OldestMs = max(0, float64(s.Time.Sub(lag.Oldest))/float64(time.Millisecond))
		}
		s.Models = append(s.Models, d)
	}
	return nil
}

// join pairs planned gpu-lets with reported ones, by id.
func join(p plan.Plan, reports []plan.GpuletReport) []gpuletStatus {
	byID := map[string]plan.GpuletReport{}
	for _, r := range reports {
		byID[r.ID] = r
	}
	var list []gpuletStatus
	for _, g := range p.Gpulets {
		gs := gpuletStatus{Gpulet: g, Planned: true, State: missing}
		if r, ok := byID[g.ID]; ok {
			gs.add(r)
			delete(byID, g.ID)
		}
		list = append(list, gs)
	}
	for _, r := range byID {
		gs := gpuletStatus{Gpulet: plan.Gpulet{ID: r.ID, Host: r.Host, GPU: r.GPU, Share: r.Share}}
		for _, m := range r.Models {
			gs.Models = append(gs.Models, plan.Assignment{Model: m.Model})
		}
		gs.add(r)
		list = append(list, gs)
	}
	sort.Slice(list, func(i, j int) bool {
		a, b := list[i], list[j]
		if a.Host != b.Host {
			return a.Host < b.Host
		}
		if a.GPU != b.GPU {
			return a.GPU < b.GPU
		}
		return a.ID < b.ID
	})
	return list
}

func (g *gpuletStatus) add(r plan.GpuletReport) {
	g.State, g.Serving, g.Restarts, g.Detail, g.Note = r.State, r.Revision, r.Restarts, r.Detail, r.Note
	for _, m := range r.Models {
		g.Requests += m.Requests
		g.Expired += m.Expired
		g.Failed += m.Failed
	}
}

// collectProblems adds what hosts and gpu-lets complain about.
func (s *status) collectProblems(reports []plan.GpuletReport) {
	for _, h := range s.Hosts {
		for _, p := range h.Problems {
			s.Problems = append(s.Problems, fmt.Sprintf("host %s: %s", h.Host, p))
		}
	}
	for _, r := range reports {
		if r.State == plan.Failed {
			s.Problems = append(s.Problems, fmt.Sprintf("gpu-let %s: failed, restarted %d times: %s", r.ID, r.Restarts, r.Detail))
		}
		for _, m := range r.Models {
			if m.Error != "" {
				s.Problems = append(s.Problems, fmt.Sprintf("gpu-let %s: model %s: %s", r.ID, m.Model, m.Error))
			}
		}
	}
	sort.Strings(s.Problems)
}

func (s status) print(out io.Writer, asJSON, again bool) error {
	if asJSON {
		return cli.PrintJSON(out, s)
	}
	if again {
		fmt.Fprint(out, "\x1b[H\x1b[2J")
	}
	_, err := io.WriteString(out, s.table())
	return err
}

// table shows the status for people.
func (s status) table() string {
	var b strings.Builder
	s.head(&b)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nHOST\tGPU\tTYPE\tNAME\tMEMORY\tENGINE")
	for _, h := range s.Hosts {
		for _, d := range h.Devices {
			sim := ""
			if d.Sim {
				sim = " (sim)"
			}
			fmt.Fprintf(w, "%s\t%d\t%s%s\t%s\t%.1f GiB\t%s\n", h.Host, d.Index, d.GPUType, sim, d.Name, float64(d.MemBytes)/(1<<30), h.Engine)
		}
	}
	fmt.Fprintln(w, "\nGPU-LET\tSHARE\tSTATE\tMODELS\tREQUESTS\tEXPIRED\tFAILED\tRESTARTS")
	for _, g := range s.Gpulets {
		state := string(g.State)
		switch word, _, _ := strings.Cut(g.Note, ":"); {
		case g.Note != "":
			state += " (" + word + ")"
		case !g.Planned:
			state += " (not planned)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\n", g.ID, g.Shares(), state, models(g.Models), g.Requests, g.Expired, g.Failed, g.Restarts)
	}
	fmt.Fprintln(w, "\nMODEL\tSLO\tRATE/s\tNEED/s\tPLANNED/s\tLAG\tIN FLIGHT\tOLDEST")
	for _, m := range s.Models {
		fmt.Fprintf(w, "%s\t%.4g ms\t%.1f\t%.1f\t%.1f\t%d\t%d\t%.0f ms\n",
			m.Model, m.SLOMs, m.RateRPS, m.NeedRPS, m.PlannedRPS, m.Pending+m.InFlight, m.InFlight, m.OldestMs)
	}
	w.Flush()
	if len(s.Problems) > 0 {
		fmt.Fprintln(&b, "\nPROBLEMS")
		for _, p := range s.Problems {
			fmt.Fprintf(&b, "  %s\n", p)
		}
	}
	return b.String()
}

func (s status) head(b *strings.Builder) {
	switch {
	case s.Plan.Revision == 0:
		fmt.Fprintln(b, "no plan yet")
	default:
		fmt.Fprintf(b, "plan %d", s.Plan.Revision)
		if s.Plan.Pinned {
			fmt.Fprint(b, " (pinned)")
		}
		fmt.Fprintf(b, ", %s old, %s, %s used, %d desired", seconds(s.Plan.AgeS), s.Plan.Algorithm, problem.Count(s.Plan.GPUsUsed, "GPU"), s.Plan.DesiredGPUs)
		if s.Plan.Reason != "" {
			fmt.Fprintf(b, "\nmade because: %s", s.Plan.Reason) // then, not now
		}
		fmt.Fprintln(b)
	}
	if s.Planner != nil {
		fmt.Fprintf(b, "planner %s, last heard %s ago\n", s.Planner.Name, seconds(s.Planner.AgeS))
	}
	switch l := s.Lease; {
	case l.Holder == "":
		fmt.Fprint(b, "nobody leads")
	case l.over():
		fmt.Fprintf(b, "nobody leads: %s led term %d until it fell silent %s ago", l.Holder, l.Term, seconds(l.AgeS))
	default:
		fmt.Fprintf(b, "%s leads term %d, for %s", l.Holder, l.Term, seconds(l.SinceS))
	}
	if len(s.Standbys) > 0 {
		fmt.Fprintf(b, "; standing by: %s", strings.Join(s.Standbys, ", "))
	}
	fmt.Fprintln(b)
}

func seconds(s float64) string {
	now := time.Unix(0, 0)
	return ago(now.Add(-time.Duration(s*float64(time.Second))), now)
}

func models(as []plan.Assignment) string {
	parts := make([]string, len(as))
	for i, a := range as {
		parts[i] = a.Model
		switch {
		case a.RateRPS > 0:
			parts[i] += fmt.Sprintf(" b%s %.4g/s", a.Batches(), a.RateRPS)
		case a.Batch > 0:
			parts[i] += " guest"
		}
	}
	return strings.Join(parts, ", ")
}
