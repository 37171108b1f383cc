// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package house holds the rules of the house that no linter knows, as tests over the whole checkout: a licence line in
// every source, a word on every package, nothing large, nothing of the machine it was written on, documents that name
// things that exist. It has no code and is imported by nothing.
package house

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// maxFile keeps databases, binaries and captured dumps out: a clone stays small for ever only if nothing large ever gets in.
const maxFile = 1 << 20

const (
	copyright = "Copyright The amsagent Authors"
	licence   = "SPDX-License-Identifier: Apache-2.0"
)

// file is one file of the checkout, by its path from the top, with slashes.
type file struct {
	path string
	size int64
	exec bool
}

func (f file) is(suffix ...string) bool {
	return slices.ContainsFunc(suffix, func(s string) bool { return strings.HasSuffix(f.path, s) })
}

func (f file) read(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(top(t), filepath.FromSlash(f.path)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// top is the folder with the agent's go.mod.
func top(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// checkout lists what git would: not what is built, not what a fuzzer or an editor left in a hidden folder.
func checkout(t *testing.T) []file {
	t.Helper()
	var files []file
	dir := top(t)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if entry.IsDir() {
			if rel == "build" || rel == "dist" || strings.HasPrefix(entry.Name(), ".") && rel != "." && rel != ".ci" {
				return filepath.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() || strings.HasSuffix(rel, ".test") || strings.HasSuffix(rel, ".out") {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		files = append(files, file{path: rel, size: info.Size(), exec: info.Mode()&0o111 != 0})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d files below %s: the walk is wrong", len(files), dir)
	}
	return files
}

func isFixture(f file) bool { return strings.Contains("/"+f.path, "/testdata/") }

func TestLicence(t *testing.T) {
	for _, f := range checkout(t) {
		switch {
		case isFixture(f):
		case f.is(".go"):
			if want := "// " + copyright + "\n// " + licence + "\n\n"; !bytes.HasPrefix(f.read(t), []byte(want)) {
				t.Errorf("%s does not begin with the two licence lines and a blank one", f.path)
			}
		case f.is(".java", ".sh", "Makefile", ".ci/run"), f.is(".service", ".target") && strings.HasPrefix(f.path, "packaging/"):
			head := f.read(t)
			head = head[:min(len(head), 300)]
			if !bytes.Contains(head, []byte(copyright)) || !bytes.Contains(head, []byte(licence)) {
				t.Errorf("%s does not begin with the two licence lines", f.path)
			}
		}
	}
}

func TestNothingLarge(t *testing.T) {
	for _, f := range checkout(t) {
		if f.size > maxFile {
			t.Errorf("%s has %d bytes, at most %d may be committed", f.path, f.size, maxFile)
		}
	}
}

// TestPackageDocs: whoever opens a package first reads what it is. What strangers may import also says that it may change.
func TestPackageDocs(t *testing.T) {
	docs := map[string]string{} // folder → package comment
	for _, f := range checkout(t) {
		if !f.is(".go") || isFixture(f) {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.path, f.read(t), parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Error(err)
			continue
		}
		dir := filepath.ToSlash(filepath.Dir(f.path))
		if _, seen := docs[dir]; !seen {
			docs[dir] = ""
		}
		// The comment of an external test package describes nobody's package.
		if parsed.Doc != nil && !strings.HasSuffix(parsed.Name.Name, "_test") {
			docs[dir] += parsed.Doc.Text()
		}
	}
	for dir, doc := range docs {
		base := filepath.Base(dir)
		switch {
		case doc == "":
			t.Errorf("package %s has no comment: say in its doc.go what it is and what it never does", dir)
		case !strings.HasPrefix(doc, "Package ") && !strings.HasPrefix(doc, "Command ") && !strings.HasPrefix(strings.ToLower(doc), base):
			t.Errorf("the comment of package %s begins with %.40q, not with what it is", dir, doc)
		}
		importable := !strings.Contains("/"+dir+"/", "/internal/") && !strings.HasPrefix(dir, "cmd/") && !strings.HasPrefix(dir, "tools/") && !strings.HasPrefix(dir, "sandbox")
		if importable && doc != "" && !strings.Contains(strings.ToLower(doc), "stable") {
			t.Errorf("strangers can import %s: its comment must say that the API is not stable yet", dir)
		}
	}
}

// TestUnitCapabilities: SECURITY.md names the capabilities that each unit keeps, and no others.
func TestUnitCapabilities(t *testing.T) {
	policy, err := os.ReadFile(filepath.Join(top(t), "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	capability := regexp.MustCompile(`CAP_[A-Z_]+`)
	for _, unit := range []string{"amsagent", "amsagent-node", "amsagent-active"} {
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
		text, err := os.ReadFile(filepath.Join(top(t), "packaging", "systemd", unit+".service"))
		if err != nil {
			t.Fatal(err)
		}
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
	if m := regexp.MustCompile(`(?m)^(replace\b.*|\s+\S+.*=> .*)$`).FindString(root); m != "" {
		t.Errorf("go.mod has %q: `go install` of a module with a replacement fails", m)
	}
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

// TestNothingOfThisMachine: a path of the folder it was written in means nothing to anybody else.
func TestNothingOfThisMachine(t *testing.T) {
	here := top(t)
	if strings.Count(here, "/") < 2 {
		t.Skipf("%s is too short to be told from other words", here)
	}
	for _, f := range checkout(t) {
		if bytes.Contains(f.read(t), []byte(here)) {
			t.Errorf("%s contains %s, the folder of this checkout", f.path, here)
		}
	}
}

// TestNothingUnfinishedInTexts: what a person may get to read, which is any string of the program, is finished.
func TestNothingUnfinishedInTexts(t *testing.T) {
	unfinished := regexp.MustCompile(`\b(TODO|FIXME|XXX|TBD|lorem ipsum)\b`)
	for _, f := range checkout(t) {
		if !f.is(".go") || f.is("_test.go") || isFixture(f) {
			continue
		}
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, f.path, f.read(t), parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			continue
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if text, err := strconv.Unquote(lit.Value); err == nil {
				if found := unfinished.FindString(text); found != "" {
					t.Errorf("%s: a text says %s", fset.Position(lit.Pos()), found)
				}
			}
			return true
		})
	}
}

func TestScripts(t *testing.T) {
	strict := regexp.MustCompile(`(?m)^set -euo pipefail$`)
	quiet := regexp.MustCompile(`[^|]\|\s*grep -[a-zA-Z]*q`)
	for _, f := range checkout(t) {
		if isFixture(f) || !f.is(".sh", ".ci/run") {
			continue
		}
		text := string(f.read(t))
		if !f.exec {
			t.Errorf("%s is not executable", f.path)
		}
		// A script below sandbox may be sourced by others: there it must not change the shell of its caller.
		if strings.HasPrefix(text, "#!/usr/bin/env bash\n") && !strings.HasPrefix(f.path, "sandbox/") && !strict.MatchString(text) {
			t.Errorf("%s goes on after an error: it has no `set -euo pipefail`", f.path)
		}
		// grep ends at the first match, the command before it by SIGPIPE, and pipefail takes that for a failure.
		if match := quiet.FindString(text); match != "" && strict.MatchString(text) {
			t.Errorf("%s: %q: fails by chance where something matches", f.path, match)
		}
	}
}

// TestDocuments: what a document points at is there, be it a file or a make target.
func TestDocuments(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z0-9-]+):.*?## `).FindAllStringSubmatch(string(file{path: "Makefile"}.read(t)), -1) {
		targets[m[1]] = true
	}
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
			if _, err := os.Stat(filepath.Join(top(t), filepath.Dir(filepath.FromSlash(f.path)), filepath.FromSlash(m[1]))); err != nil {
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
