// Package dash is the status page: models, gpu-lets on their GPUs, plan and lag at a glance.
//
// The page is one self-contained file; it reads status.json, which programs may read too.
package dash

import (
	_ "embed"
	"encoding/json"
	"net/http"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/fleet"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

//go:embed page.html
var page []byte

// Fleet is what the page shows.
type Fleet interface {
	Models() []model.Model
	Plan() *plan.Plan
	State() *fleet.State
	Ready() error
	ModelReady(name string) error
}

// Page serves the status page.
type Page struct{ fleet Fleet }

// New returns the page of f.
func New(f Fleet) *Page { return &Page{f} }

// Register adds the page at / and its data at /status.json.
func (p *Page) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:")
		_, _ = w.Write(page)
	})
	mux.HandleFunc("GET /status.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(p.status())
	})
}

// status is the body of /status.json.
type status struct {
	Time    time.Time           `json:"time"`
	Ready   bool                `json:"ready"`
	Problem string              `json:"problem,omitempty"` // why it is not ready
	Plan    *plan.Plan          `json:"plan"`
	Models  []modelStatus       `json:"models"`
	Hosts   []plan.HostReport   `json:"hosts"`
	Gpulets []plan.GpuletReport `json:"gpulets"`
	Read    time.Time           `json:"read,omitzero"` // when hosts, gpu-lets and lag were read
}

type modelStatus struct {
	Name        string  `json:"name"`
	Version     int     `json:"version"`
	SLOMs       float64 `json:"slo_ms"`
	Ready       bool    `json:"ready"`
	Problem     string  `json:"problem,omitempty"`
	Stored      uint64  `json:"stored"` // requests ever stored; its differences are the rate
	Pending     uint64  `json:"pending"`
	Fetched     uint64  `json:"fetched"` // and not acknowledged
	OldestMs    float64 `json:"oldest_ms"`
	DeadLetters uint64  `json:"dead_letters"`
	RateRPS     float64 `json:"rate_rps"`     // that the plan covers
	UnservedRPS float64 `json:"unserved_rps"` // that it does not
}

func (p *Page) status() status {
	st, pl := p.fleet.State(), p.fleet.Plan()
	s := status{
		Time: time.Now(), Ready: true, Plan: pl, Read: st.Read,
		Models: []modelStatus{}, Hosts: orEmpty(st.Hosts), Gpulets: orEmpty(st.Gpulets),
	}
	if err := p.fleet.Ready(); err != nil {
		s.Ready, s.Problem = false, err.Error()
	}
	for _, m := range p.fleet.Models() {
		ms := describe(m, st.Lag[m.Name], pl, s.Time)
		ms.Ready, ms.DeadLetters = true, st.Dead[m.Name]
		if err := p.fleet.ModelReady(m.Name); err != nil {
			ms.Ready, ms.Problem = false, err.Error()
		}
		s.Models = append(s.Models, ms)
	}
	return s
}

func describe(m model.Model, lag bus.Lag, pl *plan.Plan, now time.Time) modelStatus {
	ms := modelStatus{
		Name: m.Name, Version: m.Version, SLOMs: msOf(m.SLO),
		Stored: lag.LastSeq, Pending: lag.Pending, Fetched: lag.AckPending, UnservedRPS: pl.Unserved[m.Name],
	}
	if !lag.Oldest.IsZero() {
		ms.OldestMs = max(0, msOf(now.Sub(lag.Oldest)))
	}
	for _, g := range pl.Gpulets {
		for _, a := range g.Models {
			if a.Model == m.Name {
				ms.RateRPS += a.RateRPS
			}
		}
	}
	return ms
}

func msOf(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
