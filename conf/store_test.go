// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/redact"
)

const stateDir = "/var/lib/amsagent"

// newTree makes a root with a container, three properties files (one reached
// through an absolute link, one in a folder with a blank in its name) and the
// folder of a unit.
func newTree(t testing.TB) *Store {
	t.Helper()
	return newTreeIn(t, t.TempDir())
}

func newTreeIn(t testing.TB, root string) *Store {
	t.Helper()
	write := func(path, content string, mode fs.FileMode) {
		real := filepath.Join(root, path)
		must.OK(t, os.MkdirAll(filepath.Dir(real), 0o755))
		must.OK(t, os.WriteFile(real, []byte(content), mode))
	}
	write("/ams/conf/jee-container.xml", standaloneXML, 0o644)
	write("/ams/conf/red5.properties", "# server\nhttp.port=5080\nclusterdb.host=localhost\n", 0o640)
	write("/ams/webapps/Live App/WEB-INF/red5-web.properties", "db.type=mapdb\ndb.host=localhost\ndb.password=", 0o644)
	write("/data/root.properties", "db.type=mapdb\r\ndb.host=localhost\r\n", 0o600)
	must.OK(t, os.MkdirAll(filepath.Join(root, "/ams/webapps/root/WEB-INF"), 0o755))
	must.OK(t, os.Symlink("/data/root.properties", filepath.Join(root, "/ams/webapps/root/WEB-INF/red5-web.properties")))
	must.OK(t, os.MkdirAll(filepath.Join(root, filepath.Dir(dropInPath)), 0o755))
	return &Store{Root: root, Dir: stateDir}
}

var propertyPaths = []string{
	"/ams/conf/red5.properties",
	"/ams/webapps/Live App/WEB-INF/red5-web.properties",
	"/ams/webapps/root/WEB-INF/red5-web.properties",
}

const containerPath = "/ams/conf/jee-container.xml"

const dropInPath = "/etc/systemd/system/antmedia.service.d/50-amsagent.conf"

// planCluster plans what a join would, towards the given database.
func planCluster(t testing.TB, s *Store, host string) *Plan {
	t.Helper()
	record, err := s.Record()
	must.OK(t, err)
	p := s.NewPlan(record)
	if err := errors.Join(
		p.Edit(Target{Path: "/ams/conf/jee-container.xml", Kind: KindContainer}, func(src []byte) ([]Span, error) {
			c, err := ParseContainer(src)
			if err != nil {
				return nil, err
			}
			err = c.SetMode(ModeCluster)
			return c.Spans(), err
		}),
		p.Edit(Target{Path: dropInPath, Kind: KindWhole, CreateMode: 0o644}, func(src []byte) ([]Span, error) {
			return []Span{{Anchor: "whole", Old: src, New: []byte("[Service]\nEnvironment=" + host + "\n")}}, nil
		}),
	); err != nil {
		t.Fatal(err)
	}
	local := "localhost"
	for _, path := range propertyPaths {
		now, err := s.Read(path)
		must.OK(t, err)
		err = p.Edit(Target{Path: path, Kind: KindProperties, Private: true, Owner: now.UID}, func(src []byte) ([]Span, error) {
			q, err := ParseProperties(src)
			if err != nil {
				return nil, err
			}
			key := "db.host"
			if strings.HasSuffix(path, "red5.properties") {
				key = "clusterdb.host"
			}
			q.Set(key, host, &local)
			q.Set("added.key", "x", &local)
			return q.Spans(), nil
		})
		must.OK(t, err)
	}
	return p
}

// Names are kept as JSON, which replaces what is not UTF-8: recovery and undoing would look for other files.
func TestNamesThatAreNotUTF8(t *testing.T) {
	const bad = "/ams/caf\xe9"
	for name, j := range map[string]*journal{
		"a target":             {Files: []journalFile{{Target: bad}}},
		"a file of the record": {Record: &Record{Files: []*FileRecord{{Path: bad, Kind: KindWhole, Written: sum(nil)}}}},
	} {
		j.ID = "0123456789ab"
		if data, err := j.encode(maxJournal); err == nil || !strings.Contains(err.Error(), `"/ams/caf\xe9"`) {
			t.Errorf("%s: %s, %v", name, data, err)
		}
	}

	// A link may lead to such a name, also after the join.
	s := newTree(t)
	const app = "/ams/webapps/Live App"
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	must.OK(t, errors.Join(os.Rename(filepath.Join(s.Root, app), filepath.Join(s.Root, bad)), os.Symlink(bad, filepath.Join(s.Root, app))))
	edit := func([]byte) ([]Span, error) { return nil, nil }
	path := app + "/WEB-INF/red5-web.properties"
	for _, path := range []string{path, bad + "/WEB-INF/red5-web.properties"} {
		p := s.NewPlan(nil)
		if err := p.Edit(Target{Path: path, Kind: KindProperties}, edit); !files.Refused(err) || !strings.Contains(err.Error(), `caf\xe9`) || len(p.files) > 0 {
			t.Errorf("%q: %v", path, err)
		}
	}
	undo := planUndo(t, s)
	if len(undo.Conflicts) != 1 || undo.Conflicts[0].Path != path {
		t.Errorf("conflicts: %v", undo.Conflicts)
	}
	// In such a folder no copy is kept either.
	if err := errors.Join(
		os.Rename(filepath.Join(s.Root, bad, "WEB-INF/red5-web.properties"), filepath.Join(s.Root, "/ams/other")),
		os.Symlink("/ams/other", filepath.Join(s.Root, bad, "WEB-INF/red5-web.properties")),
		os.WriteFile(filepath.Join(s.Root, "/ams/other"), []byte("db.type=mongodb\ndb.host=\\u\n"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	if undo = planUndo(t, s); !slices.ContainsFunc(undo.Conflicts, func(c Conflict) bool { return strings.Contains(c.Msg, "not kept") }) {
		t.Errorf("conflicts: %v", undo.Conflicts)
	}
	must.OK(t, undo.CommitUndo("leave"))
	if f, err := s.Read("/ams/conf/red5.properties"); err != nil || bytes.Contains(f.Bytes, []byte("10.0.0.1")) {
		t.Errorf("%v; the other file is\n%s", err, f.Bytes)
	}
}

// snapshot is everything below the root but the state directory: kind, mode,
// link target and content.
func snapshot(t testing.TB, s *Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(s.Root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := s.inside(p)
		if name == stateDir || name == "/run" {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		desc := info.Mode().String()
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			desc += " -> " + to
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			desc += " " + string(b)
		}
		if name != "/var" && name != "/var/lib" {
			out[name] = desc
		}
		return nil
	})
	must.OK(t, err)
	return out
}

// planUndo plans to restore all that the record knows.
func planUndo(t testing.TB, s *Store) *Plan {
	t.Helper()
	record, err := s.Record()
	must.OK(t, err)
	p, err := s.PlanUndo(record)
	must.OK(t, err)
	return p
}

func undoAll(t testing.TB, s *Store) {
	t.Helper()
	p := planUndo(t, s)
	if len(p.Conflicts) > 0 {
		t.Errorf("conflicts: %v", p.Conflicts)
	}
	must.OK(t, p.CommitUndo("leave"))
}

func TestCommitAndUndo(t *testing.T) {
	s := newTree(t)
	before := snapshot(t, s)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	joined := snapshot(t, s)
	for path, want := range map[string]string{
		"/ams/conf/red5.properties":                         "-rw-r----- # server\nhttp.port=5080\nclusterdb.host=10.0.0.1\nadded.key=x\n",
		"/ams/webapps/Live App/WEB-INF/red5-web.properties": "-rw-r----- db.type=mapdb\ndb.host=10.0.0.1\ndb.password=\nadded.key=x",
		"/data/root.properties":                             "-rw------- db.type=mapdb\r\ndb.host=10.0.0.1\r\nadded.key=x\r\n",
		"/ams/webapps/root/WEB-INF/red5-web.properties":     before["/ams/webapps/root/WEB-INF/red5-web.properties"],
		"/ams/conf/jee-container.xml":                       "-rw-r--r-- " + clusterXML,
		dropInPath:                                          "-rw-r--r-- [Service]\nEnvironment=10.0.0.1\n",
	} {
		if d := cmp.Diff(want, joined[path]); d != "" {
			t.Errorf("%s (-want +got):\n%s", path, d)
		}
	}
	if again := planCluster(t, s, "10.0.0.1").Changed(); len(again) != 0 {
		t.Errorf("a second plan changes %d files, want none: %v", len(again), again[0].Before.Path)
	}
	// Another database: leave must still restore what the first join found.
	must.OK(t, planCluster(t, s, "10.0.0.2").Commit("join"))
	undoAll(t, s)
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("after undo (-before +after):\n%s", d)
	}
	if r, err := s.Record(); r != nil || err != nil {
		t.Errorf("a record is left: %v %v", r, err)
	}
	left, err := os.ReadDir(filepath.Join(s.Root, stateDir))
	if err != nil || len(left) != 0 {
		t.Errorf("left in the state directory: %v %v", left, err)
	}
}

// TestPlanKeepsEachByte: a plan, a commit, a revert and a leave change nothing that no edit is for, however a file begins
// and ends.
func TestPlanKeepsEachByte(t *testing.T) {
	const container, app = "/ams/conf/jee-container.xml", "/ams/webapps/Live App/WEB-INF/red5-web.properties"
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	for name, form := range map[string]func(string) string{
		"byte order mark":           func(s string) string { return "\ufeff" + s },
		"byte order mark and CR LF": func(s string) string { return "\ufeff" + crlf(s) },
		"spaces at the end":         func(s string) string { return s + " \t\n\n" },
		"no newline at the end":     func(s string) string { return strings.TrimRight(s, "\n") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTree(t)
			same := func(when string, want map[string]string) {
				t.Helper()
				if d := cmp.Diff(want, snapshot(t, s)); d != "" {
					t.Errorf("%s (-want +got):\n%s", when, d)
				}
			}
			for _, path := range []string{container, app, serverPath} {
				f, err := s.Read(path)
				must.OK(t, errors.Join(err, os.WriteFile(s.Root+path, []byte(form(string(f.Bytes))), 0o644)))
			}
			before := snapshot(t, s)
			joined, second := joinedTwice(t, s)
			if want := "-rw-r--r-- " + form(clusterXML); joined[container] != want {
				t.Errorf("joined (-want +got):\n%s", cmp.Diff(want, joined[container]))
			}
			_, err := second.Revert("rollback")
			must.OK(t, err)
			same("reverted", joined)
			undoAll(t, s)
			same("left", before)

			// Later edits, of which one cannot be merged.
			must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
			for path, edit := range map[string][2]string{container: {"a > b", "other"}, serverPath: {"5080", "8080"}} {
				replaceIn(t, s, path, edit[0], edit[1])
				before[path] = strings.Replace(before[path], edit[0], edit[1], 1)
			}
			edited := form("db.host=\\uZZZZ\n")
			must.OK(t, os.WriteFile(s.Root+app, []byte(edited), 0o644))
			before[SavedName(app)] = "-rw-r----- " + edited
			must.OK(t, planUndo(t, s).CommitUndo("leave"))
			same("left after edits", before)
		})
	}
}

func TestUndoKeepsUnrelatedEdits(t *testing.T) {
	s := newTree(t)
	before := snapshot(t, s)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	edits := []struct{ path, old, repl string }{
		{"/ams/conf/jee-container.xml", `value="a > b"`, `value="combined"`},
		{"/ams/conf/red5.properties", "http.port=5080", "http.port=8080\nnew.key=1"},
		{"/ams/webapps/Live App/WEB-INF/red5-web.properties", "db.type=mapdb\n", "# note\ndb.type=mapdb\n"},
		{"/data/root.properties", "db.type=mapdb\r\n", "db.type=mapdb\r\nother=1\r\n"},
	}
	for _, e := range edits {
		replaceIn(t, s, e.path, e.old, e.repl)
		before[e.path] = strings.Replace(before[e.path], e.old, e.repl, 1)
	}
	undoAll(t, s)
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("after undo (-want +got):\n%s", d)
	}
}

func replaceIn(t testing.TB, s *Store, path, old, repl string) {
	t.Helper()
	real := filepath.Join(s.Root, path)
	b, err := os.ReadFile(real)
	must.OK(t, err)
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s does not hold %q", path, old)
	}
	must.OK(t, os.WriteFile(real, bytes.Replace(b, []byte(old), []byte(repl), 1), 0o644))
}

// TestUndoConflicts: what we wrote was edited since. It is said, and the
// standalone form is written.
func TestUndoConflicts(t *testing.T) {
	s := newTree(t)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	replaceIn(t, s, "/ams/conf/red5.properties", "clusterdb.host=10.0.0.1", "clusterdb.host=10.9.9.9")
	replaceIn(t, s, dropInPath, "10.0.0.1", "10.9.9.9")
	must.OK(t, os.Remove(filepath.Join(s.Root, "/data/root.properties")))
	p := planUndo(t, s)
	var got []string
	for _, c := range p.Conflicts {
		got = append(got, c.String())
	}
	want := []string{
		dropInPath + ": was edited since we made it; it is removed, the edited file is kept beside it as " + dropInPath + ".amsagent-saved",
		"/ams/conf/red5.properties: clusterdb.host was edited since; its standalone value is written",
		"/ams/webapps/root/WEB-INF/red5-web.properties: was removed since; it is left removed",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("conflicts (-want +got):\n%s", d)
	}
	must.OK(t, p.CommitUndo("leave"))
	after := snapshot(t, s)
	if got, want := after["/ams/conf/red5.properties"], "-rw-r----- # server\nhttp.port=5080\nclusterdb.host=localhost\n"; got != want {
		t.Errorf("red5.properties: %q, want %q", got, want)
	}
	if _, there := after[dropInPath]; there {
		t.Error("the drop-in is still there")
	}
	if got := after[dropInPath+".amsagent-saved"]; !strings.Contains(got, "10.9.9.9") {
		t.Errorf("the edited drop-in was lost: %q", got)
	}
}

// A release before 1.9.1 has another file for each mode. Where a later one was installed over
// it, its own file is made standalone: the former release's would be none that it can read.
func TestUndoOfAnUpgradeToMarks(t *testing.T) {
	const former, cluster = "<beans>\n<bean id=\"tomcat.server\"/>\n</beans>\n", "<beans>\n<bean id=\"tomcat.cluster\"/>\n</beans>\n"
	rec := &FileRecord{
		Path: "/ams/conf/jee-container.xml", Kind: KindWhole, Existed: true, Original: []byte(former),
		Written: sum([]byte(cluster)),
	}
	c, err := ParseContainer([]byte(standaloneXML))
	if err == nil {
		err = c.SetMode(ModeCluster)
	}
	must.OK(t, err)
	for _, current := range []string{standaloneXML, string(c.Bytes())} {
		u, err := rec.Undo([]byte(current))
		if err != nil || string(u.Bytes) != standaloneXML || u.Keep {
			t.Errorf("%v, %+v", err, u)
		}
	}
	// Of the same release it is what it was.
	if u, err := rec.Undo([]byte(cluster)); err != nil || string(u.Bytes) != former {
		t.Errorf("%v, %+v", err, u)
	}
}

// planContainer plans the container of a join, with its valve or without.
func planContainer(t *testing.T, p *Plan, removes bool) {
	t.Helper()
	must.OK(t, p.Edit(Target{Path: containerPath, Kind: KindContainer}, func(src []byte) ([]Span, error) {
		c := mustContainer(t, string(src))
		must.OK(t, c.SetMode(ModeCluster))
		if removes {
			must.OK(t, c.RemoveRemoteIPValve())
		}
		return c.Spans(), nil
	}))
}

// TestRemovedValveIsRemembered: an operator edits the file without its valve, and a second join takes that file for the
// original. The leave still names the valve, unless the operator put it back.
func TestRemovedValveIsRemembered(t *testing.T) {
	standalone := strings.NewReplacer("cluster start -->", "cluster start", "<!-- cluster end", "cluster end")
	for name, tt := range map[string]struct {
		edit  func(joined string) string
		stays bool // the second join removes no valve
	}{
		"edited":           {edit: strings.NewReplacer("a > b", "combined").Replace},
		"made standalone":  {edit: standalone.Replace},
		"put back by hand": {edit: func(string) string { return clusterXML }, stays: true},
	} {
		s := newTree(t)
		join := func(host string, removes bool) *Plan {
			record, err := s.Record()
			must.OK(t, err)
			p := s.NewPlan(record)
			must.OK(t, p.Edit(Target{Path: serverPath, Kind: KindProperties}, func(src []byte) ([]Span, error) {
				q, err := ParseProperties(src)
				must.OK(t, err)
				q.Set("clusterdb.host", host, nil)
				return q.Spans(), nil
			}))
			planContainer(t, p, removes)
			must.OK(t, p.Commit("join"))
			return p
		}
		joined := join("10.0.0.1", true).Planned(containerPath)
		must.OK(t, os.WriteFile(filepath.Join(s.Root, containerPath), []byte(tt.edit(string(joined))), 0o644))
		for _, host := range []string{"10.0.0.2", "10.0.0.3"} {
			if p := join(host, !tt.stays); len(p.Conflicts) > 0 {
				t.Errorf("%s: joined again: %v", name, p.Conflicts)
			}
		}
		undo := planUndo(t, s)
		if named := len(undo.Conflicts) == 1 && strings.Contains(undo.Conflicts[0].Msg, remoteIPValve); named == tt.stays {
			t.Errorf("%s: left: %v", name, undo.Conflicts)
		}
	}
}

// TestRevertNamesTheValve: a second join that removed the valve is reverted in a file that was edited since.
func TestRevertNamesTheValve(t *testing.T) {
	s := newTree(t)
	join := func(removes bool) *Plan {
		record, err := s.Record()
		must.OK(t, err)
		p := s.NewPlan(record)
		planContainer(t, p, removes)
		must.OK(t, p.Commit("join"))
		return p
	}
	join(false)
	second := join(true)
	replaceIn(t, s, containerPath, "a > b", "combined")
	conflicts, err := second.Revert("rollback")
	if err != nil || len(conflicts) != 1 || !strings.Contains(conflicts[0].Msg, remoteIPValve) {
		t.Errorf("%v, %v", conflicts, err)
	}
	if f, err := s.Read(containerPath); err != nil || mustContainer(t, string(f.Bytes)).Mode() != ModeCluster {
		t.Errorf("%v:\n%s", err, f.Bytes)
	}
}

// TestSecondJoinKeepsAnEditedFile: a file that a join replaced as a whole, and an operator edited since, is replaced
// again. The edited one is kept beside it.
func TestSecondJoinKeepsAnEditedFile(t *testing.T) {
	s := newTree(t)
	const former, edited = "<beans/>", "<beans><!-- edited --></beans>"
	real := filepath.Join(s.Root, containerPath)
	must.OK(t, os.WriteFile(real, []byte(former), 0o644))
	join := func() *Plan {
		record, err := s.Record()
		must.OK(t, err)
		p := s.NewPlan(record)
		must.OK(t, p.Edit(Target{Path: containerPath, Kind: KindWhole}, func(src []byte) ([]Span, error) {
			return []Span{{Old: src, New: []byte(clusterXML)}}, nil
		}))
		must.OK(t, p.Commit("join"))
		return p
	}
	join()
	must.OK(t, os.WriteFile(real, []byte(edited), 0o644))
	if p := join(); len(p.Conflicts) != 1 {
		t.Error(p.Conflicts)
	}
	if f, err := s.Read(SavedName(containerPath)); err != nil || string(f.Bytes) != edited {
		t.Errorf("kept %q, %v", f.Bytes, err)
	}
	undoAll(t, s)
	if f, err := s.Read(containerPath); err != nil || string(f.Bytes) != former {
		t.Errorf("left with %q, %v", f.Bytes, err)
	}
}

// TestUndoAfterPanelSave: the web panel rewrites a file through
// Properties.store: order and comments are gone, values are escaped.
func TestUndoAfterPanelSave(t *testing.T) {
	s := newTree(t)
	host := "mongodb://u:p%40@h1,h2/?a=b"
	must.OK(t, planCluster(t, s, host).Commit("join"))
	path := "/ams/conf/red5.properties"
	saved := "#Fri Nov 20 06:08:31 UTC 2026\nadded.key=x\nclusterdb.host=mongodb\\://u\\:p%40@h1,h2/?a\\=b\nhttp.port=5080\n"
	must.OK(t, os.WriteFile(filepath.Join(s.Root, path), []byte(saved), 0o640))
	undoAll(t, s)
	got := snapshot(t, s)[path]
	if want := "-rw-r----- #Fri Nov 20 06:08:31 UTC 2026\nclusterdb.host=localhost\nhttp.port=5080\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCommitKeepsMetadata(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	s := newTree(t)
	path := "/ams/conf/red5.properties"
	real := filepath.Join(s.Root, path)
	must.OK(t, os.Chown(real, 4711, 4712))
	must.OK(t, os.Chmod(real, 0o664))
	setXattr := func(name string, value []byte) {
		if err := unix.Setxattr(real, name, value, 0); err != nil {
			t.Skipf("this file system has no %s: %v", name, err)
		}
	}
	setXattr("user.note", []byte("keep me"))
	acl := posixACL(
		aclEntry{0x01, 6, 0xffffffff}, aclEntry{0x02, 4, 4713}, aclEntry{0x04, 6, 0xffffffff},
		aclEntry{0x10, 6, 0xffffffff}, aclEntry{0x20, 4, 0xffffffff})
	setXattr("system.posix_acl_access", acl)

	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	check := func(when string, mode fs.FileMode) {
		t.Helper()
		f, err := s.Read(path)
		must.OK(t, err)
		if f.UID != 4711 || f.GID != 4712 || f.Mode != mode {
			t.Errorf("%s: owner %d:%d mode %o, want 4711:4712 %o", when, f.UID, f.GID, f.Mode, mode)
		}
		if v, err := attribute(real, "user.note"); err != nil || string(v) != "keep me" {
			t.Errorf("%s: xattr %q, %v", when, v, err)
		}
		got, err := attribute(real, "system.posix_acl_access")
		want := bytes.Clone(acl)
		if mode&0o007 == 0 {
			want[len(want)-8+2] = 0 // other: none
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: acl %x, want %x (%v)", when, got, want, err)
		}
	}
	check("joined", 0o660)
	undoAll(t, s)
	check("left", 0o664)
}

// attribute reads an extended attribute.
func attribute(real, name string) ([]byte, error) {
	buf := make([]byte, 1024)
	n, err := unix.Lgetxattr(real, name, buf)
	return buf[:max(n, 0)], err
}

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

func posixACL(entries ...aclEntry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func TestReadReportsHardLinks(t *testing.T) {
	s := newTree(t)
	path := "/ams/conf/red5.properties"
	must.OK(t, os.Link(filepath.Join(s.Root, path), filepath.Join(s.Root, "/data/other")))
	f, err := s.Read(path)
	if err != nil || f.Links != 2 {
		t.Errorf("links %d, %v; want 2", f.Links, err)
	}
	f, err = s.Read("/ams/webapps/root/WEB-INF/red5-web.properties")
	if err != nil || f.Target != "/data/root.properties" {
		t.Errorf("target %q, %v", f.Target, err)
	}
}

func TestReadRefuses(t *testing.T) {
	s := newTree(t)
	if _, err := s.Read("/ams/conf"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	must.OK(t, syscall.Mkfifo(filepath.Join(s.Root, "/ams/fifo"), 0o600))
	if _, err := s.Read("/ams/fifo"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a fifo: %v", err)
	}
	if f, err := s.Read("/nothing"); err != nil || f.Exists() {
		t.Errorf("a missing file: %v %v", f, err)
	}
	must.OK(t, os.WriteFile(filepath.Join(s.Root, "empty"), nil, 0o600))
	if f, err := s.Read("/empty"); err != nil || !f.Exists() {
		t.Errorf("an empty file must not read as a missing one: %v", err)
	}
}

func TestCommitRefusesWhatChangedMeanwhile(t *testing.T) {
	s := newTree(t)
	p := planCluster(t, s, "10.0.0.1")
	replaceIn(t, s, "/ams/conf/red5.properties", "5080", "5081")
	before := snapshot(t, s)
	if err := p.Commit("join"); !errors.Is(err, ErrChanged) {
		t.Fatalf("Commit = %v, want ErrChanged", err)
	}
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("something was changed:\n%s", d)
	}
}

// TestOvertaken: another program replaces a file while a commit, or a recovery, replaces another one. Its content stays.
func TestOvertaken(t *testing.T) {
	for _, recovers := range []bool{false, true} {
		s := newTree(t)
		real, want, done := s.Root+serverPath, snapshot(t, s), false
		p := planCluster(t, s, "10.0.0.1")
		if recovers {
			_, want, _ = interrupted(t, s, 0)
		}
		was, err := os.ReadFile(real)
		must.OK(t, errors.Join(err, os.WriteFile(real+"~", append(was, "x=1\n"...), 0o640)))
		s.hook = func(call, name string) error {
			if done || call != "renameat" || !strings.Contains(name, "jee-container.xml") { // the first
				return nil
			}
			done = true
			return os.Rename(real+"~", real)
		}
		if !recovers {
			err = p.Commit("join")
		} else if r := recovered(t, s); len(r.Conflicts) == 1 && r.Conflicts[0].Path == serverPath {
			err = ErrChanged
		}
		want[serverPath] = "-rw-r----- " + string(was) + "x=1\n"
		if d := cmp.Diff(want, snapshot(t, s)); d != "" || !errors.Is(err, ErrChanged) {
			t.Errorf("recovers %v: %v (-want +got):\n%s", recovers, err, d)
		}
	}
}

func TestRevert(t *testing.T) {
	s := newTree(t)
	standalone := snapshot(t, s)
	joined, second := joinedTwice(t, s)
	if conflicts, err := second.Revert("rollback"); err != nil || len(conflicts) > 0 {
		t.Fatal(err, conflicts)
	}
	if d := cmp.Diff(joined, snapshot(t, s)); d != "" {
		t.Errorf("after the revert (-want +got):\n%s", d)
	}
	undoAll(t, s)
	if d := cmp.Diff(standalone, snapshot(t, s)); d != "" {
		t.Errorf("undo after a revert (-want +got):\n%s", d)
	}
	third := planCluster(t, s, "10.0.0.3")
	must.OK(t, third.Commit("join"))
	if _, err := third.Revert("rollback"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(standalone, snapshot(t, s)); d != "" {
		t.Errorf("revert of a first join (-want +got):\n%s", d)
	}
}

// joinedTwice joins, and joins another cluster: the tree between the two, and the plan of the second.
func joinedTwice(t *testing.T, s *Store) (between map[string]string, second *Plan) {
	t.Helper()
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	between = snapshot(t, s)
	second = planCluster(t, s, "10.0.0.2")
	must.OK(t, second.Commit("join"))
	return between, second
}

// TestRevertTorn: the server was ended while it saved a file that a second join had changed.
func TestRevertTorn(t *testing.T) {
	for name, cut := range map[string]func(s string) string{
		"empty": func(string) string { return "" },
		"half":  func(s string) string { return s[:len(s)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTree(t)
			want, second := joinedTwice(t, s)
			path := propertyPaths[0]
			real := filepath.Join(s.Root, path)
			b, err := os.ReadFile(real)
			must.OK(t, err)
			must.OK(t, os.WriteFile(real, []byte(cut(string(stored(t, b)))), 0o640))
			conflicts, err := second.Revert("rollback")
			if err != nil || len(conflicts) != 1 || conflicts[0].Path != path {
				t.Fatal(err, conflicts)
			}
			if half := cut(string(stored(t, b))); half != "" {
				want[SavedName(path)] = "-rw-r----- " + half
			}
			if d := cmp.Diff(want, snapshot(t, s)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestRevertToAHalfFile: what a second join found half written is found so again, whatever was cut.
func TestRevertToAHalfFile(t *testing.T) {
	s := newTree(t)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	const half = "#Sat Nov 21 00:34:56 UTC 2026\nhttp.port=5080\nx=\\u00"
	real := filepath.Join(s.Root, serverPath)
	must.OK(t, os.WriteFile(real, []byte(half), 0o640))
	before := snapshot(t, s)
	p := planCluster(t, s, "10.0.0.2")
	must.OK(t, p.Commit("join"))
	conflicts, err := p.Revert("rollback")
	if err != nil || len(conflicts) > 0 {
		t.Error(conflicts, err)
	}
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestRevertEdited: a value that was edited after the commit that is reverted becomes the standalone one after a first
// join, and stays after a second one.
func TestRevertEdited(t *testing.T) {
	for _, again := range []bool{false, true} {
		s := newTree(t)
		p := planCluster(t, s, "10.0.0.1")
		must.OK(t, p.Commit("join"))
		want := "localhost"
		if again {
			p = planCluster(t, s, "10.0.0.2")
			must.OK(t, p.Commit("join"))
			want = "10.9.9.9"
		}
		now := p.Planned(serverPath)
		edited := strings.NewReplacer("clusterdb.host=10.0.0.1", "clusterdb.host=10.9.9.9", "clusterdb.host=10.0.0.2", "clusterdb.host=10.9.9.9").Replace(string(now))
		must.OK(t, os.WriteFile(filepath.Join(s.Root, serverPath), []byte(edited), 0o640))
		conflicts, err := p.Revert("rollback")
		if err != nil || len(conflicts) != 1 || conflicts[0].Anchor != "key:clusterdb.host" {
			t.Errorf("again %v: %v, %v", again, conflicts, err)
		}
		f, err := s.Read(serverPath)
		must.OK(t, err)
		if got := properties(t, f.Bytes); got["clusterdb.host"] != want || (got["added.key"] == "x") != again {
			t.Errorf("again %v:\n%s", again, f.Bytes)
		}
	}
}

// TestRevertHosts: the line of a first join is there again when a second one is reverted, beside later lines.
func TestRevertHosts(t *testing.T) {
	const path, localhost, other = "/etc/hosts", "127.0.0.1 localhost\n", "10.0.0.9 other\n"
	for name, tt := range map[string]struct{ before, address, edit string }{
		"another address":            {localhost, "10.0.0.2", ""},
		"another address, and edits": {localhost, "10.0.0.2", other},
		"no line any more":           {localhost, "", ""},
		"no file any more":           {"", "", ""},
	} {
		s := newTree(t)
		real := filepath.Join(s.Root, path)
		if tt.before != "" {
			must.OK(t, os.WriteFile(real, []byte(tt.before), 0o644))
		}
		var own []*FileRecord
		join := func(address string) *Plan {
			p := s.NewPlan(nil, own...)
			must.OK(t, p.Edit(Target{Path: path, Kind: KindHosts, CreateMode: 0o644, Own: true}, func(src []byte) ([]Span, error) {
				if address == "" {
					return nil, nil
				}
				return AddHost(src, netip.MustParseAddr(address), "node"), nil
			}))
			own = p.Own()
			must.OK(t, p.WriteOwn())
			return p
		}
		join("10.0.0.1")
		if err := os.Chown(real, 4711, 4711); os.Geteuid() == 0 { // root's user id is that of a missing file, too
			must.OK(t, err)
		}
		former := own
		joined, err := os.ReadFile(real)
		must.OK(t, err)
		p := join(tt.address)
		if tt.edit != "" {
			f, err := s.Read(path)
			must.OK(t, errors.Join(err, os.WriteFile(real, append(f.Bytes, tt.edit...), 0o644)))
		}
		if conflicts, err := p.RevertOwn(); err != nil || len(conflicts) > 0 {
			t.Errorf("%s: %v, %v", name, conflicts, err)
		}
		if f, err := s.Read(path); err != nil || string(f.Bytes) != string(joined)+tt.edit || f.Mode != 0o644 {
			t.Errorf("%s: %v, %v %q, want %q", name, err, f.Mode, f.Bytes, string(joined)+tt.edit)
		}
		undo, err := s.PlanUndo(nil, former...)
		must.OK(t, err)
		must.OK(t, undo.WriteOwn())
		if f, err := s.Read(path); err != nil || string(f.Bytes) != tt.before+tt.edit {
			t.Errorf("%s: left with %q, %v", name, f.Bytes, err)
		}
	}
}

// TestRevertRefused: one file that its owner makes a link, or too large, keeps none of the others from being put back, and
// the record knows it.
func TestRevertRefused(t *testing.T) {
	for name, spoil := range map[string]func(real string) error{
		"a link to root's": func(real string) error {
			return errors.Join(os.Remove(real), os.Symlink("/etc/systemd", real), os.Lchown(real, 4711, 4711))
		},
		"too large": func(real string) error { return os.WriteFile(real, make([]byte, MaxSettings+1), 0o640) },
	} {
		t.Run(name, func(t *testing.T) {
			s := hisTree(t)
			want, second := joinedTwice(t, s)
			real := filepath.Join(s.Root, serverPath)
			must.OK(t, spoil(real))
			conflicts, err := second.Revert("rollback")
			if err != nil || len(conflicts) != 1 || conflicts[0].Path != serverPath {
				t.Fatal(err, conflicts)
			}
			record, err := s.Record()
			if err != nil || record.File(serverPath).Keys[0].Wrote != "10.0.0.2" {
				t.Errorf("the record: %+v, %v", record, err)
			}
			got := snapshot(t, s)
			delete(want, serverPath)
			delete(got, serverPath)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestFullDisk: a commit on a file system without room changes nothing.
func TestFullDisk(t *testing.T) {
	s, dir := newTree(t), ""
	dir = filepath.Join(s.Root, "ams/conf")
	small(t, dir, "size=64k", func() {
		for name, content := range map[string]string{"jee-container.xml": standaloneXML, "red5.properties": "clusterdb.host=localhost\n"} {
			must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
		}
		fill, err := os.Create(filepath.Join(dir, "fill"))
		must.OK(t, err)
		for err == nil {
			_, err = fill.Write(make([]byte, 1024))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		must.OK(t, fill.Close())
	})
	before := snapshot(t, s)
	if err := planCluster(t, s, "10.0.0.1").Commit("join"); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Commit = %v, want ENOSPC", err)
	}
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("something was changed:\n%s", d)
	}
}

func TestReadOnlyTree(t *testing.T) {
	s := newTree(t)
	dir := filepath.Join(s.Root, "ams/conf")
	small(t, dir, "size=64k", func() {
		for name, content := range map[string]string{"jee-container.xml": standaloneXML, "red5.properties": "clusterdb.host=localhost\n"} {
			must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
		}
		must.OK(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	})
	before := snapshot(t, s)
	if err := planCluster(t, s, "10.0.0.1").Commit("join"); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("Commit = %v, want EROFS", err)
	}
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("something was changed:\n%s", d)
	}
}

// small mounts a tmpfs over dir for the test.
func small(t *testing.T, dir, options string, prepare func()) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	prepare()
}

func TestWriteFile(t *testing.T) {
	s := newTree(t)
	path := "/run/amsagent/result.json"
	for _, content := range []string{"a", "b"} {
		must.OK(t, s.WriteFile(path, []byte(content), 0o644, 0o755))
		if f, err := s.Read(path); err != nil || string(f.Bytes) != content || f.Mode != 0o644 {
			t.Errorf("read %q %o, %v", f.Bytes, f.Mode, err)
		}
	}
	real := filepath.Join(s.Root, path)
	was, err := os.Stat(real)
	must.OK(t, err)
	must.OK(t, s.WriteFile(path, []byte("b"), 0o644, 0o755))
	if now, err := os.Stat(real); err != nil || !os.SameFile(was, now) {
		t.Errorf("the same content was written again (%v)", err)
	}
	must.OK(t, s.RemoveFile(path))
	if err := s.RemoveFile(path); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
}

// TestFirstLocks: a daemon and a join start at once, and neither finds a folder.
func TestFirstLocks(t *testing.T) {
	for range 100 {
		s := &Store{Root: t.TempDir(), Dir: "/var/lib/amsagent"}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				lock, err := s.Lock(t.Context(), "/run/amsagent/locks/lock", nil)
				if err != nil {
					t.Error(err)
					return
				}
				if err := lock.Unlock(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
}

func TestLock(t *testing.T) {
	s := newTree(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, err := s.Lock(ctx, "/run/amsagent/lock", nil)
	must.OK(t, err)
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if _, err := s.Lock(short, "/run/amsagent/lock", nil); !errors.Is(err, ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	told := make(chan bool, 1)
	got := make(chan error, 1)
	go func() {
		b, err := s.Lock(ctx, "/run/amsagent/lock", func() { told <- true })
		if err == nil {
			err = b.Unlock()
		}
		got <- err
	}()
	<-told
	must.OK(t, a.Unlock())
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestDiffMasksSecrets(t *testing.T) {
	before := "a=1\nclusterdb.host=localhost\ndb.password=old secret\nserver.jwtServerSecretKey=k\\\n  ey\nb=2\n"
	after := "a=1\nclusterdb.host=mongodb://me:p%40ss@h1,h2/?a=b\ndb.password=new secret\nserver.jwtServerSecretKey=k\\\n  ey\nb=2\n"
	got := Diff("/ams/conf/red5.properties", KindProperties, []byte(before), []byte(after))
	want := `--- a/ams/conf/red5.properties
+++ b/ams/conf/red5.properties
@@ -1,5 +1,5 @@
 a=1
-clusterdb.host=localhost
-db.password=***
+clusterdb.host=mongodb://me:***@h1,h2/?a=b
+db.password=*** (another one)
 server.jwtServerSecretKey=***
 b=2
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := Diff("/etc/amsagent/mongo", KindWhole, nil, []byte("me:s3cret@h1/?x=y\n")); strings.Contains(got, "s3cret") {
		t.Errorf("a string without a scheme leaks:\n%s", got)
	}
	if got := Diff("/f", KindContainer, []byte("<a/>"), []byte(`<a v="mongodb://u:s3c@ret@h/"/>`)); strings.Contains(got, "s3c") || strings.Contains(got, "ret@") {
		t.Errorf("XML leaks:\n%s", got)
	}
}

// A password may hold what ends a word elsewhere. That of a former join is among no known secrets, so only its place
// shows what it is.
func TestFormerPasswordMasked(t *testing.T) {
	const path, now = "/red5.properties", "mongodb://u:other@h/x"
	for _, tt := range []struct{ former, shown string }{
		{"mongodb://u:pa'ss22@h/x", "mongodb://u:***@h/x"},
		{`mongodb://u:pa"ss22@h/x`, "mongodb://u:***@h/x"},
		{"mongodb://u:pa`ss22@h/x", "mongodb://u:***@h/x"},
		{"mongodb://u:pa<ss22>@h/x", "mongodb://u:***@h/x"},
		{"mongodb://u:pa ss22@h/x", "mongodb://u:***@h/x"},
		{"u:pa'ss22@h/x", "u:***@h/x"},
		{"mongodb://u:mypass=ss22@h/x", "mongodb://u:***"},
		{"u:pa'ss22@h,mongodb://h2:1/x", "u:***@h,mongodb://h2:1/x"},
		{"mongodb://u@h/?authMechanismProperties=AWS_SESSION_TOKEN:ss22&w=1", "mongodb://u@h/?authMechanismProperties=***&w=1"},
		{"mongodb://u@h/?proxyPassword=a'ss22&w=1", "mongodb://u@h/?proxyPassword=***&w=1"},
	} {
		before, after := []byte("a=1\ndb.host="+tt.former+"\n"), []byte("a=1\ndb.host="+now+"\n")
		said := Diff(path, KindProperties, before, after)
		for _, d := range (PlannedFile{Before: File{Path: path, Bytes: before, Mode: 0o644}, After: after, Mode: 0o644, Kind: KindProperties}).Differences() {
			if said += d.String(); d.Old != tt.shown {
				t.Errorf("%s is shown as %s, want %s", tt.former, d.Old, tt.shown)
			}
		}
		// In a comment, and where the file does not parse; a word ends at a blank and at a tag there.
		if !strings.ContainsAny(tt.former, " <") {
			said += string(Redact(KindProperties, []byte("#db.host="+tt.former+"\n"))) + string(Redact(KindProperties, append(before, "c=\\u12\n"...)))
		}
		if strings.Contains(said, "ss22") || !strings.Contains(said, "-db.host="+tt.shown) {
			t.Errorf("%s:\n%s", tt.former, said)
		}
	}
	if got := string(Redact(KindContainer, []byte(`<a u='mongodb://u:pa"ss22@h'/><b c='d:e'/>`))); got != `<a u='mongodb://u:***@h'/><b c='d:e'/>` {
		t.Errorf("XML: %s", got)
	}
}

// Twelve kinds of secrets that files have beside the line that changes: in comments, under the vendor's own names, in XML.
func TestDiffShowsNoSecret(t *testing.T) {
	const secret = "hunter2"
	for _, line := range []string{
		"rtmps.keystorepass=%s", "jmx.keystorepass=%s", "server_key_pass=%s", "db.pwd=%s", "apiKey=%s", "srt.passphrase: %s",
		"privateKey=%s", "jwtKey=%s", "#clusterdb.password=%s", "# mongodb://u:%s@h/", "! db.password %s", "s3.accessKey=a\\\n  %s",
		"clusterCommunicationKey=%s", `settings.note={"private_key"\: "%s", "x"\:1}`,
	} {
		line = fmt.Sprintf(line, secret)
		before := "a=1\n" + line + "\nb=2\n"
		got := Diff("/f", KindProperties, []byte(before), []byte(strings.Replace(before, "a=1", "a=2", 1)))
		if strings.Contains(got, secret) || !strings.Contains(got, " b=2") || !strings.Contains(got, redact.Placeholder) {
			t.Errorf("%s:\n%s", line, got)
		}
		// The same where the file does not parse.
		if got := string(Redact(KindProperties, []byte(before+"c=\\u12\n"))); strings.Contains(got, secret) || !strings.Contains(got, "c=\\u12") {
			t.Errorf("in a broken file:\n%s", got)
		}
	}
	for _, line := range []string{
		`<bean id="b"><property name="password" value="hunter2"/></bean>`,
		"<property name=\"keystorePass\">\n<value>hunter2</value>\n</property>",
		`<!-- <entry key="apiKey" value="hunter2"/> -->`,
		`<Connector keystorePass='hunter2' port="5443"/>`,
	} {
		before := "<beans>\n<a/>\n" + line + "\n</beans>\n"
		got := Diff("/f", KindContainer, []byte(before), []byte(strings.Replace(before, "<a/>", "<b/>", 1)))
		if strings.Contains(got, secret) || !strings.Contains(got, redact.Placeholder) {
			t.Errorf("%s:\n%s", line, got)
		}
	}
}

func BenchmarkPlanNothingToDo(b *testing.B) {
	s := newTree(b)
	must.OK(b, planCluster(b, s, "10.0.0.1").Commit("join"))
	for b.Loop() {
		if n := len(planCluster(b, s, "10.0.0.1").Changed()); n != 0 {
			b.Fatal(fmt.Sprint(n, " changes"))
		}
	}
}

// inside is what a path on this machine is called below the root.
func (s *Store) inside(real string) string {
	return "/" + strings.TrimPrefix(strings.TrimPrefix(real, s.Root), "/")
}

// TestExchangedAfterThePlan: who owns the folder exchanges a file, or the folder,
// between the plan and the commit. Nothing is changed, here or there.
func TestExchangedAfterThePlan(t *testing.T) {
	const file, folder = "/ams/conf/red5.properties", "/ams/conf"
	for name, exchange := range map[string]func(at func(string) string) error{
		"a copy": func(at func(string) string) error {
			b, err := os.ReadFile(at(file))
			return errors.Join(err, os.WriteFile(at("/data/copy"), b, 0o640), os.Rename(at("/data/copy"), at(file)))
		},
		"a copy with another mode": func(at func(string) string) error {
			b, err := os.ReadFile(at(file))
			return errors.Join(err, os.Remove(at(file)), os.WriteFile(at(file), b, 0o600), os.Chmod(at(file), 0o666))
		},
		"a link to a copy": func(at func(string) string) error {
			b, err := os.ReadFile(at(file))
			return errors.Join(err, os.WriteFile(at("/data/copy"), b, 0o640), os.Remove(at(file)), os.Symlink("/data/copy", at(file)))
		},
		"a link for the folder": func(at func(string) string) error {
			return errors.Join(os.Rename(at(folder), at("/data/conf")), os.Symlink("/data/conf", at(folder)))
		},
		"another folder": func(at func(string) string) error {
			if err := errors.Join(os.Rename(at(folder), at("/data/conf")), os.Mkdir(at(folder), 0o755)); err != nil {
				return err
			}
			return errors.Join(os.Link(at("/data/conf/red5.properties"), at(file)), os.Link(at("/data/conf/jee-container.xml"), at(folder+"/jee-container.xml")))
		},
		"a fifo": func(at func(string) string) error {
			return errors.Join(os.Remove(at(file)), syscall.Mkfifo(at(file), 0o640))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTree(t)
			p := planCluster(t, s, "10.0.0.1")
			must.OK(t, exchange(func(path string) string { return filepath.Join(s.Root, path) }))
			before := snapshot(t, s)
			if err := p.Commit("join"); !errors.Is(err, ErrChanged) && !files.Refused(err) {
				t.Errorf("Commit = %v, want ErrChanged", err)
			}
			if d := cmp.Diff(before, snapshot(t, s)); d != "" {
				t.Errorf("something was changed:\n%s", d)
			}
		})
	}
}

// TestBounds: what the server's user can make large.
func TestBounds(t *testing.T) {
	s := newTree(t)
	edit := func([]byte) ([]Span, error) { return nil, nil }
	large := func(path string, size int) {
		real := filepath.Join(s.Root, path)
		must.OK(t, errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, bytes.Repeat([]byte("#\n"), size/2), 0o644)))
	}
	large("/one", MaxSettings+2)
	if err := s.NewPlan(nil).Edit(Target{Path: "/one", Kind: KindProperties}, edit); !errors.Is(err, files.ErrTooLarge) {
		t.Errorf("one file: %v", err)
	}
	p := s.NewPlan(nil)
	var err error
	for n := 0; err == nil && n < 100; n++ {
		path := fmt.Sprintf("/app%d", n)
		large(path, MaxSettings)
		err = p.Edit(Target{Path: path, Kind: KindProperties}, edit)
	}
	if !errors.Is(err, files.ErrTooLarge) || !strings.Contains(err.Error(), "/app64") {
		t.Errorf("all files: %v", err)
	}
	// A refused file takes no room, and there is always room for root's own files.
	large("/small", 2)
	large("/root", MaxSettings)
	for path, kind := range map[string]Kind{"/small": KindProperties, "/root": KindWhole} {
		err := p.Edit(Target{Path: path, Kind: kind}, edit)
		if refused := kind == KindProperties; errors.Is(err, files.ErrTooLarge) != refused || err != nil != refused {
			t.Errorf("%s: %v", path, err)
		}
	}
	p.size -= 4 // as after a file that was not quite as large
	if err := p.Edit(Target{Path: "/app65", Kind: KindProperties}, edit); err != nil {
		t.Errorf("a file that is not there: %v", err)
	}
	large("/app66", MaxSettings)
	if err := p.Edit(Target{Path: "/app66", Kind: KindProperties}, edit); !errors.Is(err, files.ErrTooLarge) {
		t.Errorf("a large one: %v", err)
	}
	if err := p.Edit(Target{Path: "/small", Kind: KindProperties}, edit); err != nil {
		t.Errorf("a small one after one that was refused: %v", err)
	}
	// So can the copies that are kept already, none of which is written over.
	for _, tt := range []struct {
		saved int
		text  string
		want  string
	}{{4, "#\n#\n", ""}, {4, "#\n", "-1"}, {0, "#\n", "-1"}, {MaxSettings + 2, "#\n", "-1"}} {
		large(SavedName("/one"), tt.saved)
		p := s.NewPlan(nil)
		p.Conflicts = []Conflict{{Path: "/one", Msg: "kept as " + SavedName("/one")}}
		if err := p.keep(File{Path: "/one", Bytes: []byte(tt.text)}, false); err != nil || len(p.files) != 1 {
			t.Fatalf("%+v: %d copies, %v", tt, len(p.files), err)
		}
		want := SavedName("/one") + tt.want
		if got := p.files[0].Before; got.Path != want || p.Conflicts[0].Msg != "kept as "+want {
			t.Errorf("%+v: %s, %+v", tt, got.Path, p.Conflicts)
		}
	}
	if err := s.WriteFile("/own", make([]byte, maxFileSize+1), 0o600, 0o700); !errors.Is(err, files.ErrTooLarge) {
		t.Errorf("what could not be read again was written: %v", err)
	}
}

// The server's user decides how many files a commit has.
func TestEachBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most, calls := 0, 0, 0
		err := each(1000, func(int) error {
			mu.Lock()
			calls++
			now++
			most = max(most, now)
			mu.Unlock()
			<-time.After(time.Second) // until all that may have begun
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		})
		if err != nil || calls != 1000 || most != 16 {
			t.Errorf("%d calls, %d at a time, %v", calls, most, err)
		}
	})
}

// TestGrownWhileStaged: several files are read at a time, and their owner writes to them meanwhile. No more is read than
// was planned.
func TestGrownWhileStaged(t *testing.T) {
	s := newTree(t)
	p := planCluster(t, s, "10.0.0.1")
	real := filepath.Join(s.Root, serverPath)
	must.OK(t, os.WriteFile(real, bytes.Repeat([]byte("#\n"), maxFileSize/2), 0o640))
	before := snapshot(t, s)
	was := allocated()
	if err := p.Commit("join"); !errors.Is(err, ErrChanged) || files.Refused(err) {
		t.Error(err)
	}
	if took := allocated() - was; took > maxFileSize/2 {
		t.Errorf("%d bytes are read for a file of some bytes", took)
	}
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// allocated counts all bytes that were ever allocated.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// TestLeaveOfGrownFiles: the server's user makes files large after a join, and more of them than a change may have. A leave
// makes all standalone for which there is room, and names the others.
func TestLeaveOfGrownFiles(t *testing.T) {
	s := newTree(t)
	p := s.NewPlan(nil)
	const many = maxUndo/MaxSettings + 2
	for n := range many {
		path := fmt.Sprintf("/ams/app%d", n)
		must.OK(t, os.WriteFile(s.Root+path, []byte("db.host=localhost\n"), 0o644))
		must.OK(t, p.Edit(Target{Path: path, Kind: KindProperties}, func(src []byte) ([]Span, error) {
			q, err := ParseProperties(src)
			must.OK(t, err)
			q.Set("db.host", "10.0.0.1", nil)
			return q.Spans(), nil
		}))
	}
	must.OK(t, p.Commit("join"))
	grown := append([]byte("db.host=10.0.0.1\nx=\\uZZZZ\n#"), bytes.Repeat([]byte{'x'}, MaxSettings)...)[:MaxSettings]
	for n := range many {
		must.OK(t, os.WriteFile(fmt.Sprintf("%s/ams/app%d", s.Root, n), grown, 0o644))
	}
	undo := planUndo(t, s)
	must.OK(t, undo.CommitUndo("leave"))
	left := 0
	for n := range many {
		b, err := os.ReadFile(fmt.Sprintf("%s/ams/app%d", s.Root, n))
		must.OK(t, err)
		if len(b) > MaxSettings/2 {
			left++
		}
	}
	if left != 2 || len(undo.Conflicts) != many {
		t.Errorf("%d files are left, and there are %d conflicts", left, len(undo.Conflicts))
	}
}
