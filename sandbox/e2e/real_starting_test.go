// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/sandbox/realams"
)

// Joins under another user of MongoDB, a converge, and a leave, while the applications of a real
// server start, which is when the server writes their settings from its own memory
// (R5): neither loses what the other wrote.
func TestRealWhileStarting(t *testing.T) {
	t.Parallel()
	users := map[string]string{"first": "secret-one", "second": "secret-two"}
	w := realams.New(t, realams.Options{Users: users})
	n := newRealNode(t, w, realRelease())
	n.AllowAgent(t)
	n.join(w.URIOf("first"))
	n.settled()
	n.changeSetting()
	n.settled()

	moments := []struct {
		name string
		is   func() bool
	}{
		{"the port is open", func() bool { return n.Local("/rest/v2/liveness") != 0 }},
		// LiveApp starts last. A request during its start makes it lose its settings.
		{"the applications are being initialized", func() bool {
			return n.Local("/rest/v2/liveness") == http.StatusOK && n.Served("LiveApp") == 0
		}},
		{"the first application serves", func() bool {
			for _, app := range realApps(n.Release) {
				if n.Served(app) == http.StatusOK {
					return true
				}
			}
			return false
		}},
	}
	restart := func(moment string, is func() bool) {
		t.Helper()
		before := n.Server()
		again := n.Start(t, realams.Service, "restart")
		until(t, moment, func() string {
			if now := n.Server(); now == 0 || now == before || !is() {
				return "not yet; the service says: " + again.Output()
			}
			return ""
		})
	}
	now, other := "first", "second"
	// user-data runs the same join at each boot.
	restart(moments[1].name, moments[1].is)
	asked := n.Asked()
	if out := n.join(w.URIOf(now)); !strings.Contains(out, "nothing to do") {
		t.Errorf("the same join when %s says: %s", moments[1].name, out)
	}
	n.asked("the same join when "+moments[1].name, asked)
	for _, m := range moments {
		now, other = other, now
		restart(m.name, m.is)
		if out := n.join(w.URIOf(now)); !strings.Contains(out, "in the cluster as "+n.Address) {
			t.Errorf("a join when %s says: %s", m.name, out)
		}
		n.settled()
		for _, app := range realApps(n.Release) {
			text := n.Read(t, realams.Home+"/webapps/"+app+"/WEB-INF/red5-web.properties")
			if !strings.Contains(text, users[now]) || strings.Contains(text, users[other]) {
				t.Errorf("after a join when %s the settings of %s are not those of the user %s:\n%s", m.name, app, now, text)
			}
		}
		n.setting(m.name)
	}

	// The server saves a copy of the settings that it reads at this start.
	n.MustRun(t, "sed", "-i", `s/`+now+`\(\\*:\)`+users[now]+`@/`+other+`\1`+users[other]+`@/`, realams.Home+"/webapps/LiveApp/WEB-INF/red5-web.properties")
	restart(moments[1].name, moments[1].is)
	out := n.MustRun(t, bins.agent, "converge")
	if !strings.Contains(out, "AMS-DRIFT") || !strings.Contains(out, "amsagent drain && amsagent join") {
		t.Errorf("a converge when %s says: %s", moments[1].name, out)
	}
	n.settled()
	if text := n.Read(t, realams.Home+"/webapps/LiveApp/WEB-INF/red5-web.properties"); !strings.Contains(text, users[other]) {
		t.Errorf("a converge when %s wrote the settings of a server that runs:\n%s", moments[1].name, text)
	}

	restart(moments[1].name, moments[1].is)
	out = n.MustRun(t, bins.agent, "leave", "--now")
	n.WaitServed(t, realApps(n.Release)...)
	n.settled()
	for name := range n.files() {
		text := n.Read(t, name)
		for _, password := range users {
			if strings.Contains(text, password) {
				t.Errorf("%s has a password after a leave, which says: %s", name, out)
			}
		}
	}
	n.setting("the node left")
}

// setting checks that the server keeps the setting of changeSetting.
func (n *realNode) setting(when string) {
	n.t.Helper()
	text := n.Read(n.t, realams.Home+"/webapps/LiveApp/WEB-INF/red5-web.properties")
	if !strings.Contains(text, "\nhlsListSize=11\n") {
		n.t.Errorf("when %s, the setting that an operator changed is lost:\n%s", when, text)
	}
}
