// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/bootstrap"
)

// hang mounts a file system at a folder none of whose calls comes back, as that of a network whose server is away. The
// returned function takes it away.
func hang(t *testing.T, folder string) (end func()) {
	t.Helper()
	// Of FUSE, whose server never reads what the kernel asks it.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no file system can be made to hang: %v", err)
	}
	if err := unix.Mount("hang", folder, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)); err != nil {
		_ = unix.Close(fd)
		t.Skipf("no file system can be made to hang: %v", err)
	}
	end = sync.OnceFunc(func() {
		if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
			t.Errorf("%s stays hung: %v", folder, err)
		}
		_ = unix.Close(fd)
	})
	t.Cleanup(end)
	return end
}

// endsWithin is when a command ends whose files hang: 5 s after its time, or after the signal, and some for a busy machine.
const endsWithin = 12 * time.Second

// proved notes what a join notes that has seen the server in the cluster, as one that is offline cannot.
func (n *crashNode) proved(t *testing.T) {
	t.Helper()
	state := fmt.Sprintf(`{"version":1,"phase":"joined","instance_id":"%032x","address":"%s"}`, 2, n.addr)
	name := filepath.Join(n.root, bootstrap.StateDir, "state.json")
	if err := os.WriteFile(name, []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A file system that hangs holds no command that has changed nothing: its time and a signal end it, and nothing is changed.
func TestCrashFilesHang(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const (
		timeUp    = "a file system does not answer [AMS-TIMEOUT]"
		signalled = "a file system does not answer [AMS-INTERRUPTED]"
		untouched = "nothing was changed on this machine"
	)
	for _, tt := range []struct {
		args   string
		joined bool
		signal bool
		exit   int
		says   []string
	}{
		{args: "join --timeout 1s", exit: 4, says: []string{timeUp, untouched}},
		{args: "join", signal: true, exit: 130, says: []string{signalled, untouched}},
		{args: "leave --timeout 1s", joined: true, exit: 4, says: []string{timeUp, untouched}},
		{args: "leave", joined: true, signal: true, exit: 130, says: []string{signalled, untouched}},
		{args: "seal --yes --timeout 1s", exit: 4, says: []string{timeUp, untouched}},
		{args: "seal --yes", signal: true, exit: 130, says: []string{signalled, untouched}},
		{args: "converge --timeout 1s", joined: true, exit: 4, says: []string{timeUp, untouched}},
		{args: "converge --before-start", joined: true, exit: 0, says: []string{"the server starts with the files as they are"}},
		{args: "status --timeout 1s", joined: true, exit: 4, says: []string{timeUp}},
		{args: "status", joined: true, signal: true, exit: 130, says: []string{signalled}},
		{args: "doctor", joined: true, signal: true, exit: 130, says: []string{"[AMS-INTERRUPTED]"}}, // its checks have bounds of their own
		{args: "support", joined: true, signal: true, exit: 130, says: []string{signalled}},
	} {
		for _, folder := range []string{"conf", "webapps/LiveApp/WEB-INF"} {
			t.Run(fmt.Sprintf("%s/%v/%s", tt.args, tt.signal, filepath.Base(folder)), func(t *testing.T) {
				t.Parallel()
				n := newCrashNode(t, 1, crashNodeOptions{shm: true})
				if tt.joined {
					n.mustRun(t, "join")
					n.proved(t)
				}
				before := n.snapshot(t)
				end := hang(t, filepath.Join(n.dir, folder))
				args := strings.Fields(tt.args)
				if args[0] == "converge" && len(args) == 2 {
					args = append(args, "--root", n.root) // no variable counts
				}
				cmd, out, errs := n.start(args...)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				if tt.signal {
					wait(time.Second) // it hangs by now
					if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
						t.Fatal(err)
					}
				}
				ended := make(chan struct{})
				go func() {
					_ = cmd.Wait()
					close(ended)
				}()
				select {
				case <-ended:
				case <-time.After(endsWithin):
					t.Errorf("it does not end")
					_ = cmd.Process.Kill()
					<-ended
				}
				if code := cmd.ProcessState.ExitCode(); code != tt.exit {
					t.Errorf("exit %d, want %d", code, tt.exit)
				}
				for _, text := range tt.says {
					if !strings.Contains(errs.String(), text) {
						t.Errorf("stderr lacks %q", text)
					}
				}
				t.Logf("%s after %s:\n%s%s", tt.args, time.Since(begin).Round(time.Millisecond), out, errs)
				end()
				if !maps.Equal(n.snapshot(t), before) {
					t.Error("the tree is another one")
				}
				if tt.joined {
					n.mustRun(t, "leave")
				} else {
					n.mustRun(t, "join")
				}
			})
		}
	}
}
