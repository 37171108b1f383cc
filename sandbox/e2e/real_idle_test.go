// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/realams"
)

const (
	idleUsual = time.Minute // REAL_IDLE says for how long
	// idleFirst is what a daemon has for its start, which is not what is measured.
	idleFirst = 2 * time.Minute
	// idleJudged is how long a run has to be for its processor time to be judged: in a
	// shorter one, looks that come every five minutes count too much or not at all.
	idleJudged = 20 * time.Minute

	// idleAsked is how often a balancer asks.
	idleAsked = 10 * time.Second

	// idleMemory is of the daemon's own: the pages of its program's file, 17 MiB, are the kernel's to drop.
	idleMemory = 9 << 20
	idleCPU    = 150 * time.Millisecond // for each minute
)

// TestRealIdle has three real nodes without any viewer: their daemons write no file, restart nothing and report no drift, and take hardly
// anything of the machine (issue 11: R1). REAL_IDLE=60m is the run whose processor time counts.
func TestRealIdle(t *testing.T) {
	t.Parallel()
	length := idleUsual
	if text := os.Getenv("REAL_IDLE"); text != "" {
		var err error
		length, err = time.ParseDuration(text)
		must.OK(t, err)
	}
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	nodes := make([]*idleNode, 3)
	joins := make([]*realams.Process, len(nodes))
	for i := range nodes {
		nodes[i] = &idleNode{realNode: newRealNode(t, w, realRelease())}
		joins[i] = nodes[i].Start(t, nodes[i].joinArgs(w.URI())...)
	}
	for _, join := range joins {
		if code, err := join.Wait(6 * time.Minute); err != nil || code != 0 {
			t.Fatalf("join: exit %d, %v: %s", code, err, join.Output())
		}
	}
	for _, n := range nodes {
		n.written, n.services = n.settled(), n.Asked()
		n.d = n.daemon()
		n.d.ready()
	}
	if length >= idleJudged {
		wait(idleFirst)
	}
	for _, n := range nodes {
		n.from = n.usage()
	}
	begin := time.Now()
	for end := begin.Add(length); time.Now().Before(end); wait(min(idleAsked, time.Until(end))) {
		for _, n := range nodes {
			if code := n.d.readyz(); code != 200 {
				t.Fatalf("%s: /readyz answers %d\n%s", n.Address, code, n.d.Output())
			}
		}
	}
	for _, n := range nodes {
		n.judge(length, time.Since(begin))
	}
}

// idleNode is one of them.
type idleNode struct {
	*realNode
	d    *realDaemon
	from proc.Usage
	// The node's files and the calls of its service before the test.
	written  map[string]string
	services []string
}

// usage is the daemon's memory and descriptors, and the CPU time of the daemon and its children.
func (n *idleNode) usage() proc.Usage {
	n.t.Helper()
	u, err := n.d.Usage()
	must.OK(n.t, err)
	return u
}

func (n *idleNode) judge(length, took time.Duration) {
	n.t.Helper()
	u := n.usage()
	cpu := time.Duration(float64(u.CPU+u.Children-n.from.CPU-n.from.Children) / took.Minutes())
	figure(n.t, "%s: %s without viewers: %s of a processor a minute, %.1f MiB (%.1f of its own), %d threads, %d open files; load average %s",
		n.Address, took.Round(time.Second), cpu.Round(100*time.Microsecond), float64(u.RSS)/(1<<20), float64(u.Anon)/(1<<20), u.Threads, u.FDs, proc.LoadAverage())
	if u.Anon >= idleMemory || u.Anon == 0 {
		n.t.Errorf("%s: the daemon takes %d bytes of its own, want less than %d", n.Address, u.Anon, idleMemory)
	}
	if length >= idleJudged && cpu > idleCPU {
		n.t.Errorf("%s: the daemon takes %s of a processor a minute, want at most %s", n.Address, cpu, idleCPU)
	}
	n.quiet(n.d, time.Second)
	n.same(fmt.Sprintf("%s without viewers", length), n.written)
	n.asked("the daemon", n.services)
	if lines := strings.Count(n.d.Output(), "\n"); lines > 20 {
		n.t.Errorf("%s: the daemon has written %d lines:\n%s", n.Address, lines, n.d.Output())
	}
}
