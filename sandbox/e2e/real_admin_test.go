// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// TestRealAdmin changes a real server by hand while the daemon runs: an application and settings in the panel; an application, a
// certificate and standalone mode by the vendor's scripts. The daemon, which checks its files once a minute, restarts nothing and
// writes none of the server's files (issue 11: S2, S5).
func TestRealAdmin(t *testing.T) {
	t.Parallel()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	n := newRealNode(t, w, realRelease())
	n.AllowAgent(t)
	n.join(w.URI())
	n.settled()
	d := n.daemon()
	d.ready()

	asked := n.Asked()
	n.made = []string{"inpanel", "newapp"}
	n.panel(http.MethodPost, "inpanel", nil)
	n.WaitServed(t, "inpanel")
	n.serverName("media.example.org")
	n.idle(10 * time.Second) // the server writes its settings
	written := n.files()
	n.named(written, "inpanel")
	n.quiet(d, look)
	n.asked("the daemon, after changes in the panel,", asked)
	n.same("the daemon, after changes in the panel,", written)

	n.MustRun(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=media.example.org", "-keyout", "/run/key.pem", "-out", "/run/cert.pem")
	// enable_ssl.sh installs packages for Let's Encrypt, which this test does not use.
	n.MustRun(t, "sh", "-c", "printf '#!/bin/sh\n' >/usr/local/sbin/apt && chmod 755 /usr/local/sbin/apt")
	before := n.rtmps()
	n.MustRun(t, "sh", "-c", "cd "+realams.Home+" && bash enable_ssl.sh -f /run/cert.pem -p /run/key.pem -c /run/cert.pem -d media.example.org 2>&1")
	certificate := n.rtmps()
	if slices.Equal(certificate, before) {
		t.Errorf("enable_ssl.sh changed nothing: %v", certificate)
	}
	asked = append(asked, "restart")
	n.asked("enable_ssl.sh, and no other program,", asked)
	n.settled()
	d.ready()
	// The server loads such an application at its next start (2.10.0 at once). Until then no viewer can request it, and the
	// node stays ready.
	n.MustRun(t, "bash", realams.Home+"/create_app.sh", "-n", "newapp", "-c", "true", "-m", w.URI())
	n.MustRun(t, "chown", "-R", "antmedia:antmedia", realams.Home+"/webapps/newapp")
	written = n.files()
	n.idle(look)
	n.asked("the daemon, after enable_ssl.sh and create_app.sh,", asked)
	n.same("the daemon, after enable_ssl.sh and create_app.sh,", written)
	if code := d.readyz(); code != http.StatusOK {
		t.Errorf("/readyz answers %d after create_app.sh, and viewers are served", code)
	}
	d.end()
	d = n.daemon()
	d.ready()
	taken := ams.AppWaits
	if n.Release == "2.10.0" {
		taken = ams.AppServes
	}
	if out, code := n.Run(t, bins.agent, "status", "-o", "json"); code != 0 || !regexp.MustCompile(`"name": "newapp",\s*"state": "`+string(taken)+`"`).MatchString(out) {
		t.Errorf("status after create_app.sh: exit %d\n%s", code, out)
	}

	d.end()
	n.MustRun(t, bins.agent, "leave", "--now")
	for _, app := range append([]string{"LiveApp"}, n.made...) {
		n.WaitServed(t, app)
		if text := n.Read(t, realams.Home+"/webapps/"+app+"/WEB-INF/red5-web.properties"); strings.Contains(text, "mongodb") || strings.Contains(text, realPassword) {
			t.Errorf("after a leave %s is that of a node:\n%s", app, text)
		}
	}
	n.join(w.URI())
	n.settled()
	d = n.daemon()
	d.ready()

	n.MustRun(t, "bash", realams.Home+"/change_server_mode.sh", "standalone")
	asked = n.Asked()
	if got := asked[len(asked)-2:]; got[0] != "stop" || got[1] != "start" {
		t.Fatalf("the script asked the service for %v", got)
	}
	n.WaitServed(t, "LiveApp")
	for range 40 {
		if code := d.readyz(); code == http.StatusOK {
			t.Error("/readyz says ready as soon as the server serves, and it was made standalone")
			break
		}
		n.idle(250 * time.Millisecond)
	}
	written = n.files()
	n.idle(look)
	n.asked("the daemon, after change_server_mode.sh standalone,", asked)
	n.same("the daemon, after change_server_mode.sh standalone,", written)
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
	if !strings.Contains(out, "does not serve viewers: made standalone by hand") {
		t.Errorf("the row does not say what became of the node:\n%s", out)
	}
	d.end()

	n.MustRun(t, bins.agent, "leave", "--now")
	n.WaitServed(t, "LiveApp")
	if got := n.rtmps(); !slices.Equal(got, certificate) {
		t.Errorf("after the leave the certificate of RTMPS is %v, want %v", got, certificate)
	}
	if !strings.Contains(n.Read(t, realams.Home+"/conf/jee-container.xml"), "<!-- https start -->") {
		t.Error("after the leave jee-container.xml has lost the certificate")
	}
	if text := n.Read(t, realams.Home+"/conf/red5.properties"); !strings.Contains(text, "\nserver.name=media.example.org\n") {
		t.Error("after the leave the name that the server was given is lost")
	}
}

// rtmps returns the RTMPS settings of red5.properties.
func (n *realNode) rtmps() []string {
	n.t.Helper()
	lines := regexp.MustCompile(`(?m)^rtmps\..*`).FindAllString(n.Read(n.t, realams.Home+"/conf/red5.properties"), -1)
	slices.Sort(lines)
	return lines
}

// look is longer than the daemon's interval between two checks of all files.
const look = 75 * time.Second

// serverName changes the name of the server as the panel does.
func (n *realNode) serverName(name string) {
	n.t.Helper()
	const path = "/rest/v2/server-settings"
	code, text, err := n.AsAgent(n.t.Context(), http.MethodGet, path, nil)
	var settings map[string]any
	if err == nil {
		err = json.Unmarshal(text, &settings)
	}
	if err != nil || code != http.StatusOK {
		n.t.Fatalf("the server's settings: %d, %v: %s", code, err, text)
	}
	settings["serverName"] = name
	text, err = json.Marshal(settings)
	must.OK(n.t, err)
	code, text, err = n.AsAgent(n.t.Context(), http.MethodPost, path, bytes.NewReader(text))
	if err != nil || code != http.StatusOK || !bytes.Contains(text, []byte(`"success":true`)) {
		n.t.Fatalf("changing the server's settings: %d, %v: %s", code, err, text)
	}
}

// idle gives the daemon time to act by itself.
func (n *realNode) idle(d time.Duration) {
	n.t.Helper()
	if n.Server() == 0 {
		n.t.Error("the server does not run")
	}
	wait(d)
}
