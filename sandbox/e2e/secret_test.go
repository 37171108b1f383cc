// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// TestNoProcessGetsTheSecret looks at every program that a join and a leave
// start, with its arguments and its environment: none of them holds the password,
// which every user of the machine could read there.
func TestNoProcessGetsTheSecret(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: the programs it starts are not watched")
	}
	const password = "s3cret@&\\ w0rd"
	o := singleOptions(servers.Start(t, mongod.Options{Users: map[string]string{"ams": password}}), "127.0.0.92")
	o.Env = []string{"AMSAGENT_PROVIDER=generic", "AMSAGENT_LOG_LEVEL=debug", "AMSAGENT_TIMEOUT=120s"}
	n := rig.New(t, o)
	uri := n.Mongo.LoginURI()
	n.Write("mongo.uri", uri+"\n")
	encoded, _, _ := strings.Cut(strings.TrimPrefix(uri, "mongodb://ams:"), "@")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, args := range [][]string{
		{"join", "--mongo", "file:/mongo.uri", "--address", "127.0.0.92", "--role", "edge"},
		{"status"},
		{"leave", "--now"},
	} {
		trace := filepath.Join(t.TempDir(), "trace")
		// -v and a large -s show whole argument lists and environments; -b lets go
		// of each program once it was seen: the server would be waited for.
		cmd := exec.CommandContext(ctx, strace, append([]string{"-f", "-b", "execve", "-qq", "-v", "-s", "65536", "-o", trace, "-e", "trace=execve", n.Agent}, args...)...)
		cmd.Env = n.Cmd().Env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		seen, err := os.ReadFile(trace)
		must.OK(t, err)
		if n := strings.Count(string(seen), "execve("); n < 2 {
			t.Errorf("%s: strace saw %d programs: this proves nothing", args[0], n)
		}
		for _, form := range []string{"s3cret", encoded} {
			if strings.Contains(string(seen), form) {
				t.Errorf("%s: a program it started got the password (%s)", args[0], form)
			}
			if strings.Contains(string(out), form) {
				t.Errorf("%s: it printed the password (%s)", args[0], form)
			}
		}
	}
}
