package gpulet

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/gpulet/gpulet/worker/internal/engine"
)

// stageable is a model of which only Stage is used.
type stageable struct {
	engine.Model
	err   error
	calls int
}

type inert struct{ engine.Staged }

func (m *stageable) Stage([]engine.Input) (engine.Staged, error) {
	m.calls++
	if m.err != nil {
		return nil, m.err
	}
	return inert{}, nil
}

func TestTheExecutorGetsWhatWasStaged(t *testing.T) {
	m := &stageable{}
	s := newStaging(time.Time{})
	s.stage(run{loaded: m}, newWitness(nil))
	if s.take() == nil || m.calls != 1 {
		t.Errorf("staged %d times and not handed over", m.calls)
	}
}

func TestTheExecutorDoesNotWaitForWhatIsNotBegun(t *testing.T) {
	m := &stageable{}
	s := newStaging(time.Time{})
	if s.take() != nil {
		t.Error("got what nobody staged")
	}
	s.stage(run{loaded: m}, newWitness(nil))
	if m.calls != 0 {
		t.Error("staged what the executor had begun")
	}
}

func TestWhatCannotBeStagedRunsAllTheSame(t *testing.T) {
	s := newStaging(time.Time{})
	s.stage(run{loaded: &stageable{err: errors.New("no memory")}}, newWitness(nil))
	if s.take() != nil {
		t.Error("got what could not be staged")
	}
	if !s.begin() {
		t.Error("it may not run")
	}
}

func TestAJobIsEitherBegunOrRevoked(t *testing.T) {
	for range 1000 {
		s := newStaging(time.Time{})
		var begun, revoked bool
		var both sync.WaitGroup
		both.Go(func() { begun = s.begin() })
		both.Go(func() { revoked = s.revoke() })
		both.Wait()
		if begun == revoked {
			t.Fatalf("begun %v, revoked %v", begun, revoked)
		}
	}
}
