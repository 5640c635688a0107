package device

import (
	"slices"
	"sort"
)

// CoreShares are the shares that a CPU of n cores can be cut into: one core, two, and so on,
// rounded down so that shares that fit together in cores fit together in percent.
func CoreShares(n int) []int {
	var shares []int
	for k := 1; k <= n; k++ {
		if s := max(1, 100*k/n); len(shares) == 0 || s > shares[len(shares)-1] {
			shares = append(shares, s)
		}
	}
	return shares
}

// CoresOf is how many of n cores a share of the CPU gets: the least that make up the share, and
// at least one.
func CoresOf(share, n int) int {
	return min(max(1, (share*n+99)/100), n)
}

// Slot is a gpu-let that needs cores.
type Slot struct {
	ID string
	N  int   // cores
	At []int // those it has; empty: none yet
}

// Allot gives every gpu-let N of the allowed cores. Those that have cores keep them. The others
// get the cores that the fewest gpu-lets use, so that gpu-lets that fit beside each other share
// none. The same slots give the same answer whatever their order.
func Allot(allowed []int, slots []Slot) map[string][]int {
	users := map[int]int{}
	got := map[string][]int{}
	var need []Slot
	for _, s := range slots {
		if len(s.At) == 0 {
			need = append(need, s)
			continue
		}
		got[s.ID] = s.At
		for _, core := range s.At {
			users[core]++
		}
	}
	// The largest first: what remains then fits more often.
	sort.Slice(need, func(i, j int) bool {
		return need[i].N > need[j].N || need[i].N == need[j].N && need[i].ID < need[j].ID
	})
	for _, s := range need {
		cores := slices.Clone(allowed)
		sort.SliceStable(cores, func(i, j int) bool { return users[cores[i]] < users[cores[j]] })
		cores = cores[:min(s.N, len(cores))]
		slices.Sort(cores)
		for _, core := range cores {
			users[core]++
		}
		got[s.ID] = cores
	}
	return got
}
