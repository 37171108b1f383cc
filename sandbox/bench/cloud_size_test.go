// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/metadata"
)

// mostSize is what all four clouds may add to the binary, in MB.
const mostSize = 2.5

// BenchmarkCloudSize is what the clouds add to the binary: the agent is built as it is linked for machines, and then with
// every function of a cloud's own files emptied, so that the linker leaves out what only they need, a cloud's SDK with its
// dependencies among it. What several clouds share, and is needed by nobody else, counts when all of them are gone. The
// bound is 2.5 MB for all four.
func BenchmarkCloudSize(b *testing.B) {
	all := []string{metadata.AWS, metadata.Azure, metadata.Alibaba, metadata.GCP}
	for b.Loop() {
		whole := buildWithout(b)
		for _, name := range all {
			rest := buildWithout(b, name)
			if before, after := functions(whole, name), functions(rest, name); after > before/2 {
				b.Errorf("%s: of %d functions in the binary %d are there with all of them emptied: nothing is measured", name, before, after)
			}
			b.ReportMetric(mb(whole)-mb(rest), "MB-"+name)
		}
		rest := buildWithout(b, all...)
		if n := bytes.Count(rest, []byte("github.com/aws/")); n > 0 {
			b.Errorf("%d names of AWS's SDK are there without any cloud: not all of its cost is measured", n)
		}
		added := mb(whole) - mb(rest)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(added, "MB-all-four")
		b.ReportMetric(added/mostSize, "of-2.5MB")
		b.Logf("%.2f MB, without any cloud %.2f MB: all four add %.2f MB (bound %.1f)", mb(whole), mb(rest), added, mostSize)
	}
}

func mb(binary []byte) float64 { return float64(len(binary)) / 1e6 }

// functions counts the names of functions of a cloud's package, by the table that a stripped binary has, too.
func functions(binary []byte, cloud string) int {
	return bytes.Count(binary, []byte("amsagent/metadata/"+cloud+"."))
}

// buildWithout builds the agent with the files of some clouds emptied.
func buildWithout(b *testing.B, clouds ...string) []byte {
	b.Helper()
	dir := b.TempDir()
	top, err := filepath.Abs("../..")
	if err != nil {
		b.Fatal(err)
	}
	overlay := map[string]string{}
	for _, name := range clouds {
		for _, pattern := range []string{"metadata/" + name + "/*.go", "lifecycle/" + name + "*.go", "cmd/amsagent/cli/cloud_" + name + ".go"} {
			files, err := filepath.Glob(filepath.Join(top, filepath.FromSlash(pattern)))
			if err != nil {
				b.Fatal(err)
			}
			for _, file := range files {
				if strings.HasSuffix(file, "_test.go") {
					continue
				}
				to := filepath.Join(dir, strconv.Itoa(len(overlay))+".go")
				if err := os.WriteFile(to, emptied(b, file), 0o600); err != nil {
					b.Fatal(err)
				}
				overlay[file] = to
			}
		}
	}
	list, err := json.Marshal(map[string]map[string]string{"Replace": overlay})
	if err != nil {
		b.Fatal(err)
	}
	file, out := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "amsagent")
	if err := os.WriteFile(file, list, 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
		// As the Makefile links it for machines.
		"-ldflags=-s -w -buildid=",
		"-overlay", file, "-o", out, "./cmd/amsagent")
	cmd.Dir, cmd.Env = top, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("building without %v: %v\n%s", clouds, err, text)
	}
	binary, err := os.ReadFile(out)
	if err != nil {
		b.Fatal(err)
	}
	return binary
}

// emptied is a source file whose functions do nothing, without the imports that only they needed.
func emptied(b *testing.B, file string) []byte {
	b.Helper()
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
	if err != nil {
		b.Fatal(err)
	}
	for _, decl := range tree.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Body != nil {
			f.Body.List = []ast.Stmt{&ast.ExprStmt{X: &ast.CallExpr{
				Fun: ast.NewIdent("panic"), Args: []ast.Expr{&ast.BasicLit{Kind: token.STRING, Value: `"left out"`}},
			}}}
		}
	}
	// What is left are declarations. A type of an SDK in them would bring the SDK along; its users are empty now.
	sdk := map[string]bool{}
	for _, i := range tree.Imports {
		if strings.Contains(i.Path.Value, ".") && !strings.Contains(i.Path.Value, "/amsagent/amsagent/") {
			for _, name := range importNames(b, i) {
				sdk[name] = true
			}
		}
	}
	used := map[string]bool{}
	ast.Inspect(tree, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && !sdk[x.Name] {
				used[x.Name] = true
			}
		}
		return true
	})
	for _, decl := range tree.Decls {
		d, ok := decl.(*ast.GenDecl)
		if !ok || d.Tok != token.IMPORT {
			continue
		}
		for _, spec := range d.Specs {
			i, ok := spec.(*ast.ImportSpec)
			if !ok {
				continue
			}
			if !slices.ContainsFunc(importNames(b, i), func(name string) bool { return used[name] }) {
				// A blank import would link the package: one that is there anyway takes its place.
				i.Name, i.Path.Value = ast.NewIdent("_"), `"errors"`
			}
		}
	}
	var out bytes.Buffer
	if err := printer.Fprint(&out, fset, tree); err != nil {
		b.Fatal(err)
	}
	text := out.String()
	for name := range sdk {
		text = regexp.MustCompile(`\b`+name+`\.[A-Z]\w*`).ReplaceAllString(text, "any")
	}
	return []byte(text)
}

// importNames are the names that an imported package may go by here: the last word of its path, or the one before a version,
// without what marks it as Go's.
func importNames(b *testing.B, i *ast.ImportSpec) []string {
	b.Helper()
	if i.Name != nil {
		return []string{i.Name.Name}
	}
	path, err := strconv.Unquote(i.Path.Value)
	if err != nil {
		b.Fatal(err)
	}
	parts := strings.Split(path, "/")
	names := []string{parts[len(parts)-1]}
	if len(parts) > 1 && strings.HasPrefix(names[0], "v") {
		names = append(names, parts[len(parts)-2])
	}
	for i, name := range names {
		names[i] = strings.TrimSuffix(name, "-go")
	}
	return names
}
