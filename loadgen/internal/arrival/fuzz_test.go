package arrival

import (
	"slices"
	"testing"
)

func FuzzParseTrace(f *testing.F) {
	f.Add([]byte("time_s,model\n0.5,lenet\n1,bert\n"))
	f.Add([]byte("1\n2\n3\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tr, err := ParseTrace("f", data)
		if err != nil {
			return
		}
		for name, times := range tr {
			if !slices.IsSorted(times) {
				t.Errorf("%q: times go back", name)
			}
		}
	})
}
