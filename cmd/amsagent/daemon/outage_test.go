// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
)

// While MongoDB is away for ten minutes no machine is replaced, whatever its server does
// about that; readiness follows what each server answers; and after it all nodes are
// ready again, and the registry says so.
func TestMongoDBAwayForAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const outage = 10 * time.Minute
		registry := fakemongo.NewMemory()
		defer registry.Close()
		apps := []string{"LiveApp", "live"}
		// The answer of each node's server during the outage, and the time until it serves again.
		plays := []struct {
			name  string
			state ams.AppServing
			from  time.Duration
			again time.Duration
		}{
			{"silent at once", ams.AppSilent, 0, 0},
			{"silent after the driver's wait", ams.AppSilent, 30 * time.Second, 5 * time.Second},
			{"fails", ams.AppFailing, 10 * time.Second, time.Second},
			{"ends, and starts without success", ams.AppRefused, 40 * time.Second, 90 * time.Second},
			{"restarted in the outage", ams.AppStarting, 3 * time.Minute, 4 * time.Minute},
			{"goes on serving", ams.AppServes, 0, 0},
		}
		join := func(name string) *clustered {
			return newClustered(t, registry, cluster.Node{ID: name, IP: "10.0.0." + name[:1], BootID: "b", Role: "edge", Interval: seconds.Duration(5 * time.Second)})
		}
		var nodes []*clustered
		for i, p := range plays {
			n := join(fmt.Sprintf("%d (%s)", i, p.name))
			defer n.close()
			n.f.have(apps...)
			n.start()
			nodes = append(nodes, n)
		}
		// One whose agent is started in the outage: it cannot read its row.
		late := join("9, started in the outage")
		defer late.close()
		late.f.have(apps...)
		all := append(slices.Clone(nodes), late)
		kept := func(when string) {
			t.Helper()
			for _, n := range all {
				must.Equal(t, n.machine.node.ID+" "+when+": /healthz", n.health(), http.StatusOK)
			}
		}

		sleep.For(t.Context(), time.Minute)
		for _, n := range nodes {
			if ready, why := n.ready(); !ready {
				t.Fatalf("%s: %+v", n.machine.node.ID, why)
			}
			if s := n.node().Serving; s == nil || !s.Up {
				t.Fatalf("%s: the row says %+v", n.machine.node.ID, s)
			}
		}
		away := func(is bool) {
			for _, n := range all {
				n.link.Cut.Store(is)
			}
		}
		away(true)
		late.f.set(ams.AppSilent, apps...)
		late.begin()
		changed := make([]time.Time, len(nodes)) // when the server's answer changed
		gone := time.Now()
		for time.Since(gone) < outage {
			at := time.Since(gone)
			for i, n := range nodes {
				p := plays[i]
				if at >= p.from && p.state != ams.AppServes && changed[i].IsZero() {
					n.f.set(p.state, apps...)
					changed[i] = time.Now()
				}
				serves := changed[i].IsZero()
				if !serves && time.Since(changed[i]) < silence+2*time.Second {
					continue
				}
				if ready, why := n.ready(); ready != serves {
					t.Fatalf("%s, %s into the outage: ready is %v: %+v", n.machine.node.ID, at, ready, why)
				}
			}
			kept(at.String())
			sleep.For(t.Context(), time.Second)
		}

		away(false)
		back := time.Now()
		late.f.set("")
		for at := time.Duration(0); at < 5*time.Minute; at = time.Since(back) {
			for i, n := range nodes {
				if !changed[i].IsZero() && at >= plays[i].again {
					n.f.set("")
				}
				if ready, why := n.ready(); !ready && at > plays[i].again+5*time.Second {
					t.Fatalf("%s, %s after MongoDB came back: %+v", n.machine.node.ID, at, why)
				}
				// A row is as fresh as a beat that was asked for, and a new primary hears from
				// all nodes within the search that is under way and a second.
				row := n.node()
				if at > 5*time.Second && row.UpdatedAt.Before(back) {
					t.Fatalf("%s: no beat %s after MongoDB came back", n.machine.node.ID, at)
				}
				if up := row.Serving != nil && row.Serving.Up; !up && at > max(plays[i].again+2*time.Second, 5*time.Second) {
					t.Fatalf("%s, %s after MongoDB came back, the row says %+v", n.machine.node.ID, at, row.Serving)
				}
			}
			kept("after the outage")
			sleep.For(t.Context(), time.Second)
		}
	})
}

// A cause of the machine's own still ends in a replacement, also if it began in an
// outage that all nodes had.
func TestServerBrokenAfterOutage(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		sleep.For(t.Context(), time.Minute)
		c.link.Cut.Store(true)
		c.f.set(ams.AppRefused, "LiveApp")
		sleep.For(t.Context(), 10*time.Minute)
		c.healthy(true)
		c.link.Cut.Store(false)
		sleep.For(t.Context(), 4*time.Minute)
		c.healthy(true)
		sleep.For(t.Context(), 90*time.Second)
		c.healthy(false)
	})
}

// The registry knows within a moment that viewers are not served any more, or again.
func TestRowFollowsServer(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.begin()
		says := func(up bool, why string) {
			t.Helper()
			synctest.Wait()
			s := c.node().Serving
			if s == nil || s.Up != up || !strings.Contains(s.Why, why) || up && s.Why != "" {
				t.Errorf("the row says %+v, want %v %q", s, up, why)
			}
		}
		sleep.For(t.Context(), 6*time.Second)
		says(true, "") // the first beat may have come before the first answers
		for range 5 {
			sleep.For(t.Context(), 6170*time.Millisecond)
			c.f.set(ams.AppFailing, "LiveApp")
			c.becomes(false, 2*time.Second)
			says(false, "LiveApp fails")
			sleep.For(t.Context(), 7*time.Second)
			c.f.set("")
			c.becomes(true, 2*time.Second)
			says(true, "")
		}
		// What no other node has to know is no reason for a beat.
		before := c.node().Seq
		sleep.For(t.Context(), time.Minute)
		if beats := c.node().Seq - before; beats > 13 {
			t.Errorf("%d beats in a minute at 5 s", beats)
		}
	})
}
