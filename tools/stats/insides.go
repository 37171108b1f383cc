// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/types"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/tools/go/packages"
)

// A declaration is one of the top level of a test file.
type declaration struct {
	test    string   // its name if it is a test
	inside  string   // an unexported function, type, field … of the tested package that it names
	helpers []string // what it names of the declarations of test files, by their keys
}

// tests counts those of a package.
type tests struct {
	path   string
	all    int
	inside []string // the names of those that name insides, each with the first that was found
}

// countInsides counts the tests of the packages below a folder. A test is a function TestX; fuzz targets and benchmarks are
// not counted. It names insides if it, or a helper in a test file that it reaches, names an unexported object that is declared
// in a file of the package that is not a test. The build tag e2e is set. A package with an error is counted as far as it was
// understood.
func countInsides(top string) ([]tests, error) {
	const mode = packages.NeedName | packages.NeedForTest | packages.NeedImports | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo
	loaded, err := packages.Load(&packages.Config{Mode: mode, Dir: top, Tests: true, BuildFlags: []string{"-tags=e2e"}}, "./...")
	if err != nil {
		return nil, err
	}
	all := map[string]map[string]*declaration{} // the tested package → its tests and their helpers
	var broken []error
	for _, p := range loaded {
		if len(p.Errors) > 0 {
			broken = append(broken, p.Errors[0])
		}
		if p.ForTest == "" {
			continue
		}
		if all[p.ForTest] == nil {
			all[p.ForTest] = map[string]*declaration{}
		}
		maps.Copy(all[p.ForTest], declarations(p))
	}
	var counted []tests
	for _, path := range slices.Sorted(maps.Keys(all)) {
		c := tests{path: path}
		for key, d := range all[path] {
			if d.test == "" {
				continue
			}
			c.all++
			if inside := reachedInside(all[path], key); inside != "" {
				c.inside = append(c.inside, d.test+": "+inside)
			}
		}
		slices.Sort(c.inside)
		counted = append(counted, c)
	}
	return counted, errors.Join(broken...)
}

// declarations lists those of the test files of a package, by their keys.
func declarations(p *packages.Package) map[string]*declaration {
	found := map[string]*declaration{}
	declare := func(id *ast.Ident, body ast.Node) *declaration {
		d := &declaration{}
		if obj := p.TypesInfo.Defs[id]; obj != nil {
			found[keyOf(obj)] = d
		}
		ast.Inspect(body, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if !ok {
				return true
			}
			obj := p.TypesInfo.Uses[id]
			if obj == nil || obj.Pkg() == nil {
				return true
			}
			switch declaredInTest := strings.HasSuffix(p.Fset.Position(obj.Pos()).Filename, "_test.go"); {
			case declaredInTest:
				d.helpers = append(d.helpers, keyOf(obj))
			case obj.Pkg().Path() == p.ForTest && !obj.Exported():
				d.inside = obj.Name()
			}
			return true
		})
		return d
	}
	for _, file := range p.Syntax {
		if !strings.HasSuffix(p.Fset.Position(file.Pos()).Filename, "_test.go") {
			continue
		}
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				d := declare(decl.Name, decl)
				if decl.Recv == nil && isTest(decl.Name.Name) {
					d.test = decl.Name.Name
				}
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						declare(spec.Name, spec)
					case *ast.ValueSpec:
						for _, id := range spec.Names {
							declare(id, spec)
						}
					}
				}
			}
		}
	}
	return found
}

// keyOf names an object of the top level or a method. Packages that were loaded from their sources and from export data
// have different objects for it.
func keyOf(obj types.Object) string {
	if f, ok := obj.(*types.Func); ok {
		return f.Origin().FullName()
	}
	return obj.Pkg().Path() + "." + obj.Name()
}

func isTest(name string) bool {
	rest, ok := strings.CutPrefix(name, "Test")
	first, _ := utf8.DecodeRuneInString(rest)
	return ok && name != "TestMain" && !unicode.IsLower(first)
}

// reachedInside follows the helpers of a declaration to the first that names an inside, and returns that.
func reachedInside(all map[string]*declaration, key string) string {
	seen := map[string]bool{}
	for next := []string{key}; len(next) > 0; {
		key, next = next[0], next[1:]
		d := all[key]
		if seen[key] || d == nil {
			continue
		}
		if d.inside != "" {
			return d.inside
		}
		seen[key] = true
		next = append(next, d.helpers...)
	}
	return ""
}

// listInsides has a line for each package with tests, with those that name insides below it.
func listInsides(counted []tests) (lines []string) {
	for _, p := range counted {
		lines = append(lines, fmt.Sprintf("%s: %d of %d", p.path, len(p.inside), p.all))
		for _, test := range p.inside {
			lines = append(lines, "    "+test)
		}
	}
	return lines
}
