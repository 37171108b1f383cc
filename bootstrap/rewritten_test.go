// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// realDir holds files as a real server rewrote them, beside the project.
const realDir = "../../shared/corpus/real"

// TestServerRewroteItsFiles: in cluster mode the server rewrites the settings of every application at each start, in any order
// and with Java's escapes. That causes no repair, write or restart, and leave still reverts the join.
func TestServerRewroteItsFiles(t *testing.T) {
	t.Parallel()
	const mongo = "mongodb://plain:secret1@10.77.0.1:27311/?authSource=admin"
	sources := map[string]string{"own": "testdata/rewritten.properties"}
	found, err := filepath.Glob(filepath.Join(realDir, "*/webapps/*/WEB-INF/red5-web.properties"))
	must.OK(t, err)
	for _, name := range found {
		rel, err := filepath.Rel(realDir, name)
		must.OK(t, err)
		sources[rel] = name
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			saved, err := os.ReadFile(source)
			must.OK(t, err)
			m := ownTree(t, "3.0", "3.0.3")
			must.OK(t, os.MkdirAll(filepath.Join(m.Root, "etc/systemd/system"), 0o755))
			m.DropIn = true
			joinOffline(t, m, mongo, "10.0.1.7")
			must.OK(t, remember(m, State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.7", Provider: "aws", Release: "3.0.3"}))
			app := filepath.Join(m.Root, ams.DefaultDir, "webapps/LiveApp/WEB-INF/red5-web.properties")
			must.OK(t, os.WriteFile(app, saved, 0o644))
			m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, StopTimeout: time.Second}}
			before := snapshot(t, m)

			req := convergeRequest(t, joinedAs(), nil)
			req.Mongo, req.Valve, req.Address = mustTarget(t, mongo), ValveKeep, netip.MustParseAddr("10.0.1.7").String()
			if c := converge(t, m, req); len(c.Repairs) > 0 || c.RestartNeeded {
				t.Errorf("repairs %v, restart %v", c.Repairs, c.RestartNeeded)
			}
			if res := joinOffline(t, m, mongo, "10.0.1.7"); res.Outcome != OutcomeUnchanged {
				t.Errorf("a second join: %s, want unchanged", res.Outcome)
			}
			after := snapshot(t, m)
			for name, was := range before {
				if after[name] != was {
					t.Errorf("%s was written", name)
				}
			}
			m.Service = ams.None{}
			leaveOffline(t, m)
			b, err := os.ReadFile(app)
			must.OK(t, err)
			left, err := conf.ParseProperties(b)
			must.OK(t, err)
			was, err := conf.ParseProperties(saved)
			must.OK(t, err)
			for _, key := range was.Keys() {
				want, _ := was.Get(key)
				switch key {
				case "db.type":
					want = "mapdb"
				case "db.host":
					want = "localhost"
				}
				if got, _ := left.Get(key); got != want {
					t.Errorf("%s is %q after the leave, want %q", key, got, want)
				}
			}
		})
	}
}
