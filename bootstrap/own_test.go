// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
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
			t.Fatal("there is nothing to give back")
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
