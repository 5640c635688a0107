//go:build !race

package sim

const shortened = false
