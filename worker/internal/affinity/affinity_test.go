package affinity

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestSetPinsEveryThread(t *testing.T) {
	all, err := Cores()
	if err != nil || len(all) == 0 {
		t.Fatalf("Cores() = %v, %v", all, err)
	}
	t.Cleanup(func() {
		if err := Set(all); err != nil {
			t.Error(err)
		}
	})
	holdThreads(t, 4)
	last := all[len(all)-1:]
	if err := Set(last); err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		tid, _ := strconv.Atoi(thread.Name())
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &set); err != nil {
			continue // ended meanwhile
		}
		if set.Count() != 1 || !set.IsSet(last[0]) {
			t.Errorf("thread %d may use %d cores, core %d: %v", tid, set.Count(), last[0], set.IsSet(last[0]))
		}
	}
	if got, err := Cores(); err != nil || !cmp.Equal(got, last) {
		t.Errorf("Cores() after Set = %v, %v; want %v", got, err, last)
	}
}

// holdThreads keeps n goroutines locked to threads of their own until the test ends.
func holdThreads(t *testing.T, n int) {
	var started, ended sync.WaitGroup
	stop := make(chan struct{})
	for range n {
		started.Add(1)
		ended.Go(func() {
			runtime.LockOSThread()
			started.Done()
			<-stop
		})
	}
	started.Wait()
	t.Cleanup(func() { close(stop); ended.Wait() })
}

func TestSetRefusesImpossibleCores(t *testing.T) {
	for _, cores := range [][]int{nil, {-1}, {1 << 20}, {1023}} {
		if err := Set(cores); err == nil {
			t.Errorf("Set(%v) succeeded", cores)
		}
	}
}
