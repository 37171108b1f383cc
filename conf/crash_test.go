// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
)

// crashRoot makes the test binary the child that is killed.
const crashRoot, crashOp = "AMSAGENT_TEST_CRASH_ROOT", "AMSAGENT_TEST_CRASH_OP"

func TestMain(m *testing.M) {
	root := os.Getenv(crashRoot)
	if root == "" {
		os.Exit(m.Run())
	}
	s := &Store{Root: root, Dir: stateDir}
	if err := crashChild(s, os.Getenv(crashOp)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func crashChild(s *Store, op string) error {
	if op == "join" {
		return planCluster(&testing.T{}, s, "10.0.0.1").Commit("join")
	}
	return planUndo(&testing.T{}, s).CommitUndo("leave")
}

// TestCrash kills a commit before the Nth call of each kind that changes a file system, in both directions: each file must be
// old or new, and recovery must make all old or all new and leave nothing. The gate kills at every third call.
func TestCrash(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: not killed at chosen system calls")
	}
	if testing.Short() {
		t.Skip("a hundred child processes")
	}
	self, err := os.Executable()
	must.OK(t, err)
	for _, op := range []string{"join", "leave"} {
		kills, step := 0, must.Sample(3, 1)
		for _, call := range []string{"renameat", "fsync", "write", "unlinkat", "mkdirat", "fchmod", "openat"} {
			for n := 1; ; n += step {
				s := newTree(t)
				standalone := snapshot(t, s)
				join(t, s, "10.0.0.1")
				joined := snapshot(t, s)
				old, want := joined, standalone
				if op == "join" {
					undoAll(t, s)
					old, want = standalone, joined
				}
				cmd := exec.CommandContext(t.Context(), strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace="+call,
					"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n), self)
				cmd.Env = append(os.Environ(), crashRoot+"="+s.Root, crashOp+"="+op, "GOMAXPROCS=1")
				out, err := cmd.CombinedOutput()
				if err == nil {
					if d := cmp.Diff(want, snapshot(t, s)); d != "" {
						t.Fatalf("%s, not killed (-want +got):\n%s", op, d)
					}
					break // there is no Nth such call
				}
				if cmd.ProcessState.ExitCode() == 1 {
					t.Fatalf("%s failed instead of being killed at %s %d: %s", op, call, n, out)
				}
				kills++
				where := fmt.Sprintf("%s killed at %s %d", op, call, n)
				for path, content := range snapshot(t, s) {
					if strings.Contains(path, ".amsagent-") || content == old[path] || content == want[path] {
						continue
					}
					if _, inOld := old[path]; !inOld && strings.HasPrefix(content, "d") {
						continue
					}
					t.Errorf("%s: %s is neither old nor new: %q", where, path, content)
				}
				if _, err := s.Recover(); err != nil {
					t.Fatalf("%s: recovery: %v", where, err)
				}
				after := snapshot(t, s)
				if !cmp.Equal(after, old) && !cmp.Equal(after, want) {
					t.Fatalf("%s: after recovery neither all old nor all new; against new (-want +got):\n%s", where, cmp.Diff(want, after))
				}
				if left, err := filepath.Glob(filepath.Join(s.Root, stateDir, "journal*")); err != nil || len(left) > 0 {
					t.Errorf("%s: left behind: %v %v", where, left, err)
				}
				// The next run finishes.
				if err := crashChild(s, op); err != nil {
					t.Fatalf("%s: the next run: %v", where, err)
				}
				if d := cmp.Diff(want, snapshot(t, s)); d != "" {
					t.Fatalf("%s: after the next run (-want +got):\n%s", where, d)
				}
				if record, err := s.Record(); err != nil || (record != nil) != (op == "join") {
					t.Fatalf("%s: the undo record is %+v, %v", where, record, err)
				}
				undoAll(t, s)
				if d := cmp.Diff(standalone, snapshot(t, s)); d != "" {
					t.Fatalf("%s: after leaving (-want +got):\n%s", where, d)
				}
			}
		}
		t.Logf("%s: killed %d times", op, kills)
		if kills < 24/step {
			t.Errorf("%s was killed only %d times: strace does not see its calls", op, kills)
		}
	}
}
