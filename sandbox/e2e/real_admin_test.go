// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/sandbox/realams"
)

// What an operator does by hand on a real server while the daemon runs: an application
// in the panel, one by the vendor's script, and standalone mode by the vendor's script. The daemon
// restarts nothing and writes none of the server's files (issue 11: S2, S5).
func TestRealAdmin(t *testing.T) {
	t.Parallel()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	n := newRealNode(t, w, realams.Newest)
	n.AllowAgent(t)
	n.join(w.URI())
	n.settled()
	d := n.daemon()
	d.ready()

	asked := n.Asked()
	n.panel(http.MethodPost, "inpanel", nil)
	n.WaitServed(t, "inpanel")
	n.idle(10 * time.Second) // the server writes its settings
	written := n.Files(t, realams.Home+"/webapps/inpanel/WEB-INF")
	n.quiet(d, 45*time.Second)
	n.asked("the daemon, after an application was made in the panel,", asked)
	if diff := cmp.Diff(written, n.Files(t, realams.Home+"/webapps/inpanel/WEB-INF")); diff != "" {
		t.Errorf("the daemon wrote files of the application that was made in the panel:\n%s", diff)
	}

	// The server takes such an application at its next start; until then it is nothing
	// that a viewer could ask for, and no reason to send viewers elsewhere.
	n.MustRun(t, "bash", realams.Home+"/create_app.sh", "-n", "newapp", "-c", "true", "-m", w.URI())
	n.MustRun(t, "chown", "-R", "antmedia:antmedia", realams.Home+"/webapps/newapp")
	made := n.Files(t, realams.Home+"/webapps/newapp/WEB-INF")
	n.idle(45 * time.Second)
	n.asked("the daemon, after create_app.sh,", asked)
	if diff := cmp.Diff(made, n.Files(t, realams.Home+"/webapps/newapp/WEB-INF")); diff != "" {
		t.Errorf("the daemon wrote files of the new application:\n%s", diff)
	}
	if code := d.readyz(); code != http.StatusOK {
		t.Errorf("/readyz answers %d after create_app.sh, and viewers are served", code)
	}

	n.MustRun(t, "bash", realams.Home+"/change_server_mode.sh", "standalone")
	asked = n.Asked()
	if got := asked[len(asked)-2:]; got[0] != "stop" || got[1] != "start" {
		t.Fatalf("the script asked the service for %v", got)
	}
	written = n.Files(t, realams.Home+"/conf")
	n.WaitServed(t, "LiveApp")
	n.idle(45 * time.Second)
	n.asked("the daemon, after change_server_mode.sh standalone,", asked)
	if now := n.Files(t, realams.Home+"/conf"); now[realams.Home+"/conf/jee-container.xml"] != written[realams.Home+"/conf/jee-container.xml"] {
		t.Error("the daemon made the server's files those of a cluster again")
	}
	if code := d.readyz(); code == http.StatusOK {
		t.Error("/readyz says ready for a server that was made standalone")
	}
	out, _ := n.Run(t, bins.agent, "status")
	for _, way := range []string{"amsagent join", "amsagent leave"} {
		if !strings.Contains(out, way) {
			t.Errorf("status does not name the way out %q:\n%s", way, out)
		}
	}
	t.Logf("status says:\n%s", out)
	d.end()
}

// idle lets the daemon do what it does by itself.
func (n *realNode) idle(d time.Duration) {
	n.t.Helper()
	if n.Server() == 0 {
		n.t.Error("the server does not run")
	}
	wait(d)
}
