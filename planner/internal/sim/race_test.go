//go:build race

package sim

// shortened makes long simulations shorter where the race detector makes them ten times slower.
// Without it they run in full.
const shortened = true
