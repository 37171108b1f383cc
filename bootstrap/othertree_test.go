// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// TestOtherTreeIsRefused: a join into files that the service does not run would
// prove nothing, and is refused before it changes anything.
func TestOtherTreeIsRefused(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	must.OK(t, os.CopyFS(filepath.Join(m.Root, "opt/ams2"), os.DirFS(filepath.Join(treesDir, "3.0"))))
	running := func(dir string) serviceThat {
		return serviceThat{state: ams.State{Activity: ams.ActivityActive, WorkingDirectory: dir}}
	}
	for _, tt := range []struct {
		name, runs string
		refused    bool
	}{
		{"another one", "/opt/ams2", true},
		{"this one", ams.DefaultDir, false},
	} {
		m.Service = running(tt.runs)
		in, err := m.Inspect(t.Context(), JoinRequest{Offline: true})
		must.OK(t, err)
		i := slices.IndexFunc(failedOf(in.Findings), func(f Finding) bool { return f.ID == IDInstall })
		if (i >= 0) != tt.refused {
			t.Errorf("%s: %v", tt.name, failedOf(in.Findings))
		}
		if i >= 0 && (!strings.Contains(failedOf(in.Findings)[i].Text, tt.runs) || failedOf(in.Findings)[i].Hint != "name the server that runs: --ams-dir "+tt.runs) {
			t.Errorf("%s: %+v", tt.name, failedOf(in.Findings)[i])
		}
	}
}

// A server that was given this tree since it was started is started again: the document of the one that runs proves
// nothing of these files.
func TestJoinOfATreeThatRunsLater(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	must.OK(t, os.CopyFS(filepath.Join(m.Root, "opt/ams2"), os.DirFS(filepath.Join(treesDir, "3.0"))))
	in, err := m.open()
	must.OK(t, err)
	for dir, want := range map[string]bool{ams.DefaultDir: false, "/opt/ams2": true} {
		pid := process(t, m.Root, time.Hour)
		cwd := filepath.Join(m.Root, fmt.Sprintf("proc/%d/cwd", pid))
		must.OK(t, errors.Join(os.RemoveAll(cwd), os.Symlink(dir, cwd)))
		now := time.Now()
		st := ams.State{Activity: ams.ActivityActive, MainPID: pid, WorkingDirectory: ams.DefaultDir}
		j := &joiner{
			Machine: m, result: &JoinResult{},
			seen:  []cluster.AMSNode{{ID: "x", IP: "10.0.1.7", LastUpdate: now}},
			facts: &facts{install: in, service: st, plan: m.store().NewPlan(nil), address: ams.Address{Addr: netip.MustParseAddr("10.0.1.7")}},
		}
		if got := j.mustRestart(); got != want {
			t.Errorf("a server in %s: restart %v", dir, got)
		}
	}
}
