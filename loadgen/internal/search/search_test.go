package search

import (
	"testing"

	"pgregory.net/rapid"
)

// find searches for a border that is known.
func find(border, from, most, precision float64) (good, bad float64, tries int) {
	s := New(from, most, precision)
	for rate, more := s.Next(); more; rate, more = s.Next() {
		tries++
		s.Tell(rate <= border)
	}
	good, bad = s.Border()
	return good, bad, tries
}

func TestFindsTheBorder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		border := rapid.Float64Range(1, 1e5).Draw(t, "border")
		from := rapid.Float64Range(1, 60*border).Draw(t, "from")
		precision := rapid.Float64Range(0.01, 0.5).Draw(t, "precision")
		good, bad, tries := find(border, from, 1e9, precision)
		if good > border || bad <= border || bad > good*(1+precision)*(1+1e-9) {
			t.Fatalf("border %v: found %v good and %v bad", border, good, bad)
		}
		if tries > 40 {
			t.Fatalf("%d tries", tries)
		}
	})
}

func TestStopsAtTheMost(t *testing.T) {
	if good, bad, _ := find(1e6, 30, 100, 0.05); good != 100 || bad != 0 {
		t.Errorf("found %v good and %v bad, expected 100 and none", good, bad)
	}
}

func TestGivesUpDownwards(t *testing.T) {
	if good, bad, tries := find(0, 64, 100, 0.05); good != 0 || bad != 1 || tries != 7 {
		t.Errorf("found %v good and %v bad in %d tries, expected none good and 1 bad in 7", good, bad, tries)
	}
}
