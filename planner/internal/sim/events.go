package sim

// kind is what an event is about.
type kind uint8

// Events at the same time happen in this order: work is finished before it is planned, and planned
// before more arrives.
const (
	finished kind = iota // a batch of a gpu-let ends
	loaded               // a gpu-let has loaded what it was told to
	look                 // the planner looks at the system
	rowEnds
	arrival // of a request
)

// event is something that will happen. An event of a gpu-let counts only if the gpu-let is still at
// that version.
type event struct {
	at      int64 // ns
	order   int   // ties end in the order of scheduling
	gpulet  *gpulet
	version int
	index   int // of the model
	kind    kind
}

func (e *event) before(o *event) bool {
	switch {
	case e.at != o.at:
		return e.at < o.at
	case e.kind != o.kind:
		return e.kind < o.kind
	}
	return e.order < o.order
}

// agenda is a binary heap of events, typed because millions pass through it.
type agenda struct {
	heap  []event
	added int
}

func (a *agenda) add(e event) {
	a.added++
	e.order = a.added
	a.heap = append(a.heap, e)
	i := len(a.heap) - 1
	for i > 0 {
		up := (i - 1) / 2
		if a.heap[up].before(&e) {
			break
		}
		a.heap[i] = a.heap[up]
		i = up
	}
	a.heap[i] = e
}

// next removes the first event; false when there is none.
func (a *agenda) next() (event, bool) {
	if len(a.heap) == 0 {
		return event{}, false
	}
	first := a.heap[0]
	last := a.heap[len(a.heap)-1]
	a.heap[len(a.heap)-1] = event{} // let go of the gpu-let
	a.heap = a.heap[:len(a.heap)-1]
	if n := len(a.heap); n > 0 {
		i := 0
		for {
			child := 2*i + 1
			if child >= n {
				break
			}
			if child+1 < n && a.heap[child+1].before(&a.heap[child]) {
				child++
			}
			if !a.heap[child].before(&last) {
				break
			}
			a.heap[i] = a.heap[child]
			i = child
		}
		a.heap[i] = last
	}
	return first, true
}
