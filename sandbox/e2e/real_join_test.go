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

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// A join on a real server, a second one, two quiet minutes of the daemon in which an
// operator changes a setting, and a leave (issue 11: R1, R2, R3, R8). The address of
// MongoDB has a ':' and a '=', which the server escapes when it writes its files.
func TestRealJoin(t *testing.T) {
	t.Parallel()
	for _, release := range realReleases() {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			joinAndLeave(t, release)
		})
	}
}

func joinAndLeave(t *testing.T, release string) {
	t.Helper()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	n := newRealNode(t, w, release)
	n.AllowAgent(t)
	found := n.files()

	begin := time.Now()
	served := n.servedAt()
	join := n.Start(t, n.joinArgs(w.URI())...)
	code, err := join.Wait(6 * time.Minute)
	joined := time.Now()
	if err != nil || code != 0 {
		t.Fatalf("join: exit %d, %v\n%s", code, err, join.Output())
	}
	select {
	case at := <-served:
		figure(t, "all applications serve after %s, the join succeeds %s later", at.Sub(begin).Round(time.Millisecond), joined.Sub(at).Round(time.Millisecond))
		if late := joined.Sub(at); late > time.Second {
			t.Errorf("the join succeeds %s after all applications serve, want at most 1 s", late)
		}
	default:
		// Who looks on may be some calls behind: at this moment they have to serve.
		for _, app := range realApps(n.Release) {
			if code := n.Served(app); code != http.StatusOK {
				t.Errorf("the join succeeds after %s, and %s answers %d", joined.Sub(begin), app, code)
			}
		}
		<-served
	}
	if asked := n.Asked(); !slices.Equal(asked, []string{"start"}) {
		t.Errorf("the join asked the service for %v, want one start", asked)
	}

	settled := n.settled()
	live := n.Read(t, realams.Home+"/webapps/LiveApp/WEB-INF/red5-web.properties")
	if !strings.Contains(live, `mongodb\://plain\:`) {
		t.Errorf("the server has not rewritten the settings of LiveApp, or escapes nothing:\n%s", live)
	}
	asked := n.Asked()
	if out := n.join(w.URI()); !strings.Contains(out, "nothing to do") {
		t.Errorf("a second join says: %s", out)
	}
	n.same("a second join", settled)
	n.asked("a second join", asked)

	d := n.daemon()
	d.ready()
	n.quiet(d, time.Minute)
	n.same("a minute of the daemon", settled)
	if strings.HasPrefix(n.Release, "2.4.") {
		t.Log("no setting is changed: this release takes no token for that")
	} else {
		n.changeSetting()
		changed := n.settled()
		n.quiet(d, time.Minute)
		n.same("a minute of the daemon after a change of a setting", changed)
	}
	n.asked("the daemon", asked)
	d.end()

	out := n.MustRun(t, bins.agent, "leave", "--now")
	if !regexp.MustCompile(`\b\d+ files? saved since the join, by the server or by an operator: `).MatchString(out) || !strings.Contains(out, "restored as join found them") {
		t.Errorf("leave does not say what became of the files: %s", out)
	}
	for name, sum := range n.files() {
		switch {
		case strings.HasPrefix(name, "/etc/amsagent/"):
			t.Errorf("%s is there after a leave", name)
		case strings.Contains(name, "/webapps/") && !strings.Contains(name, "/root/"):
			// The server has saved its settings there, so the leave restores only the keys of the join.
			if text := n.Read(t, name); strings.Contains(text, realPassword) {
				t.Errorf("%s has the password after a leave", name)
			}
		case sum != found[name]:
			t.Errorf("%s is not what the join found", name)
		}
	}
	n.WaitServed(t, realApps(n.Release)...)
}

// servedAt returns a channel with the time at which all applications serve.
func (n *realNode) servedAt() <-chan time.Time {
	at := make(chan time.Time, 1)
	go func() {
		for _, app := range realApps(n.Release) {
			for n.Served(app) != http.StatusOK {
				select {
				case <-n.t.Context().Done():
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
		at <- time.Now()
	}()
	return at
}

// quiet looks on for a while: the daemon has to say that it is ready all the time, and
// status that nothing differs.
func (n *realNode) quiet(d *realDaemon, length time.Duration) {
	n.t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); wait(time.Second) {
		if code := d.readyz(); code != http.StatusOK {
			n.t.Fatalf("/readyz answers %d\n%s", code, d.Output())
		}
	}
	for _, bad := range []string{"stopping", "level=ERROR"} {
		if d.Said(bad) > 0 {
			n.t.Errorf("the daemon's log says %q:\n%s", bad, d.Output())
		}
	}
	// Of the files of a server that runs, only a password that others could read is protected.
	if d.Said("repaired") != d.Said("protected again") {
		n.t.Errorf("the daemon repaired more than permissions:\n%s", d.Output())
	}
	v := n.status()
	if files, ok := v["files"].(map[string]any); !ok || files["drift"] != nil {
		n.t.Errorf("status reports drift: %v", v["files"])
	}
	if disagree, ok := v["disagreements"].([]any); !ok || len(disagree) > 0 {
		n.t.Errorf("status reports disagreements: %v", v["disagreements"])
	}
}

// panel does what the web panel does, and returns the answer.
func (n *realNode) panel(method, path string, body []byte) []byte {
	n.t.Helper()
	code, answer, err := n.AsAgent(n.t.Context(), method, "/rest/v2/"+path, bytes.NewReader(body))
	if err != nil || code != http.StatusOK || method != http.MethodGet && !bytes.Contains(answer, []byte(`"success":true`)) {
		n.t.Fatalf("%s %s: %d, %v: %s", method, path, code, err, answer)
	}
	return answer
}

// change changes a setting of the server or of an application as the panel does.
func (n *realNode) change(path, key, value string) {
	n.t.Helper()
	var settings map[string]any
	must.OK(n.t, json.Unmarshal(n.panel(http.MethodGet, path, nil), &settings))
	settings[key] = value
	body, err := json.Marshal(settings)
	must.OK(n.t, err)
	n.panel(http.MethodPost, path, body)
}

// changeSetting changes a setting of LiveApp, and waits until the server has written it.
func (n *realNode) changeSetting() {
	n.t.Helper()
	n.change("applications/settings/LiveApp", "hlsListSize", "11")
	until(n.t, "the server has written the setting", func() string {
		text := n.Read(n.t, realams.Home+"/webapps/LiveApp/WEB-INF/red5-web.properties")
		if !strings.Contains(text, "\nhlsListSize=11\n") {
			return soFar(text)
		}
		return ""
	})
}
