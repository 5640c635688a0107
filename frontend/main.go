// Command frontend answers inference requests over HTTP and, unless it is told of a NATS server,
// runs one itself.
package main

import "github.com/gpulet/gpulet/frontend/frontendcmd"

func main() { frontendcmd.Main() }
