// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/standin"
)

// mongoLogin is where MongoDB is, with a user; both the name and the password may have any letter in them.
func mongoLogin(addr, user, password string) (cluster.Target, error) {
	encode := func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
	return cluster.ParseTarget("mongodb://" + encode(user) + ":" + encode(password) + "@" + addr + "/?authSource=admin")
}

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
	dir := t.TempDir()
	mongo := servers.Start(t, mongod.Options{Users: map[string]string{"ams": password}})
	target, err := mongoLogin(mongo.Addr(), "ams", password)
	must.OK(t, err)
	m := newMachineOnDisk(t, standin.Options{Dir: dir})
	root := m.Tree.Root
	must.OK(t, os.WriteFile(filepath.Join(root, "mongo.uri"), []byte(target.URI().Reveal()+"\n"), 0o600))
	encoded := strings.TrimPrefix(target.URI().Reveal(), "mongodb://ams:")
	encoded, _, _ = strings.Cut(encoded, "@")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, args := range [][]string{
		{"join", "--mongo", "file:/mongo.uri", "--address", "127.0.0.92", "--role", "edge"},
		{"status"},
		{"leave", "--now"},
	} {
		trace := filepath.Join(dir, "trace."+args[0])
		args = append(args, "--root", root, "--provider", "generic", "--service-command", m.Wrapper, "--log-level", "debug", "--timeout", "120s")
		// -v and a large -s show whole argument lists and environments; -b lets go
		// of each program once it was seen: the server would be waited for.
		cmd := exec.CommandContext(ctx, strace, append([]string{"-f", "-b", "execve", "-qq", "-v", "-s", "65536", "-o", trace, "-e", "trace=execve", bins.agent}, args...)...)
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
