// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Command stats prints the size of the agent beside its budgets. Lines are those of `wc -l`. It reads the sources alone:
// an exported function, type, variable or constant counts as used if a file of another package, test or not, writes
// `package.Name`. With a second argument, `unused`, it lists those that are not.
package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// A part is a row of the table: folders of the checkout.
type part struct {
	name    string
	budget  int
	folders []string
}

var parts = []part{
	{"lifecycle", 2000, []string{"lifecycle"}},
	{"metadata", 5000, []string{"metadata"}},
	{"cluster", 2300, []string{"cluster"}},
	{"heartbeat", 1000, []string{"heartbeat"}},
	{"ams", 2200, []string{"ams"}},
	{"conf, files", 2200, []string{"conf", "files"}},
	{"bootstrap", 4500, []string{"bootstrap"}},
	{"cli", 5200, []string{"cmd/amsagent/cli", "cmd/amsagent/main.go"}},
	{"daemon", 2600, []string{"cmd/amsagent/daemon"}},
	{"packaging", 200, []string{"packaging"}},
	{"internal", 700, []string{"internal", "docs"}},
	{"balancers", 1500, []string{"lb"}},
}

// testSide are folders outside the sandbox that only tests import.
var testSide = []string{"internal/readback", "internal/house", "conf/internal/javatest"}

type source struct {
	path  string
	text  []byte
	lines int
	tree  *ast.File
}

func main() {
	top := "."
	if len(os.Args) > 1 {
		top = os.Args[1]
	}
	if err := run(top); err != nil {
		fmt.Fprintln(os.Stderr, "stats:", err)
		os.Exit(1)
	}
}

func run(top string) error {
	fset := token.NewFileSet()
	var agent, all []source
	sums := map[string]int{}
	unit, sandbox := 0, 0
	err := filepath.WalkDir(top, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); rel == "build" || rel == "tools" || name == "testdata" || strings.HasPrefix(name, ".") && rel != "." {
				return filepath.SkipDir
			}
			return nil
		}
		if path.Ext(rel) != ".go" {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		tree, err := parser.ParseFile(fset, rel, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		s := source{path: rel, text: text, lines: bytes.Count(text, []byte("\n")), tree: tree}
		all = append(all, s)
		switch {
		case below(rel, "sandbox", "test", "internal/fakes"):
			sandbox += s.lines
		case strings.HasSuffix(rel, "_test.go"), below(rel, testSide...):
			unit += s.lines
		default:
			agent = append(agent, s)
			found := false
			for _, p := range parts {
				if below(rel, p.folders...) {
					sums[p.name] += s.lines
					found = true
				}
			}
			if !found {
				return fmt.Errorf("%s belongs to no part", rel)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}

	total := 0
	row("lines without tests", "now", "at most")
	for _, p := range parts {
		total += sums[p.name]
		row(p.name, sums[p.name], p.budget)
	}
	row("agent in all", total, 30000)
	row("test side: unit tests", unit, 31000)
	row("test side: sandbox", sandbox, 28000)
	fmt.Println()

	code, words := comments(fset, agent)
	row("comment words per 100 code lines", 100*words/max(code, 1), 125)
	functions, branchy := branches(agent)
	row("functions over 10 branches", fmt.Sprintf("%.1f %%", 100*float64(branchy)/float64(max(functions, 1))), "5 %")
	name, methods := mostMethods(agent)
	row("methods of "+name, methods, 30)
	row("exported, used by no other package", len(unused(agent, all)), 60)
	row("cloud words outside metadata", clouds(fset, agent), 120)
	if info, err := os.Stat(filepath.Join(top, "build/amsagent")); err == nil {
		row("build/amsagent, MB", fmt.Sprintf("%.1f", float64(info.Size())/1e6), 19)
	}
	if len(os.Args) > 2 && os.Args[2] == "unused" {
		fmt.Println(strings.Join(unused(agent, all), "\n"))
	}
	return nil
}

func row(name string, now, budget any) { fmt.Printf("%-36s %9v %9v\n", name, now, budget) }

func below(p string, folders ...string) bool {
	for _, folder := range folders {
		if p == folder || strings.HasPrefix(p, folder+"/") {
			return true
		}
	}
	return false
}

// bare is a source without its comments, line by line.
func bare(fset *token.FileSet, s source) []byte {
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
		for line := range bytes.Lines(bare(fset, s)) {
			if len(bytes.TrimSpace(line)) > 0 {
				code++
			}
		}
	}
	return code, words
}

// branches counts functions, and those of which the cyclomatic complexity is over 10.
func branches(sources []source) (functions, branchy int) {
	for _, s := range sources {
		for _, decl := range s.tree.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			paths := 1
			ast.Inspect(f.Body, func(n ast.Node) bool {
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
			functions++
			if paths > 10 {
				branchy++
			}
		}
	}
	return functions, branchy
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

// unused lists exported functions, types, variables and constants that no file of another package names.
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
			n += len(cloudWord.FindAll(bare(fset, s), -1))
		}
	}
	return n
}
