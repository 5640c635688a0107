package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"github.com/gpulet/gpulet/shared/model"
)

// registry follows the model repository: what was registered, and what is wrong with the rest.
type registry struct {
	repo     *model.Repository
	problems []error
	retired  map[string]bool // removed models whose queue may still hold requests
}

// change is what a scan found.
type change struct {
	models []model.Model // registered from now on, sorted
	put    []model.Model // of those, new or changed
	remove []string
}

// scan compares the repository with the registered models. A model whose folder is there but has
// become unusable stays as it was registered: workers still hold it.
func (r *registry) scan(ctx context.Context, b Bus) (change, error) {
	known, err := b.Models(ctx)
	if err != nil {
		return change{}, fmt.Errorf("read registered models: %w", err)
	}
	found, problems := r.repo.Scan()
	r.problems = problems
	c := change{models: found}
	names := map[string]bool{}
	for _, m := range found {
		names[m.Name] = true
		i := slices.IndexFunc(known, func(k model.Model) bool { return k.Name == m.Name })
		if i < 0 || !same(known[i], m) {
			c.put = append(c.put, m)
		}
		delete(r.retired, m.Name)
	}
	for _, k := range known {
		switch {
		case names[k.Name]:
		case r.present(k.Name):
			c.models = append(c.models, k)
		default:
			c.remove = append(c.remove, k.Name)
			r.retire(k.Name)
		}
	}
	sort.Slice(c.models, func(i, j int) bool { return c.models[i].Name < c.models[j].Name })
	return c, nil
}

func (r *registry) retire(name string) {
	if r.retired == nil {
		r.retired = map[string]bool{}
	}
	r.retired[name] = true
}

// present reports whether the repository has a folder of that name, or cannot be read at all: a
// repository that is away for a moment must not take every model with it.
func (r *registry) present(name string) bool {
	if _, err := os.Stat(r.repo.Root); err != nil {
		return true
	}
	_, err := os.Stat(filepath.Join(r.repo.Root, name))
	return !errors.Is(err, fs.ErrNotExist)
}

// same compares what is registered of two models; where the archive lies is not.
func same(a, b model.Model) bool {
	a.Path, b.Path = "", ""
	return encode(a) == encode(b)
}
