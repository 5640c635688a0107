package device

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Choice
		err  string
	}{
		{in: "auto", want: Choice{Kind: Auto}},
		{in: "cpu", want: Choice{Kind: CPU}},
		{in: "cuda", want: Choice{Kind: CUDA}},
		{in: "cuda:0", want: Choice{Kind: CUDA, GPUs: []int{0}}},
		{in: "cuda:2,0,2", want: Choice{Kind: CUDA, GPUs: []int{0, 2}}},
		{in: "cuda:", err: `device "cuda:": found "": expected the index of a GPU`},
		{in: "cuda:-1", err: `found "-1": expected the index of a GPU`},
		{in: "sim:h100", want: Choice{Kind: Sim, Sim: []SimGPUs{{"h100", 1}}}},
		{in: "sim:h100x4", want: Choice{Kind: Sim, Sim: []SimGPUs{{"h100", 4}}}},
		{in: "sim:h100x4,rtx2080ti:2", want: Choice{Kind: Sim, Sim: []SimGPUs{{"h100", 4}, {"rtx2080ti", 2}}}},
		{in: "sim:rtx2080tix4", want: Choice{Kind: Sim, Sim: []SimGPUs{{"rtx2080ti", 4}}}},
		{in: "sim:mx100:3", want: Choice{Kind: Sim, Sim: []SimGPUs{{"mx100", 3}}}},
		{in: "", err: `device "": expected auto, cuda, cpu or sim:`},
		{in: "gpu", err: `device "gpu": expected auto, cuda, cpu or sim:`},
		{in: "sim", err: `device "sim": expected`},
		{in: "cpu:2", err: `device "cpu:2": expected`},
		{in: "sim:", err: `found "": expected <gpu type>x<count>`},
		{in: "sim:H100", err: `found "H100": expected <gpu type>x<count>`},
		{in: "sim:h100x0", err: "expected 1 to 1024 GPUs"},
		{in: "sim:h100x1000,h100x25", err: "expected 1 to 1024 GPUs"},
	} {
		got, err := Parse(c.in)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error %v: expected %q", c.in, err, c.err)
			}
			continue
		}
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", c.in, err, diff)
		}
	}
}

func TestSimulatedGPUsTakeTheirSizeFromTheirType(t *testing.T) {
	set := &profile.Set{}
	set.Add(&profile.Profile{Model: "lenet", GPUType: "h100"})
	set.Add(&profile.Profile{Model: "lenet", GPUType: "tiny"})
	set.AddDevice(&profile.Device{GPUType: "h100", Name: "H100", MemBytes: 1 << 30, Shares: []int{50, 100}})
	inv, err := Discover(Choice{Kind: Sim, Sim: []SimGPUs{{"h100", 2}, {"tiny", 1}}}, set)
	if err != nil {
		t.Fatal(err)
	}
	want := []plan.Device{
		{Index: 0, GPUType: "h100", Name: "sim H100", MemBytes: 1 << 30, Shares: []int{50, 100}, Sim: true},
		{Index: 1, GPUType: "h100", Name: "sim H100", MemBytes: 1 << 30, Shares: []int{50, 100}, Sim: true},
		{Index: 2, GPUType: "tiny", Name: "sim tiny", MemBytes: simMem, Sim: true},
	}
	if diff := cmp.Diff(want, inv.Devices); diff != "" {
		t.Error(diff)
	}
	if _, err := Discover(Choice{Kind: Sim, Sim: []SimGPUs{{"a100", 1}}}, set); err == nil || !strings.Contains(err.Error(), "no profile of this GPU type") {
		t.Errorf("error %v: expected the missing profile", err)
	}
}

func TestHostKeepsToItsControlGroups(t *testing.T) {
	const cpuinfo = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Gold 6430 CPU @ 2.10GHz\n"
	for name, c := range map[string]struct {
		files map[string]string
		cores []int
		mem   int64
	}{
		"no limits": {
			files: map[string]string{"proc/self/cgroup": "0::/\n"},
			cores: []int{0, 1, 2, 5, 6, 7}, mem: 1 << 30,
		},
		"a quota of two and a half cores": {
			files: map[string]string{
				"proc/self/cgroup":                       "0::/docker/abc\n",
				"sys/fs/cgroup/docker/cpu.max":           "max 100000\n",
				"sys/fs/cgroup/docker/abc/cpu.max":       "250000 100000\n",
				"sys/fs/cgroup/docker/memory.max":        "536870912\n",
				"sys/fs/cgroup/docker/abc/memory.max":    "max\n",
				"sys/fs/cgroup/unrelated/abc/memory.max": "1\n",
			},
			cores: []int{0, 1}, mem: 512 << 20,
		},
		"less than a core": {
			files: map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
			cores: []int{0}, mem: 1 << 30,
		},
		"version 1": {
			files: map[string]string{
				"proc/self/cgroup":                               "5:memory:/box\n4:cpu,cpuacct:/box\n3:cpuset:/box\n",
				"sys/fs/cgroup/cpu/box/cpu.cfs_quota_us":         "400000\n",
				"sys/fs/cgroup/cpu/box/cpu.cfs_period_us":        "100000\n",
				"sys/fs/cgroup/memory/memory.max":                "max\n",
				"sys/fs/cgroup/memory/box/memory.usage":          "1\n",
				"sys/fs/cgroup/memory/box/memory.soft":           "1\n",
				"sys/fs/cgroup/memory/memory.failcnt":            "1\n",
				"sys/fs/cgroup/memory/box/memory.limit":          "1\n",
				"sys/fs/cgroup/memory/box/x":                     "1\n",
				"sys/fs/cgroup/cpu/cpu.cfs_quota_us":             "-1\n",
				"sys/fs/cgroup/cpu/cpu.cfs_period_us":            "100000\n",
				"sys/fs/cgroup/memory/box/memory.limit_in_bytes": "268435456\n",
			},
			cores: []int{0, 1, 2, 5}, mem: 256 << 20,
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{
				"proc/cpuinfo": {Data: []byte(cpuinfo)},
				"proc/meminfo": {Data: []byte("MemTotal:        1048576 kB\nMemFree: 1 kB\n")},
			}
			for file, data := range c.files {
				root[file] = &fstest.MapFile{Data: []byte(data)}
			}
			h := host{root, func() ([]int, error) { return []int{0, 1, 2, 5, 6, 7}, nil }}
			inv, err := h.inventory()
			if err != nil {
				t.Fatal(err)
			}
			n := len(c.cores)
			want := Inventory{Kind: CPU, Cores: c.cores, Devices: []plan.Device{{
				GPUType:  fmt.Sprintf("cpu-intel-xeon-gold-6430-%dc", n),
				Name:     fmt.Sprintf("Intel(R) Xeon(R) Gold 6430 CPU @ 2.10GHz, %d cores", n),
				MemBytes: c.mem, Shares: CoreShares(n),
			}}}
			if diff := cmp.Diff(want, inv); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestThisHostHasACPU(t *testing.T) {
	inv, err := Discover(Choice{Kind: CPU}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Cores) == 0 || len(inv.Devices) != 1 || inv.Devices[0].MemBytes <= 0 {
		t.Errorf("found %+v", inv)
	}
	if p := (profile.Profile{Model: "m", GPUType: inv.Devices[0].GPUType, Points: []profile.Point{{Share: 100, Batch: 1, P50Ms: 1}}}); p.Validate() != nil {
		t.Errorf("GPU type %q cannot name a profile: %v", inv.Devices[0].GPUType, p.Validate())
	}
}

// TestWithoutADriverNothingBreaks also shows that no call follows a failed Init: it would end the
// test's process. Where there are GPUs it lists them.
func TestWithoutADriverNothingBreaks(t *testing.T) {
	for range 2 {
		gpus, _, err := GPUs()
		if errors.Is(err, ErrNoDriver) == (len(gpus) > 0) {
			t.Errorf("found %v and error %v", gpus, err)
		}
	}
	if inv, err := Discover(Choice{Kind: Auto}, nil); err != nil || inv.Kind != CPU {
		t.Errorf("found %v, %v: expected the CPU", inv.Kind, err)
	}
	if _, err := Discover(Choice{Kind: CUDA}, nil); err == nil || !strings.HasPrefix(err.Error(), "device cuda: ") {
		t.Errorf("error %v: expected why CUDA is not served", err)
	}
}

func TestSharesOfCores(t *testing.T) {
	if got, want := CoreShares(3), []int{33, 66, 100}; !slices.Equal(got, want) {
		t.Errorf("3 cores: shares %v: expected %v", got, want)
	}
	for n := 1; n <= 100; n++ {
		for k, share := range CoreShares(n) {
			if got := CoresOf(share, n); got != k+1 {
				t.Errorf("%d%% of %d cores: got %d cores: expected %d", share, n, got, k+1)
			}
		}
		if one := CoreShares(n)[0]; one*n > 100 {
			t.Errorf("%d gpu-lets of one core each need %d%%", n, one*n)
		}
	}
}

func TestGpuletsThatFitShareNoCore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 16).Draw(t, "cores")
		allowed := make([]int, n)
		for i := range allowed {
			allowed[i] = 2*i + 1
		}
		var slots []Slot
		free := n
		for i := 0; free > 0; i++ {
			k := rapid.IntRange(1, free).Draw(t, "cores of a gpu-let")
			slots = append(slots, Slot{ID: fmt.Sprint("g", i), N: k})
			free -= k
		}
		got := Allot(allowed, slots)
		users := map[int]string{}
		for _, s := range slots {
			if len(got[s.ID]) != s.N {
				t.Fatalf("%s got %v: expected %d cores", s.ID, got[s.ID], s.N)
			}
			for _, core := range got[s.ID] {
				if users[core] != "" || !slices.Contains(allowed, core) {
					t.Fatalf("%s got core %d, which %q has", s.ID, core, users[core])
				}
				users[core] = s.ID
			}
		}
		slices.Reverse(slots)
		if diff := cmp.Diff(got, Allot(allowed, slots)); diff != "" {
			t.Fatalf("another order, another answer:\n%s", diff)
		}
	})
}

func TestGpuletsKeepTheirCores(t *testing.T) {
	got := Allot([]int{0, 1, 2, 3}, []Slot{
		{ID: "new", N: 2},
		{ID: "old", N: 2, At: []int{1, 2}},
		{ID: "more", N: 1},
	})
	want := map[string][]int{"old": {1, 2}, "new": {0, 3}, "more": {0}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
