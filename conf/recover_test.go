// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

// interrupted ends the process in a commit, after so many of its files were replaced. It returns the names of all staged ones.
func interrupted(t *testing.T, s *Store, commit func(purpose string) error, replaced int) (staged []string) {
	t.Helper()
	var mu sync.Mutex // files are staged side by side
	dead, done := false, 0
	s.hook = func(call, name string) error {
		mu.Lock()
		defer mu.Unlock()
		isStaged := strings.HasSuffix(name, stagedSuffix)
		replaces := call == "renameat" && isStaged || call == "unlinkat" && name == dropInPath
		switch {
		case dead, replaces && done == replaced, call == "fsync" && done > 0:
			dead = true
			return errKilled
		case replaces:
			done++
		case call == "write" && isStaged:
			staged = append(staged, name)
		}
		return nil
	}
	err := commit("test")
	s.hook = nil
	if !dead || done != replaced {
		t.Fatalf("interrupted: %v, after %d files: %v", dead, done, err)
	}
	return staged
}

// interruptedJoin is one after which the files will be as in after.
func interruptedJoin(t *testing.T, s *Store, replaced int) (after map[string]string, staged []string) {
	t.Helper()
	p := join(t, s, "10.0.0.1")
	after = snapshot(t, s)
	reverted(t, p)
	return after, interrupted(t, s, planCluster(t, s, "10.0.0.1").Commit, replaced)
}

func recovered(t *testing.T, s *Store) *Recovery {
	t.Helper()
	r, err := s.Recover()
	must.OK(t, err)
	return r
}

func stateNames(t *testing.T, s *Store) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(at(s, stateDir))
	must.OK(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestRecoverFinishes: with everything staged, the next run finishes, and a leave restores what was found. The owner of the
// files may remove what is staged, or put folders with something in them there: the journal has the contents.
func TestRecoverFinishes(t *testing.T) {
	for name, spoil := range map[string]func(staged string) error{
		"staged":  func(string) error { return nil },
		"removed": os.RemoveAll,
		"folders": func(staged string) error {
			return errors.Join(os.RemoveAll(staged), os.MkdirAll(staged+"/theirs", 0o755))
		},
	} {
		for _, again := range []bool{false, true} {
			for renames := range 6 {
				if again && renames > 4 {
					continue // the container is that of a cluster already
				}
				t.Run(fmt.Sprintf("%s, joined before: %v, %d renames", name, again, renames), func(t *testing.T) {
					s := newTree(t)
					found := snapshot(t, s)
					if again {
						join(t, s, "10.0.0.2")
					}
					after, staged := interruptedJoin(t, s, renames)
					for _, name := range staged {
						must.OK(t, spoil(at(s, name)))
					}
					r := recovered(t, s)
					must.Equal(t, "files that the recovery replaced", len(r.Files), len(staged)-renames)
					must.Equal(t, "conflicts", len(r.Conflicts), 0)
					now := snapshot(t, s)
					must.Equal(t, "their folders", removeTheirs(now), map[string]int{"folders": len(staged)}[name])
					must.NoDiff(t, "the files", now, after)
					must.NoDiff(t, "the state directory", stateNames(t, s), []string{undoName})
					if r := recovered(t, s); r != nil {
						t.Errorf("a second run found %+v", r)
					}
					undoAll(t, s)
					now = snapshot(t, s)
					removeTheirs(now)
					must.NoDiff(t, "the files after a leave", now, found)
				})
			}
		}
	}
}

// removeTheirs takes the folders that were in the place of staged files out of a snapshot, and counts them.
func removeTheirs(files map[string]string) (n int) {
	maps.DeleteFunc(files, func(path, _ string) bool {
		if filepath.Base(path) == "theirs" {
			n++
		}
		return strings.Contains(path, ".folder-")
	})
	return n
}

// TestRecoverOfAnExchangedFile: a file of root's, in a folder of user 4711, is exchanged after a crash for one of that
// user's with the same content. The recovery does not write what root's file would have, and the staged file goes.
func TestRecoverOfAnExchangedFile(t *testing.T) {
	s := hisTree(t)
	const original = "http.port=5080\nclusterdb.host=localhost\n"
	putFile(t, s, original, 0, 0o644)
	p, err := planServer(t, s)
	must.OK(t, err)
	interrupted(t, s, p.Commit, 0)
	putFile(t, s, original, 4711, 0o644)
	conflictOf(t, recovered(t, s).Conflicts, serverPath)
	must.Equal(t, serverPath, fileOwned(t, s, serverPath), "4711:4711 -rw-r--r-- "+original)
	if left, err := filepath.Glob(s.Root + "/ams/conf/.*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestRecoverOnAFullDisk: nothing is replaced before there is room for all new files.
func TestRecoverOnAFullDisk(t *testing.T) {
	s := newTree(t)
	before := snapshot(t, s)
	after, staged := interruptedJoin(t, s, 0)
	for _, name := range staged {
		remove(t, s, name)
	}
	s.hook = func(call, name string) error {
		if call == "write" && strings.HasPrefix(name, "/data/") {
			return unix.ENOSPC
		}
		return nil
	}
	_, err := s.Recover()
	failsWith(t, "Recover", err, unix.ENOSPC)
	now := snapshot(t, s)
	for path, was := range before {
		must.Equal(t, path, now[path], was)
	}
	s.hook = nil
	recovered(t, s)
	must.NoDiff(t, "with room", snapshot(t, s), after)
}

// TestRecoverOfAMode: a second join only takes rights from a file, and is killed before that.
func TestRecoverOfAMode(t *testing.T) {
	s := newTree(t)
	join(t, s, "10.0.0.1")
	want := snapshot(t, s)
	must.OK(t, os.Chmod(at(s, serverPath), 0o644))
	interrupted(t, s, planCluster(t, s, "10.0.0.1").Commit, 0)
	must.NoDiff(t, "files that the recovery replaced", recovered(t, s).Files, []string{serverPath})
	must.NoDiff(t, "the files", snapshot(t, s), want)
}

// TestSetAsideJournal: the next commit removes the staged files of a journal that was damaged.
func TestSetAsideJournal(t *testing.T) {
	s := newTree(t)
	interruptedJoin(t, s, 2)
	name, err := s.SetAside(s.statePath(journalName))
	if err != nil || name != stateDir+"/journal.damaged-1" {
		t.Fatalf("SetAside = %q, %v", name, err)
	}
	if r := recovered(t, s); r != nil {
		t.Errorf("recovered %+v", r)
	}
	join(t, s, "10.0.0.1")
	for path := range snapshot(t, s) {
		if strings.Contains(path, stagedMark) {
			t.Errorf("left: %s", path)
		}
	}
}

// TestRetreatKeepsOwners: a leave fails after it has removed a file and replaced others. Each has its former owner again.
func TestRetreatKeepsOwners(t *testing.T) {
	s := hisTree(t)
	join(t, s, "10.0.0.1")
	must.OK(t, os.Chown(s.Root+dropInPath, 4711, 4712))
	before := snapshot(t, s)
	p := planUndo(t, s)
	var removed atomic.Bool
	s.hook = func(call, name string) error {
		if call == "unlinkat" && name == dropInPath {
			removed.Store(true)
		}
		if removed.Load() && call == "renameat" && IsLeftover("/ams/conf/jee-container.xml", filepath.Base(name)) {
			return unix.EIO
		}
		return nil
	}
	err := p.CommitUndo("leave")
	s.hook = nil
	if _, unfinished := errors.AsType[*UnfinishedError](err); unfinished || !errors.Is(err, unix.EIO) || !removed.Load() {
		t.Errorf("%v, removed %v", err, removed.Load())
	}
	must.NoDiff(t, "the files", snapshot(t, s), before)
	for path, gid := range map[string]int{dropInPath: 4712, serverPath: 4711} {
		must.Contain(t, path, fileOwned(t, s, path), fmt.Sprintf("4711:%d ", gid))
	}
}

// TestRetreatMeetsAnEdit: a file that a commit has replaced is edited before the commit fails. It stays as it is, the journal
// brings the others forward, and a leave takes the commit back by keys.
func TestRetreatMeetsAnEdit(t *testing.T) {
	s := newTree(t)
	before := snapshot(t, s)
	renamed := false
	s.hook = func(call, name string) error {
		switch {
		case call == "renameat" && strings.HasPrefix(filepath.Base(name), ".red5.properties"):
			renamed = true
		case renamed && call == "renameat":
			replaceIn(t, s, serverPath, "http.port=5080", "http.port=9090")
			return unix.EIO
		}
		return nil
	}
	err := planCluster(t, s, "10.0.0.1").Commit("join")
	s.hook = nil
	half, ok := errors.AsType[*UnfinishedError](err)
	if !ok || !errors.Is(err, unix.EIO) || !slices.Equal(half.Edited, []string{serverPath}) {
		t.Fatalf("%v, %+v", err, half)
	}
	conflictOf(t, recovered(t, s).Conflicts, serverPath)
	must.NoDiff(t, "files that are not finished", planCluster(t, s, "10.0.0.1").ChangedPaths(), []string(nil))
	undoAll(t, s)
	before[serverPath] = strings.Replace(before[serverPath], "5080", "9090", 1)
	must.NoDiff(t, "undone", snapshot(t, s), before)
}

// TestRecoverForeignEdits: an operator edits a file after the crash. The edit stays,
// it is named, and leave still removes what was ours.
func TestRecoverForeignEdits(t *testing.T) {
	for _, op := range []string{"join", "leave"} {
		for _, renames := range []int{0, 5} {
			s := newTree(t)
			before := snapshot(t, s)
			if op == "join" {
				interruptedJoin(t, s, renames)
			} else {
				join(t, s, "10.0.0.1")
				interrupted(t, s, planUndo(t, s).CommitUndo, renames)
			}
			replaceIn(t, s, serverPath, "http.port=5080", "http.port=9090")
			conflictOf(t, recovered(t, s).Conflicts, serverPath)
			undoAll(t, s)
			before[serverPath] = strings.Replace(before[serverPath], "5080", "9090", 1)
			must.NoDiff(t, fmt.Sprintf("%s, %d renames, undone", op, renames), snapshot(t, s), before)
			must.NoDiff(t, fmt.Sprintf("%s, %d renames: the state directory", op, renames), stateNames(t, s), []string(nil))
		}
	}
}

// TestDamagedFiles: what the agent wrote down is torn, garbage, another release's, or was written by hand. Each has an error
// of its own, and nothing is touched.
func TestDamagedFiles(t *testing.T) {
	const otherRelease = "was written by another release"
	for _, name := range []string{journalName, undoName} {
		for _, tt := range []struct{ what, content, says string }{
			{"empty", "", "unexpected end"},
			{"torn", `{"version":1,"files":[{"target":"/a`, "unexpected end"},
			{"garbage", "\x00\xff\x00", "invalid character"},
			{"another thing", "{}", "it does not say its format"},
			{"another release's", `{"version":7}`, otherRelease},
			{"without a checksum", `{"version":1}`, "its checksum"},
			{"with another checksum", `{"version":1,"sha256":"","journal":{}}`, "its checksum"},
			{"an empty entry", sealed(t, `{"id":"1","record":{"files":[null]}}`), "an entry that is empty"},
			{"a path of the record", sealed(t, `{"id":"1","record":{"files":[{"path":"etc/passwd","kind":"whole"}]}}`), "no path of a file"},
			{"a path of the journal", sealed(t, `{"id":"1","files":[{"target":"a/b"}]}`), "no path of a file"},
			{"other data", sealed(t, `{"id":"1","files":[{"target":"/a/b","after":"00","data":"YQ=="}]}`), "another checksum"},
			{"an id with a path", sealed(t, `{"id":"1/../c","files":[{"target":"/a/b"}]}`), "is no id"},
			{"no id", sealed(t, `{"files":[{"target":"/a/b"}]}`), "is no id"},
			{"a list", sealed(t, `[]`), "cannot unmarshal"},
		} {
			s := newTree(t)
			put(t, s, s.statePath(name), tt.content)
			was := snapshot(t, s)
			var err error
			if name == journalName {
				_, err = s.Recover()
			} else {
				_, err = s.Record()
			}
			var damaged *DamagedError
			var version *VersionError
			if errors.As(err, &version) != (tt.says == otherRelease) || errors.As(err, &damaged) == (tt.says == otherRelease) {
				t.Errorf("%s %s: %v", tt.what, name, err)
			}
			must.Contain(t, tt.what+" "+name, fmt.Sprint(err), tt.says)
			must.NoDiff(t, tt.what+" "+name, snapshot(t, s), was)
			must.NoDiff(t, tt.what+" "+name+": the state directory", stateNames(t, s), []string{name})
		}
	}
}

// TestWriteBesideARecovery: a file is written while another process removes what interrupted writes left.
func TestWriteBesideARecovery(t *testing.T) {
	s := newTree(t)
	must.OK(t, s.WriteFile("/state/served.json", []byte("0"), 0o600, 0o700))
	for i := range 60 {
		var recovery sync.WaitGroup
		recovery.Go(func() {
			if err := s.RemoveTemps("/state"); err != nil {
				t.Error(err)
			}
		})
		if err := s.WriteFile("/state/served.json", []byte(strconv.Itoa(i)), 0o600, 0o700); err != nil {
			t.Errorf("write %d: %v", i, err)
		}
		recovery.Wait()
	}
}

// TestLongName: a file whose name leaves no room for that of a copy beside it is left as it is, and the longest one
// that does is changed.
func TestLongName(t *testing.T) {
	for size, refused := range map[int]bool{maxBase: false, maxBase + 1: true, 255: true} {
		s := newTree(t)
		join(t, s, "10.0.0.1")
		moveTo(t, s, serverPath, "/ams/conf/"+strings.Repeat("x", size))
		named := slices.ContainsFunc(leave(t, s), func(c Conflict) bool { return c.Path == serverPath })
		what := fmt.Sprintf("a name of %d bytes: ", size)
		must.Equal(t, what+"a conflict", named, refused)
		must.Equal(t, what+"it is left", strings.Contains(content(t, s, serverPath), "10.0.0.1"), refused)
		must.Equal(t, what+"the container", content(t, s, containerPath), standaloneXML)
	}
}

// TestThenManyNames: what the journal has of files that no record knows is bounded: their owner decides how many there are.
func TestThenManyNames(t *testing.T) {
	s := newTree(t)
	p := s.NewPlan(nil)
	must.OK(t, p.Then(serverPath, KindProperties, noEdit))
	p.names = maxRecordSize / 2
	must.OK(t, p.Then(serverPath, KindProperties, noEdit)) // the plan has it already
	failsWith(t, "one more", p.Then(appPath, KindProperties, noEdit), files.ErrTooLarge)
}

// TestDamagedLetter changes each byte of what the agent wrote down, those before the checksum to every other one: it is
// noticed, paths included, or changes nothing.
func TestDamagedLetter(t *testing.T) {
	s := newTree(t)
	join(t, s, "10.0.0.1")
	undo := []byte(content(t, s, s.statePath(undoName)))
	interrupted(t, s, planUndo(t, s).CommitUndo, 1)
	leave := []byte(content(t, s, s.statePath(journalName)))
	for name, data := range map[string][]byte{undoName: undo, journalName: leave} {
		want, err := decodeJournal(name, data)
		must.OK(t, err)
		header := strings.Index(string(data), `"journal"`)
		for i := range data {
			for by := byte(1); by != 0 && (i < header || by == 1); by++ {
				changed := slices.Clone(data)
				changed[i] ^= by
				j, err := decodeJournal(name, changed)
				var damaged *DamagedError
				var version *VersionError
				switch {
				case err == nil && cmp.Equal(j, want): // Sha256 is sha256
				case j != nil, !errors.As(err, &damaged) && !errors.As(err, &version):
					t.Fatalf("%s, byte %d of %d is %q: %v", name, i, len(data), changed[max(0, i-20):i+1], err)
				}
			}
		}
	}
}

// sealed is a journal as it is on disk, with its checksum.
func sealed(t testing.TB, journal string) string {
	t.Helper()
	data, err := json.Marshal(envelope{Version: journalVersion, SHA256: sum([]byte(journal)), Journal: json.RawMessage(journal)})
	must.OK(t, err)
	return string(data)
}

// TestRecordTooLarge: a change that could not be undone, because its record would
// be larger than what is read again, is not made.
func TestRecordTooLarge(t *testing.T) {
	s := newTree(t)
	p := s.NewPlan(nil)
	for i := range maxRecordSize / maxFileSize {
		path := fmt.Sprintf("/etc/hosts%d", i)
		put(t, s, path, strings.Repeat("\x00", maxFileSize))
		must.OK(t, p.Edit(Target{Path: path, Kind: KindHosts}, addHost("10.0.0.1")))
	}
	before := snapshot(t, s)
	failsWith(t, "Commit", p.Commit("join"), ErrRecordTooLarge)
	must.NoDiff(t, "the files", snapshot(t, s), before)
	must.NoDiff(t, "the state directory", stateNames(t, s), []string(nil))
}
