package plan

import "testing"

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"gpulets": [{"id": "a", "host": "h", "share": 5, "models": [{"model": "m", "batch": 1}]}], "unserved": {"x": 1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("f", data)
		if err == nil {
			if err := p.Validate(); err != nil {
				t.Error(err)
			}
			if !Diff(p, p).Empty() {
				t.Error("differs from itself")
			}
		}
	})
}
