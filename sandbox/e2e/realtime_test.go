// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

// What holds events to the clock of the wall, which a busy machine can miss.

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// TestDaemonMongoAway: MongoDB is cut off, slowed, refused, started again, and
// wants another password.
func TestDaemonMongoAway(t *testing.T) {
	t.Parallel()
	h := newOnAWS(t, newDatabase(t), "10.0.7.45")
	h.Config("")
	h.Env = append(h.Env, "AMSAGENT_MONGO=file:/etc/amsagent/where")
	h.Write("etc/amsagent/where", h.Mongo.LoginURI()+"\n")
	p := h.Daemon()
	h.RecordIs(cluster.StateActive)
	active := h.Record().StateSince
	p.Beats()
	const lost, back = "heartbeats are dropped until", "heartbeats are written again"
	begun, first, losses, returns := time.Now(), true, p.Said(lost), p.Said(back)

	for _, f := range []mongod.Fault{
		{Mode: mongod.Refuse},
		{Mode: mongod.BlackHole},
		{Mode: mongod.Delay, Delay: 30 * time.Second},
	} {
		h.Fault(f)
		v := p.ViewIs("beats are dropped", func(v daemon.View) bool { return v.Beat.Dropped >= 2 })
		if v.Beat.Error == "" || v.State != cluster.StateActive {
			t.Errorf("%s: %+v", f.Mode, v.Beat)
		}
		if body, code := p.Get("/healthz"); code != 200 {
			t.Errorf("%s: health: %d %s", f.Mode, code, body)
		}
		if s := p.Notified(); !strings.Contains(strings.Join(s[len(s)-3:], "\n"), "MongoDB does not take it") {
			t.Errorf("%s: the last notifications to the service manager are %q", f.Mode, s[len(s)-3:])
		}
		before := len(updates(h.Mongo))
		h.Mongo.Faults().Clear()
		healed := time.Now()
		v = p.Beats()
		// The back-off is bounded, and one heartbeat follows, not a queue.
		if took := v.Beat.Last.Sub(healed); took > 12*time.Second {
			t.Errorf("%s: the first heartbeat came %s after MongoDB", f.Mode, took)
		}
		if n := len(updates(h.Mongo)) - before; n > 4 {
			t.Errorf("%s: %d updates after MongoDB was back", f.Mode, n)
		}
		// The log has at most one loss a minute, and a return for each.
		a, b, most := p.Said(lost)-losses, p.Said(back)-returns, 1+int(time.Since(begun)/time.Minute)
		if a != b || a < 1 || a > most || first && a != 1 {
			t.Errorf("%s: the loss was logged %d times, the return %d times; at most %d", f.Mode, a, b, most)
		}
		first = false
	}
	if n := h.Record(); !n.StateSince.Equal(active) || n.State != cluster.StateActive || n.Load == nil || n.Load.CPU == nil {
		t.Errorf("the row: %+v", n)
	}

	// Another process deletes the record: the daemon writes a complete one.
	forget(t, h.Node)
	h.RecordIs(cluster.StateActive)
	p.Says("registered again: the record was missing")
	// The record exists a moment before its first heartbeat.
	until(t, "the record is complete", func() string {
		if n := h.Record(); n.Role != "edge" || n.Interval != seconds.Duration(time.Second) || n.Load == nil {
			return fmt.Sprintf("%+v", n)
		}
		return ""
	})

	// A cut connection costs at most one heartbeat.
	h.Fault(mongod.Fault{Mode: mongod.Cut})
	p.Beats()

	// Started while MongoDB is away: the state is written when it is back.
	p.End(syscall.SIGTERM)
	must.OK(t, h.Client.SetOwnState(t.Context(), h.Record(), cluster.StateDraining, "x", cluster.Details{}))
	must.OK(t, h.Client.SetOwnState(t.Context(), h.Record(), cluster.StateLeft, "shutdown", cluster.Details{}))
	h.Fault(mongod.Fault{Mode: mongod.Refuse})
	p = h.Daemon()
	p.ViewIs("beats are dropped", func(v daemon.View) bool { return v.Beat.Dropped >= 1 })
	h.Mongo.Faults().Clear()
	h.RecordIs(cluster.StateActive)
	p.Beats()

	// Another password: nothing works until the file says it.
	addr := h.Mongo.Addr()
	must.OK(t, h.Mongo.Close())
	servers.Start(t, mongod.Options{Listen: addr, Users: map[string]string{daemonUser: "another-" + daemonPassword}})
	p.ViewIs("the password is wrong", func(v daemon.View) bool {
		return strings.Contains(v.Beat.Error, "password") || strings.Contains(v.Beat.Error, "uthentication")
	})
	if code, took := p.End(syscall.SIGTERM); code != 0 || took > 5*time.Second {
		t.Errorf("exit %d after %s", code, took)
	}
}

// forget removes the record, as a person might.
func forget(t *testing.T, n *rig.Node) {
	t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI(n.Mongo.LoginURI()))
	must.OK(t, err)
	defer func() { _ = c.Disconnect(context.Background()) }()
	r, err := c.Database("amsagent").Collection("nodes").DeleteOne(context.Background(), bson.D{{Key: "_id", Value: n.ID}})
	must.OK(t, err)
	must.Equal(t, "records deleted", r.DeletedCount, 1)
}

// TestOutage: MongoDB takes connections and answers nothing, for as long as OUTAGE says (`make prove-outage`: 30 minutes). No
// health check fails, no drain begins, no daemon ends and no server is touched; afterwards every node beats again.
func TestOutage(t *testing.T) {
	t.Parallel()
	length, err := time.ParseDuration(cmp.Or(os.Getenv("OUTAGE"), "20s"))
	must.OK(t, err)
	m := newDatabase(t)
	nodes, touched := make([]*rig.Daemon, 6), make([]int, 6)
	for i := range nodes {
		h := newScaled(t, m, fmt.Sprintf("10.0.9.%d", 101+i), fakeaws.AutoScalingOptions{}, endHook(time.Minute))
		nodes[i] = h.Serving()
		nodes[i].Beats()
		touched[i] = h.Touches()
	}
	must.OK(t, m.Faults().Set(mongod.Fault{Mode: mongod.BlackHole}))
	looks := 0
	for begun := time.Now(); time.Since(begun) < length; wait(time.Second) {
		for _, p := range nodes {
			if body, code := p.Get("/healthz"); code != http.StatusOK {
				t.Errorf("after %s: /healthz of %s: %d %s", time.Since(begun), p.Node.ID, code, body)
			}
			if v := p.View(); v.State != cluster.StateActive || v.Lifecycle.Step != "" || len(v.Lifecycle.Notices) > 0 {
				t.Errorf("after %s: %s: %+v", time.Since(begun), p.Node.ID, v)
			}
			looks++
		}
	}
	healed := time.Now()
	m.Faults().Clear()
	for i, p := range nodes {
		p.Beats()
		p.Node.RecordIs(cluster.StateActive)
		if n := p.Node.Touches() - touched[i]; n > 0 {
			t.Errorf("%s: the service was touched %d times", p.Node.ID, n)
		}
	}
	t.Logf("%d looks in %s; all nodes beat %s after it", looks, length, time.Since(healed).Round(time.Millisecond))
}

// updates are the beats that went through lately.
func updates(m *mongod.Server) []mongod.Command {
	return slices.DeleteFunc(m.Commands(), func(c mongod.Command) bool { return c.Name != "update" || c.DB != "amsagent" })
}

// TestDrainMongoAway: MongoDB is away at every stage. It delays nothing, and
// learns what it has missed.
func TestDrainMongoAway(t *testing.T) {
	t.Parallel()
	var all together
	defer all.Wait()
	for i, at := range []string{"before", "draining", "stopping"} {
		for j, f := range []mongod.Fault{{Mode: mongod.Refuse}, {Mode: mongod.BlackHole}} {
			if i == 1 && j == 1 {
				continue
			}
			all.run(t, at+" "+string(f.Mode), func(t *testing.T) {
				h := newScaled(t, newDatabase(t), fmt.Sprintf("10.0.8.%d", 20+2*i+j), fakeaws.AutoScalingOptions{}, endHook(time.Minute))
				p := h.Serving()
				h.Viewers(1)
				away := func(when string) {
					if at == when {
						h.Fault(f)
					}
				}
				away("before")
				h.terminate()
				p.Counted(1)
				away("draining")
				wait(time.Second)
				if p.Ready() {
					t.Error("it is ready")
				}
				if at == "stopping" {
					h.People(http.MethodPost, "/behaviour", "slow_stop_ms", "1500")
				}
				h.ViewersGo()
				gone := time.Now()
				if at == "stopping" {
					p.Step(lifecycle.StepStopping)
					away("stopping")
				}
				e := h.completed("drain")
				took := e.Time.Sub(gone)
				t.Logf("completed %s after the last viewer", took.Round(time.Millisecond))
				if took > 20*time.Second {
					t.Errorf("MongoDB held it up: %s", took)
				}
				v := p.Step(lifecycle.StepDone)
				if v.RegistryTold || !slices.ContainsFunc(v.Notes, func(n lifecycle.Note) bool { return strings.Contains(n.Text, "could not be updated") }) {
					t.Errorf("the pending registry update is not reported: %+v", v)
				}
				// A restarted daemon also has the pending update.
				if j == 0 {
					p.End(syscall.SIGKILL)
					p = h.Daemon()
				}
				h.Mongo.Faults().Clear()
				n := h.HasLeft()
				if n.Cut == nil || *n.Cut != 0 || n.Reason != "scale-in" {
					t.Errorf("the row: %+v", n)
				}
				p.Life("the registry is updated", func(v lifecycle.View) bool { return v.RegistryTold })
			})
		}
	}
}
