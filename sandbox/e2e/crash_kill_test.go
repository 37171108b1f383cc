// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && amd64

package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

// crashWorkers is how many nodes are at work side by side. They wait for their
// servers most of the time.
const crashWorkers = 32

// crashEvery is n where CRASH_EVERY asks for a sample, each n-th combination of a call, a way to fail and what follows.
// Without it every combination is tried (`make prove-crash`). The lists of combinations have periods of 2, 3 and 5.
func crashEvery(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv("CRASH_EVERY"), "1"))
	if err != nil || n < 1 || n > 1 && (n%2 == 0 || n%3 == 0 || n%5 == 0) {
		t.Fatalf("CRASH_EVERY=%s is not 1, and not a number like 7 or 11", os.Getenv("CRASH_EVERY"))
	}
	return n
}

// crashFleet makes nodes that join and leave online, whose stand-ins have these flags. Their databases answer one call at a time,
// hence several.
func crashFleet(t *testing.T, first int, args ...string) []*crashNode {
	t.Helper()
	nodes := make([]*crashNode, crashWorkers)
	var m *mongod.Server
	for i := range nodes {
		if i%8 == 0 {
			m = startCrashMongo(t)
		}
		nodes[i] = newCrashNode(t, first+i, crashNodeOptions{mongo: m, shm: true, args: args})
	}
	return nodes
}

// TestCrashKill kills an online join and an online leave before every call that
// changes something outside of the process: files, messages to MongoDB, child
// processes. After that every configuration file is old or new, and whichever
// command comes next ends well, with AMS up in the right mode, nothing left
// behind and the registry right.
func TestCrashKill(t *testing.T) {
	nodes := crashFleet(t, 0)
	crashLearn(t, nodes)
	for _, cmd := range []string{"join", "leave"} {
		t.Run(cmd, func(t *testing.T) {
			begin := time.Now()
			probe, err := crashTarget(nodes[0], cmd, shot{})
			must.OK(t, err)
			must.OK(t, nodes[0].finish("leave"))
			t.Logf("%s makes %d calls: %s", cmd, len(probe.Calls), tally(probe.Calls))
			var killed atomic.Int64 // some runs make fewer calls
			type job struct {
				at   int
				next string
			}
			var jobs []job
			for at := 1; at <= len(probe.Calls)+2; at++ {
				jobs = append(jobs, job{at, "join"}, job{at, "leave"})
			}
			tried := crashEach(t, nodes, len(jobs), func(n *crashNode, i int) error {
				j := jobs[i]
				where, err := crashKill(n, cmd, j.at, &killed)
				if err != nil {
					return err
				}
				if err := n.finish(j.next); err != nil {
					return fmt.Errorf("%s, then %s: %w", where, j.next, err)
				}
				return nil
			})
			t.Logf("%s: killed %d times, in %s", cmd, killed.Load(), time.Since(begin).Round(time.Second))
			if int(killed.Load()) < tried*9/10 { // the last calls of the probe may be more than another run makes
				t.Errorf("%d kills in %d runs of %d calls", killed.Load(), tried, len(probe.Calls))
			}
		})
	}
}

// TestCrashKillRollback kills a join before every call. The join is rolled back, because the server does not start with the new
// files.
func TestCrashKillRollback(t *testing.T) {
	nodes := crashFleet(t, 100, "--fail-start", "--only-in", "cluster")
	for _, n := range nodes {
		n.mustRun(t, "join", "--offline")
		n.joined = n.snapshot(t)
		n.mustRun(t, "leave", "--offline")
		n.failed = true
	}
	probe, err := crashTarget(nodes[0], "join", shot{})
	must.OK(t, err)
	if err := nodes[0].isLeft(); err != nil || probe.Exit != 1 {
		t.Fatalf("exit %d, %v\n%s", probe.Exit, err, probe.Err)
	}
	begin := time.Now()
	var killed atomic.Int64
	crashEach(t, nodes, len(probe.Calls)+2, func(n *crashNode, i int) error {
		where, err := crashKill(n, "join", i+1, &killed)
		if err != nil {
			return err
		}
		if i%2 == 0 {
			// It fails again, and all is as before the first one.
			if r := n.agent("join", "--role", "edge"); r.Exit != 1 {
				return fmt.Errorf("%s: the next join: exit %d\n%s", where, r.Exit, r.Err)
			}
			if err := n.isLeft(); err != nil {
				return fmt.Errorf("%s: after the next join: %w", where, err)
			}
		}
		if r := n.agent("leave"); r.Exit != 0 {
			return fmt.Errorf("%s: leaving: exit %d\n%s", where, r.Exit, r.Err)
		}
		if err := n.isLeft(); err != nil {
			return fmt.Errorf("%s: after leaving: %w", where, err)
		}
		return nil
	})
	t.Logf("killed %d times, in %s", killed.Load(), time.Since(begin).Round(time.Second))
}

// crashKill kills a command before a call, if it makes so many, and proves that each file is old or new.
func crashKill(n *crashNode, cmd string, at int, killed *atomic.Int64) (where string, err error) {
	r, err := crashTarget(n, cmd, shot{At: at, Kill: true})
	if err != nil {
		return "", err
	}
	switch {
	case r.Hit != nil:
		killed.Add(1)
	case len(r.Calls) >= at:
		return "", fmt.Errorf("%s was not killed before call %d of %d", cmd, at, len(r.Calls))
	}
	where = fmt.Sprintf("%s killed before %v", cmd, r.Hit)
	if err := n.oldOrNew(); err != nil {
		return "", fmt.Errorf("%s: %w", where, err)
	}
	return where, nil
}

// crashLearn lets every node join and leave once.
func crashLearn(t *testing.T, nodes []*crashNode) {
	t.Helper()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { n.learn(t) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// crashTarget runs a command under the tracer, on a node that is standalone. A
// join finds a machine that the agent has never seen.
func crashTarget(n *crashNode, cmd string, s shot) (traced, error) {
	args := []string{cmd, "-o", "json"}
	switch cmd {
	case "join":
		args = append(args, "--role", "edge")
		if err := n.removeState(); err != nil {
			return traced{}, err
		}
	case "leave":
		if r := n.agent("join", "--role", "edge"); r.Exit != 0 {
			return traced{}, fmt.Errorf("joining, to leave: exit %d\n%s", r.Exit, r.Err)
		}
	}
	return n.trace(s, args...)
}

// crashEach does count jobs, or a sample of them, on the nodes, side by side. A node
// whose job failed and that cannot be put back is not used again.
func crashEach(t *testing.T, nodes []*crashNode, count int, job func(n *crashNode, i int) error) (tried int) {
	t.Helper()
	every := crashEvery(t)
	first := rand.IntN(min(every, count))
	t.Logf("each %d. of %d jobs, from number %d", every, count, first)
	next := make(chan int)
	var wg sync.WaitGroup
	var failures atomic.Int64
	for _, n := range nodes {
		wg.Go(func() {
			for i := range next {
				if err := job(n, i); err != nil {
					failures.Add(1)
					t.Error(err)
					if err := n.repair(); err != nil {
						t.Errorf("this node cannot be used any more: %v", err)
						return
					}
				}
			}
		})
	}
	gone := make(chan struct{})
	go func() { wg.Wait(); close(gone) }()
loop:
	for i := first; i < count; i += every {
		select {
		case next <- i:
			tried++
		case <-gone:
			t.Errorf("no node is left for jobs %d to %d", i, count)
			break loop
		}
		if failures.Load() > 30 {
			t.Error("too many failures; the rest is not tried")
			break
		}
	}
	close(next)
	wg.Wait()
	return tried
}

// repair puts a node back after a failed job, by force.
func (n *crashNode) repair() error {
	_ = filepath.WalkDir(n.Path("/"), func(p string, _ os.DirEntry, _ error) error {
		if strings.Contains(filepath.Base(p), ".amsagent-") {
			_ = os.Remove(p)
		}
		return nil
	})
	_ = n.agent("leave", "--now")
	if n.differences(n.clean) != nil || n.isLeft() != nil {
		return errors.Join(n.differences(n.clean), n.isLeft())
	}
	return nil
}
