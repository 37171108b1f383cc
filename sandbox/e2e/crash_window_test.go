// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && amd64

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// TestCrashPanelWindow saves settings in the panel at every single moment of an
// offline join and leave: the agent is stopped before its Nth call, for every N,
// and the panel reads the file then and writes it at once, or some calls later.
// No saving may be lost, and what was done must stand: a window between the last
// look at a file and its replacement, however short, would show here.
func TestCrashPanelWindow(t *testing.T) {
	nodes := make([]*crashNode, 8)
	panels := map[*crashNode][]*panelFile{}
	for i := range nodes {
		nodes[i] = newCrashNode(t, i, crashNodeOptions{shm: true})
		panels[nodes[i]] = nodes[i].panel(t)
		nodes[i].clean = nodes[i].snapshot(t)
	}
	for _, cmd := range []string{"join", "leave"} {
		t.Run(cmd, func(t *testing.T) {
			begin := time.Now()
			type job struct{ at, later, file int }
			var jobs []job
			for at := range crashPanelCalls(t, nodes[0], cmd) + 2 {
				jobs = append(jobs, job{at + 1, 0, 0}, job{at + 1, 0, 1}, job{at + 1, 6, 0})
			}
			var saved, refused atomic.Int64
			crashEach(t, nodes, len(jobs), func(n *crashNode, i int) error {
				j, p := jobs[i], panels[n][jobs[i].file]
				if cmd == "leave" {
					if r := n.agent("join"); r.Exit != 0 {
						return fmt.Errorf("joining, to leave: %s", r.Err)
					}
				}
				var content []byte
				var errs []error
				r, err := traceAgent(n.argv(cmd), n.env, shot{Counts: onlyFiles, Before: func(c call) {
					var err error
					if c.N == j.at {
						content, err = p.read()
						errs = append(errs, err)
					}
					if c.N == j.at+j.later && content != nil {
						errs = append(errs, p.write(content))
						content = nil
						saved.Add(1)
					}
				}})
				if err != nil {
					return err
				}
				where := fmt.Sprintf("%s, file %d read before call %d, written %d calls later", cmd, j.file, j.at, j.later)
				if j.at <= len(r.Calls) {
					where += fmt.Sprintf(" (%v)", r.Calls[j.at-1])
				}
				done := r.Exit == 0
				switch {
				case done:
				case r.Exit == 1 && strings.Contains(r.Err, "changed by another process meanwhile"):
					refused.Add(1)
				default:
					errs = append(errs, fmt.Errorf("exit %d", r.Exit))
				}
				errs = append(errs, n.panelStands(panels[n], done, map[string]string{"join": "mongodb", "leave": "mapdb"}[cmd]), n.strays(false))
				if r := n.agent("leave"); r.Exit != 0 {
					errs = append(errs, fmt.Errorf("leaving: exit %d: %s", r.Exit, r.Err))
				}
				errs = append(errs, n.panelStands(panels[n], true, "mapdb"), n.strays(false))
				if names, err := n.kept(); err != nil || len(names) > 0 {
					errs = append(errs, fmt.Errorf("left in the state folder: %v %w", names, err))
				}
				if err := errors.Join(errs...); err != nil {
					return fmt.Errorf("%s: exit %d: %w\n%s", where, r.Exit, err, r.Err)
				}
				return nil
			})
			t.Logf("%s: saved %d times, %d runs refused, in %s", cmd, saved.Load(), refused.Load(), time.Since(begin).Round(time.Second))
		})
	}
}

func crashPanelCalls(t *testing.T, n *crashNode, cmd string) int {
	t.Helper()
	if cmd == "leave" {
		n.mustRun(t, "join")
	}
	r, err := traceAgent(n.argv(cmd), n.env, shot{Counts: onlyFiles})
	must.OK(t, err)
	n.mustRun(t, "leave")
	return len(r.Calls)
}
