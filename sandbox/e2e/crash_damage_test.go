// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// TestCrashDamaged spoils what the agent wrote down on a joined machine. A join
// refuses, changes nothing and names the way out; a leave is that way.
func TestCrashDamaged(t *testing.T) {
	n := newCrashNode(t, 1, crashNodeOptions{shm: true})
	n.learn(t)
	for _, tt := range []struct {
		name, content string
		version       bool
	}{
		{"undo.json", `{"version":1,"rec`, false},
		{"undo.json", "", false},
		{"journal", "\x00garbage", false},
		{"state.json", `{"phase":`, false},
		{"undo.json", `{"version":9}`, true},
		{"journal", `{"version":9}`, true},
		{"state.json", `{"version":9}`, true},
	} {
		t.Run(tt.name+" "+tt.content, func(t *testing.T) {
			must.OK(t, n.removeState())
			n.mustRun(t, "join")
			file := n.Path(crashStateDir + "/" + tt.name)
			was, rerr := os.ReadFile(file)
			must.OK(t, os.WriteFile(file, []byte(tt.content), 0o600))
			harmless := !tt.version && tt.name == "state.json"
			join := n.agent("join")
			if harmless != (join.Exit == 0) {
				t.Errorf("join: exit %d\n%s", join.Exit, join.Err)
			}
			if err := n.differences(n.joined); err != nil {
				t.Errorf("the join changed something: %v", err)
			}
			if join.Exit != 0 {
				for _, want := range []string{"AGENT-RECORD", "amsagent: hint: ", "'amsagent leave'", "amsagent: nothing was changed on this machine"} {
					if !strings.Contains(join.Err, want) {
						t.Errorf("join does not say %q:\n%s", want, join.Err)
					}
				}
			}
			leave := n.agent("leave")
			if tt.version {
				if leave.Exit == 0 || n.differences(n.joined) != nil || !strings.Contains(leave.Err, "another release of amsagent") {
					t.Errorf("leave: exit %d, %v\n%s", leave.Exit, n.differences(n.joined), leave.Err)
				}
				restore := os.WriteFile(file, was, 0o600)
				if rerr != nil {
					restore = os.Remove(file)
				}
				if restore != nil {
					t.Fatal(restore)
				}
				n.mustRun(t, "leave")
				if err := errors.Join(n.strays(false), n.differences(n.clean)); err != nil {
					t.Error(err)
				}
				return
			}
			if leave.Exit != 0 {
				t.Fatalf("leave: exit %d\n%s", leave.Exit, leave.Err)
			}
			if tt.name != "undo.json" {
				// The record was there: every byte comes back.
				if err := n.differences(n.clean); err != nil {
					t.Error(err)
				}
				return
			}
			// The standalone form, nothing of ours left, and the damaged file kept.
			for _, path := range []string{"etc/amsagent/mongo", "etc/systemd/system/antmedia.service.d/50-amsagent.conf"} {
				if _, err := os.Stat(n.Path(path)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there: %v", path, err)
				}
			}
			hosts, err := os.ReadFile(n.Path("etc/hosts"))
			if err != nil || strings.Contains(string(hosts), "amsagent") {
				t.Errorf("/etc/hosts: %v\n%s", err, hosts)
			}
			for _, rel := range []string{"conf/red5.properties", "webapps/LiveApp/WEB-INF/red5-web.properties"} {
				b, err := os.ReadFile(filepath.Join(n.StandIn.Tree.Dir, rel))
				if err != nil || strings.Contains(string(b), crashUser+":") {
					t.Errorf("%s is still a node's: %v\n%s", rel, err, b)
				}
			}
			kept, err := os.ReadFile(file + ".damaged-1")
			if err != nil || string(kept) != tt.content {
				t.Errorf("the damaged file is not kept: %q, %v", kept, err)
			}
			if !strings.Contains(leave.Err, "AGENT-RECORD") {
				t.Errorf("leave does not say that bytes may differ:\n%s", leave.Err)
			}
			n.mustRun(t, "join")
			n.mustRun(t, "leave")
			// Only modes and spellings may differ from the very first tree.
			n.clean = n.snapshot(t)
			n.learn2(t)
		})
	}
}

// learn2 notes how a joined tree looks that began as it is now.
func (n *crashNode) learn2(t *testing.T) {
	t.Helper()
	n.mustRun(t, "join")
	n.joined = n.snapshot(t)
	n.mustRun(t, "leave")
}
