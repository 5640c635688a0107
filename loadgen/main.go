// Loadgen sends requests at set rates and says what came of them; see loadgencmd.
package main

import "github.com/gpulet/gpulet/loadgen/loadgencmd"

func main() { loadgencmd.Main() }
