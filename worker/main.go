// Worker runs gpu-lets on a host.
package main

import "github.com/gpulet/gpulet/worker/workercmd"

func main() { workercmd.Main() }
