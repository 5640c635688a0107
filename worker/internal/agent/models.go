package agent

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// resolved is a registered model and where this host has its archive.
type resolved struct {
	model   model.Model
	archive string
	problem string // why the host cannot serve it
}

// resolver finds the archives of registered models. Reading and hashing large files takes a while,
// so it has a goroutine of its own.
type resolver struct {
	repository *model.Repository // nil: no archives are needed
	done       chan struct{}
}

func newResolver(root string) *resolver {
	r := &resolver{done: make(chan struct{})}
	if root != "" {
		r.repository = &model.Repository{Root: root}
	}
	return r
}

// run sends what it finds of what is registered, at first and whenever either changes. The channel
// is closed at the end of ctx.
func (r *resolver) run(ctx context.Context, registered <-chan []model.Model) <-chan map[string]resolved {
	out := make(chan map[string]resolved)
	go func() {
		defer close(r.done)
		defer close(out)
		again := time.NewTicker(resolveEvery)
		defer again.Stop()
		var models []model.Model
		var last map[string]resolved
		for ok := true; ok; {
			found := last
			select {
			case models, ok = <-registered:
				if !ok {
					return
				}
				found = r.resolve(models)
			case <-again.C:
				if last != nil && r.repository != nil {
					found = r.resolve(models)
				}
			case <-ctx.Done():
				return
			}
			if last != nil && reflect.DeepEqual(last, found) || found == nil {
				continue
			}
			last = found
			select {
			case out <- maps.Clone(found):
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (r *resolver) wait() { <-r.done }

func (r *resolver) resolve(registered []model.Model) map[string]resolved {
	found := make(map[string]resolved, len(registered))
	local := map[string]model.Model{}
	if r.repository != nil {
		models, _ := r.repository.Scan() // what is wrong with a model is said where it is missed
		for _, m := range models {
			local[m.Name] = m
		}
	}
	for _, m := range registered {
		found[m.Name] = r.match(m, local)
	}
	return found
}

// match finds the archive of m among those that the host has.
func (r *resolver) match(m model.Model, local map[string]model.Model) resolved {
	if r.repository == nil {
		return resolved{model: m}
	}
	have, ok := local[m.Name]
	if !ok {
		why := "not in this host's repository"
		if _, err := model.Load(r.repository.Root, m.Name); err != nil {
			why = err.Error()
		}
		return resolved{model: m, problem: why}
	}
	if have.Hash != m.Hash {
		return resolved{model: m, problem: fmt.Sprintf("%s is archive %.12s: expected %.12s, version %d as registered",
			have.Path, have.Hash, m.Hash, m.Version)}
	}
	path, err := filepath.Abs(have.Path)
	if err != nil {
		return resolved{model: m, problem: err.Error()}
	}
	return resolved{model: m, archive: path}
}

// command is what a gpu-let is told to serve.
func (a *Agent) command(g plan.Gpulet) link.Command {
	c := link.Command{Op: link.Assign, Revision: a.plan.Revision}
	for _, as := range g.Models {
		la := link.Assignment{Assignment: as}
		switch m, ok := a.models[as.Model]; {
		case !ok:
			la.Problem = "the plan names it, but it is not registered"
		default:
			la.Config, la.Archive, la.Problem = m.model, m.archive, m.problem
		}
		c.Models = append(c.Models, la)
	}
	return c
}

func sameCommand(a, b link.Command) bool { return reflect.DeepEqual(a, b) }
