// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strings"
)

// stripComments returns a source with its comments blanked, line by line.
func stripComments(fset *token.FileSet, s source) []byte {
	text := bytes.Clone(s.text)
	for _, group := range s.tree.Comments {
		for _, c := range group.List {
			from := fset.Position(c.Pos()).Offset
			for i := range len(c.Text) {
				if text[from+i] != '\n' {
					text[from+i] = ' '
				}
			}
		}
	}
	return text
}

// comments counts lines with code, and words of comments without the licence and directives.
func comments(fset *token.FileSet, sources []source) (code, words int) {
	for _, s := range sources {
		for _, group := range s.tree.Comments {
			for _, c := range group.List {
				if strings.HasPrefix(c.Text, "// Copyright ") || strings.HasPrefix(c.Text, "// SPDX-") || strings.HasPrefix(c.Text, "//go:") {
					continue
				}
				words += len(strings.Fields(strings.Trim(c.Text, "/* \t\n")))
			}
		}
		for line := range bytes.Lines(stripComments(fset, s)) {
			if len(bytes.TrimSpace(line)) > 0 {
				code++
			}
		}
	}
	return code, words
}

// branches counts functions, and lists those of which the cyclomatic complexity is over 10.
func branches(sources []source) (functions int, branchy []string) {
	for _, s := range sources {
		for _, decl := range s.tree.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			functions++
			if paths := complexity(f.Body); paths > 10 {
				name := f.Name.Name
				if typ := receiver(f); typ != "" {
					name = typ + "." + name
				}
				branchy = append(branchy, fmt.Sprintf("%3d %s %s", paths, s.path, name))
			}
		}
	}
	slices.Sort(branchy)
	slices.Reverse(branchy)
	return functions, branchy
}

func complexity(body *ast.BlockStmt) int {
	paths := 1
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt:
			paths++
		case *ast.CaseClause:
			if n.List != nil {
				paths++
			}
		case *ast.CommClause:
			if n.Comm != nil {
				paths++
			}
		case *ast.BinaryExpr:
			if n.Op == token.LAND || n.Op == token.LOR {
				paths++
			}
		}
		return true
	})
	return paths
}

func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	t := f.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if generic, ok := t.(*ast.IndexExpr); ok {
		t = generic.X
	}
	if name, ok := t.(*ast.Ident); ok {
		return name.Name
	}
	return ""
}

func mostMethods(sources []source) (name string, most int) {
	count := map[string]int{}
	for _, s := range sources {
		for _, decl := range s.tree.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv == nil {
				continue
			}
			typ := path.Base(path.Dir(s.path)) + "." + receiver(f)
			if count[typ]++; count[typ] > most {
				name, most = typ, count[typ]
			}
		}
	}
	return name, most
}

// unused lists exported functions, types, variables and constants for which no file of another package, test or not, has
// `package.Name`.
func unused(agent, all []source) (names []string) {
	used := map[string]map[string]bool{} // folder → names
	for _, s := range all {
		from := map[string]string{} // the file's name of a package → its folder
		for _, spec := range s.tree.Imports {
			folder, ours := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), "github.com/amsagent/amsagent/")
			if !ours || folder == path.Dir(s.path) {
				continue
			}
			name := path.Base(folder)
			if spec.Name != nil {
				name = spec.Name.Name
			}
			from[name] = folder
		}
		ast.Inspect(s.tree, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && from[x.Name] != "" {
					if used[from[x.Name]] == nil {
						used[from[x.Name]] = map[string]bool{}
					}
					used[from[x.Name]][sel.Sel.Name] = true
				}
			}
			return true
		})
	}
	for _, s := range agent {
		folder := path.Dir(s.path)
		declared := func(id *ast.Ident) {
			if id.IsExported() && !used[folder][id.Name] {
				names = append(names, folder+"."+id.Name)
			}
		}
		for _, decl := range s.tree.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					declared(d.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						declared(spec.Name)
					case *ast.ValueSpec:
						for _, id := range spec.Names {
							declared(id)
						}
					}
				}
			}
		}
	}
	return names
}

var cloudWord = regexp.MustCompile(`(?i)aws|azure|alibaba|gcp`)

// clouds counts the clouds' names outside metadata and outside comments.
func clouds(fset *token.FileSet, sources []source) (n int) {
	for _, s := range sources {
		if !below(s.path, "metadata") {
			n += len(cloudWord.FindAll(stripComments(fset, s), -1))
		}
	}
	return n
}
