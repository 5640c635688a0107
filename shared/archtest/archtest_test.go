package archtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var checks = map[string]func([]Package) []string{
	"reserved": Reserved, "test only": TestOnly, "layers": Layers, "pure": Pure, "doors": Doors, "docs": Docs, "awake": Awake,
}

func TestTreeKeepsTheRules(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	packages, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(packages) < 20 {
		t.Fatalf("found only %d packages below %s", len(packages), root)
	}
	for name, check := range checks {
		t.Run(name, func(t *testing.T) {
			for _, line := range check(packages) {
				t.Error(line)
			}
		})
	}
}

// tree makes packages from "path/file.go" and source.
func tree(t *testing.T, files map[string]string) []Package {
	t.Helper()
	byPath := map[string]*Package{}
	var list []Package
	for name, src := range files {
		f, err := Parse(name, []byte(src))
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.ToSlash(filepath.Dir(name))
		if byPath[dir] == nil {
			byPath[dir] = &Package{Path: dir}
		}
		byPath[dir].Files = append(byPath[dir].Files, f)
	}
	for _, p := range byPath {
		list = append(list, *p)
	}
	return list
}

// Every rule is broken once, and kept once by code that looks alike.
func TestRulesBite(t *testing.T) {
	const doc = "// Package p is for tests.\n"
	for _, c := range []struct {
		name, rule, file, src string
		want                  string // "" where nothing is broken
	}{
		{"nats in a service", "reserved", "planner/internal/epoch/a.go", `package p; import "github.com/nats-io/nats.go/jetstream"`, "only [shared/bus"},
		{"nats in a test of a service", "reserved", "planner/internal/epoch/a_test.go", `package p; import _ "github.com/nats-io/nats.go"`, "only [shared/bus"},
		{"nats in the bus", "reserved", "shared/bus/a.go", `package p; import "github.com/nats-io/nats.go"`, ""},
		{"something that starts like it", "reserved", "planner/internal/epoch/a.go", `package p; import "github.com/nats-iox/y"`, ""},
		{"cgo", "reserved", "worker/internal/engine/a.go", `package p; import "C"`, "only [worker/internal/engine/cabi] may"},
		{"cgo at the ABI", "reserved", "worker/internal/engine/cabi/a.go", `package p; import "C"`, ""},
		{"nvml", "reserved", "worker/internal/mps/a.go", `package p; import "github.com/NVIDIA/go-nvml/pkg/nvml"`, "only [worker/internal/device] may"},
		{"gRPC in another door", "reserved", "frontend/frontendcmd/a.go", `package p; import "google.golang.org/grpc/status"`, "only [shared/oip frontend/internal/grpc"},
		{"gRPC in its door", "reserved", "frontend/internal/grpc/a.go", `package p; import "google.golang.org/grpc"`, ""},
		{"embedded server in the planner", "reserved", "planner/plannercmd/a.go", `package p; import "` + Module + `/shared/embedded"`, "one program runs"},
		{"a package for tests in a program", "test only", "planner/plannercmd/a.go", `package p; import "` + Module + `/shared/embedded/embeddedtest"`, "which is for tests"},
		{"a package for tests in a package for tests", "test only", "planner/internal/systest/a.go", `package p; import "` + Module + `/shared/embedded/embeddedtest"`, ""},
		{"embedded server in a package for tests", "reserved", "planner/internal/systest/a.go", `package p; import "` + Module + `/shared/embedded"`, ""},
		{"embedded server in a test", "reserved", "planner/plannercmd/a_test.go", `package p; import "` + Module + `/shared/embedded/embeddedtest"`, ""},

		{"internal imports its command", "layers", "worker/internal/agent/a.go", `package p; import "` + Module + `/worker/workercmd"`, "not the other way round"},
		{"main imports internals", "layers", "worker/main.go", `package p; import "` + Module + `/worker/internal/agent"`, "main imports only worker/workercmd"},
		{"another service's internals", "layers", "planner/internal/sim/a.go", `package p; import "` + Module + `/worker/internal/agent"`, "only worker/workercmd may be imported"},
		{"another service's package", "layers", "planner/internal/sim/a.go", `package p; import "` + Module + `/worker/engine"`, "only worker/workercmd may be imported"},
		{"shared imports a service", "layers", "shared/plan/a.go", `package p; import "` + Module + `/worker/workercmd"`, "it may import []"},
		{"shared imports upwards", "layers", "shared/wire/a.go", `package p; import "` + Module + `/shared/bus"`, "it may import [shared/tensor]"},
		{"shared imports downwards", "layers", "shared/wire/a.go", `package p; import "` + Module + `/shared/tensor"`, ""},
		{"a shared package that nobody placed", "layers", "shared/utils/a.go", `package p`, "not in the table"},
		{"a command imports its internals", "layers", "worker/workercmd/a.go", `package p; import "` + Module + `/worker/internal/agent"`, ""},

		{"context in a pure package", "pure", "shared/batch/a.go", `package p; import "context"`, "imports context"},
		{"a package below net", "pure", "shared/batch/a.go", `package p; import "net/url"`, "imports net/url"},
		{"a clock", "pure", "shared/batch/a.go", `package p; import "time"; var t = time.Now()`, "a.go:1 uses time.Now"},
		{"a clock under another name", "pure", "shared/batch/a.go", `package p; import clock "time"; var f = clock.Since`, "uses time.Since"},
		{"a dot import", "pure", "shared/batch/a.go", `package p; import . "time"; var t = Now()`, "dot import"},
		{"global randomness", "pure", "planner/internal/sim/a.go", `package p; import "math/rand/v2"; var x = rand.IntN(3)`, "uses math/rand/v2.IntN"},
		{"generic global randomness", "pure", "planner/internal/sim/a.go", `package p; import "math/rand/v2"; var x = rand.N[int](3)`, "uses math/rand/v2.N"},
		{"seeded randomness", "pure", "planner/internal/sim/a.go", `package p; import "math/rand/v2"; var x = rand.New(rand.NewPCG(1, 2)).IntN(3)`, ""},
		{"durations", "pure", "shared/batch/a.go", `package p; import "time"; const d = time.Second`, ""},
		{"a clock in a test", "pure", "shared/batch/a_test.go", `package p; import "time"; var t = time.Now()`, ""},
		{"a clock elsewhere", "pure", "planner/internal/epoch/a.go", `package p; import "time"; var t = time.Now()`, ""},

		{"a door", "doors", "worker/main.go", `package main; import "` + Module + `/worker/workercmd"; func main() { workercmd.Main() }`, ""},
		{"a main that works", "doors", "worker/main.go", `package main; import "` + Module + `/worker/workercmd"; func main() { println(); workercmd.Main() }`, "expected only func main()"},
		{"a main with state", "doors", "worker/main.go", `package main; import "` + Module + `/worker/workercmd"; var x = 1; func main() { workercmd.Main() }`, "expected only func main()"},
		{"another door", "doors", "worker/main.go", `package main; import "` + Module + `/planner/plannercmd"; func main() { plannercmd.Main() }`, "expected only func main()"},
		{"another file", "doors", "worker/util.go", `package main; func f() {}`, "worker/util.go: expected"},

		{"no comment", "docs", "shared/plan/a.go", `package p`, "shared/plan has no package comment"},
		{"a comment that says nothing of the package", "docs", "shared/plan/a.go", "// Stuff.\npackage p", "has no package comment"},
		{"a comment", "docs", "shared/plan/a.go", doc + "package p", ""},
		{"a comment of another package", "docs", "shared/plan/a.go", "// Package q is for tests.\npackage p", "has no package comment"},
		{"a program", "docs", "worker/main.go", "// Worker works.\npackage main", ""},
		{"a program without one", "docs", "worker/main.go", "package main", "has no package comment"},
		{"a command", "docs", "worker/main.go", "// Command worker works.\npackage main", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := checks[c.rule](tree(t, map[string]string{c.file: c.src}))
			if c.want == "" && len(got) != 0 {
				t.Errorf("broken %q, expected nothing", got)
			}
			if c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
				t.Errorf("broken %q, expected one with %q", got, c.want)
			}
		})
	}
}

func TestRulesDoNotSleep(t *testing.T) {
	defer func(saved []string) { pending = saved }(pending)
	pending = []string{"shared/batch", "nobody/names/this"}
	got := strings.Join(Awake(tree(t, map[string]string{"shared/batch/a.go": "package batch"})), "\n")
	for _, want := range []string{
		"shared/batch exists now: delete it from pending",
		"the rules name shared/wire, which does not exist and is not pending",
		"pending names nobody/names/this, which no rule does",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
}
