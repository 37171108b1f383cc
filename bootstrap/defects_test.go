// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/readback"
)

// treesDir holds the project's own installations, written by hand.
const treesDir = "../sandbox/tree/files"

// ownTree copies one of the project's own installations below a new root.
func ownTree(t testing.TB, variant, release string) *Machine {
	t.Helper()
	root := t.TempDir()
	target := filepath.Join(root, ams.DefaultDir)
	must.OK(t, os.CopyFS(target, os.DirFS(filepath.Join(treesDir, variant))))
	m := &Machine{Root: root, Service: ams.None{}, Euid: os.Geteuid(), Version: "test"}
	if release != "" {
		r, err := ams.ParseRelease(release)
		must.OK(t, err)
		m.Release = r
	}
	return m
}

func edit(t testing.TB, m *Machine, path, old, repl string) {
	t.Helper()
	real := filepath.Join(m.Root, ams.DefaultDir, path)
	b, err := os.ReadFile(real)
	must.OK(t, err)
	if !strings.Contains(string(b), old) {
		t.Fatalf("%s does not hold %q", path, old)
	}
	must.OK(t, os.WriteFile(real, []byte(strings.Replace(string(b), old, repl, 1)), 0o644))
}

func property(t testing.TB, m *Machine, path, key string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.Root, ams.DefaultDir, path))
	must.OK(t, err)
	p, err := conf.ParseProperties(b)
	must.OK(t, err)
	v, _ := p.Get(key)
	return v
}

const (
	serverFile = "conf/red5.properties"
	liveFile   = "webapps/LiveApp/WEB-INF/red5-web.properties"
	beansFile  = "conf/jee-container.xml"
)

// The fifteen defects of the vendor's mode switch, each reproduced with its own
// script on its own files, are fifteen tests of ours.

// Defect 1: asks y/n for a bare IP and cancels itself without a terminal.
func TestDefect01BareIPNeedsNoAnswer(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	res := joinOffline(t, m, "10.0.0.5", "")
	if res.Outcome != OutcomeEdited || property(t, m, liveFile, "db.host") != "10.0.0.5" {
		t.Errorf("%s, db.host %q", res.Outcome, property(t, m, liveFile, "db.host"))
	}
}

// Defect 2: a host name or ip:port becomes Redis.
func TestDefect02NamesAndPortsAreMongoDB(t *testing.T) {
	t.Parallel()
	for _, mongo := range []string{"db.example.internal", "10.0.0.5:27018", "a.example,b.example:27018"} {
		m := ownTree(t, "3.0", "3.0.3")
		joinOffline(t, m, mongo, "")
		if got := property(t, m, liveFile, "db.type"); got != "mongodb" {
			t.Errorf("%s: db.type %q", mongo, got)
		}
		if got := property(t, m, serverFile, "clusterdb.host"); got != mongo {
			t.Errorf("%s: clusterdb.host %q", mongo, got)
		}
	}
}

// Defect 3: separate user and password reach some files and not others.
func TestDefect03CredentialsReachEveryFile(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	uri := "mongodb://user:pass@10.0.0.5/?authSource=admin"
	joinOffline(t, m, uri, "")
	for _, f := range []string{liveFile, "webapps/WebRTCAppEE/WEB-INF/red5-web.properties", "webapps/root/WEB-INF/red5-web.properties"} {
		if got := property(t, m, f, "db.host"); got != uri {
			t.Errorf("%s: %q", f, got)
		}
		if got := property(t, m, f, "db.user") + property(t, m, f, "db.password"); got != "" {
			t.Errorf("%s: a user or password beside the URI: %q", f, got)
		}
	}
	if got := property(t, m, serverFile, "clusterdb.host"); got != uri {
		t.Errorf("clusterdb.host %q", got)
	}
}

// Defects 4 and 5: a backslash is dropped, a slash breaks the edit, an
// ampersand inserts the old line. Java is asked what it reads.
func TestDefect04And05SpecialCharactersSurvive(t *testing.T) {
	t.Parallel()
	java := readback.Start(t)
	for _, release := range []string{"3.0.3", "2.10.0", "2.4.0", "1.9.1"} {
		m := ownTree(t, map[bool]string{true: "3.0", false: "2.10"}[release == "3.0.3"], release)
		// The password is @ : / ? # % & \ and a blank.
		uri := "mongodb://us%20er:%40%3A%2F%3F%23%25%26%5C%20@h1,h2/?replicaSet=rs0&authSource=admin&w=majority"
		want := uri
		if release == "2.4.0" || release == "1.9.1" {
			want = strings.TrimPrefix(uri, "mongodb://")
		}
		joinOffline(t, m, uri, "")
		got, err := java.Properties(filepath.Join(m.Root, ams.DefaultDir, serverFile))
		must.OK(t, err)
		if got["clusterdb.host"] != want {
			t.Errorf("%s: Java reads %q, want %q", release, got["clusterdb.host"], want)
		}
		got, err = java.Properties(filepath.Join(m.Root, ams.DefaultDir, liveFile))
		must.OK(t, err)
		if got["db.host"] != want {
			t.Errorf("%s: Java reads db.host %q, want %q", release, got["db.host"], want)
		}
	}
}

// Defect 6: a URI on a release that cannot use one leaves the node half
// switched, exit 0. Ours gets the form that release understands, or is refused
// with the reason and nothing changed.
func TestDefect06OldReleasesGetTheirForm(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "2.10", "2.1.0")
	joinOffline(t, m, "mongodb://u:p@h1/?replicaSet=rs0", "")
	if got := property(t, m, liveFile, "db.host"); got != "u:p@h1/?replicaSet=rs0" {
		t.Errorf("db.host %q", got)
	}
	m = ownTree(t, "2.10", "2.1.0")
	before := treeFiles(t, m)
	_, err := m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, "mongodb+srv://cluster0.example.net/"), Offline: true})
	var pre *PreflightError
	if !errors.As(err, &pre) || len(pre.Findings) != 1 || pre.Findings[0].ID != IDMongoForm {
		t.Fatalf("error %v, want one finding %s", err, IDMongoForm)
	}
	if want := "Ant Media Server 2.1.0 cannot use this connection string: mongodb+srv:// is understood from 2.4.1 on"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if d := cmp.Diff(before, treeFiles(t, m)); d != "" {
		t.Errorf("something was changed:\n%s", d)
	}
}

// Defect 7: a blank in an argument splits it.
func TestDefect07BlanksDoNotSplit(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, "mongodb://us%20er:p%2Aw%20rd@h1/", "")
	if got := property(t, m, liveFile, "db.host"); got != "mongodb://us%20er:p%2Aw%20rd@h1/" {
		t.Errorf("db.host %q", got)
	}
}

// Defect 8: standalone is neither idempotent nor a round trip.
func TestDefect08RoundTripWithoutDrift(t *testing.T) {
	t.Parallel()
	for _, v := range []string{"3.0", "2.10", "1.9.0"} {
		m := ownTree(t, v, "")
		before := treeFiles(t, m)
		for range 5 {
			joinOffline(t, m, "10.0.0.5", "")
			leaveOffline(t, m)
			leaveOffline(t, m)
		}
		if d := cmp.Diff(before, treeFiles(t, m)); d != "" {
			t.Errorf("%s drifted:\n%s", v, d)
		}
	}
}

// Defect 9: an operator's comment inside an active section makes the file
// ill-formed when the section is commented out.
func TestDefect09NestedComment(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	standalone := treeFiles(t, m)
	joinOffline(t, m, "10.0.0.5", "")
	edit(t, m, beansFile, `<property name="clusterStore">`, "<!-- ours -->\n\t\t<property name=\"clusterStore\">")
	edited := treeFiles(t, m)
	_, err := m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, "10.0.0.6"), Address: "10.0.1.7", Offline: true})
	var pre *PreflightError
	if !errors.As(err, &pre) || pre.Findings[0].ID != IDSections || !strings.Contains(err.Error(), "line 29: a comment inside a cluster section") {
		t.Errorf("error %v", err)
	}
	if d := cmp.Diff(edited, treeFiles(t, m)); d != "" {
		t.Errorf("something was changed:\n%s", d)
	}
	// The server's user can make such a comment at any time: it does not keep the machine from leaving.
	res := leaveOffline(t, m)
	if len(res.Warnings) != 1 || res.Warnings[0].ID != IDConflict || !strings.Contains(res.Warnings[0].Text, "line 29: a comment inside a cluster section") {
		t.Errorf("warnings %v", res.Warnings)
	}
	after := treeFiles(t, m)
	for path, kept := range after {
		if _, ok := standalone[path]; ok {
			continue
		}
		if strings.Contains(path, "jee-container.xml") && strings.Contains(kept, "<!-- ours -->") {
			delete(after, path)
		}
	}
	if d := cmp.Diff(standalone, after); d != "" {
		t.Errorf("not given back:\n%s", d)
	}
}

// Defect 10: replaced lines of a CRLF file lose their CR.
func TestDefect10LineEndingsStay(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	for _, f := range []string{serverFile, liveFile, beansFile} {
		real := filepath.Join(m.Root, ams.DefaultDir, f)
		b, err := os.ReadFile(real)
		must.OK(t, err)
		must.OK(t, os.WriteFile(real, []byte(strings.ReplaceAll(string(b), "\n", "\r\n")), 0o644))
	}
	before := treeFiles(t, m)
	joinOffline(t, m, "10.0.0.5", "")
	for _, f := range []string{serverFile, liveFile, beansFile} {
		b, err := os.ReadFile(filepath.Join(m.Root, ams.DefaultDir, f))
		must.OK(t, err)
		if lf, crlf := strings.Count(string(b), "\n"), strings.Count(string(b), "\r\n"); lf != crlf {
			t.Errorf("%s: %d line ends, %d of them CRLF", f, lf, crlf)
		}
	}
	leaveOffline(t, m)
	if d := cmp.Diff(before, treeFiles(t, m)); d != "" {
		t.Errorf("no round trip:\n%s", d)
	}
}

// Defect 11: comments and other keys that contain the name are overwritten.
func TestDefect11OnlyTheKeyItself(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	edit(t, m, liveFile, "db.type=", "mydb.host=keepme\n#db.type=redisdb\nxdb.type=keepme\ndb.type=")
	joinOffline(t, m, "10.0.0.5", "")
	b, err := os.ReadFile(filepath.Join(m.Root, ams.DefaultDir, liveFile))
	must.OK(t, err)
	if !strings.Contains(string(b), "mydb.host=keepme\n#db.type=redisdb\nxdb.type=keepme\ndb.type=mongodb\n") {
		t.Errorf("got\n%s", b)
	}
}

// Defect 12: whitespace around the separator, or a missing key, kept the old value while the sections became active.
func TestDefect12BlanksAndMissingKeys(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	edit(t, m, serverFile, "clusterdb.host=localhost", "clusterdb.host = localhost")
	edit(t, m, liveFile, "db.type=mapdb\n", "")
	before := treeFiles(t, m)
	joinOffline(t, m, "10.0.0.5", "")
	if got := property(t, m, serverFile, "clusterdb.host"); got != "10.0.0.5" {
		t.Errorf("clusterdb.host %q", got)
	}
	if got := property(t, m, liveFile, "db.type"); got != "mongodb" {
		t.Errorf("db.type %q: a missing key must be added", got)
	}
	leaveOffline(t, m)
	if d := cmp.Diff(before, treeFiles(t, m)); d != "" {
		t.Errorf("no round trip:\n%s", d)
	}
}

// Defect 13: an application with a blank in its name is skipped, and failures
// never reach the exit status.
func TestDefect13BlankInApplicationName(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	app := "webapps/My Live App/WEB-INF/red5-web.properties"
	real := filepath.Join(m.Root, ams.DefaultDir, app)
	must.OK(t, os.MkdirAll(filepath.Dir(real), 0o755))
	must.OK(t, os.WriteFile(real, []byte("db.name=mylive\ndb.type=mapdb\ndb.host=localhost"), 0o644))
	joinOffline(t, m, "10.0.0.5", "")
	if got := property(t, m, app, "db.host"); got != "10.0.0.5" {
		t.Errorf("db.host %q", got)
	}
	// A file that cannot be edited is a failure, and nothing is changed.
	m = ownTree(t, "3.0", "3.0.3")
	edit(t, m, liveFile, "db.name=", `broken=\uZZZZ`+"\ndb.name=")
	before := treeFiles(t, m)
	_, err := m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, "10.0.0.5"), Offline: true})
	var pre *PreflightError
	if !errors.As(err, &pre) || !strings.Contains(err.Error(), liveFile) || !strings.Contains(err.Error(), `line 5: malformed \uxxxx escape`) {
		t.Errorf("error %v", err)
	}
	if d := cmp.Diff(before, treeFiles(t, m)); d != "" {
		t.Errorf("something was changed:\n%s", d)
	}
}

// Defect 14: lines of /etc/hosts that merely contain the host name are deleted.
func TestDefect14HostsFile(t *testing.T) {
	t.Parallel()
	hosts := "127.0.0.1 localhost\n10.0.0.99 ams-node-10\n10.0.0.98 db-for-ams-node-1.internal\n"
	for _, tt := range []struct{ name, hosts, want string }{
		{"not resolvable: one marked line", hosts, hosts + "10.0.0.7\tams-node-1\t# added by amsagent\n"},
		{"resolvable: untouched", hosts + "10.0.0.7 ams-node-1\n", hosts + "10.0.0.7 ams-node-1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := ownTree(t, "3.0", "3.0.3")
			etc := filepath.Join(m.Root, "etc")
			must.OK(t, os.MkdirAll(etc, 0o755))
			for name, content := range map[string]string{"hosts": tt.hosts, "hostname": "ams-node-1\n"} {
				must.OK(t, os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644))
			}
			joinOffline(t, m, "10.0.0.5", "10.0.0.7")
			got, err := os.ReadFile(filepath.Join(etc, "hosts"))
			must.OK(t, err)
			if d := cmp.Diff(tt.want, string(got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			leaveOffline(t, m)
			if got, err := os.ReadFile(filepath.Join(etc, "hosts")); err != nil || string(got) != tt.hosts {
				t.Errorf("after leave: %q, %v", got, err)
			}
		})
	}
}

// Defect 15: the service is restarted although nothing changed, and files are
// written one by one without a way back. The restarts are in the end-to-end
// tests; here: the second run plans nothing, so nothing asks for a restart.
func TestDefect15NothingToDoRestartsNothing(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, "10.0.0.5", "")
	in, err := m.open()
	must.OK(t, err)
	store := m.store()
	record, err := store.Record()
	must.OK(t, err)
	target := mustTarget(t, "10.0.0.5")
	plan, err := planJoin(store, record, nil, edits{install: in, mongo: target, mongoForm: target.Raw(), address: netip.Addr{}})
	must.OK(t, err)
	if n := len(plan.Changed()); n != 0 || needsRestart(plan) {
		t.Errorf("%d files would change, restart %v", n, needsRestart(plan))
	}
}

// Another copy of the agent, which root alone can change, is as good in the drop-in as this one.
func TestAnotherCopyOfTheAgent(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a program that is root's alone")
	}
	m := ownTree(t, "3.0", "3.0.3")
	m.DropIn, m.Program = true, "/usr/bin/amsagent"
	put(t, m, m.Program, "program")
	installed := filepath.Join(m.Root, m.Program)
	must.OK(t, os.Chmod(installed, 0o755))
	joinOffline(t, m, testMongo, "10.0.1.7")
	m.Program = "/root/download/amsagent"
	changed := func() []string {
		in, err := m.Inspect(t.Context(), JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true, Offline: true})
		must.OK(t, err)
		return in.Changes
	}
	if got := changed(); len(got) > 0 {
		t.Errorf("%v would change", got)
	}
	for name, harm := range map[string]func() error{
		"others may write to it": func() error { return os.Chmod(installed, 0o777) },
		"it is no program":       func() error { return os.Chmod(installed, 0o644) },
		"it is not there":        func() error { return os.Remove(installed) },
	} {
		must.OK(t, harm())
		if got := changed(); !slices.Equal(got, []string{ams.DropInPath}) {
			t.Errorf("%s: %v would change", name, got)
		}
		put(t, m, "/usr/bin/amsagent", "program")
	}
}
