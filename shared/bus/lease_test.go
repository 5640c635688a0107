package bus_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/plan"
)

func TestLeaseIsSwappedNotOverwritten(t *testing.T) {
	b := embeddedtest.Connect(t, embeddedtest.StartTest(t), bus.RolePlanner)
	for range 2 {
		if err := b.EnsureLease(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if l, rev, written, err := b.Lease(t.Context()); err != nil || rev != 0 || l != (plan.Lease{}) || !written.IsZero() {
		t.Errorf("lease %+v, revision %d, written %v, %v before the first", l, rev, written, err)
	}
	want := plan.Lease{Holder: "a", ID: "1", Term: 1, TTLMs: 5000}
	first, err := b.PutLease(t.Context(), want, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.PutLease(t.Context(), plan.Lease{Holder: "b"}, 0); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("a second first lease: %v, expected %v", err, bus.ErrConflict)
	}
	want.Term = 2
	second, err := b.PutLease(t.Context(), want, first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.PutLease(t.Context(), plan.Lease{Holder: "b"}, first); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("a lease over an old one: %v, expected %v", err, bus.ErrConflict)
	}
	got, rev, written, err := b.Lease(t.Context())
	if diff := cmp.Diff(want, got); diff != "" || rev != second || written.IsZero() || err != nil {
		t.Errorf("revision %d, expected %d; written %v; %v; %s", rev, second, written, err, diff)
	}
}

// The planner that led goes on leading when the server comes back, and terms never begin anew.
func TestLeaseOutlivesTheServer(t *testing.T) {
	dir := t.TempDir()
	srv := embeddedtest.Start(t, embedded.Config{StateDir: dir})
	b := embeddedtest.Connect(t, srv, bus.RolePlanner)
	if err := b.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	rev, err := b.PutLease(t.Context(), plan.Lease{Holder: "a", Term: 3}, 0)
	if err != nil {
		t.Fatal(err)
	}
	embeddedtest.Stop(t, srv)
	b = embeddedtest.Connect(t, embeddedtest.Start(t, embedded.Config{StateDir: dir}), bus.RolePlanner)
	if err := b.EnsureLease(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l, again, _, err := b.Lease(t.Context()); err != nil || l.Term != 3 || again != rev {
		t.Errorf("lease %+v, revision %d, %v; expected term 3 at revision %d", l, again, err, rev)
	}
}
