// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// A leave with nothing to do writes nothing; but after every command a program finds that command's own outcome.
func TestOutcomeOfNothingToDo(t *testing.T) {
	const result = "run/amsagent/result.json"
	const own = "{\n  \"schema_version\": 1,\n  \"command\": \"leave\",\n  \"outcome\": \"unchanged\",\n  \"exit_code\": 0,\n  \"at\": \"2026-11-20T08:00:00Z\"\n}\n"
	root := doctorTree(t)
	for name, tt := range map[string]struct{ last, want string }{
		"missing":               {"", own}, // /run is empty after a boot
		"no JSON":               {"joi", own},
		"of a failed leave":     {`{"command":"leave","outcome":"failed","exit_code":1}`, own},
		"of a join":             {`{"command":"join","outcome":"joined","exit_code":0}`, own},
		"of a leave":            {`{"command":"leave","outcome":"left","exit_code":0}`, `{"command":"leave","outcome":"left","exit_code":0}`},
		"of one without a need": {`{"command":"leave","outcome":"unchanged","exit_code":0}`, `{"command":"leave","outcome":"unchanged","exit_code":0}`},
	} {
		must.OK(t, os.RemoveAll(filepath.Join(root, "run")))
		if tt.last != "" {
			plant(t, root, map[string]string{result: tt.last})
		}
		code, _, _ := run(t, nil, "leave", "--offline", "--root", root)
		must.Equal(t, name+": exit", code, codeOK)
		is, err := os.ReadFile(filepath.Join(root, result))
		must.OK(t, err)
		must.Equal(t, name, string(is), tt.want)
	}
}
