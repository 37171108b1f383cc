// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && amd64

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// TestCrashService kills the service command: at its Nth call, or after it has stopped or started the server; there also
// the agent with it, as a cgroup that is killed does. The server must be up after the next command at the latest.
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
			for _, verb := range []string{"stop", "start"} {
				jobs = append(jobs,
					job{cmd: cmd, verb: verb, next: next, nth: 1},
					job{cmd: cmd, verb: verb, next: next, nth: 1, half: true},
					job{cmd: cmd, verb: verb, next: next, nth: 1, agent: true},
					job{cmd: cmd, verb: verb, next: next, nth: 1, half: true, agent: true})
			}
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
		n.wrapper(t, n.killAt(j.verb, j.nth, j.half, j.agent))
		r, err := n.trace(shot{}, j.cmd, "-o", "json")
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
			if state, err := n.truthful(j.cmd, r.ran, false); err != nil {
				return fmt.Errorf("%s: exit %d, it says %q: %w\n%s", where, r.Exit, state, err, lastLine(r.Err))
			}
		}
		if err := errors.Join(n.oldOrNew(), n.finish(j.next)); err != nil {
			return fmt.Errorf("%s: %w\n%s", where, err, lastLine(r.Err))
		}
		return nil
	})
}

// killAt kills the service command at its nth call of a verb: before or after it did it, and also the agent.
func (n *crashNode) killAt(verb string, nth int, done, agent bool) string {
	count := n.wrap + ".count"
	lines := fmt.Sprintf("if [ \"$1\" = %s ]; then echo >>'%s'; if [ $(wc -l <'%s') = %d ]; then\n", verb, count, count, nth)
	if done {
		lines += "'" + n.wrap + ".real' \"$@\"\n"
	}
	if agent {
		lines += "kill -9 $PPID\n" // it is the parent of this shell
	}
	return lines + "kill -9 $$\nfi; fi"
}

// TestCrashStopped kills the agent between its stop of the server and its start. The server is started by a daemon that
// runs or comes later, by a command that is refused, and by converge.
func TestCrashStopped(t *testing.T) {
	m := startCrashMongo(t)
	node := 0
	for _, cmd := range []string{"join", "leave"} {
		for _, verb := range []string{"stop", "start"} {
			for _, by := range []string{"the daemon", "a later daemon", "converge", "a refused join", "the same command"} {
				node++
				number := node
				t.Run(fmt.Sprintf("%s killed at its %s, then %s", cmd, verb, by), func(t *testing.T) {
					t.Parallel()
					n := newCrashNode(t, number, crashNodeOptions{mongo: m, shm: true})
					n.learn(t)
					if cmd == "leave" {
						n.mustRun(t, "join", "--role", "edge")
					}
					if by == "the daemon" {
						n.Daemon()
					}
					n.wrapper(t, n.killAt(verb, 1, verb == "stop", true))
					r, err := n.trace(shot{}, cmd)
					n.wrapper(t, "")
					if err != nil || !r.Killed {
						t.Fatalf("%v: killed %v\n%s", err, r.Killed, r.Err)
					}
					if by != "the daemon" && n.ServerRuns() {
						t.Fatal("the server runs")
					}
					switch by {
					case "a later daemon":
						n.Daemon()
					case "converge":
						if r := n.mustRun(t, "converge"); !strings.Contains(r.Out, "AGENT-RECOVERED") {
							t.Errorf("%s", r.Out)
						}
					case "a refused join":
						if r := n.agent("join", "--ams-dir", "/nowhere"); r.Exit == 0 {
							t.Errorf("it joined: %s", r.Out)
						}
					case "the same command":
						n.mustRun(t, cmd)
					}
					must.Until(t, "the server runs", n.ServerRuns)
				})
			}
		}
	}
}
