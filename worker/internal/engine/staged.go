package engine

import "sync"

// heldBack is a staged batch of an engine that has nothing to do ahead of a run.
type heldBack struct {
	model Model
	name  string // of the model

	mu    sync.Mutex // guards what follows, and makes Free wait for Run
	in    []Input
	spent string // why it cannot be run: it was run, or freed
}

var _ Staged = (*heldBack)(nil)

func (s *heldBack) Run() (Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spent != "" {
		return nil, errorf(EINVAL, "%s: the staged batch was %s", s.name, s.spent)
	}
	s.spent = "run already"
	defer func() { s.in = nil }()
	return s.model.Run(s.in)
}

func (s *heldBack) Free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in, s.spent = nil, "freed"
}
