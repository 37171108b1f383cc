// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"path/filepath"
	"strings"
	"testing"
)

// Who is not root, and what is no node, get one answer of every command.
func TestOneAnswer(t *testing.T) {
	config := filepath.Join(tree(t, map[string]string{"config.yaml": ""}), "config.yaml")
	for _, args := range []string{"join --mongo 127.0.0.1", "leave", "seal --yes", "converge", "deregister", "run"} {
		// On this machine itself: nothing below is reached.
		e := &testEnv{vars: map[string]string{"AMSAGENT_PROVIDER": "none", "AMSAGENT_CONFIG": config}}
		code := Main(strings.Fields(args), e.env())
		if said := e.stderr.String(); code != exitPreflight || !strings.Contains(said, "AMS-ROOT") || !strings.Contains(said, "sudo") || !strings.Contains(said, stateUntouched) {
			t.Errorf("%s without root: exit %d\n%s", args, code, said)
		}
	}
	for args, want := range map[string]int{
		"status": exitNotMember, "drain": exitNotMember, "undrain": exitNotMember,
		// There is nothing to do for these.
		"converge": exitOK, "deregister": exitOK,
	} {
		code, stdout, stderr := run(t, map[string]string{"AMSAGENT_PROVIDER": "none"}, strings.Fields(args)...)
		if code != want {
			t.Errorf("%s on a machine that is no node: exit %d, want %d\n%s%s", args, code, want, stdout, stderr)
		}
		if args != "status" && !strings.Contains(stdout+stderr, "this machine is not a cluster node\n") {
			t.Errorf("%s:\n%s%s", args, stdout, stderr)
		}
	}
}
