// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
)

// TestOtherTreeIsRefused: a join into files that the service does not run would
// prove nothing, and is refused before it changes anything.
func TestOtherTreeIsRefused(t *testing.T) {
	m := ownTree(t, "3.0", "3.0.3")
	if err := os.CopyFS(filepath.Join(m.Root, "opt/ams2"), os.DirFS(filepath.Join(treesDir, "3.0"))); err != nil {
		t.Fatal(err)
	}
	running := func(dir string) serviceThat {
		return serviceThat{state: ams.State{Activity: ams.ActivityActive, Homes: []ams.Home{{Dir: dir, Source: "WorkingDirectory="}}}}
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
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(in.Failed, func(f Finding) bool { return f.ID == IDInstall })
		if (i >= 0) != tt.refused {
			t.Errorf("%s: %v", tt.name, in.Failed)
		}
		if i >= 0 && (!strings.Contains(in.Failed[i].Text, tt.runs) || in.Failed[i].Hint != "name the server that runs: --ams-dir "+tt.runs) {
			t.Errorf("%s: %+v", tt.name, in.Failed[i])
		}
	}
}
