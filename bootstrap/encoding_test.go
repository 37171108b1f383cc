// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

// The journal and the undo record are JSON, which cannot have a name that is not UTF-8. Each
// command leaves the application alone and does its work on the others.
func TestNameThatIsNotUTF8(t *testing.T) {
	t.Parallel()
	const app, settings = "webapps/caf\xe9/WEB-INF/red5-web.properties", "db.type=mongodb\ndb.host=mongodb://u:p@10.0.9.9\n"
	for name, tree := range map[string][]step{"a join": nil, "the script's": {scripted}} {
		t.Run(name, func(t *testing.T) {
			m := newTree(t, append(tree, with(app, settings))...)
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
				must.Equal(t, "the file after "+what, content(t, m, app), settings)
			}
			check("join", joinOffline(t, m, testMongo, "10.0.1.7").Warnings, true)
			must.Equal(t, "db.host after the join", property(t, m, liveFile, "db.host"), testMongo)

			do(t, m, remembered, edited(liveFile, "10.0.2.4", "10.0.9.9"))
			change(t, m, func(s *State) { s.Standalone = tree != nil })
			check("converge", converge(t, m, convergeRequest(t, joinedAs(), nil)).Warnings, false) // doctor does
			must.Equal(t, "db.host after converge", property(t, m, liveFile, "db.host"), testMongo)
			_, err := m.Status(t.Context(), StatusRequest{})
			must.OK(t, err)

			check("leave", leaveOffline(t, m).Warnings, tree != nil)
			must.Equal(t, "db.type after the leave", property(t, m, liveFile, "db.type"), "mapdb")
			check("seal", sealed(t, m, SealRequest{}).Warnings, true)
		})
	}
}
