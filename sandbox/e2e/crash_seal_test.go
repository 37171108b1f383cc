// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && amd64

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// TestCrashKillSeal kills a seal before every call that changes something. The next seal succeeds each time, and the disk is the
// same as after a seal that was not killed.
func TestCrashKillSeal(t *testing.T) {
	dir := memoryDir(t)
	used := filepath.Join(dir, "used")
	tr, err := tree.Write(used, tree.Options{Host: "node", HostResolves: true})
	must.OK(t, err)
	for name, text := range map[string]string{
		tr.Dir + "/conf/instanceId": "id", tr.Dir + "/server.db": "users", tr.Dir + "/liveapp.db": "streams", tr.Dir + "/log/a.log": "line\n",
		tr.Dir + "/webapps/LiveApp/.initialized": "", used + "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
	} {
		must.OK(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must.OK(t, os.WriteFile(name, []byte(text), 0o644))
	}
	join := exec.Command(bins.agent, "join", "--root", used, "--offline", "--mongo", "10.0.2.4", "--address", "10.0.0.5", "--provider", "generic")
	leave := exec.Command(bins.agent, "leave", "--root", used, "--offline")
	for _, cmd := range []*exec.Cmd{join, leave} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	seal := func(root string, s shot) (traced, error) {
		return traceAgent([]string{bins.agent, "seal", "--yes", "--root", root, "-o", "json"}, os.Environ(), s)
	}
	look := func(root string) ([]string, error) {
		// The agent's own lock may be there or not.
		return tree.Snapshot(root, "run", "proc")
	}
	fresh := func(name string) (string, error) {
		root := filepath.Join(dir, name)
		out, err := exec.Command("cp", "-a", used, root).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%w\n%s", err, out)
		}
		return root, nil
	}
	whole, err := fresh("whole")
	must.OK(t, err)
	probe, err := seal(whole, shot{})
	if err != nil || probe.Exit != 0 {
		t.Fatalf("exit %d, %v\n%s", probe.Exit, err, probe.Err)
	}
	want, err := look(whole)
	must.OK(t, err)
	killed := 0
	for at := 1; at <= len(probe.Calls); at++ {
		root, err := fresh(fmt.Sprintf("at-%d", at))
		must.OK(t, err)
		r, err := seal(root, shot{At: at, Kill: true})
		must.OK(t, err)
		if r.Hit != nil {
			killed++
		}
		if r, err := seal(root, shot{}); err != nil || r.Exit != 0 {
			t.Errorf("killed at %d: the next seal: exit %d, %v\n%s", at, r.Exit, err, r.Err)
		}
		now, err := look(root)
		must.OK(t, err)
		if !slices.Equal(want, now) {
			t.Errorf("killed before %v:\n%s", r.Hit, nodeDifference(want, now))
		}
		must.OK(t, os.RemoveAll(root))
	}
	t.Logf("killed %d times: %s", killed, tally(probe.Calls))
	if killed < len(probe.Calls)-3 || killed < 12 {
		t.Errorf("%d kills of %d calls", killed, len(probe.Calls))
	}
}
