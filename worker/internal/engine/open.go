package engine

// Open returns the engine called name: "torch" (LibTorch), "ref" (the reference engine) or "sim"
// (needs Options.Sim). The error of a missing library says what to install.
func Open(name string, o Options) (Engine, error) {
	return nil, errorf(EUNSUPPORTED, "engine %q: expected torch, ref or sim", name)
}
