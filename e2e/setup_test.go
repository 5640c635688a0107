package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
)

// TestBrokenModelsDoNotStopOthers puts every kind of broken model into one repository: each is told
// by file and key, and the good model is served all the same.
func TestBrokenModelsDoNotStopOthers(t *testing.T) {
	r := newRepository(t, "double", "unknown_key", "missing_key", "no_archive", "corrupt", "other_name")
	r.write(t, "unknown_key/model.yaml", doublingYAML("unknown_key")+"colour: blue\n")
	r.write(t, "missing_key/model.yaml", strings.Replace(doublingYAML("missing_key"), "slo: 200ms\n", "", 1))
	r.write(t, "corrupt/1/model.pt", "\x00\x01 not an archive")
	r.write(t, "other_name/model.yaml", doublingYAML("somebody_else"))
	if err := os.Remove(filepath.Join(r.dir, "no_archive", "1", "model.pt")); err != nil {
		t.Fatal(err)
	}
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	for name, words := range map[string][]string{
		"unknown_key": {"model.yaml", "colour"},
		"missing_key": {"model.yaml", "slo"},
		"no_archive":  {"model.pt"},
		"other_name":  {"model.yaml", "somebody_else"},
	} {
		s.Planner.WaitLine(t, "words about "+name, func(line string) bool {
			return containsAll(line, append(words, name)...)
		})
	}
	s.Worker.WaitLine(t, "words about corrupt", func(line string) bool { return containsAll(line, "corrupt", "model.pt") })
	allRight(t, "double beside broken models", load(t, s, "--rates", "double=50", "--duration", "2s").Total)
}

// TestBrokenArchivesDoNotStopOthersOnLibTorch does the same with files that LibTorch is to read.
func TestBrokenArchivesDoNotStopOthersOnLibTorch(t *testing.T) {
	requireTorch(t)
	r := repository{lenetOnly(t)}
	read := func(file string) string {
		data, err := os.ReadFile(filepath.Join(r.dir, "lenet", file))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	archive := read("1/model.pt")
	broken := map[string]string{
		"garbage":   "\x00\x01 not an archive",
		"cut_short": archive[:len(archive)/2],
		"damaged":   archive[:len(archive)/4] + strings.Repeat("\xff", len(archive)/2) + archive[3*len(archive)/4:],
		"other":     emptyZip,
	}
	for name, data := range broken {
		r.write(t, name+"/model.yaml", strings.Replace(read("model.yaml"), "name: lenet", "name: "+name, 1))
		r.write(t, name+"/1/model.pt", data)
	}
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "torch"})
	s.WaitReady(t, "lenet")
	for name := range broken {
		s.Worker.WaitLine(t, "words about "+name, func(line string) bool { return containsAll(line, filepath.Join(name, "1", "model.pt")) })
	}
	allRight(t, "lenet beside broken models", load(t, s, "--rates", "lenet=50", "--duration", "2s", "--timeout", "30s").Total)
}

// emptyZip is an archive without a model in it: the end record alone.
const emptyZip = "PK\x05\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func containsAll(line string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(line, w) {
			return false
		}
	}
	return true
}

func TestMissingEngineLibrarySaysWhatToDo(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir})
	missing := filepath.Join(t.TempDir(), "libgpulet_torch.so")
	worker := harness.Start(t, "worker", nil, "run", "--device", "cpu", "--engine", "torch", "--engine-lib", missing,
		"--models", r.dir, "--nats-url", s.NATS, "--state-dir", s.StateDir, "--metrics-addr", "127.0.0.1:0")
	worker.WaitLine(t, "what to do", func(line string) bool { return containsAll(line, missing, "make engine") })
}

// TestProfileOfAnotherArchiveIsNotUsed starts a worker on measurements that were kept of another
// archive of the model, as after a new version: they are refused, by hash, and made anew.
func TestProfileOfAnotherArchiveIsNotUsed(t *testing.T) {
	r := newRepository(t, "double")
	first := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	first.WaitReady(t, "double")
	files, err := filepath.Glob(filepath.Join(first.StateDir, "profiles", "*", "double.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("profiles of double in the state folder: %v, %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	hash := harness.Decode[struct {
		Hash string `json:"model_hash"`
	}](t, string(text)).Hash
	other := strings.Repeat("0", len(hash))
	cache := t.TempDir()
	folder := filepath.Join(cache, filepath.Base(filepath.Dir(files[0])))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "double.json"), []byte(strings.Replace(string(text), hash, other, 1)), 0o644); err != nil {
		t.Fatal(err)
	}

	second := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref", WorkerArgs: []string{"--profile-cache", cache}})
	second.Worker.WaitLine(t, "words about the other hash", func(line string) bool { return containsAll(line, "double", "000000", "refused") })
	second.WaitReady(t, "double")
	allRight(t, "double", load(t, second, "--rates", "double=20", "--duration", "1s").Total)
}

func TestPortsInUseAreNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	base := []string{"serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--nats-port", "-1", "--nats-monitor-port", "0"}
	for flag, value := range map[string]string{"--http-addr": addr, "--grpc-addr": addr, "--metrics-addr": addr, "--nats-port": port, "--nats-monitor-port": port} {
		code, out := harness.Run(t, "frontend", nil, append(base, "--state-dir", t.TempDir(), flag, value)...)
		if code != 1 || !strings.Contains(out, port) || !strings.Contains(out, "in use") {
			t.Errorf("%s %s: exit %d, expected 1 and the port that is in use\n%s", flag, value, code, out)
		}
	}
}

func TestUnreachableNATSIsRetriedAndSaid(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	url := "nats://" + addr
	r := newRepository(t, "double")
	state := t.TempDir()
	programs := []*harness.Process{
		harness.Start(t, "planner", nil, "run", "--nats-url", url, "--state-dir", state, "--models", r.dir, "--profiles", t.TempDir(), "--metrics-addr", "127.0.0.1:0"),
		harness.Start(t, "worker", nil, "run", "--nats-url", url, "--state-dir", state, "--models", r.dir, "--metrics-addr", "127.0.0.1:0", "--engine", "ref",
			"--engine-lib", filepath.Join(harness.Root(t), "build", "lib"), "--device", "cpu"),
	}
	for _, p := range programs {
		for range 2 { // it says so, and tries again
			p.WaitLine(t, "the URL and the reason", func(line string) bool { return containsAll(line, url, "next_try_in") })
		}
	}
	// The server comes, with the keys that the others look for: everybody finds it.
	_, port, _ := net.SplitHostPort(addr)
	harness.Start(t, "frontend", nil, "serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0",
		"--nats-port", port, "--nats-monitor-port", "0", "--state-dir", state)
	for _, p := range programs {
		p.WaitLine(t, "that NATS was reached", func(line string) bool { return strings.Contains(line, "connected to NATS") })
	}
	for _, p := range programs {
		p.Signal(syscall.SIGINT)
		if code := p.Wait(t); code != 0 {
			t.Errorf("%s: exit %d after SIGINT", p.Name, code)
		}
	}
}
