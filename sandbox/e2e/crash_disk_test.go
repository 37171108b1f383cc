// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/tree"
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
					if err := errors.Join(n.strays(false)); err != nil {
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
	info, err := os.Stat(dir)
	must.OK(t, err)
	st := info.Sys().(*syscall.Stat_t)
	kept := t.TempDir()
	copyAll := func(from, to string) {
		t.Helper()
		if out, err := exec.Command("cp", "-a", from+"/.", to+"/").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	copyAll(dir, kept)
	must.OK(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	mounted := true
	unmount := func() {
		if mounted {
			must.OK(t, unix.Unmount(dir, unix.MNT_DETACH))
			mounted = false
		}
	}
	t.Cleanup(unmount)
	copyAll(kept, dir)
	must.OK(t, os.Chown(dir, int(st.Uid), int(st.Gid)))
	must.OK(t, os.Chmod(dir, info.Mode().Perm()))
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
		must.OK(t, os.Chown(dir, int(st.Uid), int(st.Gid)))
		must.OK(t, os.Chmod(dir, info.Mode().Perm()))
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
				before := n.snapshot(t)
				path := n.Path(target)
				must.OK(t, immutable(path, true))
				t.Cleanup(func() {
					if err := immutable(path, false); err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Error(err)
					}
				})
				r := n.agent(cmd, "-o", "json")
				state, err := stateSaid(r.Err)
				if r.Exit == 0 || cmd == "join" && r.Exit != 3 || err != nil { // a join is refused before it begins
					t.Errorf("exit %d: %v\n%s", r.Exit, err, r.Err)
				}
				switch {
				case strings.Contains(state, "nothing was changed on this machine"), state == "the files are still those of a cluster node":
					if err := n.differences(before); err != nil {
						t.Errorf("it says %q: %v", state, err)
					}
				case state == "the files were given back, but what was begun is not finished":
					if err := n.differencesHere(n.clean); err != nil {
						t.Errorf("it says %q: %v", state, err)
					}
				default:
					t.Errorf("it says %q", state)
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

// differencesHere allows temporary files and empty folders of ours.
func (n *crashNode) differencesHere(want map[string]string) error {
	now, err := n.look()
	if err != nil {
		return err
	}
	var errs []error
	for path, line := range now {
		if want[path] != line && !strings.Contains(path, ".amsagent-") && !strings.HasPrefix(line, "d") {
			errs = append(errs, fmt.Errorf("%s is %q, want %q", path, line, want[path]))
		}
	}
	return errors.Join(errs...)
}

// TestCrashOtherUser runs the agent as a user that may not write one of the folders, or not change the owner of files.
func TestCrashOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to run as another user")
	}
	const otherUser = amsOwner
	n := newCrashNode(t, 4, crashNodeOptions{shm: true, tree: func(o *tree.Options) { o.NoUnit = true }})
	agent := filepath.Join(filepath.Dir(n.Path("/")), "amsagent")
	if out, err := exec.Command("cp", bins.agent, agent).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	own := func(uid int, paths ...string) {
		t.Helper()
		for _, p := range paths {
			must.OK(t, os.Chown(n.Path(p), uid, uid))
		}
	}
	if err := errors.Join(os.Chmod(filepath.Dir(n.Path("/")), 0o755), os.Chmod(agent, 0o755), os.MkdirAll(n.Path(crashStateDir), 0o700),
		os.MkdirAll(n.Path("run/amsagent"), 0o755), os.MkdirAll(n.Path("etc/amsagent"), 0o755)); err != nil {
		t.Fatal(err)
	}
	own(otherUser, secretFile, "var/lib", crashStateDir, "run", "run/amsagent", "etc", "etc/amsagent", "etc/hosts")
	run := func(cmd string) ran {
		t.Helper()
		c := n.command(cmd, "-o", "json")
		c.Path = agent
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherUser, Gid: otherUser, NoSetGroups: true}}
		var out, errs strings.Builder
		c.Stdout, c.Stderr = &out, &errs
		if err := c.Run(); err != nil && c.ProcessState == nil {
			t.Fatal(err)
		}
		return ran{c.ProcessState.ExitCode(), out.String(), errs.String()}
	}
	live := "usr/local/antmedia/webapps/LiveApp/WEB-INF"
	n.clean = n.snapshot(t)
	refused := func(what, cmd string, before map[string]string) {
		t.Helper()
		r := run(cmd)
		state, err := stateSaid(r.Err)
		if r.Exit == 0 || err != nil || (state != "nothing was changed on this machine" && state != "the files are still those of a cluster node") {
			t.Errorf("%s: %s: exit %d, it says %q\n%s", what, cmd, r.Exit, state, r.Err)
		}
		if err := errors.Join(n.differences(before), n.strays(false)); err != nil {
			t.Errorf("%s: %s: %v", what, cmd, err)
		}
	}
	for _, tt := range []struct {
		what string
		set  func(uid int)
	}{
		{"a folder of another", func(uid int) { own(uid, live) }},
		{"a file of another", func(uid int) { own(uid, live+"/red5-web.properties") }},
		{"the state of another", func(uid int) { own(uid, crashStateDir) }},
	} {
		tt.set(0)
		refused(tt.what, "join", n.snapshot(t))
		tt.set(otherUser)
		if r := run("join"); r.Exit != 0 {
			t.Fatalf("%s no more: exit %d\n%s", tt.what, r.Exit, r.Err)
		}
		tt.set(0)
		refused(tt.what, "leave", n.snapshot(t))
		tt.set(otherUser)
		if r := run("leave"); r.Exit != 0 {
			t.Fatalf("%s no more: exit %d\n%s", tt.what, r.Exit, r.Err)
		}
		if err := errors.Join(n.differences(n.clean), n.strays(false)); err != nil {
			t.Errorf("%s: %v", tt.what, err)
		}
	}
}

// TestCrashLocked: a command that times out while another amsagent holds the lock reports that, and changes nothing.
func TestCrashLocked(t *testing.T) {
	n := newCrashNode(t, 5, crashNodeOptions{shm: true})
	lock := n.Path("run/amsagent/lock")
	must.OK(t, os.MkdirAll(filepath.Dir(lock), 0o755))
	f, err := os.OpenFile(lock, os.O_RDWR|os.O_CREATE, 0o600)
	must.OK(t, err)
	defer f.Close()
	must.OK(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	for _, cmd := range []string{"join", "leave"} {
		r := n.agent(cmd, "--timeout", "1s")
		if r.Exit != 4 {
			t.Errorf("%s: exit %d, want 4", cmd, r.Exit)
		}
		for _, want := range []string{
			"waiting: another command or the daemon is at work",
			"amsagent: error: cannot " + cmd + ": waiting for the lock", "amsagent: nothing was changed on this machine",
		} {
			if !strings.Contains(r.Err, want) {
				t.Errorf("%s does not say %q:\n%s", cmd, want, r.Err)
			}
		}
		if err := n.differences(n.clean); err != nil {
			t.Error(err)
		}
	}
	must.OK(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	n.learn(t)
}
