package cli

// Version is what this build calls itself; the linker sets it.
var Version = "dev"
