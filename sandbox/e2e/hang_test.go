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
	"github.com/amsagent/amsagent/internal/must"
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

// proved notes what a join notes that has seen the server in the cluster, as one that is offline cannot.
func (n *crashNode) proved(t *testing.T) {
	t.Helper()
	state := fmt.Sprintf(`{"version":1,"phase":"joined","instance_id":"%032x","address":"%s"}`, 2, n.Address)
	name := n.Path(bootstrap.StateDir + "/state.json")
	must.OK(t, os.WriteFile(name, []byte(state), 0o600))
}

// A command that waits for a file system that hangs is killed: nothing is changed, and the next run does its work. The
// command before the server's start ends by itself.
func TestCrashFilesHang(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tt := range []struct {
		args   string
		joined bool
	}{
		{"join", false},
		{"leave", true},
		{"seal --yes", false},
		{"converge", true},
		{"converge --before-start", true},
	} {
		for _, folder := range []string{"conf", "webapps/LiveApp/WEB-INF"} {
			t.Run(tt.args+"/"+filepath.Base(folder), func(t *testing.T) {
				t.Parallel()
				n := newCrashNode(t, 1, crashNodeOptions{shm: true})
				if tt.joined {
					n.mustRun(t, "join")
					n.proved(t)
				}
				before := n.snapshot(t)
				end := hang(t, filepath.Join(n.StandIn.Tree.Dir, folder))
				args, beforeStart := strings.Fields(tt.args), strings.HasSuffix(tt.args, "--before-start")
				if beforeStart {
					args = append(args, "--root", n.Path("/")) // no variable counts
				}
				cmd, out, errs := n.start(args...)
				must.OK(t, cmd.Start())
				ended := make(chan struct{})
				go func() {
					_ = cmd.Wait()
					close(ended)
				}()
				patience := 3 * time.Second // it hangs by then
				if beforeStart {
					patience = 20 * time.Second
				}
				select {
				case <-ended:
				case <-time.After(patience):
					_ = cmd.Process.Kill()
					<-ended
				}
				killed := cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled()
				says := strings.Contains(errs.String(), "the server starts with the files as they are")
				if killed == beforeStart || beforeStart && (cmd.ProcessState.ExitCode() != 0 || !says) {
					t.Errorf("%s, killed %t: %s\n%s%s", tt.args, killed, cmd.ProcessState, out, errs)
				}
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
