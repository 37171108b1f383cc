// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// TestRevertNamesTheValve: a second join that removed the valve is reverted in a file that was edited since.
func TestRevertNamesTheValve(t *testing.T) {
	s := newTree(t)
	joinContainer(t, s, "10.0.0.1", false)
	second := joinContainer(t, s, "10.0.0.2", true)
	replaceIn(t, s, containerPath, "a > b", "combined")
	conflicts := reverted(t, second)
	if len(conflicts) != 1 || !strings.Contains(conflicts[0].Msg, remoteIPValve) {
		t.Errorf("conflicts: %v", conflicts)
	}
	must.Equal(t, "the mode", mustContainer(t, content(t, s, containerPath)).Mode(), ModeCluster)
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
			half := cut(stored(t, content(t, s, serverPath)))
			put(t, s, serverPath, half)
			conflictOf(t, reverted(t, second), serverPath)
			if half != "" {
				want[SavedName(serverPath)] = "-rw-r----- " + half
			}
			must.NoDiff(t, "the files", snapshot(t, s), want)
		})
	}
}

// TestRevertToAHalfFile: what a second join found half written is found so again, whatever was cut.
func TestRevertToAHalfFile(t *testing.T) {
	s := newTree(t)
	join(t, s, "10.0.0.1")
	put(t, s, serverPath, javaDate+"http.port=5080\nx=\\u00")
	before := snapshot(t, s)
	noConflict(t, reverted(t, join(t, s, "10.0.0.2")))
	must.NoDiff(t, "the files", snapshot(t, s), before)
}

// TestRevertEdited: a value that was edited after the commit that is reverted becomes the standalone one after a first
// join, and stays after a second one.
func TestRevertEdited(t *testing.T) {
	for _, again := range []bool{false, true} {
		s := newTree(t)
		p := join(t, s, "10.0.0.1")
		want := map[string]string{"http.port": "5080", "clusterdb.host": "localhost"}
		if again {
			p = join(t, s, "10.0.0.2")
			want = map[string]string{"http.port": "5080", "clusterdb.host": "10.9.9.2", "added.key": "x"}
		}
		replaceIn(t, s, serverPath, "10.0.0.", "10.9.9.")
		conflicts := reverted(t, p)
		if len(conflicts) != 1 || conflicts[0].Anchor != "key:clusterdb.host" {
			t.Errorf("again %v: %v", again, conflicts)
		}
		must.NoDiff(t, "the settings", properties(t, []byte(content(t, s, serverPath))), want)
	}
}

// TestRevertHosts: the line of a first join is there again when a second one is reverted, beside later lines.
func TestRevertHosts(t *testing.T) {
	const localhost, other = "127.0.0.1 localhost\n", "10.0.0.9 other\n"
	for name, tt := range map[string]struct{ before, address, edit string }{
		"another address":            {localhost, "10.0.0.2", ""},
		"another address, and edits": {localhost, "10.0.0.2", other},
		"no line any more":           {localhost, "", ""},
		"no file any more":           {"", "", ""},
	} {
		s := newTree(t)
		if tt.before != "" {
			put(t, s, ownHosts, tt.before)
		}
		var own []*FileRecord
		join := func(address string) *Plan {
			p := s.NewPlan(nil, own...)
			must.OK(t, p.Edit(Target{Path: ownHosts, Kind: KindHosts, CreateMode: 0o644, Own: true}, addHost(address)))
			own = p.Own()
			must.OK(t, p.WriteOwn())
			return p
		}
		join("10.0.0.1")
		if err := os.Chown(at(s, ownHosts), 4711, 4711); os.Geteuid() == 0 { // root's user id is that of a missing file, too
			must.OK(t, err)
		}
		former, joined := own, content(t, s, ownHosts)
		p := join(tt.address)
		if tt.edit != "" {
			put(t, s, ownHosts, content(t, s, ownHosts)+tt.edit)
		}
		conflicts, err := p.RevertOwn()
		must.OK(t, err)
		noConflict(t, conflicts)
		must.Equal(t, name, snapshot(t, s)[ownHosts], "-rw-r--r-- "+joined+tt.edit)
		undoOwn(t, s, former)
		f, err := s.Read(ownHosts)
		must.OK(t, err)
		must.Equal(t, name+", left", string(f.Bytes), tt.before+tt.edit)
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
			must.OK(t, spoil(at(s, serverPath)))
			conflictOf(t, reverted(t, second), serverPath)
			record, err := s.Record()
			if err != nil || record.File(serverPath).Keys[0].Wrote != "10.0.0.2" {
				t.Errorf("the record: %+v, %v", record, err)
			}
			got := snapshot(t, s)
			delete(want, serverPath)
			delete(got, serverPath)
			must.NoDiff(t, "the files", got, want)
		})
	}
}

// TestRevertOfTwoNames: while a commit is in place, one of its files is replaced by a link to another one.
func TestRevertOfTwoNames(t *testing.T) {
	for gone, kept := range map[string]string{serverPath: appPath, appPath: serverPath} {
		s := newTree(t)
		before := snapshot(t, s)
		p := join(t, s, "10.0.0.1")
		replaceByLink(t, s, gone, kept)
		conflictOf(t, reverted(t, p), gone)
		after := snapshot(t, s)
		delete(before, gone)
		delete(after, gone)
		must.NoDiff(t, gone+" is "+kept, after, before)
		if r, err := s.Record(); err != nil || len(r.Files) != 1 || r.Files[0].Path != gone {
			t.Errorf("%s is %s: record %v, %v", gone, kept, r, err)
		}
	}
}

// TestRevertBesideAnUnchangedFile: one that the commit changed is by now a link to one that it only looked at.
func TestRevertBesideAnUnchangedFile(t *testing.T) {
	s := newTree(t)
	join(t, s, "10.0.0.1")
	const later = "/ams/webapps/later/WEB-INF/red5-web.properties"
	put(t, s, later, "db.type=mapdb\ndb.host=localhost\n")
	p := planCluster(t, s, "10.0.0.1")
	must.OK(t, p.Edit(Target{Path: later, Kind: KindProperties}, set("db.host", "10.0.0.1")))
	must.OK(t, p.Commit("join"))
	before := content(t, s, appPath)
	replaceByLink(t, s, later, appPath)
	conflictOf(t, reverted(t, p), later)
	must.Equal(t, appPath, content(t, s, appPath), before)
}

// TestRevertOfAThirdFile: two of its files are replaced by links to a third one.
func TestRevertOfAThirdFile(t *testing.T) {
	s := newTree(t)
	p := join(t, s, "10.0.0.1")
	for _, gone := range []string{serverPath, appPath} {
		moveTo(t, s, gone, "/ams/third")
	}
	if len(reverted(t, p)) == 0 {
		t.Error("no conflict")
	}
	must.Equal(t, "the container", content(t, s, containerPath), standaloneXML)
}
