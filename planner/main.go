// Planner decides which gpu-lets exist and what each of them serves.
package main

import "github.com/gpulet/gpulet/planner/plannercmd"

func main() { plannercmd.Main() }
