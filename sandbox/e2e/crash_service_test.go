// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && amd64

package e2e

import (
	"errors"
	"fmt"
	"os"
	"testing"
)

// TestCrashService kills the service command: at its Nth call, or in the middle
// of a restart, when the server is stopped and not started yet; there also the
// agent with it, as a cgroup that is killed does. The server must be up after the
// next command at the latest.
func TestCrashService(t *testing.T) {
	m := startCrashMongo(t)
	nodes := make([]*crashNode, 8)
	for i := range nodes {
		nodes[i] = newCrashNode(t, i, crashNodeOptions{mongo: m, shm: true})
	}
	crashLearn(t, nodes)
	type job struct {
		cmd, verb, next string
		nth             int
		half, agent     bool
	}
	var jobs []job
	for _, cmd := range []string{"join", "leave"} {
		for _, next := range []string{"join", "leave"} {
			for nth := 1; nth <= 4; nth++ {
				jobs = append(jobs, job{cmd: cmd, verb: "status", next: next, nth: nth})
			}
			jobs = append(jobs,
				job{cmd: cmd, verb: "restart", next: next, nth: 1},
				job{cmd: cmd, verb: "restart", next: next, nth: 1, half: true},
				job{cmd: cmd, verb: "restart", next: next, nth: 1, agent: true},
				job{cmd: cmd, verb: "restart", next: next, nth: 1, half: true, agent: true})
		}
	}
	crashEach(t, nodes, len(jobs), func(n *crashNode, i int) error {
		j := jobs[i]
		if j.cmd == "leave" {
			if r := n.agent("join", "--role", "edge"); r.Exit != 0 {
				return fmt.Errorf("joining, to leave: %s", r.Err)
			}
		} else if err := n.removeState(); err != nil {
			return err
		}
		count := n.wrap + ".count"
		if err := errors.Join(os.RemoveAll(count), os.RemoveAll(n.wrap+".agent")); err != nil {
			return err
		}
		// The agent is the parent of this shell.
		lines := fmt.Sprintf("if [ \"$1\" = %s ]; then echo >>'%s'; if [ $(wc -l <'%s') = %d ]; then\n", j.verb, count, count, j.nth)
		if j.half {
			lines += "'" + n.wrap + ".real' stop\n"
		}
		if j.agent {
			lines += "kill -9 $PPID\n"
		}
		lines += "kill -9 $$\nfi; fi"
		n.wrapper(t, lines)
		r, err := traceAgent(n.argv(j.cmd, "-o", "json"), n.env, shot{})
		n.wrapper(t, "")
		if err != nil {
			return err
		}
		where := fmt.Sprintf("%s, killed at its %s number %d (half done: %v, the agent with it: %v), then %s", j.cmd, j.verb, j.nth, j.half, j.agent, j.next)
		n.failed = j.cmd == "join" && r.Exit != 0
		if r.Killed != j.agent {
			return fmt.Errorf("%s: killed %v\n%s", where, r.Killed, r.Err)
		}
		if !r.Killed {
			if state, err := n.truthful(j.cmd, r, false); err != nil {
				return fmt.Errorf("%s: exit %d, it says %q: %w\n%s", where, r.Exit, state, err, lastLine(r.Err))
			}
		}
		if err := errors.Join(n.oldOrNew(), n.finish(j.next)); err != nil {
			return fmt.Errorf("%s: %w\n%s", where, err, lastLine(r.Err))
		}
		return nil
	})
}
