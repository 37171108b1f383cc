// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

// TestNameThatIsNotUTF8: the journal and the undo record are JSON, which cannot hold the name of such a folder. Each
// command leaves the application alone and does its work on the others.
func TestNameThatIsNotUTF8(t *testing.T) {
	t.Parallel()
	const app, settings = "webapps/caf\xe9/WEB-INF/red5-web.properties", "db.type=mongodb\ndb.host=mongodb://u:p@10.0.9.9\n"
	for name, scripted := range map[string]bool{"a join": false, "the script's": true} {
		t.Run(name, func(t *testing.T) {
			m := ownTree(t, "3.0", "3.0.3")
			if scripted {
				m = scriptedTree(t)
			}
			put(t, m, filepath.Join(ams.DefaultDir, app), settings)
			check := func(what string, found []Finding, named bool) {
				t.Helper()
				var texts []string
				for _, f := range found {
					if f.ID == ams.WarnAppEncoding {
						texts = append(texts, f.Text)
					}
				}
				if (len(texts) == 1) != named || named && !strings.Contains(texts[0], `/webapps/caf\xe9"`) {
					t.Errorf("%s: %q", what, texts)
				}
				if b, err := os.ReadFile(filepath.Join(m.Root, ams.DefaultDir, app)); err != nil || string(b) != settings {
					t.Errorf("%s: %v; the file is now\n%s", what, err, b)
				}
			}
			check("join", joinOffline(t, m, testMongo, "10.0.1.7").Warnings, true)
			if got := property(t, m, liveFile, "db.host"); got != testMongo {
				t.Errorf("db.host is %s after the join", got)
			}

			must.OK(t, remember(m, State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.7", Provider: "aws", Release: "3.0.3", Standalone: scripted}))
			edit(t, m, liveFile, "10.0.2.4", "10.0.9.9")
			check("converge", converge(t, m, convergeRequest(t, joinedAs(), nil)).Warnings, false) // doctor does
			if got := property(t, m, liveFile, "db.host"); got != testMongo {
				t.Errorf("db.host is %s after converge", got)
			}
			if _, err := m.Status(t.Context(), StatusRequest{}); err != nil {
				t.Errorf("status: %v", err)
			}

			check("leave", leaveOffline(t, m).Warnings, scripted)
			if got := property(t, m, liveFile, "db.type"); got != "mapdb" {
				t.Errorf("db.type is %s after the leave", got)
			}
			check("seal", sealed(t, m, SealRequest{}).Warnings, true)
		})
	}
}
