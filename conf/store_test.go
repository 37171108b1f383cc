// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
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

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

// Names are kept as JSON, which replaces what is not UTF-8: recovery and undoing would look for other files.
func TestNamesThatAreNotUTF8(t *testing.T) {
	const bad = "/ams/caf\xe9"
	for name, j := range map[string]*journal{
		"a target":             {Files: []journalFile{{Target: bad}}},
		"a file of the record": {Record: &Record{Files: []*FileRecord{{Path: bad, Kind: KindWhole, Written: sum(nil)}}}},
	} {
		j.ID = "0123456789ab"
		_, err := j.encode(maxJournal)
		must.Contain(t, name, fmt.Sprint(err), `"/ams/caf\xe9"`)
	}

	// A link may lead to such a name, also after the join.
	s := newTree(t)
	const app = "/ams/webapps/Live App"
	join(t, s, "10.0.0.1")
	moveTo(t, s, app, bad)
	for _, path := range []string{appPath, bad + "/WEB-INF/red5-web.properties"} {
		p := s.NewPlan(nil)
		if err := p.Edit(Target{Path: path, Kind: KindProperties}, noEdit); !files.Refused(err) || !strings.Contains(err.Error(), `caf\xe9`) || len(p.files) > 0 {
			t.Errorf("%q: %v", path, err)
		}
	}
	conflictOf(t, planUndo(t, s).Conflicts, appPath)
	// In such a folder no copy is kept either.
	moveTo(t, s, bad+"/WEB-INF/red5-web.properties", "/ams/other")
	put(t, s, "/ams/other", "db.type=mongodb\ndb.host=\\u\n")
	must.Contain(t, "conflicts", fmt.Sprint(leave(t, s)), "not kept")
	if text := content(t, s, serverPath); strings.Contains(text, "10.0.0.1") {
		t.Errorf("the other file is\n%s", text)
	}
}

func TestCommitAndUndo(t *testing.T) {
	s := newTree(t)
	before := snapshot(t, s)
	join(t, s, "10.0.0.1")
	joined := snapshot(t, s)
	for path, want := range map[string]string{
		serverPath:    "-rw-r----- # server\nhttp.port=5080\nclusterdb.host=10.0.0.1\nadded.key=x\n",
		appPath:       "-rw-r----- db.type=mapdb\ndb.host=10.0.0.1\ndb.password=\nadded.key=x",
		rootTarget:    "-rw------- db.type=mapdb\r\ndb.host=10.0.0.1\r\nadded.key=x\r\n",
		rootPath:      before[rootPath],
		containerPath: "-rw-r--r-- " + clusterXML,
		dropInPath:    "-rw-r--r-- [Service]\nEnvironment=10.0.0.1\n",
	} {
		must.NoDiff(t, path, joined[path], want)
	}
	must.Equal(t, "files that a second plan changes", len(planCluster(t, s, "10.0.0.1").Changed()), 0)
	// Another database: leave must still restore what the first join found.
	join(t, s, "10.0.0.2")
	undoAll(t, s)
	must.NoDiff(t, "the files after the leave", snapshot(t, s), before)
	must.Equal(t, "files in the state directory", len(stateNames(t, s)), 0)
	// A first join is reverted as if there had been none.
	noConflict(t, reverted(t, join(t, s, "10.0.0.3")))
	must.NoDiff(t, "the files after the revert", snapshot(t, s), before)
	must.Equal(t, "files in the state directory", len(stateNames(t, s)), 0)
}

// TestPlanKeepsEachByte: a plan, a commit, a revert and a leave change nothing that no edit is for, however a file begins
// and ends.
func TestPlanKeepsEachByte(t *testing.T) {
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	for name, form := range map[string]func(string) string{
		"as it is":                  func(s string) string { return s },
		"byte order mark":           func(s string) string { return "\ufeff" + s },
		"byte order mark and CR LF": func(s string) string { return "\ufeff" + crlf(s) },
		"spaces at the end":         func(s string) string { return s + " \t\n\n" },
		"no newline at the end":     func(s string) string { return strings.TrimRight(s, "\n") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTree(t)
			for _, path := range []string{containerPath, appPath, serverPath} {
				put(t, s, path, form(content(t, s, path)))
			}
			before := snapshot(t, s)
			joined, second := joinedTwice(t, s)
			must.NoDiff(t, "joined", joined[containerPath], "-rw-r--r-- "+form(clusterXML))
			noConflict(t, reverted(t, second))
			must.NoDiff(t, "reverted", snapshot(t, s), joined)
			undoAll(t, s)
			must.NoDiff(t, "left", snapshot(t, s), before)

			// Later edits, of which one cannot be merged.
			join(t, s, "10.0.0.1")
			for path, edit := range map[string][2]string{containerPath: {"a > b", "other"}, serverPath: {"5080", "8080"}} {
				replaceIn(t, s, path, edit[0], edit[1])
				before[path] = strings.Replace(before[path], edit[0], edit[1], 1)
			}
			edited := form("db.host=\\uZZZZ\n")
			put(t, s, appPath, edited)
			before[SavedName(appPath)] = "-rw-r----- " + edited
			// Another join does not touch that one.
			err := newPlan(t, s).Edit(Target{Path: appPath, Kind: KindProperties}, noEdit)
			if _, ok := errors.AsType[*SyntaxError](err); !ok {
				t.Errorf("a join: %v", err)
			}
			leave(t, s)
			must.NoDiff(t, "left after edits", snapshot(t, s), before)
		})
	}
}

// TestUndoConflicts: what we wrote was edited since. It is said, and the standalone form is written.
func TestUndoConflicts(t *testing.T) {
	s := newTree(t)
	join(t, s, "10.0.0.1")
	replaceIn(t, s, serverPath, "clusterdb.host=10.0.0.1", "clusterdb.host=10.9.9.9")
	replaceIn(t, s, dropInPath, "10.0.0.1", "10.9.9.9")
	remove(t, s, rootTarget)
	var got []string
	for _, c := range leave(t, s) {
		got = append(got, c.String())
	}
	must.NoDiff(t, "conflicts", got, []string{
		dropInPath + ": was edited since we made it; it is removed, the edited file is kept beside it as " + dropInPath + ".amsagent-saved",
		serverPath + ": clusterdb.host was edited since; its standalone value is written",
		rootPath + ": was removed since; it is left removed",
	})
	after := snapshot(t, s)
	must.Equal(t, serverPath, after[serverPath], "-rw-r----- # server\nhttp.port=5080\nclusterdb.host=localhost\n")
	must.Equal(t, "the drop-in", after[dropInPath], "")
	must.Contain(t, "the edited drop-in", after[dropInPath+".amsagent-saved"], "10.9.9.9")
}

// A release before 1.9.1 has another file for each mode. Where a later one was installed over
// it, its own file is made standalone: the former release's would be none that it can read.
func TestUndoOfAnUpgradeToMarks(t *testing.T) {
	const former, cluster = "<beans>\n<bean id=\"tomcat.server\"/>\n</beans>\n", "<beans>\n<bean id=\"tomcat.cluster\"/>\n</beans>\n"
	rec := &FileRecord{
		Path: containerPath, Kind: KindWhole, Existed: true, Original: []byte(former),
		Written: sum([]byte(cluster)),
	}
	for current, want := range map[string]string{
		standaloneXML: standaloneXML,
		clusterXML:    standaloneXML,
		cluster:       former, // of the same release it is what it was
	} {
		u, err := rec.Undo([]byte(current))
		if err != nil || string(u.Bytes) != want || u.Keep {
			t.Errorf("%v, %+v", err, u)
		}
	}
}

// joinContainer is a join to a host, which takes the valve out of the container or not.
func joinContainer(t *testing.T, s *Store, host string, removes bool) *Plan {
	t.Helper()
	p := newPlan(t, s)
	must.OK(t, p.Edit(Target{Path: serverPath, Kind: KindProperties}, set("clusterdb.host", host)))
	must.OK(t, p.Edit(Target{Path: containerPath, Kind: KindContainer}, func(src []byte) ([]Span, error) {
		c := mustContainer(t, string(src))
		must.OK(t, c.SetMode(ModeCluster))
		if removes {
			must.OK(t, c.RemoveRemoteIPValve())
		}
		return c.Spans(), nil
	}))
	must.OK(t, p.Commit("join"))
	return p
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
		joinContainer(t, s, "10.0.0.1", true)
		put(t, s, containerPath, tt.edit(content(t, s, containerPath)))
		for _, host := range []string{"10.0.0.2", "10.0.0.3"} {
			must.Equal(t, name+": conflicts of a join", len(joinContainer(t, s, host, !tt.stays).Conflicts), 0)
		}
		conflicts := planUndo(t, s).Conflicts
		if named := len(conflicts) == 1 && strings.Contains(conflicts[0].Msg, remoteIPValve); named == tt.stays {
			t.Errorf("%s: left: %v", name, conflicts)
		}
	}
}

// TestSecondJoinKeepsAnEditedFile: a file that a join replaced as a whole, and an operator edited since, is replaced
// again. The edited one is kept beside it.
func TestSecondJoinKeepsAnEditedFile(t *testing.T) {
	s := newTree(t)
	const former, edited = "<beans/>", "<beans><!-- edited --></beans>"
	put(t, s, containerPath, former)
	replace := func() *Plan {
		p := newPlan(t, s)
		must.OK(t, p.Edit(Target{Path: containerPath, Kind: KindWhole}, func(src []byte) ([]Span, error) {
			return []Span{{Old: src, New: []byte(clusterXML)}}, nil
		}))
		must.OK(t, p.Commit("join"))
		return p
	}
	replace()
	put(t, s, containerPath, edited)
	must.Equal(t, "conflicts", len(replace().Conflicts), 1)
	must.Equal(t, "the kept file", content(t, s, SavedName(containerPath)), edited)
	undoAll(t, s)
	must.Equal(t, "the file after the leave", content(t, s, containerPath), former)
}

func TestCommitKeepsMetadata(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	s := newTree(t)
	real := at(s, serverPath)
	must.OK(t, errors.Join(os.Chown(real, 4711, 4712), os.Chmod(real, 0o664)))
	setXattr := func(name string, value []byte) {
		if err := unix.Setxattr(real, name, value, 0); err != nil {
			t.Skipf("this file system has no %s: %v", name, err)
		}
	}
	setXattr("user.note", []byte("keep me"))
	// User 4713 may read the file, its owner and group may write, and others may read.
	acl := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x69\x12\x00\x00" +
		"\x04\x00\x06\x00\xff\xff\xff\xff" + "\x10\x00\x06\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff")
	setXattr("system.posix_acl_access", acl)

	check := func(when string, mode fs.FileMode) {
		t.Helper()
		f, err := s.Read(serverPath)
		must.OK(t, err)
		must.Equal(t, when+": the owner", fmt.Sprint(f.UID, f.GID), "4711 4712")
		must.Equal(t, when+": the mode", f.Mode, mode)
		must.Equal(t, when+": the attribute", string(attribute(t, real, "user.note")), "keep me")
		want := bytes.Clone(acl)
		if mode&0o007 == 0 {
			want[len(want)-8+2] = 0 // other: none
		}
		must.NoDiff(t, when+": the ACL", attribute(t, real, "system.posix_acl_access"), want)
	}
	join(t, s, "10.0.0.1")
	check("joined", 0o660)
	undoAll(t, s)
	check("left", 0o664)
}

// attribute reads an extended attribute.
func attribute(t *testing.T, real, name string) []byte {
	t.Helper()
	buf := make([]byte, 1024)
	n, err := unix.Lgetxattr(real, name, buf)
	must.OK(t, err)
	return buf[:n]
}

// TestOvertaken: another program replaces a file while a commit, or a recovery, replaces another one. Its content stays.
func TestOvertaken(t *testing.T) {
	for _, recovers := range []bool{false, true} {
		s := newTree(t)
		want, done := snapshot(t, s), false
		p := planCluster(t, s, "10.0.0.1")
		if recovers {
			want, _ = interruptedJoin(t, s, 0)
		}
		other := content(t, s, serverPath) + "x=1\n"
		must.OK(t, os.WriteFile(at(s, serverPath+"~"), []byte(other), 0o640))
		s.hook = func(call, name string) error {
			if done || call != "renameat" || !strings.Contains(name, "jee-container.xml") { // the first
				return nil
			}
			done = true
			return os.Rename(at(s, serverPath+"~"), at(s, serverPath))
		}
		if recovers {
			conflictOf(t, recovered(t, s).Conflicts, serverPath)
		} else {
			failsWith(t, "Commit", p.Commit("join"), ErrChanged)
		}
		want[serverPath] = "-rw-r----- " + other
		must.NoDiff(t, fmt.Sprintf("the files; it recovers: %v", recovers), snapshot(t, s), want)
	}
}

// TestDiskThatRefuses: a commit on a file system without room, or that is read-only, changes nothing.
func TestDiskThatRefuses(t *testing.T) {
	fill := func(dir string) error {
		f, err := os.Create(filepath.Join(dir, "fill"))
		for err == nil {
			_, err = f.Write(make([]byte, 1024))
		}
		if errors.Is(err, syscall.ENOSPC) {
			return f.Close()
		}
		return err
	}
	readOnly := func(dir string) error { return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") }
	for want, refuse := range map[syscall.Errno]func(dir string) error{syscall.ENOSPC: fill, syscall.EROFS: readOnly} {
		t.Run(want.Error(), func(t *testing.T) {
			s := newTree(t)
			dir := at(s, "/ams/conf")
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
				t.Skipf("needs the right to mount: %v", err)
			}
			t.Cleanup(func() { must.OK(t, unix.Unmount(dir, unix.MNT_DETACH)) })
			put(t, s, containerPath, standaloneXML)
			put(t, s, serverPath, "clusterdb.host=localhost\n")
			must.OK(t, refuse(dir))
			before := snapshot(t, s)
			failsWith(t, "Commit", planCluster(t, s, "10.0.0.1").Commit("join"), want)
			must.NoDiff(t, "the files", snapshot(t, s), before)
		})
	}
}

func TestWriteFile(t *testing.T) {
	s := newTree(t)
	path := "/run/amsagent/result.json"
	for _, text := range []string{"a", "b"} {
		must.OK(t, s.WriteFile(path, []byte(text), 0o644, 0o755))
		must.Contain(t, path, fileOwned(t, s, path), " -rw-r--r-- "+text)
	}
	was, err := os.Stat(at(s, path))
	must.OK(t, err)
	must.OK(t, s.WriteFile(path, []byte("b"), 0o644, 0o755))
	if now, err := os.Stat(at(s, path)); err != nil || !os.SameFile(was, now) {
		t.Errorf("the same content was written again (%v)", err)
	}
	for range 2 { // then it is not there
		must.OK(t, s.RemoveFile(path))
	}
}

// TestFirstLocks: a daemon and a join start at once, and neither finds a folder.
func TestFirstLocks(t *testing.T) {
	for range 100 {
		s := &Store{Root: t.TempDir(), Dir: stateDir}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				lock, err := s.Lock(t.Context(), "/run/amsagent/locks/lock", nil)
				if err == nil {
					err = lock.Unlock()
				}
				if err != nil {
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
	_, err = s.Lock(short, "/run/amsagent/lock", nil)
	failsWith(t, "a second lock", err, ErrLocked)
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
	must.OK(t, errors.Join(a.Unlock(), <-got))
}

// TestExchangedAfterThePlan: who owns the folder edits or exchanges a file, or the folder, between the plan and the commit.
// Nothing is changed, here or there.
func TestExchangedAfterThePlan(t *testing.T) {
	const file, folder = serverPath, "/ams/conf"
	for name, exchange := range map[string]func(at func(string) string) error{
		"an edit": func(at func(string) string) error { return os.WriteFile(at(file), []byte("http.port=5081\n"), 0o640) },
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
			must.OK(t, exchange(func(path string) string { return at(s, path) }))
			before := snapshot(t, s)
			failsWith(t, "Commit", p.Commit("join"), ErrChanged)
			must.NoDiff(t, "the files", snapshot(t, s), before)
		})
	}
}

// TestBounds: what the server's user can make large.
func TestBounds(t *testing.T) {
	s := newTree(t)
	large := func(path string, size int) { put(t, s, path, strings.Repeat("#\n", size/2)) }
	// edit reports whether the file is too large for the plan.
	edit := func(p *Plan, path string, kind Kind) bool {
		t.Helper()
		err := p.Edit(Target{Path: path, Kind: kind}, noEdit)
		if err != nil && !errors.Is(err, files.ErrTooLarge) {
			t.Errorf("%s: %v", path, err)
		}
		return err != nil
	}
	large("/one", MaxSettings+2)
	must.Equal(t, "one file is too large", edit(s.NewPlan(nil), "/one", KindProperties), true)
	p := s.NewPlan(nil)
	refused := ""
	for n := 0; refused == "" && n < 100; n++ {
		path := fmt.Sprintf("/app%d", n)
		large(path, MaxSettings)
		if edit(p, path, KindProperties) {
			refused = path
		}
	}
	must.Equal(t, "the file that is too much", refused, "/app64")
	// A refused file takes no room, and there is always room for root's own files.
	large("/small", 2)
	large("/root", MaxSettings)
	must.Equal(t, "a small one is too large", edit(p, "/small", KindProperties), true)
	must.Equal(t, "root's own is too large", edit(p, "/root", KindWhole), false)
	p.size -= 4 // as after a file that was not quite as large
	must.Equal(t, "one that is not there is too large", edit(p, "/app65", KindProperties), false)
	large("/app66", MaxSettings)
	must.Equal(t, "a large one is too large", edit(p, "/app66", KindProperties), true)
	must.Equal(t, "a small one after one that was refused is too large", edit(p, "/small", KindProperties), false)
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
	failsWith(t, "what could not be read again", s.WriteFile("/own", make([]byte, maxFileSize+1), 0o600, 0o700), files.ErrTooLarge)
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
	put(t, s, serverPath, strings.Repeat("#\n", maxFileSize/2))
	before := snapshot(t, s)
	was := allocated()
	if err := p.Commit("join"); !errors.Is(err, ErrChanged) || files.Refused(err) {
		t.Error(err)
	}
	if took := allocated() - was; took > maxFileSize/2 {
		t.Errorf("%d bytes are read for a file of some bytes", took)
	}
	must.NoDiff(t, "the files", snapshot(t, s), before)
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
	var apps []string
	for n := range maxUndo/MaxSettings + 2 {
		apps = append(apps, fmt.Sprintf("/ams/app%d", n))
		put(t, s, apps[n], "db.host=localhost\n")
		must.OK(t, p.Edit(Target{Path: apps[n], Kind: KindProperties}, set("db.host", "10.0.0.1")))
	}
	must.OK(t, p.Commit("join"))
	const head = "db.host=10.0.0.1\nx=\\uZZZZ\n#"
	grown := head + strings.Repeat("x", MaxSettings-len(head))
	for _, app := range apps {
		put(t, s, app, grown)
	}
	must.Equal(t, "conflicts", len(leave(t, s)), len(apps))
	left := slices.DeleteFunc(apps, func(app string) bool { return content(t, s, app) != grown })
	must.Equal(t, "files that are left", len(left), 2)
}
