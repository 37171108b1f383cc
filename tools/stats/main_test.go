// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func writeFiles(t *testing.T, files map[string]string) (top string) {
	t.Helper()
	top = t.TempDir()
	files["go.mod"] = "module example.com/m\n\ngo 1.26\n"
	for name, text := range files {
		name = filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return top
}

func TestInsides(t *testing.T) {
	t.Parallel()
	top := writeFiles(t, map[string]string{
		"p/p.go": `package p

type T struct{ field int }

func (t T) Public() int { return t.hidden() }
func (t T) hidden() int { return t.field }
func New() T            { return T{} }
func unexported()       {}
`,
		"p/p_test.go": `package p

import "testing"

func TestMain(m *testing.M) { unexported(); m.Run() }

func TestFunction(*testing.T) { unexported() }
func TestField(*testing.T)    { _ = New().field }
func TestMethod(*testing.T)   { _ = New().hidden() }
func TestHelper(*testing.T)   { help() }
func TestTable(*testing.T)    { _ = table }
func TestWorld(*testing.T)    { world[int]{}.visit() }
func TestPublic(t *testing.T) { local := New(); _ = local.Public(); harmless(); _ = world[int]{} }
func Test(t *testing.T)       { New() }
func Testament()              { unexported() }
func FuzzIt(f *testing.F)     { unexported() }

func help()     { further() }
func further()  { help(); unexported() }
func harmless() { harmless() }

var table = []any{T.hidden}

type world[V any] struct{}

func (world[V]) visit() { unexported() }
`,
		"p/export_test.go": `package p

var Exported = unexported
`,
		"p/e2e_test.go": `//go:build e2e

package p_test

import (
	"testing"

	"example.com/m/p"
)

func TestOutside(t *testing.T)  { p.New().Public() }
func TestExported(t *testing.T) { p.Exported() }
`,
		"untested/u.go": "package untested\n",
	})
	counted, err := countInsides(top)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"example.com/m/p: 7 of 10", "    TestExported: unexported", "    TestField: field", "    TestFunction: unexported",
		"    TestHelper: unexported", "    TestMethod: hidden", "    TestTable: hidden", "    TestWorld: unexported",
	}
	if got := listInsides(counted); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestFailsNothing: unknown folders and broken files are printed; only a folder without a checkout is an error.
func TestFailsNothing(t *testing.T) {
	t.Parallel()
	top := writeFiles(t, map[string]string{
		"new/n.go":                      "package new\n",
		"lifecycle/l.go":                "package lifecycle\n\nfunc broken( {\n",
		"bootstrap/doctor/lint/l.go":    "package lint\n\nfunc F() {}\n",
		"testdata/script/story.txtar":   "# one\n# two\n",
		"lb/testdata/not-a-story.txtar": "-- a --\n",
	})
	var out strings.Builder
	if err := run(&out, top, ""); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"lifecycle 3 had 3415", "these together 3 17430", "bootstrap 0 6200", "lint 3 340", "elsewhere: new 1 0", "agent in all 7 45500",
		"beside it: 1 stories as text 2", "only its lines are counted: lifecycle/l.go:3:14: ", "word finds are not counted: ", "not all tests are counted: ",
	} {
		if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, want) {
			t.Errorf("want %q in\n%s", want, out.String())
		}
	}
	if err := run(&out, filepath.Join(top, "new"), ""); err == nil {
		t.Error("a folder without go.mod is accepted")
	}
}
