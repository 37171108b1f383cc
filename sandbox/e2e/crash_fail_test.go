// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && amd64

package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	crashLearn(t, nodes)
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
		state, err := n.truthful(cmd, r.ran, s.Lasting)
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
