package profile

import "testing"

const sample = `{"model": "m", "gpu_type": "g", "points": [
 {"share": 20, "batch": 1, "p50_ms": 10}, {"share": 20, "batch": 4, "p50_ms": 40},
 {"share": 40, "batch": 1, "p50_ms": 6}, {"share": 40, "batch": 4, "p50_ms": 18, "p95_ms": 20, "p99_ms": 30}],
 "memory": [{"batch": 1, "bytes": 100}, {"batch": 4, "bytes": 300}]}`

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("f", data)
		if err != nil {
			return
		}
		for _, s := range p.Shares() {
			for _, b := range []int{p.Batches()[0], p.Batches()[len(p.Batches())-1]} {
				if ms, err := p.Latency(s, b); err == nil && !(ms > 0 && ms <= MaxMs) {
					t.Errorf("Latency(%d, %d) = %v", s, b, ms)
				}
			}
		}
	})
}

func FuzzParseOthers(f *testing.F) {
	f.Add([]byte(`{"gpu_type": "g", "mem_bytes": 1, "shares": [10, 20]}`))
	f.Add([]byte(`{"gpu_type": "g", "runs": [{"self": {"model": "a", "share": 50, "batch": 1}, "others": [], "slowdown": 1}]}`))
	f.Add([]byte(`{"gpu_type": "g", "kind": "linear", "features": ["a"], "coefficients": [1]}`))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = ParseDevice("f", data)
		_, _ = ParseCorun("f", data)
		_, _ = ParseInterference("f", data)
	})
}
