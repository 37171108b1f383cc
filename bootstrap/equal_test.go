// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"testing"

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

// Nodes of one role have one digest, with what a join, the panel and the machine itself make different; an edit by hand on
// one of them is seen.
func TestSettingsDigest(t *testing.T) {
	t.Parallel()
	want := digestOf(t, newTree(t, joined))
	if want == "" {
		t.Fatal("not known")
	}
	otherNode := func(t testing.TB, m *Machine) {
		do(t, m, without(StateDir), joinedTo("mongodb://other:hush@10.9.9.9/?authSource=admin", "10.0.1.8"), remembered)
		change(t, m, func(s *State) { s.Address = "10.0.1.8" })
	}
	for name, tt := range map[string]struct {
		change step
		same   bool
	}{
		"another node":           {otherNode, true},
		"its name and addresses": {appended(serverFile, "\nserver.name=one.example\nhttp.host=10.0.1.8\nhttp.port=6080\nproxy.address=198.51.100.7\n"), true},
		"the server's notes":     {appended(liveFile, "\ndbId=6b00e730b6628f2a25ba6d1b\nupdateTime=1795221296154\n"), true},
		"comments":               {appended(liveFile, "\n# edited by hand\n"), true},
		"CORS on one node":       {appended(serverFile, "\ncors.allowed=*\n"), false},
		"in an application":      {appended(liveFile, "\nsettings.hlsTime=7\n"), false},
		"in the container":       {edited(beansFile, "</beans>", `<bean class="Cors"/></beans>`), false},
		"one application more":   {withApp("other"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := digestOf(t, newTree(t, joined, tt.change)); got == "" || (got == want) != tt.same {
				t.Errorf("%s and %s, want the same: %v", got, want, tt.same)
			}
		})
	}
}

// A file that cannot be read makes the digest unknown, and a change of one byte another one, whatever its time and size are.
func TestSettingsDigestUnknown(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined)
	was := digestOf(t, m)
	for path, text := range map[string]string{serverFile: "a=\\u12\n", beansFile: "<beans>", liveFile: "a=\\u12\n"} {
		good := content(t, m, path)
		put(t, m, path, text)
		if c, err := m.Converge(t.Context(), watchRequest(t)); c == nil || c.Digest != "" {
			t.Errorf("%s: %+v, %v", path, c, err)
		}
		put(t, m, path, good)
		must.Equal(t, path+" again", digestOf(t, m), was)
	}
	real := at(m, serverFile)
	info, err := os.Stat(real)
	must.OK(t, err)
	edit(t, m, serverFile, "server.cpu_limit=75", "server.cpu_limit=80")
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
		s, err := m.Status(t.Context(), StatusRequest{})
		must.OK(t, err)
		return s.Files.Digests[serverFile]
	}
	saved := digest("3.0.3-panel-saved", "10.0.1.8")
	must.Equal(t, "a save in the panel: the digest", digest("3.0.3", "10.0.1.7"), saved)
	if digest("2.13.2", "10.0.1.7") == saved {
		t.Error("two releases have one digest")
	}
}
