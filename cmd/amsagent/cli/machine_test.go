// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/must"
)

// A join with nothing to do writes nothing; but after every command a program finds that command's own outcome.
func TestOutcomeOfNothingToDo(t *testing.T) {
	for name, tt := range map[string]struct {
		last  string // "" without a file: /run is empty after a boot
		write bool
	}{
		"missing":               {"", true},
		"no JSON":               {"joi", true},
		"of a failed join":      {`{"command":"join","outcome":"failed","exit_code":1}`, true},
		"of a leave":            {`{"command":"leave","outcome":"left","exit_code":0}`, true},
		"of a join":             {`{"command":"join","outcome":"joined","exit_code":0}`, false},
		"of one without a need": {`{"command":"join","outcome":"unchanged","exit_code":0}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{}
			if tt.last != "" {
				files[resultPath] = tt.last
			}
			g := plainGlobals(&testEnv{})
			g.settings.Root = tree(t, files)
			must.OK(t, g.conclude("join", false, bootstrap.OutcomeUnchanged, nil, nil))
			b, err := os.ReadFile(g.settings.Root + resultPath)
			must.OK(t, err)
			if !tt.write {
				must.Equal(t, "it wrote", string(b), tt.last)
				return
			}
			want := outcome{SchemaVersion: output.SchemaVersion, Command: "join", Outcome: "unchanged", At: fixedNow()}
			var got outcome
			if err := json.Unmarshal(b, &got); err != nil || got != want {
				t.Errorf("%v: %s", err, b)
			}
		})
	}
}
