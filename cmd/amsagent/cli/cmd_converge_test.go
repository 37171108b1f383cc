// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
)

// nodeWithService is the root of a node, and a service command in it that runs a script.
func nodeWithService(t *testing.T, script string) (root, command string) {
	t.Helper()
	root = tree(t, map[string]string{
		"var/lib/amsagent/state.json!": `{"version":1,"phase":"joined","instance_id":"i-1","address":"10.0.0.1"}`,
		"service":                      "#!/bin/sh\n" + script + "\n",
	})
	command = filepath.Join(root, "service")
	must.OK(t, os.Chmod(command, 0o755))
	return root, command
}

// The environment of the server's unit may come from a file that the server's user writes.
func TestBeforeStartTakesNoSettingsFromTheEnvironment(t *testing.T) {
	root, command := nodeWithService(t, `: >"${0%/*}/called"`)
	called := func() bool {
		_, err := os.Stat(filepath.Join(root, "called"))
		return !errors.Is(err, fs.ErrNotExist)
	}
	vars := map[string]string{
		"AMSAGENT_SERVICE_COMMAND": command, "AMSAGENT_CONFIG": "/nowhere", "AMSAGENT_TIMEOUT": "no duration", "AMSAGENT_MONGO": "file:/service",
	}
	if code, _, stderr := run(t, vars, "converge", "--before-start", "--root", root); code != codeOK || called() {
		t.Errorf("exit %d, the command was called: %v\n%s", code, called(), stderr)
	}
	// A flag is an operator's.
	if code, _, stderr := run(t, nil, "converge", "--before-start", "--root", root, "--service-command", command); code != codeOK || !called() {
		t.Errorf("by a flag: exit %d, the command was called: %v\n%s", code, called(), stderr)
	}
}

// A service command that hangs does not keep the server from starting.
func TestBeforeStartIsBounded(t *testing.T) {
	t.Parallel()
	root, command := nodeWithService(t, `sleep 60; : >"${0%/*}/over"`)
	code, _, stderr := run(t, nil, "converge", "--before-start", "--root", root, "--service-command", command)
	if _, err := os.Stat(filepath.Join(root, "over")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it waited for the service command: %v", err)
	}
	if code != codeOK || !strings.Contains(stderr, "the server starts with the files as they are") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}

// The journal of the server's unit names a half written file, and no warning that is for an operator.
func TestBeforeStartTellsOfHalfAFile(t *testing.T) {
	c := &bootstrap.Convergence{
		Repairs:  []bootstrap.Finding{{ID: bootstrap.IDDrift, Text: "written again: /x"}},
		Warnings: []bootstrap.Finding{{ID: bootstrap.IDConflict, Text: "changed"}, {ID: bootstrap.IDTorn, Text: "half written: /x"}},
	}
	must.Equal(t, "before start line", beforeStartLine(c, nil), "AMS-DRIFT: written again: /x; AMS-TORN: half written: /x")
}

func TestForgottenEnvironment(t *testing.T) {
	for dir, isSystemds := range map[string]bool{"/run/credentials/antmedia.service": true, "/opt/antmedia": false} {
		cleared := false
		e := (&testEnv{vars: map[string]string{
			"CREDENTIALS_DIRECTORY": dir, "INVOCATION_ID": "1", "AMSAGENT_ROOT": "/x", "AWS_ENDPOINT_URL": "http://x", "DBUS_SYSTEM_BUS_ADDRESS": "x",
		}}).env()
		e.Clearenv = func() { cleared = true }
		e.forget()
		for name, kept := range map[string]bool{
			"CREDENTIALS_DIRECTORY": isSystemds, "INVOCATION_ID": true, "AMSAGENT_ROOT": false, "AWS_ENDPOINT_URL": false, "DBUS_SYSTEM_BUS_ADDRESS": false,
		} {
			if got := e.getenv(name); (got != "") != kept {
				t.Errorf("%s: %s is %q", dir, name, got)
			}
		}
		if !cleared || len(e.Environ()) > 0 {
			t.Errorf("%s: cleared %v, %v", dir, cleared, e.Environ())
		}
	}
}
