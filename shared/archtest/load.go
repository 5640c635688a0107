// Package archtest holds the rules of the source tree, and its test holds the tree to them: who
// may import what, which packages are pure, that every package says what it is for.
//
// The rules are the tables in rules.go; read those. The checks read source files only, whatever
// their build constraints, and know nothing of what the packages do.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Module is the import path of this module.
const Module = "github.com/gpulet/gpulet"

// Package is a folder with Go files.
type Package struct {
	Path  string // below the module's root, with slashes: "shared/bus"
	Files []File // sorted by name
}

// File is one parsed source file.
type File struct {
	Name string
	Test bool
	Set  *token.FileSet
	AST  *ast.File
}

// Parse parses one file of a package.
func Parse(name string, src []byte) (File, error) {
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return File{}, fmt.Errorf("parse: %w", err)
	}
	return File{Name: path.Base(name), Test: strings.HasSuffix(name, "_test.go"), Set: set, AST: tree}, nil
}

// Load reads all packages below root, the folder with go.mod, sorted by path.
func Load(root string) ([]Package, error) {
	byPath := map[string]*Package{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skip(root, name, d.Name())
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		f, err := Parse(filepath.ToSlash(name), src)
		if err != nil {
			return err
		}
		dir = filepath.ToSlash(dir)
		if byPath[dir] == nil {
			byPath[dir] = &Package{Path: dir}
		}
		byPath[dir].Files = append(byPath[dir].Files, f)
		return nil
	})
	if err != nil {
		return nil, err
	}
	list := make([]Package, 0, len(byPath))
	for _, p := range byPath {
		list = append(list, *p)
	}
	slices.SortFunc(list, func(a, b Package) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

// skip leaves out what the go tool leaves out too, and other modules.
func skip(root, dir, base string) error {
	if dir == root {
		return nil
	}
	if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || base == "vendor" {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

// imports are a file's imports, as written, by the name they have in the file.
func (f File) imports() map[string]string {
	list := map[string]string{}
	for _, spec := range f.AST.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has checked it
		}
		name := path.Base(p)
		if strings.HasPrefix(name, "v") && len(name) == 2 && name[1] >= '0' && name[1] <= '9' {
			name = path.Base(path.Dir(p)) // math/rand/v2 is rand
		}
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "_" || list[name] != "" {
			name = p
		}
		list[name] = p
	}
	return list
}

// at is a position for people.
func (f File) at(dir string, pos token.Pos) string {
	return fmt.Sprintf("%s/%s:%d", dir, f.Name, f.Set.Position(pos).Line)
}
