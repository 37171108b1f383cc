// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && amd64

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// diskErrors are what a disk says when it is full, broken, read-only, over its
// quota, or protected.
var diskErrors = []syscall.Errno{unix.ENOSPC, unix.EIO, unix.EROFS, unix.EDQUOT, unix.EPERM}

func onlyFiles(c call) bool { return c.Kind == files }

// TestCrashFailOffline makes every call of an offline join and leave that touches a
// file fail, in five ways, alone and together with all that follow. The machine must be
// as found or as wanted, and the message must say which, truthfully.
func TestCrashFailOffline(t *testing.T) {
	nodes := make([]*crashNode, 4)
	for i := range nodes {
		nodes[i] = newCrashNode(t, i, crashNodeOptions{shm: true})
	}
	crashLearn(t, nodes)
	for _, cmd := range []string{"join", "leave"} {
		t.Run(cmd, func(t *testing.T) {
			var shots []shot
			total := crashCount(t, nodes[0], cmd, onlyFiles)
			for at := 1; at <= total+2; at++ {
				for _, errno := range diskErrors {
					shots = append(shots, shot{Counts: onlyFiles, At: at, Errno: errno}, shot{Counts: onlyFiles, At: at, Errno: errno, Lasting: true})
				}
			}
			crashFail(t, nodes, cmd, shots)
		})
	}
}

// TestCrashFailOnline does the same with everything around: MongoDB, the service,
// the registry. The ways of failing take turns; messages to MongoDB are cut, and
// the service command cannot be started.
func TestCrashFailOnline(t *testing.T) {
	nodes := crashFleet(t, 200)
	for _, cmd := range []string{"join", "leave"} {
		t.Run(cmd, func(t *testing.T) {
			var shots []shot
			total := crashCount(t, nodes[0], cmd, onlyFiles)
			for at := 1; at <= total+2; at++ {
				shots = append(shots, shot{Counts: onlyFiles, At: at, Errno: diskErrors[at%len(diskErrors)]})
				if at%3 == 0 { // offline has one for each call
					shots = append(shots, shot{Counts: onlyFiles, At: at, Errno: diskErrors[at/3%len(diskErrors)], Lasting: true})
				}
			}
			sockets := func(c call) bool { return c.Kind == socket }
			total = crashCount(t, nodes[0], cmd, sockets)
			for at := 1; at <= total+2; at++ {
				shots = append(shots, shot{Counts: sockets, At: at, Errno: unix.ECONNRESET})
			}
			spawns := func(c call) bool { return c.Kind == spawn }
			total = crashCount(t, nodes[0], cmd, spawns)
			for at := 1; at <= total+2; at++ {
				shots = append(shots, shot{Counts: spawns, At: at, Errno: unix.EAGAIN})
			}
			crashFail(t, nodes, cmd, shots)
		})
	}
}

func crashCount(t *testing.T, n *crashNode, cmd string, counts func(call) bool) int {
	t.Helper()
	r, err := crashTarget(n, cmd, shot{Counts: counts})
	must.OK(t, err)
	must.OK(t, n.finish("leave"))
	return len(r.Calls)
}

func crashFail(t *testing.T, nodes []*crashNode, cmd string, shots []shot) {
	t.Helper()
	begin := time.Now()
	var injected, survived atomic.Int64
	var mu sync.Mutex
	claims := map[string]int{}
	crashEach(t, nodes, len(shots), func(n *crashNode, i int) error {
		s := shots[i]
		r, err := crashTarget(n, cmd, s)
		if err != nil {
			return err
		}
		where := fmt.Sprintf("%s, %s at %v", cmd, unix.ErrnoName(s.Errno), r.Hit)
		if s.Lasting {
			where += " and ever after"
		}
		if r.Hit != nil {
			injected.Add(1)
			if r.Exit == 0 {
				survived.Add(1)
			}
		}
		n.failed = cmd == "join" && r.Exit != 0
		state, err := n.truthful(cmd, r, s.Lasting)
		mu.Lock()
		claims[state]++
		mu.Unlock()
		if err != nil {
			return fmt.Errorf("%s: exit %d, it says %q: %w\n%s", where, r.Exit, state, err, lastLine(r.Err))
		}
		next := "join"
		if i%2 == 1 {
			next = "leave"
		}
		if err := n.finish(next); err != nil {
			return fmt.Errorf("%s: exit %d, it said %q, then %s: %w\n%s", where, r.Exit, state, next, err, lastLine(r.Err))
		}
		return nil
	})
	t.Logf("%s: %d failures injected, %d did not matter, in %s", cmd, injected.Load(), survived.Load(), time.Since(begin).Round(time.Second))
	for _, c := range slices.Sorted(maps.Keys(claims)) {
		t.Logf("%5d × %q", claims[c], c)
	}
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

var volatile = regexp.MustCompile(`(/dev/shm|/tmp)/[^ :)]*|[0-9a-f]{12}\.new`)

// truthful compares what the command says of the machine with the machine.
func (n *crashNode) truthful(cmd string, r traced, lasting bool) (claim string, _ error) {
	before, after := n.clean, n.joined
	if cmd == "leave" {
		before, after = n.joined, n.clean
	}
	if r.Killed {
		return "", errors.New("it was killed")
	}
	if r.Exit == 0 {
		// What could not be removed of its own result file may be left.
		return "done", errors.Join(n.differencesBut(after, false), n.mode(after))
	}
	state, err := stateSaid(r.Err)
	if err != nil {
		return "", err
	}
	claim = volatile.ReplaceAllString(state, "X")
	has := func(s string) bool { return strings.Contains(state, s) }
	switch {
	case has("the files are half changed"):
		return claim, n.halfChanged(state, before, after)
	case has("the files of Ant Media Server are as before, the agent's own may be new"):
		return claim, errors.Join(n.oldOrNew(), n.serverFiles(before), n.mode(before))
	case has("but the journal of the change is left"):
		return claim, errors.Join(n.differencesBut(before, true), n.mode(before))
	case has("the files of Ant Media Server were given back, and those of the agent were not"):
		return claim, errors.Join(n.oldOrNew(), n.serverFiles(after), n.mode(after))
	case has("but what was begun is not finished"):
		return claim, errors.Join(n.differencesBut(n.andSecret(after), true), n.mode(after))
	case strings.HasPrefix(state, "the files are still those of a cluster node; of Ant Media Server: it runs"):
		return claim, errors.Join(n.differencesBut(before, false), n.mode(before))
	case has("of Ant Media Server: it runs"):
		return claim, n.differencesBut(n.andSecret(n.clean), false)
	case has("of Ant Media Server: it does not run"), has("does not start with them either"), has("does not stay up with them either"), has("of Ant Media Server: whether it runs is not known"):
		return claim, n.differencesBut(n.andSecret(n.clean), false)
	case has("nothing was changed on this machine but the agent's own"):
		return claim, errors.Join(n.oldOrNew(), n.serverFiles(before), n.mode(before))
	case strings.HasPrefix(state, "nothing was changed on this machine"), strings.HasPrefix(state, "the files are still those of a cluster node"):
		return claim, errors.Join(n.strays(lasting), n.differences(before), n.mode(before), n.rowBefore(cmd))
	case has("the files were put back"):
		if has("but for") {
			return claim, nil
		}
		return claim, errors.Join(n.differencesBut(before, false), n.mode(before))
	case has("this machine is a cluster node"):
		return claim, errors.Join(n.differencesBut(n.joined, false), n.mode(n.joined))
	case has("this machine is standalone"), has("this machine left the cluster"):
		return claim, errors.Join(n.differencesBut(n.andSecret(n.clean), false), n.mode(n.clean))
	case has("the interrupted run is still unfinished"):
		return claim, n.oldOrNew()
	}
	return claim, errors.New("no claim that this test knows")
}

// andSecret adds the secret, if it is there: it stays until a leave has deregistered the node.
func (n *crashNode) andSecret(want map[string]string) map[string]string {
	want = maps.Clone(want)
	for _, path := range []string{"etc/amsagent", "etc/amsagent/mongo"} {
		if _, err := os.Stat(n.Path(path)); err == nil {
			want[path] = n.joined[path]
		}
	}
	return want
}

// serverFiles lists which of the server's files are not as wanted.
func (n *crashNode) serverFiles(want map[string]string) error {
	now, err := n.look()
	errs := []error{err}
	for path, line := range want {
		if strings.HasPrefix(path, "usr/local/antmedia/") && now[path] != line {
			errs = append(errs, fmt.Errorf("%s is %q, want %q", path, now[path], line))
		}
	}
	return errors.Join(errs...)
}

// differencesBut is differences, where temporary files may be left: those of the
// agent's own files always, those of the transaction where strays allows it.
func (n *crashNode) differencesBut(want map[string]string, strays bool) error {
	now, err := n.look()
	if err != nil {
		return err
	}
	var errs []error
	for path, line := range want {
		if now[path] != line {
			errs = append(errs, fmt.Errorf("%s is %q, want %q", path, now[path], line))
		}
	}
	for path, line := range now {
		_, ok := want[path]
		if !ok && strays && (strings.Contains(path, ".amsagent-") || strings.HasPrefix(line, "d") && line == n.joined[path]) {
			ok = true
		}
		if !ok {
			errs = append(errs, fmt.Errorf("%s should not be there (%s)", path, line))
		}
	}
	return errors.Join(errs...)
}

// mode proves that AMS runs as the tree says.
func (n *crashNode) mode(tree map[string]string) error {
	if n.Mongo == nil {
		return nil
	}
	if sameTree(tree, n.joined) {
		return n.running("cluster")
	}
	return n.running("standalone")
}

func sameTree(a, b map[string]string) bool { return maps.Equal(a, b) }

// rowBefore proves that a command that changed nothing did not change what the
// others see of this node.
func (n *crashNode) rowBefore(cmd string) error {
	switch {
	case n.Mongo == nil:
		return nil
	case cmd == "leave":
		return n.row(cluster.StateActive)
	case n.row(cluster.StateLeft) == nil:
		return nil
	}
	return n.row(cluster.StateFailed)
}

var halfList = regexp.MustCompile(`(new|as before|edited by another program): ([^;)]*)`)

// halfChanged checks a list of which files are new and which are as before.
func (n *crashNode) halfChanged(state string, before, after map[string]string) error {
	now, err := n.look()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range halfList.FindAllStringSubmatch(state, -1) {
		for path := range strings.SplitSeq(m[2], ", ") {
			path = strings.TrimPrefix(path, "/")
			want := map[string]string{"new": after[path], "as before": before[path]}[m[1]]
			if m[1] == "edited by another program" || now[path] != want {
				errs = append(errs, fmt.Errorf("%s is %q, not %s", path, now[path], m[1]))
			}
		}
	}
	return errors.Join(append(errs, n.oldOrNew())...)
}
