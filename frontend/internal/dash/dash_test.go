package dash

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gpulet/gpulet/frontend/internal/fleet"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// known is a fleet of plain values.
type known struct {
	models []model.Model
	plan   plan.Plan
	state  fleet.State
	err    error
}

func (k *known) Models() []model.Model   { return k.models }
func (k *known) Plan() *plan.Plan        { return &k.plan }
func (k *known) State() *fleet.State     { return &k.state }
func (k *known) Ready() error            { return k.err }
func (k *known) ModelReady(string) error { return k.err }

func get(t *testing.T, f Fleet, path string) (http.Header, []byte) {
	t.Helper()
	mux := http.NewServeMux()
	New(f).Register(mux)
	rec := httptest.NewRecorder()
	mux.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
	if rec.Code != 200 {
		t.Fatalf("GET %s: %d", path, rec.Code)
	}
	body, err := io.ReadAll(rec.Body)
	if err != nil {
		t.Fatal(err)
	}
	return rec.Header(), body
}

func TestStatusJoinsModelsPlanAndLag(t *testing.T) {
	lenet := model.Model{Version: 2, Config: model.Config{Name: "lenet", SLO: 5 * time.Millisecond}}
	f := &known{
		models: []model.Model{lenet},
		plan: plan.Plan{
			Revision: 4, Unserved: map[string]float64{"lenet": 20},
			Gpulets: []plan.Gpulet{
				{ID: "a", Models: []plan.Assignment{{Model: "lenet", RateRPS: 100}, {Model: "bert", RateRPS: 7}}},
				{ID: "b", Models: []plan.Assignment{{Model: "lenet", RateRPS: 50}}},
			},
		},
		state: fleet.State{
			Lag: map[string]bus.Lag{"lenet": {Pending: 3, AckPending: 8, LastSeq: 999, Oldest: time.Now().Add(-time.Minute)}},
		},
	}
	_, body := get(t, f, "/status.json")
	var got status
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	want := []modelStatus{{
		Name: "lenet", Version: 2, SLOMs: 5, Ready: true, Stored: 999, Pending: 3, Fetched: 8, RateRPS: 150, UnservedRPS: 20,
	}}
	if diff := cmp.Diff(want, got.Models, cmpopts.IgnoreFields(modelStatus{}, "OldestMs")); diff != "" {
		t.Error(diff)
	}
	if age := got.Models[0].OldestMs; age < 60_000 {
		t.Errorf("the oldest request is a minute old: found %v ms", age)
	}
	if !got.Ready || got.Plan.Revision != 4 {
		t.Errorf("ready %v, plan %d", got.Ready, got.Plan.Revision)
	}
}

// The page iterates over the lists: an empty system has empty lists, not nulls.
func TestAnEmptySystemHasEmptyLists(t *testing.T) {
	_, body := get(t, &known{err: errors.New("no plan yet")}, "/status.json")
	for _, want := range []string{`"models":[]`, `"hosts":[]`, `"gpulets":[]`, `"ready":false`, `"problem":"no plan yet"`} {
		if !strings.Contains(string(body), want) {
			t.Errorf("%s lacks %s", body, want)
		}
	}
}

// The page must work where there is no internet, and nothing it shows may run as code.
func TestThePageLoadsNothingFromElsewhere(t *testing.T) {
	h, body := get(t, &known{}, "/")
	if csp := h.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") {
		t.Errorf("policy %q", csp)
	}
	for _, bad := range []string{"https://", "src=", "@import"} {
		if strings.Contains(string(body), bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if len(body) > 16<<10 {
		t.Errorf("the page has %d bytes: expected at most 16 KiB", len(body))
	}
}
