package plan_test

import (
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/plan"
)

func TestASuspectIsConvictedOfTheSecondDeathOnlyIfItWasAlone(t *testing.T) {
	for _, c := range []struct {
		name  string
		alone []bool // of each death
		want  bool
	}{
		{"one death", []bool{true}, false},
		{"in a batch, then alone", []bool{false, true}, true},
		{"in company twice", []bool{false, false}, false},
		{"alone, then in company", []bool{true, false}, false},
		{"in company four times", []bool{false, false, false, false}, true},
	} {
		var s plan.Suspect
		for _, alone := range c.alone {
			s = s.Again(plan.Suspect{Model: "m", Seq: 1, Alone: alone})
		}
		if s.Convicted() != c.want || s.Deaths != len(c.alone) {
			t.Errorf("%s: convicted %v after %d deaths: expected %v", c.name, s.Convicted(), s.Deaths, c.want)
		}
	}
}

func TestAnotherRequestOfTheSameSequenceStartsAnew(t *testing.T) {
	s := plan.Suspect{Model: "m", Seq: 1, Stored: time.Unix(1, 0), Deaths: 3}
	if got := s.Again(plan.Suspect{Model: "m", Seq: 1, Stored: time.Unix(2, 0)}); got.Deaths != 1 {
		t.Errorf("%d deaths: expected 1, of the new request alone", got.Deaths)
	}
}
