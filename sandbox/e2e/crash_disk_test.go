// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// crashPlaces are the folders that a join and a leave write to.
var crashPlaces = []string{
	"usr/local/antmedia/conf", "usr/local/antmedia/webapps/LiveApp/WEB-INF", "var/lib/amsagent", "etc/amsagent", "run/amsagent",
	"etc/systemd/system/antmedia.service.d",
}

// TestCrashDisks joins and leaves with one of the file systems full or read-only. A command that fails changes nothing, and the
// next one succeeds on a writable disk.
func TestCrashDisks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount small file systems")
	}
	n := newCrashNode(t, 1, crashNodeOptions{shm: true})
	n.learn(t)
	for _, cmd := range []string{"join", "leave"} {
		for _, place := range crashPlaces {
			for _, how := range []string{"full", "read-only"} {
				t.Run(cmd+" "+place+" "+how, func(t *testing.T) {
					must.OK(t, n.removeState())
					before := n.clean
					if cmd == "leave" {
						n.mustRun(t, "join")
						before = n.joined
					}
					release := n.smallDisk(t, place, how == "read-only")
					mounted := n.snapshot(t)
					r := n.agent(cmd, "-o", "json")
					if r.Exit != 0 {
						if err := n.differences(mounted); err != nil {
							t.Errorf("exit %d, and something was changed: %v\n%s", r.Exit, err, r.Err)
						}
						state, err := stateSaid(r.Err)
						want := "nothing was changed on this machine"
						if cmd == "leave" && state != want {
							want = "the files are still those of a cluster node"
						}
						if err != nil || state != want {
							t.Errorf("it says %q, %v\n%s", state, err, r.Err)
						}
						if !strings.Contains(r.Err, `"AMS-SPACE"`) && !strings.Contains(r.Err, `"AMS-WRITABLE"`) &&
							!strings.Contains(r.Err, `"AMS-DISK-FULL"`) && !strings.Contains(r.Err, `"AMS-READ-ONLY"`) {
							t.Errorf("the reason has no id of its own:\n%s", r.Err)
						}
					}
					if err := n.strays(false); err != nil {
						t.Error(err)
					}
					release()
					switch {
					case r.Exit != 0:
					case cmd == "leave":
						before = n.clean
					default:
						before = n.joined
					}
					if err := n.differences(before); err != nil {
						t.Errorf("exit %d: %v\n%s", r.Exit, err, r.Err)
					}
					if err := n.finish("join"); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// smallDisk puts a disk of 64 KiB over a folder, with the same content; release
// takes it away and leaves the folder with what was on it.
func (n *crashNode) smallDisk(t *testing.T, place string, readOnly bool) (release func()) {
	t.Helper()
	dir := n.Path(place)
	_, err := os.Stat(dir)
	made := errors.Is(err, os.ErrNotExist)
	must.OK(t, os.MkdirAll(dir, 0o755))
	kept := t.TempDir()
	copyAll := func(from, to string) { // with mode and owner of the folder itself
		t.Helper()
		if out, err := exec.Command("cp", "-a", from+"/.", to+"/").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	copyAll(dir, kept)
	must.OK(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0755"))
	mounted := true
	unmount := func() {
		if mounted {
			must.OK(t, unix.Unmount(dir, unix.MNT_DETACH))
			mounted = false
		}
	}
	t.Cleanup(unmount)
	copyAll(kept, dir)
	if readOnly {
		must.OK(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	} else {
		fill(t, filepath.Join(dir, "fill"))
	}
	return func() {
		t.Helper()
		content := t.TempDir()
		copyAll(dir, content)
		unmount()
		must.OK(t, os.RemoveAll(filepath.Join(content, "fill")))
		must.OK(t, os.RemoveAll(dir))
		entries, err := os.ReadDir(content)
		must.OK(t, err)
		if _, clean := n.clean[place]; len(entries) == 0 && (made || !clean) {
			return
		}
		must.OK(t, os.MkdirAll(dir, 0o755))
		copyAll(content, dir)
	}
}

// TestCrashLeaveOnFullDisk: a node whose disk is full cannot leave. It serves on,
// and its row says so.
func TestCrashLeaveOnFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount small file systems")
	}
	n := newCrashNode(t, 2, crashNodeOptions{mongo: startCrashMongo(t), shm: true})
	n.learn(t)
	n.mustRun(t, "join", "--role", "edge")
	for _, place := range []string{"usr/local/antmedia/conf", "var/lib/amsagent"} {
		release := n.smallDisk(t, place, false)
		touched := n.Touches()
		r := n.agent("leave")
		if r.Exit == 0 || n.Touches() != touched {
			t.Errorf("%s full: exit %d, the service was touched %d times\n%s", place, r.Exit, n.Touches()-touched, r.Err)
		}
		release()
		if err := errors.Join(n.isJoined(), n.row(cluster.StateActive)); err != nil {
			t.Errorf("%s full: %v\n%s", place, err, r.Err)
		}
	}
	if err := n.finish("leave"); err != nil {
		t.Error(err)
	}
}

const (
	fsIocGetFlags = 0x80086601
	fsIocSetFlags = 0x40086602
	immutableFlag = 0x10
)

// immutable sets or takes away what chattr +i sets.
func immutable(path string, on bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), fsIocGetFlags)
	if err != nil {
		return err
	}
	flags &^= immutableFlag
	if on {
		flags |= immutableFlag
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), fsIocSetFlags, int(flags))
}

// TestCrashImmutable joins and leaves with chattr +i on one of the files, or on
// its folder.
func TestCrashImmutable(t *testing.T) {
	n := newCrashNode(t, 3, crashNodeOptions{})
	probe := n.Path(secretFile)
	if err := errors.Join(immutable(probe, true), immutable(probe, false)); err != nil {
		t.Skipf("needs root and a file system that knows chattr +i: %v", err)
	}
	n.learn(t)
	both := []string{
		"usr/local/antmedia/conf/jee-container.xml", "usr/local/antmedia/conf/red5.properties", "usr/local/antmedia/conf",
		"usr/local/antmedia/webapps/root/WEB-INF/red5-web.properties", "etc/hosts", "etc",
	}
	for _, cmd := range []string{"join", "leave"} {
		targets := both
		if cmd == "leave" {
			targets = append(targets, "etc/amsagent/mongo", "etc/amsagent", "etc/systemd/system/antmedia.service.d/50-amsagent.conf", "var/lib/amsagent/undo.json", "var/lib/amsagent")
		}
		for _, target := range targets {
			t.Run(cmd+" "+target, func(t *testing.T) {
				if cmd == "leave" {
					n.mustRun(t, "join")
				}
				path := n.Path(target)
				must.OK(t, immutable(path, true))
				t.Cleanup(func() {
					if err := immutable(path, false); err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Error(err)
					}
				})
				r := n.agent(cmd, "-o", "json")
				claim, err := n.truthful(cmd, r, true)
				if r.Exit == 0 || cmd == "join" && r.Exit != 3 || err != nil { // a join is refused before it begins
					t.Errorf("exit %d, it says %q: %v\n%s", r.Exit, claim, err, r.Err)
				}
				if !strings.Contains(r.Err, "lsattr") {
					t.Errorf("the hint does not name lsattr:\n%s", r.Err)
				}
				must.OK(t, immutable(path, false))
				if err := n.finish(cmd); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(n.Path(crashStateDir + "/undo.json")); err == nil {
					n.mustRun(t, "leave")
				}
			})
		}
	}
}
