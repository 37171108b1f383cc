// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

// digestOf is what the daemon sends, and what status shows; both are "" if unknown.
func digestOf(t *testing.T, m *Machine) string {
	t.Helper()
	m.Service = running()
	sent := converge(t, m, watchRequest(t)).Digest
	s, err := (&Machine{Root: m.Root, Release: m.Release, Service: m.Service}).Status(t.Context(), StatusRequest{})
	must.OK(t, err)
	if s.Files.Digest != sent || (len(s.Files.Digests) > 0) != (sent != "") {
		t.Errorf("the daemon sends %q, status shows %q of %v", sent, s.Files.Digest, s.Files.Digests)
	}
	return sent
}

const (
	ofServer    = "conf/red5.properties"
	ofContainer = "conf/jee-container.xml"
	ofApp       = "webapps/LiveApp/WEB-INF/red5-web.properties"
)

// Nodes of one role have one digest, with what a join, the panel and the machine itself make different; an edit by hand on
// one of them is seen.
func TestSettingsDigest(t *testing.T) {
	t.Parallel()
	one := joinedTree(t)
	want := digestOf(t, one)
	if want == "" {
		t.Fatal("not known")
	}
	added := func(path, text string) func(*Machine) {
		return func(m *Machine) {
			b, err := os.ReadFile(filepath.Join(m.Root, ams.DefaultDir, path))
			must.OK(t, err)
			put(t, m, filepath.Join(ams.DefaultDir, path), string(b)+"\n"+text)
		}
	}
	for name, tt := range map[string]struct {
		change func(*Machine)
		same   bool
	}{
		"another node": {func(m *Machine) {
			must.OK(t, os.RemoveAll(filepath.Join(m.Root, StateDir)))
			joinOffline(t, m, "mongodb://other:hush@10.9.9.9/?authSource=admin", "10.0.1.8")
			must.OK(t, remember(m, State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.8", Release: "3.0.3"}))
		}, true},
		"its name and addresses": {added(ofServer, "server.name=one.example\nhttp.host=10.0.1.8\nhttp.port=6080\nproxy.address=198.51.100.7\n"), true},
		"the server's notes":     {added(ofApp, "dbId=6b00e730b6628f2a25ba6d1b\nupdateTime=1795221296154\n"), true},
		"comments":               {added(ofApp, "# edited by hand\n"), true},
		"CORS on one node":       {added(ofServer, "cors.allowed=*\n"), false},
		"in an application":      {added(ofApp, "settings.hlsTime=7\n"), false},
		"in the container": {func(m *Machine) {
			edit(t, m, ofContainer, "</beans>", `<bean class="Cors"/></beans>`)
		}, false},
		"one application more": {func(m *Machine) {
			must.OK(t, os.CopyFS(filepath.Join(m.Root, ams.DefaultDir, "webapps/other"), os.DirFS(filepath.Join(m.Root, ams.DefaultDir, "webapps/LiveApp"))))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := joinedTree(t)
			tt.change(m)
			if got := digestOf(t, m); got == "" || (got == want) != tt.same {
				t.Errorf("%s and %s, want the same: %v", got, want, tt.same)
			}
		})
	}
}

// A file that cannot be read makes the digest unknown, and a change of one byte another one, whatever its time and size are.
func TestSettingsDigestUnknown(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	was := digestOf(t, m)
	for path, text := range map[string]string{ofServer: "a=\\u12\n", ofContainer: "<beans>", ofApp: "a=\\u12\n"} {
		real := filepath.Join(m.Root, ams.DefaultDir, path)
		good, err := os.ReadFile(real)
		must.OK(t, err)
		must.OK(t, os.WriteFile(real, []byte(text), 0o644))
		if c, err := m.Converge(t.Context(), watchRequest(t)); c == nil || c.Digest != "" {
			t.Errorf("%s: %+v, %v", path, c, err)
		}
		must.OK(t, os.WriteFile(real, good, 0o644))
		if got := digestOf(t, m); got != was {
			t.Errorf("%s: %s, want %s again", path, got, was)
		}
	}
	real := filepath.Join(m.Root, ams.DefaultDir, ofServer)
	info, err := os.Stat(real)
	must.OK(t, err)
	edit(t, m, ofServer, "server.cpu_limit=75", "server.cpu_limit=80")
	must.OK(t, os.Chtimes(real, info.ModTime(), info.ModTime()))
	if got := digestOf(t, m); got == was {
		t.Error("an edit with the former time and size is not seen")
	}
}

// A save in the panel changes no meaning; each release has its own.
func TestCorpusDigest(t *testing.T) {
	corpusReleases(t)
	digest := func(release, address string) string {
		m := corpusTree(t, release)
		joinOffline(t, m, "10.0.0.9", address)
		in, err := m.open()
		must.OK(t, err)
		_, byName, err := m.digest(in)
		must.OK(t, err)
		return byName[ofServer]
	}
	saved := digest("3.0.3-panel-saved", "10.0.1.8")
	if digest("3.0.3", "10.0.1.7") != saved {
		t.Error("a save in the panel makes another digest")
	}
	if digest("2.13.2", "10.0.1.7") == saved {
		t.Error("two releases have one digest")
	}
}
