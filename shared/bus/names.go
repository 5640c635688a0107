package bus

import (
	"fmt"
	"strconv"
	"strings"
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
	ConsumerBury     = "BURY"           // of StreamAdvisories

	BucketPlan     = "GPULET_PLAN"     // key "current"
	BucketLease    = "GPULET_LEASE"    // key "planner"
	BucketState    = "GPULET_STATE"    // keys "host.<id>", "gpulet.<id>", "planner", "standby.<name>"
	BucketModels   = "GPULET_MODELS"   // key <model>
	BucketProfiles = "GPULET_PROFILES" // key <gpu type>.<model>
	BucketSuspects = "GPULET_SUSPECTS" // key <model>.<sequence in its queue>

	KeyPlan    = "current"
	KeyPlanner = "planner"

	// StateTTL is how long a report lives unless it is repeated.
	StateTTL = 15 * time.Second
	// SuspectTTL is how long a suspect is remembered: longer than redeliveries may take.
	SuspectTTL = 15 * time.Minute
)

// Headers that the bus itself adds to a dead letter, beside those of the request.
const (
	HeaderReason    = "Gpulet-Reason"         // why it is dead, in words
	HeaderSubject   = "Gpulet-Subject"        // where it was published
	HeaderSequence  = "Gpulet-Sequence"       // in its queue; of a cancellation, too
	HeaderStored    = "Gpulet-Stored"         // when, RFC 3339
	HeaderDelivered = "Gpulet-Delivered"      // how often
	HeaderMsgID     = "Gpulet-Request-Msg-Id" // the request's Nats-Msg-Id
	HeaderLastWords = "Gpulet-Last-Words"     // the end of the log of the last process that died over it
	HeaderGpulet    = "Gpulet-Gpulet"         // which gpu-let that was

	HeaderBodyDropped = "Gpulet-Body-Dropped" // size of a body for which there was no room
)

// HeaderAttempt counts the attempts of a request that was replayed from the dead letters: 2 for its
// first replay. A request without it is a first attempt.
const HeaderAttempt = "Gpulet-Attempt"

// StreamName is the stream of a model's queue.
func StreamName(model string) string { return "INFER_" + model }

// Subject is where requests to a model are published.
func Subject(model string) string { return "infer." + model }

// DLQSubject is where a model's dead letters go.
func DLQSubject(model string) string { return "dlq." + model }

// ResultSubject is where the result of a request is stored.
func ResultSubject(model, requestID string) string { return "result." + model + "." + requestID }

// CancelSubject is where a request is cancelled.
func CancelSubject(model, requestID string) string { return "cancel." + model + "." + requestID }

// InboxPrefix is what the inboxes of a role start with; only that role may subscribe to them.
func InboxPrefix(role Role) string { return "_INBOX_" + string(role) }

// changedPrefix is where the server repeats every change of a bucket once it is stored.
func changedPrefix(bucket string) string { return "gpulet.changed." + bucket + "." }

func kvStream(bucket string) string { return "KV_" + bucket }
func kvPrefix(bucket string) string { return "$KV." + bucket + "." }

func hostKey(host string) string       { return "host." + host }
func gpuletKey(id string) string       { return "gpulet." + id }
func standbyKey(planner string) string { return "standby." + planner }
func suspectKey(model string, seq uint64) string {
	return model + "." + strconv.FormatUint(seq, 10)
}

func profileKey(gpuType, model string) string { return gpuType + "." + model }

// advisorySubjects are where JetStream says that it gave a request up, without and after a Term.
func advisorySubjects() []string {
	return []string{
		"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*." + Consumer,
		"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.*." + Consumer,
	}
}

// CheckModel reports whether name can be a model: [a-z0-9_-]{1,64}.
func CheckModel(name string) error {
	if len(name) < 1 || len(name) > 64 || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}) {
		return fmt.Errorf("%w: name %q: expected 1 to 64 of a-z, 0-9, _ and -", ErrUnknownModel, name)
	}
	return nil
}

// CheckToken reports whether s can be a request id or the token of a reply address:
// [A-Za-z0-9_-]{1,128}.
func CheckToken(what, s string) error {
	if len(s) < 1 || len(s) > 128 || strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}) {
		return fmt.Errorf("%s %q: expected 1 to 128 of A-Z, a-z, 0-9, _ and -", what, s)
	}
	return nil
}

// isInbox reports whether a reply may be sent to subject: an inbox, and no pattern.
func isInbox(subject string) bool {
	if !strings.HasPrefix(subject, "_INBOX") || len(subject) > 512 {
		return false
	}
	parts := strings.Split(subject, ".")
	for _, p := range parts {
		if p == "" || p == "*" || p == ">" || strings.ContainsAny(p, " \t\r\n") {
			return false
		}
	}
	return len(parts) > 1
}
