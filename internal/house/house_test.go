// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package house holds the rules that no linter knows, as tests over the whole checkout: imports and calls, words, nothing
// large, documents that name things that exist. It has no code, and nothing imports it.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// maxFile keeps databases, binaries and captured dumps out: a clone stays small for ever only if nothing large ever gets in.
const maxFile = 1 << 20

// file is one file of the checkout, by its path from the top, with slashes.
type file struct {
	path string
	size int64
	tree *ast.File // of a Go file that is not a fixture
	fset *token.FileSet
}

func (f file) is(suffix ...string) bool {
	return slices.ContainsFunc(suffix, func(s string) bool { return strings.HasSuffix(f.path, s) })
}

func (f file) read(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(top, filepath.FromSlash(f.path)))
	must.OK(t, err)
	return data
}

// top is the folder with the agent's go.mod.
const top = "../.."

func checkout(t *testing.T) []file {
	t.Helper()
	files, err := walk()
	must.OK(t, err)
	if len(files) < 10 {
		t.Fatalf("only %d files: the walk is wrong", len(files))
	}
	return files
}

// walk lists what git would: not what is built, not what a fuzzer or an editor left in a hidden folder.
var walk = sync.OnceValues(func() (files []file, err error) {
	fset := token.NewFileSet()
	err = fs.WalkDir(os.DirFS(top), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if path == "build" || path == "dist" || strings.HasPrefix(entry.Name(), ".") && path != "." && path != ".ci" && path != ".github" {
				return fs.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() || strings.HasSuffix(path, ".test") || strings.HasSuffix(path, ".out") {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		f := file{path: path, size: info.Size(), fset: fset}
		if f.is(".go") && !isFixture(f) {
			f.tree, err = parser.ParseFile(fset, filepath.Join(top, path), nil, parser.ParseComments|parser.SkipObjectResolution)
		}
		files = append(files, f)
		return err
	})
	return files, err
})

func isFixture(f file) bool { return strings.Contains("/"+f.path, "/testdata/") }

func TestNothingLarge(t *testing.T) {
	for _, f := range checkout(t) {
		if f.size > maxFile {
			t.Errorf("%s has %d bytes, at most %d may be committed", f.path, f.size, maxFile)
		}
	}
}

// TestUnitCapabilities: SECURITY.md names the capabilities that each unit keeps, and no others.
func TestUnitCapabilities(t *testing.T) {
	policy, err := os.ReadFile(filepath.Join(top, "SECURITY.md"))
	must.OK(t, err)
	capability := regexp.MustCompile(`CAP_[A-Z_]+`)
	for _, unit := range []string{"amsagent", "amsagent-node"} {
		var said, kept []string
		for line := range strings.Lines(string(policy)) {
			cells := strings.Split(line, "|")
			if len(cells) != 5 {
				continue
			}
			units := strings.Split(strings.TrimSpace(cells[2]), ", ")
			if units[0] == "all" || slices.Contains(units, unit) {
				said = append(said, capability.FindAllString(cells[1], -1)...)
			}
		}
		text, err := os.ReadFile(filepath.Join(top, "packaging", "systemd", unit+".service"))
		must.OK(t, err)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "CapabilityBoundingSet=") {
				kept = append(kept, capability.FindAllString(line, -1)...)
			}
		}
		slices.Sort(said)
		slices.Sort(kept)
		if !slices.Equal(said, kept) || len(kept) == 0 {
			t.Errorf("%s.service keeps %v, SECURITY.md says %v", unit, kept, said)
		}
	}
}

func TestGoMod(t *testing.T) {
	read := func(path string) string { return string(file{path: path}.read(t)) }
	root := read("go.mod")
	must.Equal(t, "in go.mod, and `go install` of a module with a replacement fails", regexp.MustCompile(`(?m)^(replace\b.*|\s+\S+.*=> .*)$`).FindString(root), "")
	version := regexp.MustCompile(`(?m)^go (\S+)$`)
	want := version.FindStringSubmatch(root)
	if want == nil {
		t.Fatal("go.mod has no go line")
	}
	for _, other := range []string{"sandbox/go.mod", "sandbox/embedded/go.mod", "tools/go.mod"} {
		if got := version.FindStringSubmatch(read(other)); got == nil || got[1] != want[1] {
			t.Errorf("%s says %q, go.mod says go %s", other, got, want[1])
		}
	}
	if strings.Contains(root+read("sandbox/go.mod"), "github.com/FerretDB/") {
		t.Error("the embedded database is required outside of its module")
	}
}

// makeTargets are those that `make help` explains.
func makeTargets(t *testing.T) map[string]bool {
	t.Helper()
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z0-9-]+):.*?## `).FindAllStringSubmatch(string(file{path: "Makefile"}.read(t)), -1) {
		targets[m[1]] = true
	}
	return targets
}

// TestDocuments: what a document points at is there, be it a file or a make target.
func TestDocuments(t *testing.T) {
	targets := makeTargets(t)
	for _, m := range regexp.MustCompile(`(?m)^\.PHONY: (.*)$`).FindAllStringSubmatch(string(file{path: "Makefile"}.read(t)), -1) {
		for _, target := range strings.Fields(m[1]) {
			if !targets[target] {
				t.Errorf("make help does not explain the target %s", target)
			}
		}
	}
	var (
		link  = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)\s]*)?\)`)
		calls = regexp.MustCompile("(?:`|^    |\\n    )make ([a-z0-9-]+)")
	)
	for _, f := range checkout(t) {
		if !f.is(".md") || isFixture(f) {
			continue
		}
		text := string(f.read(t))
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(top, filepath.Dir(filepath.FromSlash(f.path)), filepath.FromSlash(m[1]))); err != nil {
				t.Errorf("%s points at %s, which is not there", f.path, m[1])
			}
		}
		for _, m := range calls.FindAllStringSubmatch(text, -1) {
			if !targets[m[1]] {
				t.Errorf("%s says `make %s`, which there is not", f.path, m[1])
			}
		}
	}
}
