package bus

import (
	"fmt"
	"time"
)

// Names on the bus. They are a contract: see docs/protocol.md.
const (
	// Consumer is the durable pull consumer of every queue.
	Consumer = "W"
	// PriorityGroup is the consumer's only priority group.
	PriorityGroup = "workers"

	StreamResults    = "RESULTS"        // result.<model>.<request id>
	StreamDLQ        = "DLQ"            // dlq.<model>
	StreamAdvisories = "DLQ_ADVISORIES" // what JetStream says of requests it gave up

	BucketPlan     = "GPULET_PLAN"     // key "current"
	BucketState    = "GPULET_STATE"    // keys "host.<id>", "gpulet.<id>"
	BucketModels   = "GPULET_MODELS"   // key <model>
	BucketProfiles = "GPULET_PROFILES" // key <gpu type>.<model>

	KeyPlan = "current"

	// StateTTL is how long a report lives unless it is repeated.
	StateTTL = 15 * time.Second
)

// StreamName is the stream of a model's queue.
func StreamName(model string) string { return "INFER_" + model }

// Subject is where requests to a model are published.
func Subject(model string) string { return "infer." + model }

// DLQSubject is where a model's dead letters go.
func DLQSubject(model string) string { return "dlq." + model }

// ResultSubject is where the result of a request is stored.
func ResultSubject(model, requestID string) string { return "result." + model + "." + requestID }

// InboxPrefix is what the inboxes of a role start with; only that role may subscribe to them.
func InboxPrefix(role Role) string { return "_INBOX_" + string(role) }

func hostKey(host string) string              { return "host." + host }
func gpuletKey(id string) string              { return "gpulet." + id }
func profileKey(gpuType, model string) string { return gpuType + "." + model }

// CheckModel reports whether name can be a model: [a-z0-9_-]{1,64}.
func CheckModel(name string) error {
	ok := len(name) >= 1 && len(name) <= 64
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%w: name %q: expected 1 to 64 of a-z, 0-9, _ and -", ErrUnknownModel, name)
	}
	return nil
}
