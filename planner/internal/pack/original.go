package pack

import "github.com/gpulet/gpulet/planner/internal/problem"

func originalElastic(in problem.Input, opt Options) Result {
	e := newEnv(&in)
	return e.elastic("elastic", elasticRules{})
}
