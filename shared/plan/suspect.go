package plan

import "time"

// Suspect is a request that was being worked on when a gpu-let's process died. Agents write it, and
// gpu-lets ask for it when a request comes to them again.
type Suspect struct {
	Model  string    `json:"model"`
	Seq    uint64    `json:"seq"`    // in the model's queue
	Stored time.Time `json:"stored"` // when the queue stored it, by its server's clock: sequences start again with a queue
	// Deaths is how many processes died over it.
	Deaths int `json:"deaths"`
	// Alone says of the last death that nothing else was being worked on, in that process or, when
	// the device failed, on that device: then nothing else can be to blame.
	Alone     bool      `json:"alone"`
	Gpulet    string    `json:"gpulet"` // of the last death
	Reason    string    `json:"reason"` // how that process ended, in words
	LastWords string    `json:"last_words,omitempty"`
	Time      time.Time `json:"time"` // of the last death
}

// maxDeaths is how many deaths a request may be near to. Beside a neighbour that breaks their common
// device, an innocent one may see a few.
const maxDeaths = 4

// Convicted reports whether the request is not to be run again: processes died over it twice, and
// the last time it was alone, or more often than chance explains.
func (s Suspect) Convicted() bool { return s.Deaths >= 2 && s.Alone || s.Deaths >= maxDeaths }

// Again returns the suspect after one more death, of which next tells.
func (s Suspect) Again(next Suspect) Suspect {
	next.Deaths = 1
	if s.Stored.Equal(next.Stored) {
		next.Deaths += s.Deaths
	}
	return next
}
