// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// On a tree that is not this machine: every part is there, also where the settings are wrong.
func TestSupport(t *testing.T) {
	type part struct {
		exit int
		text string
	}
	const parts = 16
	for config, want := range map[string]map[string]part{
		"role: edge\n": {
			"amsagent version": {codeOK, "amsagent "}, "amsagent config": {codeOK, "edge"},
			"amsagent nodes --all": {codeUsage, "[AMS-MONGO-MISSING]"}, "uname -a": {-1, "not asked: "},
		},
		"rule: edge\n": {
			"amsagent version": {codeOK, "amsagent "}, "amsagent config": {codeUsage, "rule"},
			"amsagent nodes --all": {codeUsage, "rule"}, "uname -a": {-1, "not asked: "},
		},
	} {
		root := tree(t, map[string]string{"etc/amsagent/config.yaml": config})
		e := &testEnv{vars: map[string]string{"AMSAGENT_PROVIDER": "generic", "AMSAGENT_GROUP": "password=hush"}}
		env := e.env()
		env.Executable = func() (string, error) { return exec.LookPath("amsagent") } // TestMain puts it there
		code := Main([]string{"support", "--root", root, "-o", "json"}, env)
		stdout, stderr := e.stdout.String(), e.stderr.String()
		var got struct {
			Parts []struct {
				Command, Text string
				Exit          int
			}
		}
		if err := json.Unmarshal([]byte(stdout), &got); code != codeOK || err != nil {
			t.Fatalf("exit %d, %v\n%s%s", code, err, stdout, stderr)
		}
		if strings.Contains(stdout+stderr, "hush") {
			t.Errorf("%s: the password is shown:\n%s", config, stdout)
		}
		must.Equal(t, "parts", len(got.Parts), parts)
		said := map[string]part{}
		for _, p := range got.Parts {
			said[p.Command] = part{p.Exit, p.Text}
			if p.Text == "" {
				t.Errorf("%s says nothing", p.Command)
			}
		}
		for command, want := range want {
			if p := said[command]; p.exit != want.exit || !strings.Contains(p.text, want.text) {
				t.Errorf("%s: exit %d\n%s", command, p.exit, p.text)
			}
		}
	}
}

func TestSupportPrograms(t *testing.T) {
	if exit, said := runOfSystem(t.Context(), "", []string{"sh", "-c", "echo a; echo b >&2; exit 3"}); exit != 3 || string(said) != "a\nb\n" {
		t.Errorf("exit %d, %q", exit, said)
	}
	if exit, said := runOfSystem(t.Context(), "", []string{"amsagent-no-such-program"}); exit != 127 || !bytes.Contains(said, []byte("No such file")) {
		t.Errorf("one that is not there: exit %d, %q", exit, said)
	}
	must.NoDiff(t, "the last 8 bytes", lastOf([]byte("one\ntwo\nthree\n"), 8), "(the first 8 bytes are left out)\nthree\n")
}
