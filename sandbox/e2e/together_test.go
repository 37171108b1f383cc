// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// singleOptions are a machine whose agent gets its settings by variables.
func singleOptions(m *mongod.Server, address string) rig.Options {
	return rig.Options{
		Options: standin.Options{Sandbox: bins.sandbox, Tree: tree.Options{Host: "node", HostResolves: true}},
		Agent:   bins.agent, Address: address, Mongo: m,
		Env: []string{"AMSAGENT_PROVIDER=generic", "AMSAGENT_ADDRESS=" + address, "AMSAGENT_MONGO=" + m.LoginURI(), "AMSAGENT_TIMEOUT=5m"},
	}
}

func newSingle(t *testing.T, address string) *rig.Node {
	t.Helper()
	return rig.New(t, singleOptions(servers.Start(t, mongod.Options{}), address))
}

// meaningOf returns the values that the server reads in the tree, without the agent's own files.
func meaningOf(t *testing.T, n *rig.Node) string {
	t.Helper()
	lines, err := tree.SnapshotBy(n.Path("/"), meaning, "var/lib", "var", "run")
	must.OK(t, err)
	return strings.Join(lines, "\n")
}

// lookedAfter counts how often the service was asked for its status.
func lookedAfter(t *testing.T, n *rig.Node) int {
	t.Helper()
	b, err := os.ReadFile(n.StandIn.Service.Asked)
	must.OK(t, err)
	return strings.Count(string(b), "status\n")
}

// TestEightJoinsAtOnce: user-data, a unit and an operator may all join the same
// machine in the same second. All succeed, and the server is stopped and started once.
func TestEightJoinsAtOnce(t *testing.T) {
	t.Parallel()
	s := newSingle(t, "127.0.0.101")
	before, touched := meaningOf(t, s), s.Touches()
	var wg sync.WaitGroup
	outs, codes := make([]string, 8), make([]int, 8)
	for i := range outs {
		wg.Go(func() { outs[i], codes[i] = s.Run("join") })
	}
	wg.Wait()
	joined := 0
	for i, out := range outs {
		if codes[i] != 0 {
			t.Errorf("join %d: exit %d\n%s", i, codes[i], out)
		}
		if strings.Contains(out, "\njoined: ") || strings.HasPrefix(out, "joined: ") {
			joined++
		}
	}
	if n := s.Touches() - touched; joined != 1 || n != 2 {
		t.Errorf("%d of the joins did something, and the service was touched %d times; want 1, and a stop with a start", joined, n)
	}
	s.Must("leave", "--now")
	if after := meaningOf(t, s); after != before {
		t.Errorf("the tree after leaving:\n%s\nand before:\n%s", after, before)
	}
}

// TestJoinAndLeaveAtOnce: whichever comes last wins, whole. A join that finds nothing to do waits
// for the server without the lock, and says so where the machine was made to leave meanwhile.
func TestJoinAndLeaveAtOnce(t *testing.T) {
	t.Parallel()
	s := newSingle(t, "127.0.0.102")
	before := meaningOf(t, s)
	s.Must("join")
	joined := meaningOf(t, s)
	var wg sync.WaitGroup
	for _, args := range [][]string{{"leave", "--now"}, {"join"}, {"leave", "--now"}, {"join"}} {
		wg.Go(func() {
			const overtaken = "amsagent: nothing was changed on this machine"
			if out, code := s.Run(args...); code != 0 && (args[0] != "join" || code != 1 || !strings.Contains(out, overtaken)) {
				t.Errorf("%s: exit %d\n%s", args[0], code, out)
			}
		})
	}
	wg.Wait()
	if now := meaningOf(t, s); now != before && now != joined {
		t.Errorf("neither joined nor left:\n%s", now)
	}
	s.Must("leave", "--now")
	if after := meaningOf(t, s); after != before {
		t.Errorf("the tree after leaving:\n%s\nand before:\n%s", after, before)
	}
	if status, err := s.StandIn.Service.Status(); err != nil || status != amsctl.Active {
		t.Errorf("the server is %s, %v", status, err)
	}
}

// TestJoinAgain: a join of a node that serves looks at it once and changes nothing. Where an
// application does not serve, it waits without the lock: a leave comes first, and the join says so.
func TestJoinAgain(t *testing.T) {
	t.Parallel()
	s := newSingle(t, "127.0.0.108")
	s.Must("join")
	touched := s.Touches()
	once := false
	for range 10 { // where this machine is busy, one look may take too long
		before := lookedAfter(t, s)
		if out, code := s.Run("join"); code != 0 || !strings.Contains(out, "nothing to do") {
			t.Fatalf("joining again: exit %d\n%s", code, out)
		}
		if asked := lookedAfter(t, s); asked == before+1 {
			once = true
			break
		}
	}
	if n := s.Touches() - touched; n != 0 || !once {
		t.Errorf("the service was touched %d times, want 0; asked for its state once only: %t", n, once)
	}

	must.OK(t, os.WriteFile(filepath.Join(s.StandIn.Tree.Dir, "webapps/LiveApp/.closed"), nil, 0o644))
	asked := lookedAfter(t, s)
	var out string
	var code int
	var joining sync.WaitGroup
	joining.Go(func() { out, code = s.Run("join", "--timeout", "1m") })
	until(t, "the join watches the server while it waits", func() string {
		if now := lookedAfter(t, s); now < asked+3 {
			return fmt.Sprintf("it asked the service %d times", now-asked)
		}
		return ""
	})
	if out, code := s.Run("leave", "--now"); code != 0 {
		t.Errorf("leave: exit %d\n%s", code, out)
	}
	joining.Wait()
	if code != 1 || !strings.Contains(out, "amsagent: nothing was changed on this machine") {
		t.Errorf("the join that waited: exit %d\n%s", code, out)
	}
}

// TestFullDisks fills, or makes read-only, each file system that a join writes to: the join changes nothing, and its message gives
// the reason.
func TestFullDisks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount small file systems")
	}
	for _, tt := range []struct{ name, dir string }{
		{"conf", "usr/local/antmedia/conf"},
		{"an application", "usr/local/antmedia/webapps/LiveApp/WEB-INF"},
		{"the state", "var/lib/amsagent"},
		{"our configuration", "etc/amsagent"},
	} {
		for _, readOnly := range []bool{false, true} {
			name := tt.name + " full"
			if readOnly {
				name = tt.name + " read-only"
			}
			t.Run(name, func(t *testing.T) {
				s := newSingle(t, "127.0.0.103")
				dir := s.Path(tt.dir)
				must.OK(t, os.MkdirAll(dir, 0o755))
				kept := t.TempDir()
				must.OK(t, os.CopyFS(filepath.Join(kept, "c"), os.DirFS(dir)))
				if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0755"); err != nil {
					t.Skipf("mounting is not allowed here: %v", err)
				}
				t.Cleanup(func() {
					if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
						t.Error(err)
					}
				})
				must.OK(t, os.CopyFS(dir, os.DirFS(filepath.Join(kept, "c"))))
				if readOnly {
					must.OK(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
				} else {
					fill(t, filepath.Join(dir, "fill"))
				}
				before, touched := meaningOf(t, s), s.Touches()
				out, code := s.Run("join")
				word := "no space left"
				if readOnly {
					word = "read-only file system"
				}
				must.Equal(t, "exit of\n"+out, code, 3)
				must.Contain(t, "the message", out, word, "amsagent: nothing was changed on this machine")
				if after := meaningOf(t, s); after != before || s.Touches() != touched {
					t.Errorf("something was changed:\n%s", after)
				}
			})
		}
	}
}

func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must.OK(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	// The write that failed has grown the file; closing it says nothing new.
	_ = f.Close()
}
