// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// content returns "none" without a file.
func content(t *testing.T, m *Machine, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.Root, path))
	if errors.Is(err, fs.ErrNotExist) {
		return "none"
	}
	must.OK(t, err)
	return string(b)
}

// An operator's secret from before comes back, also after a second join, and without the undo record. Without the state file
// the files are known by name.
func TestOwnFilesAreGivenBack(t *testing.T) {
	t.Parallel()
	const found, hosts = "10.9.9.9\n", "127.0.0.1 localhost\n"
	for name, tt := range map[string]struct {
		harm func(m *Machine) error
		want string
	}{
		"a join":        {func(*Machine) error { return nil }, found},
		"no undo":       {func(m *Machine) error { return os.Remove(filepath.Join(m.Root, undoPath)) }, found},
		"no state":      {func(m *Machine) error { return os.Remove(filepath.Join(m.Root, statePath)) }, "none"},
		"damaged state": {func(m *Machine) error { return os.WriteFile(filepath.Join(m.Root, statePath), []byte("{"), 0o600) }, "none"},
		"not written yet": {func(m *Machine) error {
			real := func(path string) string { return filepath.Join(m.Root, path) }
			return errors.Join(os.WriteFile(real(MongoPath), []byte(found), 0o600), os.Remove(real(ams.DropInPath)), os.WriteFile(real(hostsPath), []byte(hosts), 0o644))
		}, found},
	} {
		m := ownTree(t, "3.0", "3.0.3")
		m.DropIn = true
		put(t, m, MongoPath, found)
		put(t, m, "etc/hostname", "no-such-name\n")
		put(t, m, hostsPath, hosts)
		before := treeFiles(t, m)
		joinOffline(t, m, "10.0.2.4", "10.0.1.7")
		joinOffline(t, m, testMongo, "10.0.1.8")
		if content(t, m, hostsPath) == hosts || content(t, m, ams.DropInPath) == "none" {
			t.Fatal("there is nothing to restore")
		}
		must.OK(t, remember(m, State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.8", Release: "3.0.3"}))
		must.OK(t, tt.harm(m))
		leaveOffline(t, m)
		must.Equal(t, name+": the secret", content(t, m, MongoPath), tt.want)
		must.Equal(t, name+": the drop-in", content(t, m, ams.DropInPath), "none")
		must.Equal(t, name+": /etc/hosts", content(t, m, hostsPath), hosts)
		must.Equal(t, name+": the state", content(t, m, statePath), "none")
		for path, text := range treeFiles(t, m) {
			if before[path] != text && tt.want == found && name != "no undo" {
				t.Errorf("%s: %s:\n%s", name, path, text)
			}
		}
	}
}

// In a container /etc/hosts is a mount: a join and a leave edit it in place.
func TestJoinWithMountedHosts(t *testing.T) {
	t.Parallel()
	const hosts = "127.0.0.1 localhost\n"
	m := ownTree(t, "3.0", "3.0.3")
	put(t, m, "etc/hostname", "no-such-name\n")
	put(t, m, hostsPath, "")
	source, real := filepath.Join(t.TempDir(), "hosts"), filepath.Join(m.Root, hostsPath)
	must.OK(t, os.WriteFile(source, []byte(hosts), 0o644))
	if err := unix.Mount(source, real, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() { must.OK(t, unix.Unmount(real, unix.MNT_DETACH)) })
	if err := os.Rename(real, real+"~"); !errors.Is(err, syscall.EBUSY) {
		t.Fatalf("it is no mount: %v", err)
	}
	joinOffline(t, m, testMongo, "10.0.1.7")
	must.Equal(t, "/etc/hosts", content(t, m, hostsPath), hosts+"10.0.1.7\tno-such-name\t# added by amsagent\n")
	leaveOffline(t, m)
	must.Equal(t, "/etc/hosts after the leave", content(t, m, hostsPath), hosts)
}

// aJoin returns a join that has planned its files.
func aJoin(t *testing.T, m *Machine, mongo, address string) *joiner {
	t.Helper()
	f := &facts{mode: conf.ModeCluster, service: ams.State{Activity: ams.ActivityActive}, address: ams.Address{Addr: netip.MustParseAddr(address)}}
	var err error
	f.install, err = m.open()
	must.OK(t, err)
	must.OK(t, checkRecord(m.store(), f))
	req := JoinRequest{Mongo: mustTarget(t, mongo), Valve: ValveKeep}
	j := &joiner{Machine: m, store: m.store(), result: &JoinResult{}, req: req, own: f.own, found: untouched, facts: f, wasRunning: true}
	j.facts.plan, err = j.replan(req)
	must.OK(t, err)
	j.own = f.plan.Own()
	must.OK(t, j.save(State{Phase: PhaseJoining}))
	must.OK(t, j.writeOwn())
	return j
}

// A join that fails before it changes a server's file leaves all as it was: an edit of the operator's without a copy, and a secret
// of the operator's through the leave that follows.
func TestFailedJoinRestoresOwnFiles(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	put(t, m, MongoPath, testMongo+"\n")
	must.OK(t, os.Chmod(filepath.Join(m.Root, MongoPath), 0o600))
	joinOffline(t, m, testMongo, "10.0.1.7") // without a drop-in it changes no own file
	must.Equal(t, "the state", aJoin(t, m, testMongo, "10.0.1.7").asFound(), untouched)
	leaveOffline(t, m)
	must.Equal(t, "the secret", content(t, m, MongoPath), testMongo+"\n")

	joinOffline(t, m, "10.0.2.9", "10.0.1.7")
	must.OK(t, remember(m, State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.7", Release: "3.0.3"}))
	put(t, m, MongoPath, "10.7.7.7\n")
	before := contents(t, m)
	must.Equal(t, "the state", aJoin(t, m, "10.3.3.3", "10.0.1.7").asFound(), untouched)
	must.NoDiff(t, "the files", before, contents(t, m))
}

// A server whose files another tool had made a node's has no undo record. A failed second join restores the first one's own files.
func TestRollbackWithoutARecord(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	m.DropIn = true
	joinOffline(t, m, testMongo, "10.0.1.7")
	for _, path := range []string{StateDir, filepath.Dir(MongoPath), ams.DropInPath} {
		must.OK(t, os.RemoveAll(filepath.Join(m.Root, path)))
	}
	joinOffline(t, m, testMongo, "10.0.1.7")
	must.OK(t, remember(m, State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.7", Release: "3.0.3"}))
	before := contents(t, m)
	j := aJoin(t, m, testMongo, "10.0.1.8")
	_, err := j.revert(t.Context(), true)
	must.OK(t, errors.Join(err, j.ownErr, j.secretBack(), j.restoreState()))
	must.NoDiff(t, "the files", before, contents(t, m))
}

// A join with --offline that has no own file to write is killed after it saved its state. A leave removes that.
func TestLeaveForgetsAnEmptyState(t *testing.T) {
	t.Parallel()
	m := usedTree(t)
	must.OK(t, saveState(m.store(), State{}))
	must.Equal(t, "the outcome", leaveOffline(t, m).Outcome, OutcomeUnchanged)
	must.Equal(t, "the state", content(t, m, statePath), "none")
	_, err := m.Seal(t.Context(), SealRequest{})
	must.OK(t, err)
}

// An operator's drop-in, which the join replaced, is edited since. The daemon writes its own again, and keeps the edit.
func TestConvergeKeepsAnEditedDropIn(t *testing.T) {
	t.Parallel()
	const edit = "[Service]\nEdited=1\n"
	m := ownTree(t, "3.0", "3.0.3")
	m.DropIn = true
	put(t, m, ams.DropInPath, "[Service]\nOriginal=1\n")
	joinOffline(t, m, testMongo, "10.0.1.7")
	must.OK(t, remember(m, State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.7", Provider: "aws", Release: "3.0.3"}))
	put(t, m, ams.DropInPath, edit)
	m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, StopTimeout: time.Second}}
	req := convergeRequest(t, joinedAs(), nil)
	req.Mode, req.Mongo, req.Valve, req.Address = ConvergeWatch, mustTarget(t, testMongo), ValveKeep, "10.0.1.7"
	converge(t, m, req)
	must.Equal(t, "the copy", content(t, m, conf.SavedName(ams.DropInPath)), edit)
	must.Contain(t, "the drop-in", content(t, m, ams.DropInPath), "10.0.1.7")
}

// A folder that is no folder has nothing to remove.
func TestLeaveWithoutADropInFolder(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, testMongo, "10.0.1.7")
	put(t, m, filepath.Dir(ams.DropInPath), "")
	leaveOffline(t, m)
}
