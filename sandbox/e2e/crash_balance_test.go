// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && amd64

package e2e

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// TestCrashKillBalance kills balance before every call that changes something, each time while a node drains or returns. HAProxy
// serves all the same, and the next balance does what is left to do.
func TestCrashKillBalance(t *testing.T) {
	w := newBalanceWorld(t, false)
	nodes := []*fleetNode{w.start("edge"), w.start("edge"), w.start("edge"), w.start("origin")}
	w.haproxy(bySocket, "haproxy-slots.cfg")
	argv := []string{
		bins.agent, "balance", "--once", "--mongo", w.set.URI(), "--state-dir", w.dir, "--haproxy", w.socket(bySocket), "--haproxy-state", w.state(), "--name", "lb",
	}
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir}
	must.Until(t, "HAProxy is there", func() bool { _, err := os.Stat(w.socket(bySocket)); return err == nil })
	if r, err := traceAgent(argv, env, shot{}); err != nil || r.Exit != 0 {
		t.Fatalf("exit %d, %v\n%s", r.Exit, err, r.Err)
	}
	w.serves(bySocket)
	drains := nodes[0]
	killed := 0
	for at := 1; ; at++ {
		state := cluster.StateDraining
		if at%2 == 0 {
			state = cluster.StateActive
		}
		must.OK(t, w.registry.SetOwnState(t.Context(), drains.Node, state, "test", cluster.Details{}))
		r, err := traceAgent(argv, env, shot{At: at, Kill: true})
		must.OK(t, err)
		w.serves(bySocket)
		again, err := traceAgent(argv, env, shot{})
		if err != nil || again.Exit != 0 {
			t.Fatalf("killed before %v: exit %d, %v\n%s", r.Hit, again.Exit, err, again.Err)
		}
		in := strings.Contains(again.Out, drains.IP+" ")
		if want := state == cluster.StateActive; in != want {
			t.Errorf("killed before %v: %s is %s:\n%s", r.Hit, drains.ID, state, again.Out)
		}
		w.serves(bySocket)
		before := time.Now()
		must.Until(t, "HAProxy follows", func() bool {
			client := &clients{way: bySocket, front: fronts[bySocket], fleet: w.fleet}
			for range 30 {
				client.request(t.Context(), &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}})
			}
			if left, _ := client.unexplained(before); len(left) > 0 {
				t.Errorf("killed before %v: %v", r.Hit, left)
			}
			return (drains.taken(bySocket, before) > 0) == in
		})
		if r.Hit == nil {
			break
		}
		killed++
	}
	if killed < 10 {
		t.Errorf("it was killed %d times only", killed)
	}
	figure(t, "balance was killed at %d calls", killed)
}
