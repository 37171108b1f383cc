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

func event(action, pkg, test, output string) string {
	return fmt.Sprintf(`{"Action":%q,"Package":%q,"Test":%q,"Output":%q}`, action, pkg, test, output) + "\n"
}

func TestContract(t *testing.T) {
	t.Parallel()
	const pass = "contract: all 1 names of the tier gate ran and passed\n"
	passed := event("run", "p", "TestA/x", "") + event("pass", "p", "TestA/x", "")
	for _, c := range []struct {
		name, contract, events, want string
	}{
		{"passed", "gate TestA/x", passed, pass},
		{"another tier", "gate TestA/x\nheavy TestB", passed, pass},
		{"lines between that are no events", "# a comment\n\ngate TestA/x", "FAIL p [build failed]\n" + passed, pass},
		{"missing", "gate TestA/y", passed, "contract: did not run (1):\n  TestA/y\n"},
		{"killed before its end", "gate TestB", event("run", "p", "TestB", ""), "contract: failed (1):\n  TestB\n"},
		{"failed", "gate TestA/x", event("fail", "p", "TestA/x", ""), "contract: failed (1):\n  TestA/x\n"},
		{"passed when run again", "gate TestA/x", event("fail", "p", "TestA/x", "") + passed, pass},
		{"failed in one of two packages", "gate TestA/x", passed + event("fail", "q", "TestA/x", ""), "contract: failed (1):\n  TestA/x\n"},
		{"skipped in one of two packages", "gate TestA/x", passed + event("skip", "q", "TestA/x", ""), pass},
		{
			"skipped for one reason", "gate TestA\ngate TestB",
			event("output", "p", "TestA", "    a_test.go:7: no mongod\n") + event("skip", "p", "TestA", "") +
				event("output", "p", "TestB", "    b_test.go:8: no mongod\n") + event("skip", "p", "TestB", ""),
			"contract: skipped: no mongod (2):\n  TestA\n  TestB\n",
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
			ok, err := run(&out, "gate", contract, []string{events})
			if err != nil || out.String() != c.want || ok != (c.want == pass) {
				t.Errorf("%v, %v:\n%swant\n%s", ok, err, out.String(), c.want)
			}
		})
	}
}

func TestContractThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "heavy TestA", "gate", "TestA", "gates TestA", "gate TestA\ngate TestA"} {
		if names, err := due(text, "gate"); err == nil {
			t.Errorf("%q: %v, want an error", text, names)
		}
	}
}

// The contract of this project can be read, and each tier has names.
func TestContractOfThisProject(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../test/contract.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, tier := range []string{"gate", "real", "heavy"} {
		if _, err := due(string(text), tier); err != nil {
			t.Error(err)
		}
	}
}
