package archtest

import (
	"fmt"
	"go/ast"
	"maps"
	"path"
	"slices"
	"strings"
)

type reservation struct {
	what string   // an import path or pattern
	who  []string // packages that may import it
	why  string
}

// matches reports whether an import path is pattern, or below it where pattern ends in "/...".
func matches(pattern, importPath string) bool {
	if stem, ok := strings.CutSuffix(pattern, "/..."); ok {
		return importPath == stem || strings.HasPrefix(importPath, stem+"/")
	}
	return importPath == pattern
}

// Reserved finds imports of what only few may. Tests are held to it too, except that they may run
// an embedded server.
func Reserved(packages []Package) (broken []string) {
	eachImport(packages, func(p Package, f File, imported string, at string) {
		for _, r := range reserved {
			if !matches(r.what, imported) || slices.Contains(r.who, p.Path) {
				continue
			}
			if (f.Test || forTests(p.Path)) && imported == Module+"/shared/embedded" {
				continue
			}
			broken = append(broken, fmt.Sprintf("%s imports %s, which only %v may: %s", at, imported, r.who, r.why))
		}
	})
	return broken
}

// TestOnly finds packages for tests in code that is not a test.
func TestOnly(packages []Package) (broken []string) {
	eachImport(packages, func(p Package, f File, imported string, at string) {
		if strings.HasPrefix(imported, Module+"/") && forTests(imported) && !f.Test && !forTests(p.Path) {
			broken = append(broken, fmt.Sprintf("%s imports %s, which is for tests", at, imported))
		}
	})
	return broken
}

// forTests reports whether a package is for tests by its name.
func forTests(importPath string) bool { return strings.HasSuffix(importPath, "test") }

// Layers finds imports against the direction main → <service>cmd → <service>/internal → shared,
// and between services.
func Layers(packages []Package) (broken []string) {
	eachImport(packages, func(p Package, f File, imported string, at string) {
		target, ours := strings.CutPrefix(imported, Module+"/")
		if !ours || f.Test {
			return
		}
		if why := layer(p.Path, target); why != "" {
			broken = append(broken, fmt.Sprintf("%s imports %s: %s", at, target, why))
		}
	})
	for _, p := range packages {
		if _, known := shared[p.Path]; strings.HasPrefix(p.Path, "shared/") && !known {
			broken = append(broken, fmt.Sprintf("%s is not in the table of shared packages", p.Path))
		}
	}
	return broken
}

// layer says why from may not import target, "" where it may.
func layer(from, target string) string {
	if allowed, ok := shared[from]; ok {
		if !slices.Contains(allowed, target) {
			return fmt.Sprintf("of this module it may import %v", allowed)
		}
		return ""
	}
	service, _, _ := strings.Cut(target, "/")
	if !slices.Contains(services, service) {
		return "" // shared packages
	}
	door := service + "/" + service + "cmd"
	switch {
	case from == service && target != door:
		return "main imports only " + door
	case from != service && !strings.HasPrefix(from, service+"/") && target != door:
		return "of " + service + " only " + door + " may be imported"
	case strings.HasPrefix(from, service+"/internal/") && target == door:
		return door + " imports the internal packages, not the other way round"
	}
	return ""
}

// Pure finds clocks, randomness and I/O in packages that decide.
func Pure(packages []Package) (broken []string) {
	for _, p := range packages {
		if !slices.Contains(pure, p.Path) {
			continue
		}
		for _, f := range p.Files {
			if f.Test {
				continue
			}
			for _, spec := range f.AST.Imports {
				imported := strings.Trim(spec.Path.Value, `"`)
				for _, bad := range impure {
					if matches(bad, imported) {
						broken = append(broken, fmt.Sprintf("%s imports %s in a pure package", f.at(p.Path, spec.Pos()), imported))
					}
				}
			}
			broken = append(broken, impureUses(p, f)...)
		}
	}
	return broken
}

func impureUses(p Package, f File) (broken []string) {
	names := f.imports()
	ast.Inspect(f.AST, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(impureCalls[names[x.Name]], sel.Sel.Name) {
			broken = append(broken, fmt.Sprintf("%s uses %s.%s in a pure package", f.at(p.Path, sel.Pos()), names[x.Name], sel.Sel.Name))
		}
		return true
	})
	if _, dot := names["."]; dot {
		broken = append(broken, fmt.Sprintf("%s/%s has a dot import in a pure package", p.Path, f.Name))
	}
	return broken
}

// Doors finds programs whose main does anything but call Main of their command package.
func Doors(packages []Package) (broken []string) {
	for _, p := range packages {
		if !slices.Contains(services, p.Path) {
			continue
		}
		want := fmt.Sprintf("only func main() { %scmd.Main() } in main.go", p.Path)
		for _, f := range p.Files {
			if !f.Test && (f.Name != "main.go" || !isDoor(f, p.Path+"cmd")) {
				broken = append(broken, fmt.Sprintf("%s/%s: expected %s", p.Path, f.Name, want))
			}
		}
	}
	return broken
}

func isDoor(f File, command string) bool {
	var funcs []*ast.FuncDecl
	for _, d := range f.AST.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			funcs = append(funcs, fn)
			continue
		}
		if g, ok := d.(*ast.GenDecl); !ok || len(f.AST.Imports) != 1 || len(g.Specs) != 1 || g.Specs[0] != ast.Spec(f.AST.Imports[0]) {
			return false
		}
	}
	if len(funcs) != 1 || funcs[0].Name.Name != "main" || len(funcs[0].Body.List) != 1 {
		return false
	}
	stmt, ok := funcs[0].Body.List[0].(*ast.ExprStmt)
	if !ok {
		return false
	}
	call, ok := stmt.X.(*ast.CallExpr)
	if !ok || len(call.Args) != 0 {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "Main" {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == command
}

// Docs finds packages that do not say what they are for.
func Docs(packages []Package) (broken []string) {
	for _, p := range packages {
		documented, code := false, false
		for _, f := range p.Files {
			if f.Test {
				continue
			}
			code = true
			documented = documented || strings.HasPrefix(f.AST.Doc.Text(), docStart(p, f))
		}
		if code && !documented {
			broken = append(broken, fmt.Sprintf("%s has no package comment: expected \"Package %s ...\"", p.Path, p.Files[0].AST.Name.Name))
		}
	}
	return broken
}

// docStart is how a package comment begins: "Package bus ", and of a program "Command frontend ",
// or just "Frontend ".
func docStart(p Package, f File) string {
	program := path.Base(p.Path)
	switch {
	case f.AST.Name.Name != "main":
		return "Package " + f.AST.Name.Name + " "
	case strings.HasPrefix(f.AST.Doc.Text(), "Command "):
		return "Command " + program + " "
	}
	return strings.ToUpper(program[:1]) + program[1:] + " "
}

// Awake finds rules about packages that are neither there nor pending, and pending ones that are.
func Awake(packages []Package) (broken []string) {
	there := map[string]bool{}
	for _, p := range packages {
		there[p.Path] = true
	}
	for _, name := range named() {
		switch waits := slices.Contains(pending, name); {
		case !there[name] && !waits:
			broken = append(broken, fmt.Sprintf("the rules name %s, which does not exist and is not pending", name))
		case there[name] && waits:
			broken = append(broken, fmt.Sprintf("%s exists now: delete it from pending", name))
		}
	}
	for _, name := range pending {
		if !slices.Contains(named(), name) {
			broken = append(broken, fmt.Sprintf("pending names %s, which no rule does", name))
		}
	}
	return broken
}

// named are all packages that the rules name, sorted.
func named() []string {
	set := map[string]bool{}
	for _, r := range reserved {
		for _, who := range r.who {
			set[who] = true
		}
	}
	for _, p := range pure {
		set[p] = true
	}
	for p := range shared {
		set[p] = true
	}
	for _, s := range services {
		set[s], set[s+"/"+s+"cmd"] = true, true
	}
	return slices.Sorted(maps.Keys(set))
}

func eachImport(packages []Package, visit func(p Package, f File, imported, at string)) {
	for _, p := range packages {
		for _, f := range p.Files {
			for _, spec := range f.AST.Imports {
				visit(p, f, strings.Trim(spec.Path.Value, `"`), f.at(p.Path, spec.Pos()))
			}
		}
	}
}
