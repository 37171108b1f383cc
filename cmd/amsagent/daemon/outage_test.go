// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
)

// sharedRegistry is the MongoDB of several nodes.
type sharedRegistry struct {
	mu   sync.Mutex
	away bool
	rows map[string]cluster.Heartbeat
	at   map[string]time.Time
}

func (r *sharedRegistry) set(away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = away
}

func (r *sharedRegistry) row(id string) (cluster.Heartbeat, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rows[id], r.at[id]
}

// sender is one node's view of it.
type sender struct {
	*sharedRegistry
	id string
	d  *Daemon
}

// Heartbeat fails as the client does that finds no server: after a search.
func (r sender) Heartbeat(ctx context.Context, h cluster.Heartbeat) error {
	v := r.d.view.get()
	h.Serving = v.serving() // as a member does
	r.mu.Lock()
	away := r.away
	r.mu.Unlock()
	if away {
		sleep.For(ctx, 2*time.Second)
		return &cluster.Error{Kind: cluster.KindUnreachable}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows[r.id], r.at[r.id] = h, time.Now()
	return nil
}

func (r *sharedRegistry) ClockSkew(context.Context) (time.Duration, time.Duration, error) {
	return 0, time.Millisecond, nil
}

// clusterNode is one of several nodes: its server's watch and its loop run.
type clusterNode struct {
	watched
	id     string
	cancel context.CancelFunc
	work   *sync.WaitGroup
}

func startNode(t *testing.T, id string, r *sharedRegistry, f *fakeServer, active bool) *clusterNode {
	t.Helper()
	n := &clusterNode{id: id, work: &sync.WaitGroup{}, watched: watched{t: t, f: f, said: &notified{}}}
	n.d = newTestDaemon(&fakeMachine{}, n.said, func(o *Options) {
		o.Server = f
		settings := o.Settings()
		settings.UnhealthyAfter = 5 * time.Minute
		o.Settings = func() Settings { return settings }
	})
	n.d.view.setPhase(bootstrap.PhaseJoined)
	n.d.view.change(func(v *View) {
		v.Lifecycle = &lifecycle.View{Ready: true}
		if active {
			v.State, v.Proved = cluster.StateActive, true
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	n.cancel = cancel
	loop := n.d.loop(nil)
	loop.Sender = sender{r, id, n.d}
	n.work.Go(func() { n.d.followServer(ctx) })
	n.work.Go(func() { loop.Run(ctx) })
	return n
}

func (n *clusterNode) stop() {
	n.cancel()
	n.work.Wait()
}

// answersHealthz asks as a cloud does that replaces machines.
func (n *clusterNode) answersHealthz(when string) {
	n.t.Helper()
	rec := httptest.NewRecorder()
	n.d.metricsHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	must.Equal(n.t, fmt.Sprintf("%s, %s: the cloud would replace this machine because of %s", n.id, when, rec.Body), rec.Code, http.StatusOK)
}

// While MongoDB is away for ten minutes no machine is replaced, whatever its server does
// about that; readiness follows what each server answers; and after it all nodes are
// ready again, and the registry says so.
func TestMongoDBAwayForAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const outage = 10 * time.Minute
		r := &sharedRegistry{rows: map[string]cluster.Heartbeat{}, at: map[string]time.Time{}}
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
		var nodes []*clusterNode
		for i, p := range plays {
			f := &fakeServer{apps: apps}
			n := startNode(t, fmt.Sprintf("node %d (%s)", i, p.name), r, f, true)
			defer n.stop()
			nodes = append(nodes, n)
		}
		// One whose agent is started in the outage: it cannot read its row.
		late := startNode(t, "agent started in the outage", r, &fakeServer{apps: apps, served: true}, false)
		defer late.stop()

		sleep.For(t.Context(), time.Minute)
		for _, n := range nodes {
			if ready, why := n.ready(); !ready {
				t.Fatalf("%s: %+v", n.id, why)
			}
			if row, _ := r.row(n.id); row.Serving == nil || !row.Serving.Up {
				t.Fatalf("%s: the row says %+v", n.id, row.Serving)
			}
		}
		r.set(true)
		late.f.set(ams.AppSilent, apps...)
		changed := make([]time.Time, len(nodes)) // when the server's answer changed
		for began := time.Now(); time.Since(began) < outage; sleep.For(t.Context(), 500*time.Millisecond) {
			at := time.Since(began)
			for i, n := range nodes {
				p := plays[i]
				if at >= p.from && p.state != ams.AppServes && changed[i].IsZero() {
					n.f.set(p.state, apps...)
					changed[i] = time.Now()
				}
				n.answersHealthz(at.String())
				serves := changed[i].IsZero()
				if !serves && time.Since(changed[i]) < silence+2*time.Second {
					continue
				}
				if ready, why := n.ready(); ready != serves {
					t.Fatalf("%s, %s into the outage: ready is %v: %+v", n.id, at, ready, why)
				}
			}
			late.answersHealthz(at.String())
		}
		for _, n := range nodes {
			if _, last := r.row(n.id); time.Since(last) < outage-10*time.Second {
				t.Errorf("%s: a beat was written in the outage", n.id)
			}
		}

		r.set(false)
		back := time.Now()
		late.f.set("")
		for at := time.Duration(0); at < 5*time.Minute; at = time.Since(back) {
			for i, n := range nodes {
				if !changed[i].IsZero() && at >= plays[i].again {
					n.f.set("")
				}
				n.answersHealthz("after the outage")
				if ready, why := n.ready(); !ready && at > plays[i].again+5*time.Second {
					t.Fatalf("%s, %s after MongoDB came back: %+v", n.id, at, why)
				}
				// A row is as fresh as a beat that was asked for, and a new primary hears from
				// all nodes within the search that is under way and a second.
				row, wrote := r.row(n.id)
				if at > 5*time.Second && wrote.Before(back) {
					t.Fatalf("%s: no beat %s after MongoDB came back", n.id, at)
				}
				if up := row.Serving != nil && row.Serving.Up; !up && at > max(plays[i].again+2*time.Second, 5*time.Second) {
					t.Fatalf("%s, %s after MongoDB came back, the row says %+v", n.id, at, row.Serving)
				}
			}
			late.answersHealthz("after the outage")
			sleep.For(t.Context(), 500*time.Millisecond)
		}
	})
}

// A cause of the machine's own still ends in a replacement, also if it began in an
// outage that all nodes had.
func TestServerBrokenAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &sharedRegistry{rows: map[string]cluster.Heartbeat{}, at: map[string]time.Time{}}
		n := startNode(t, "broken", r, &fakeServer{apps: []string{"LiveApp"}}, true)
		defer n.stop()
		sleep.For(t.Context(), time.Minute)
		r.set(true)
		n.f.set(ams.AppRefused, "LiveApp")
		sleep.For(t.Context(), 10*time.Minute)
		n.healthy(true)
		r.set(false)
		sleep.For(t.Context(), 4*time.Minute)
		n.healthy(true)
		sleep.For(t.Context(), 90*time.Second)
		n.healthy(false)
	})
}

// The registry knows within a moment that viewers are not served any more, or again.
func TestRowFollowsServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &sharedRegistry{rows: map[string]cluster.Heartbeat{}, at: map[string]time.Time{}}
		n := startNode(t, "node", r, &fakeServer{apps: []string{"LiveApp"}}, true)
		defer n.stop()
		says := func(want, why string) {
			t.Helper()
			synctest.Wait()
			row, _ := r.row("node")
			is := "unknown"
			if s := row.Serving; s != nil {
				is = fmt.Sprint(s.Up)
				if !strings.Contains(s.Why, why) || s.Up && s.Why != "" {
					t.Errorf("the row gives the reason %q, want %q", s.Why, why)
				}
			}
			must.Equal(t, "the row says", is, want)
		}
		sleep.For(t.Context(), 900*time.Millisecond)
		says("true", "") // the first beat came with the first answers
		for range 5 {
			sleep.For(t.Context(), 6170*time.Millisecond)
			n.f.set(ams.AppFailing, "LiveApp")
			n.becomes(false, 2*time.Second)
			says("false", "LiveApp fails")
			sleep.For(t.Context(), 7*time.Second)
			n.f.set("")
			n.becomes(true, 2*time.Second)
			says("true", "")
		}
		// What no other node has to know is no reason for a beat.
		before, _ := r.row("node")
		sleep.For(t.Context(), time.Minute)
		if after, _ := r.row("node"); after.Seq-before.Seq > 13 {
			t.Errorf("%d beats in a minute at 5 s", after.Seq-before.Seq)
		}
	})
}
