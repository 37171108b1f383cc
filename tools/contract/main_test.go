// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func ev(action, pkg, test, output string) string {
	return fmt.Sprintf(`{"Action":%q,"Package":%q,"Test":%q,"Output":%q}`, action, module+pkg, test, output) + "\n"
}

func TestContract(t *testing.T) {
	t.Parallel()
	const pass = "contract: all 1 tests of gate ran and passed\n"
	passed := ev("run", "p", "TestA/x", "") + ev("pass", "p", "TestA/x", "")
	for _, c := range []struct {
		name, contract, events, want string
	}{
		{"passed", "gate p TestA/x", passed, pass},
		{"another tier", "gate p TestA/x\nheavy p TestB", passed, pass},
		{"lines between that are no events", "# a comment\n\ngate p TestA/x", "FAIL p [build failed]\n" + passed, pass},
		{"missing", "gate p TestA/y", passed, "contract: did not run (1):\n  p TestA/y\n"},
		{"killed before its end", "gate p TestB", ev("run", "p", "TestB", ""), "contract: failed (1):\n  p TestB\n"},
		{"failed", "gate p TestA/x", ev("fail", "p", "TestA/x", ""), "contract: failed (1):\n  p TestA/x\n"},
		{"passed when run again", "gate p TestA/x", ev("fail", "p", "TestA/x", "") + passed, pass},
		{"in another package", "gate q TestA/x", passed, "contract: did not run (1):\n  q TestA/x\n"},
		{"another package fails", "gate p TestA/x", passed + ev("fail", "q", "TestA/x", ""), pass},
		{
			"failed in one of two packages", "gate of/* TestA", ev("pass", "of/p", "TestA", "") + ev("fail", "of/q", "TestA", ""),
			"contract: failed (1):\n  of/* TestA\n",
		},
		{"skipped in one of two packages", "gate of/* TestA", ev("pass", "of/p", "TestA", "") + ev("skip", "of/q", "TestA", ""), pass},
		{
			"skipped for one reason", "gate p TestA\ngate p TestB",
			ev("output", "p", "TestA", "    a_test.go:7: no mongod\n") + ev("skip", "p", "TestA", "") +
				ev("output", "p", "TestB", "    b_test.go:8: no mongod\n") + ev("skip", "p", "TestB", ""),
			"contract: skipped: no mongod (2):\n  p TestA\n  p TestB\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			contract, events := filepath.Join(dir, "contract.txt"), filepath.Join(dir, "events.json")
			for name, text := range map[string]string{contract: c.contract, events: c.events} {
				if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out strings.Builder
			ok, err := check(&out, []string{"gate"}, contract, []string{events})
			if err != nil || out.String() != c.want || ok != (c.want == pass) {
				t.Errorf("%v, %v:\n%swant\n%s", ok, err, out.String(), c.want)
			}
		})
	}
}

func TestContractThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "heavy p TestA", "gate", "TestA", "gate TestA", "gates p TestA", "gate p TestA\ngate p TestA"} {
		if names, err := due(text, "gate"); err == nil {
			t.Errorf("%q: %v, want an error", text, names)
		}
	}
}

// The contract of this project can be read, and each tier has tests.
func TestContractOfThisProject(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../test/contract.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, tier := range tiers {
		if _, err := due(string(text), tier); err != nil {
			t.Error(err)
		}
	}
}

func TestPrint(t *testing.T) {
	t.Parallel()
	build := `{"ImportPath":"p","Action":"build-output","Output":"p.go:1: syntax error\n"}` + "\n" + `{"ImportPath":"p","Action":"build-fail"}` + "\n"
	for _, c := range []struct {
		name, events, want string
		ok                 bool
	}{
		{"nothing ran", "", "\nDONE 0 tests in 0.0s\n", false},
		{"no tests", ev("skip", "p", "", ""), "\nDONE 0 tests in 0.0s\n", false},
		{
			"passed: its output is left out", ev("run", "p", "TestA", "") + ev("output", "p", "TestA", "    a_test.go:1: x\n") +
				ev("pass", "p", "TestA", "") + ev("pass", "p", "", ""),
			"PASS  p (0.0s)\n\nDONE 1 tests in 0.0s\n", true,
		},
		{
			"skipped", ev("run", "p", "TestA", "") + ev("output", "p", "TestA", "--- SKIP: TestA (0.00s)\n") +
				ev("output", "p", "TestA", "    a_test.go:1: no mongod\n") + ev("skip", "p", "TestA", "") + ev("pass", "p", "", ""),
			"PASS  p (0.0s)\n\n=== SKIP: p TestA (0.00s)\n    a_test.go:1: no mongod\n\nDONE 1 tests, 1 skipped in 0.0s\n", true,
		},
		{
			"failed", ev("run", "p", "TestA", "") + ev("output", "p", "TestA", "=== RUN   TestA\n") +
				ev("output", "p", "TestA", "    a_test.go:1: x\n") + ev("fail", "p", "TestA", "") + ev("output", "p", "", "FAIL\tp\n") + ev("fail", "p", "", ""),
			"FAIL  p (0.0s)\n\n=== FAIL: p TestA (0.00s)\n    a_test.go:1: x\n\nDONE 1 tests, 1 failures in 0.0s\n", false,
		},
		{
			"its process died", ev("run", "p", "TestB", "") + ev("run", "p", "TestA", "") + ev("output", "p", "TestA", "panic: x\n") + ev("fail", "p", "", ""),
			"FAIL  p (0.0s)\n\n=== FAIL: p TestA (0.00s)\npanic: x\n\n=== FAIL: p TestB (0.00s)\n\nDONE 2 tests, 2 failures in 0.0s\n", false,
		},
		{
			"failed outside its tests", ev("run", "p", "TestA", "") + ev("pass", "p", "TestA", "") + ev("output", "p", "", "exit status 3\n") + ev("fail", "p", "", ""),
			"FAIL  p (0.0s)\n\n=== FAIL: p  (0.00s)\nexit status 3\n\nDONE 1 tests, 1 failures in 0.0s\n", false,
		},
		{
			"not compiled", build + ev("output", "p", "", "FAIL\tp [build failed]\n") + ev("fail", "p", "", ""),
			"p.go:1: syntax error\nFAIL  p (0.0s)\n\n=== FAIL: p  (0.00s)\nFAIL\tp [build failed]\n\nDONE 0 tests, 1 failures in 0.0s\n", false,
		},
		{
			"go's own error", "pattern ./x: no such directory\n" + ev("pass", "p", "", ""),
			"pattern ./x: no such directory\nPASS  p (0.0s)\n\nDONE 0 tests in 0.0s\n", true,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			ok, err := show(&out, strings.NewReader(c.events))
			if err != nil || ok != c.ok || out.String() != c.want {
				t.Errorf("%v, %v:\n%swant %v\n%s", ok, err, out.String(), c.ok, c.want)
			}
		})
	}
}
