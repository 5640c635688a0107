package archtest

// services are the programs. Of each only <service>/<service>cmd may be imported from outside.
var services = []string{"frontend", "planner", "worker", "loadgen"}

// Packages whose name ends in "test" are for tests: like _test.go files they may run an embedded
// server, and only tests may import them.

// reserved says who may import what only few may. A pattern ending in /... means a package and all
// below it.
var reserved = []reservation{
	{"github.com/nats-io/...", []string{"shared/bus", "shared/embedded", "e2e"}, "the bus is behind shared/bus, so that its names and its errors are in one place"},
	{"google.golang.org/grpc/...", []string{"shared/oip", "frontend/internal/grpc", "loadgen/internal/drive", "loadgen/loadgencmd"}, "gRPC is one of the frontend's doors, and one of loadgen's ways in"},
	{"C", []string{"worker/internal/engine/cabi"}, "only the worker has cgo, and only at the engine's ABI"},
	{"github.com/NVIDIA/go-nvml/...", []string{"worker/internal/device"}, "without a driver a stray NVML call ends the process"},
	{Module + "/shared/embedded", []string{"frontend/frontendcmd"}, "one program runs the embedded server"},
}

// pure packages decide and do not act: the same input gives the same output. They import none of
// impure and take time and randomness as values.
var pure = []string{
	"planner/internal/check",
	"planner/internal/demand",
	"planner/internal/lease",
	"planner/internal/pack",
	"planner/internal/problem",
	"planner/internal/sim",
	"shared/batch",
	"shared/interference",
	"shared/life",
	"shared/life/lifetest",
	"worker/internal/reconcile",
	"loadgen/internal/arrival",
}

var impure = []string{
	"C", "context", "log/...", "math/rand", "net/...", "os/...", "syscall", "unsafe",
	Module + "/shared/bus", Module + "/shared/embedded", Module + "/shared/telemetry", Module + "/shared/lifecycle", Module + "/shared/cli",
}

// impureCalls are functions of otherwise harmless packages that read a clock or shared randomness.
var impureCalls = map[string][]string{
	"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
	"math/rand/v2": {
		"ExpFloat64", "Float32", "Float64", "Int", "Int32", "Int32N", "Int64", "Int64N", "IntN", "N", "NormFloat64", "Perm",
		"Shuffle", "Uint", "Uint32", "Uint32N", "Uint64", "Uint64N", "UintN",
	},
}

// shared lists what each shared package may import of this module. A package that is missing here
// fails the test: put it where it belongs.
var shared = map[string][]string{
	"shared/tensor":                {},
	"shared/wire":                  {"shared/tensor"},
	"shared/model":                 {"shared/tensor"},
	"shared/profile":               {},
	"shared/interference":          {"shared/profile"},
	"shared/plan":                  {},
	"shared/batch":                 {},
	"shared/oip":                   {},
	"shared/life":                  {"shared/wire"},
	"shared/life/lifetest":         {"shared/life", "shared/wire"},
	"shared/lifecycle":             {},
	"shared/telemetry":             {},
	"shared/cli":                   {"shared/lifecycle"},
	"shared/bus":                   {"shared/life", "shared/lifecycle", "shared/model", "shared/plan", "shared/profile", "shared/tensor", "shared/wire"},
	"shared/ask":                   {"shared/bus", "shared/cli", "shared/telemetry"},
	"shared/embedded":              {"shared/bus"},
	"shared/embedded/embeddedtest": {"shared/bus", "shared/embedded"},
	"shared/archtest":              {},
	"shared/doctest":               {},
}

// pending are packages that the tables name and that do not exist yet. Delete a line here when its
// package comes: the test fails until then, so that no rule sleeps.
var pending = []string{}
