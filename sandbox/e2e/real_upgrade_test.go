// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/sandbox/realams"
)

// TestRealUpgrade: the vendor's installer replaces an older release by 2.17.1 on a node that serves, first with the default files and
// then with restored ones. Only the installer starts the server; the agent repairs the files before each start (issue 11, story 8).
// The running daemon sends no request to an application that starts: 2.10.0 tolerates one, 2.17.1 may not.
func TestRealUpgrade(t *testing.T) {
	t.Parallel()
	for _, from := range []string{realams.Older, realams.Oldest} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			upgrade(t, from)
		})
	}
}

func upgrade(t *testing.T, from string) {
	t.Helper()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	n := newRealNode(t, w, from)
	n.join(w.URI())
	n.beforeStart()
	d := n.daemon()
	d.ready()
	n.released(from)

	asked := n.Asked()
	upgraded := func(what string, installer ...string) {
		t.Helper()
		n.WaitServed(t, realApps(n.Release)...)
		d.ready()
		n.released(realams.Newest)
		settled := n.settled()
		n.quiet(d, 15*time.Second)
		n.same("15 s of the daemon after "+what, settled)
		if got := n.Asked()[len(asked):]; !slices.Equal(got, installer) {
			t.Errorf("after %s the service was asked for %v, the installer did %v", what, got, installer)
		}
	}
	n.Replace(t, realams.Newest)
	until(t, "status reports that the server runs the former release", func() string {
		process, _ := n.status()["process"].(map[string]any)
		release, _ := process["release"].(map[string]any)
		if release["match"] != "older-process" || release["running"] != from || release["files"] != realams.Newest {
			return fmt.Sprint(release)
		}
		return ""
	})
	n.MustRun(t, realams.Service, "stop")
	n.MustRun(t, realams.Service, "start")
	if got := n.Read(t, "/run/before-start"); !strings.Contains(got, "AMS-DRIFT") || strings.Contains(got, realPassword) {
		t.Errorf("before the first start of the new release the agent says: %s", got)
	}
	upgraded("the new release with its default files", "stop", "start")

	n.MustRun(t, "bash", "-ec", restoreSettings, "bash", realams.Home, realams.Backup)
	n.MustRun(t, realams.Service, "restart")
	upgraded("restored settings", "stop", "start", "restart")

	d.end()
	if out := n.MustRun(t, bins.agent, "leave", "--now"); !strings.Contains(out, "left: this machine is standalone") {
		t.Errorf("leave says: %s", out)
	}
	for name := range n.files() {
		if strings.Contains(n.Read(t, name), realPassword) {
			t.Errorf("%s has the password after a leave", name)
		}
	}
}

// restoreSettings is what the vendor's installer does for -r true, for these
// applications. It forgets the application live.
const restoreSettings = `
for app in LiveApp WebRTCApp root; do
  cp -p "$2/webapps/$app/WEB-INF/red5-web.properties" "$1/webapps/$app/WEB-INF/red5-web.properties"
done
cp -p "$2/conf/red5.properties" "$2/conf/jee-container.xml" "$1/conf"
chown -R antmedia:antmedia "$1"`

// beforeStart makes the service do what docs/guides/upgrade-ams.md asks of one that is
// not systemd's; what the agent says there is kept.
func (n *realNode) beforeStart() {
	n.t.Helper()
	n.write("/usr/local/sbin/antmedia-before-start", "#!/bin/sh\nexec "+bins.agent+" converge --before-start >>/run/before-start 2>&1\n")
	n.MustRun(n.t, "chmod", "755", "/usr/local/sbin/antmedia-before-start")
}

// released waits until status and the registry name a release.
func (n *realNode) released(want string) {
	n.t.Helper()
	until(n.t, "status and the registry name the release "+want, func() string {
		v := n.status()
		files, _ := v["files"].(map[string]any)
		row, _ := v["registry"].(map[string]any)
		registry, _ := row["record"].(map[string]any)
		for _, said := range []any{files["release"], registry["ams_version"]} {
			// With the number of the build behind it.
			if s, ok := said.(string); !ok || !strings.HasPrefix(s, want+" ") {
				return fmt.Sprintf("status says %v, the registry %v", files["release"], registry["ams_version"])
			}
		}
		return ""
	})
}
