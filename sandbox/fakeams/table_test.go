// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams_test

import (
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/internal/amstable"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// A server that does not come up refuses liveness, as the real one does in its first seconds.
func TestNeverUp(t *testing.T) {
	t.Parallel()
	o := quick(install(t, tree.Options{}))
	o.Behaviour.NeverUp = true
	status, _ := request(t, "GET", "http://"+start(t, o).HTTPAddr()+"/rest/v2/liveness")
	must.Equal(t, "liveness", status, http.StatusForbidden)
}

// The real server is held to the same table by TestRealTable of package realams.
func TestTable(t *testing.T) {
	t.Parallel()
	m := mongo1(t, mongod.Options{})
	tr := install(t, tree.Options{Apps: []string{"live"}})
	secured(t, tr)
	o := quick(tr)
	o.Control, o.Community, o.SaveAtStart = "127.0.0.1:0", true, true
	o.AppStart = 200 * time.Millisecond
	host := "mongodb://" + m.Addr()
	var s *fakeams.Server
	ask := func(t *testing.T, method, path string) {
		t.Helper()
		if status, body := request(t, method, "http://"+s.ControlAddr()+path); status != http.StatusOK {
			t.Fatalf("%s %s: %d %s", method, path, status, body)
		}
	}
	amstable.Hold(t, amstable.Server{
		Start: func(*testing.T) {
			if s == nil {
				join(t, tr, host)
			}
			s = start(t, o)
		},
		Stop: func(t *testing.T) {
			must.OK(t, s.Stop(t.Context()))
		},
		Kill: func(t *testing.T) {
			must.OK(t, s.Close())
		},
		Publish: func(t *testing.T, app, stream string) func() {
			path := "/stream?app=" + app + "&id=" + stream
			ask(t, http.MethodPost, path)
			return func() { ask(t, http.MethodDelete, path) }
		},
		Settings: func(t *testing.T, app string) []byte {
			b, err := os.ReadFile(tr.App(app))
			must.OK(t, err)
			return b
		},
		Complete: (&ams.Installation{Root: tr.Root, Dir: ams.DefaultDir}).Initialized,
		Client:   &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		URL:      func() string { return "http://" + s.HTTPAddr() },
		Token:    token(),
		Apps:     []string{"LiveApp", "WebRTCAppEE", "live"}, Address: o.HostAddress, MongoHost: host,
		Mongo: database(t, m.URI(), "clusterdb").Client(),
	})
}
