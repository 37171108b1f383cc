// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

// What holds events to the clock of the wall, which a busy machine can miss.

package e2e

import (
	"cmp"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

// TestDaemonMongoAway: MongoDB is cut off, slowed, refused, started again, and
// wants another password.
func TestDaemonMongoAway(t *testing.T) {
	t.Parallel()
	h := newHost(t, newDatabase(t), "10.0.7.45")
	h.config("")
	h.env = []string{"AMSAGENT_MONGO=file:/etc/amsagent/where"}
	h.write("etc/amsagent/where", mongoURI(h.mongo, daemonPassword)+"\n")
	p := h.daemon()
	h.rowIs(cluster.StateActive)
	active := h.row().StateSince
	p.beats()
	const lost, back = "heartbeats are dropped until", "heartbeats are written again"
	begun, first, losses, returns := time.Now(), true, p.said(lost), p.said(back)

	for _, f := range []mongod.Fault{
		{Mode: mongod.Refuse},
		{Mode: mongod.BlackHole},
		{Mode: mongod.Delay, Delay: 30 * time.Second},
	} {
		must.OK(t, h.mongo.Faults().Set(f))
		v := p.viewIs("beats are dropped", func(v daemon.View) bool { return v.Beat.Dropped >= 2 })
		if v.Beat.Error == "" || v.State != cluster.StateActive {
			t.Errorf("%s: %+v", f.Mode, v.Beat)
		}
		if body, code := p.get("/healthz"); code != 200 {
			t.Errorf("%s: health: %d %s", f.Mode, code, body)
		}
		if s := p.told(); !strings.Contains(strings.Join(s[len(s)-3:], "\n"), "MongoDB does not take it") {
			t.Errorf("%s: the service manager was told %q", f.Mode, s[len(s)-3:])
		}
		before := len(updates(h.mongo))
		h.mongo.Faults().Clear()
		healed := time.Now()
		v = p.beats()
		// The back-off has an end, and a pace: what follows is one beat, not a queue.
		if took := v.Beat.Last.Sub(healed); took > 12*time.Second {
			t.Errorf("%s: the first beat came %s after MongoDB", f.Mode, took)
		}
		if n := len(updates(h.mongo)) - before; n > 4 {
			t.Errorf("%s: %d updates after MongoDB was back", f.Mode, n)
		}
		// However many losses there are, the log has one a minute, and a return for each.
		a, b, most := p.said(lost)-losses, p.said(back)-returns, 1+int(time.Since(begun)/time.Minute)
		if a != b || a < 1 || a > most || first && a != 1 {
			t.Errorf("%s: the loss was told %d times, the return %d times; at most %d", f.Mode, a, b, most)
		}
		first = false
	}
	if n := h.row(); !n.StateSince.Equal(active) || n.State != cluster.StateActive || n.Load == nil || n.Load.CPU == nil {
		t.Errorf("the row: %+v", n)
	}

	// Somebody took the row away: it comes back as it was, with all there is.
	h.forget()
	h.rowIs(cluster.StateActive)
	p.says("registered again: the record was missing")
	// The row is there a moment before its first beat.
	until(t, "the row has all there is", func() string {
		if n := h.row(); n.Role != "edge" || n.Interval != seconds.Duration(time.Second) || n.Load == nil {
			return fmt.Sprintf("%+v", n)
		}
		return ""
	})

	// A cut is over at once, and costs a beat at most.
	must.OK(t, h.mongo.Faults().Set(mongod.Fault{Mode: mongod.Cut}))
	p.beats()

	// Started while MongoDB is away: the state is written when it is back.
	p.end(syscall.SIGTERM)
	must.OK(t, h.client.SetOwnState(t.Context(), h.row(), cluster.StateDraining, "x", cluster.Details{}))
	must.OK(t, h.client.SetOwnState(t.Context(), h.row(), cluster.StateLeft, "shutdown", cluster.Details{}))
	must.OK(t, h.mongo.Faults().Set(mongod.Fault{Mode: mongod.Refuse}))
	p = h.daemon()
	p.viewIs("beats are dropped", func(v daemon.View) bool { return v.Beat.Dropped >= 1 })
	h.mongo.Faults().Clear()
	h.rowIs(cluster.StateActive)
	p.beats()

	// Another password: nothing works until the file says it.
	addr := h.mongo.Addr()
	must.OK(t, h.mongo.Close())
	servers.Start(t, mongod.Options{Listen: addr, Users: map[string]string{daemonUser: "another-" + daemonPassword}})
	p.viewIs("the password is wrong", func(v daemon.View) bool {
		return strings.Contains(v.Beat.Error, "password") || strings.Contains(v.Beat.Error, "uthentication")
	})
	if code, took := p.end(syscall.SIGTERM); code != 0 || took > 5*time.Second {
		t.Errorf("exit %d after %s", code, took)
	}
}

// TestOutage: MongoDB takes connections and answers nothing, for as long as OUTAGE says (`make prove-outage`: 30 minutes). No
// health check fails, no drain begins, no daemon ends and no server is touched; afterwards every node beats again.
func TestOutage(t *testing.T) {
	t.Parallel()
	length, err := time.ParseDuration(cmp.Or(os.Getenv("OUTAGE"), "20s"))
	must.OK(t, err)
	m := newDatabase(t)
	nodes, touched := make([]*process, 6), make([]int, 6)
	for i := range nodes {
		h := newScaled(t, m, fmt.Sprintf("10.0.9.%d", 101+i), fakeaws.AutoScalingOptions{}, endHook(time.Minute))
		nodes[i] = h.serving()
		nodes[i].beats()
		touched[i] = h.touches()
	}
	must.OK(t, m.Faults().Set(mongod.Fault{Mode: mongod.BlackHole}))
	looks := 0
	for begun := time.Now(); time.Since(begun) < length; wait(time.Second) {
		for _, p := range nodes {
			if body, code := p.get("/healthz"); code != http.StatusOK {
				t.Errorf("after %s: /healthz of %s: %d %s", time.Since(begun), p.h.id, code, body)
			}
			if v := p.view(); v.State != cluster.StateActive || v.Lifecycle.Step != "" || len(v.Lifecycle.Notices) > 0 {
				t.Errorf("after %s: %s: %+v", time.Since(begun), p.h.id, v)
			}
			looks++
		}
	}
	healed := time.Now()
	m.Faults().Clear()
	for i, p := range nodes {
		p.beats()
		p.h.rowIs(cluster.StateActive)
		if n := p.h.touches() - touched[i]; n > 0 {
			t.Errorf("%s: the service was touched %d times", p.h.id, n)
		}
	}
	t.Logf("%d looks in %s; all nodes beat %s after it", looks, length, time.Since(healed).Round(time.Millisecond))
}

// updates are the beats that went through lately.
func updates(m *mongod.Server) []mongod.Command {
	return slices.DeleteFunc(m.Commands(), func(c mongod.Command) bool { return c.Name != "update" || c.DB != "amsagent" })
}

// TestDrainSpot: two minutes, here ten seconds, are all there is. Those who watch
// are served to that deadline, not a moment less, whatever comes meanwhile.
func TestDrainSpot(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.3", fakeaws.AutoScalingOptions{}, endHook(time.Minute))
	p := h.serving()
	h.viewers(2)
	at := time.Now().Add(16 * time.Second).Truncate(time.Second)
	h.aws.Interrupt("terminate", at)
	v := p.counted(2)
	if v.Kind != lifecycle.Interrupt || !v.Deadline.Before(at) || time.Until(v.Deadline) < time.Second {
		t.Errorf("the drain: %+v", v)
	}
	// The token ends, and a scale-in on top: the earlier deadline stays.
	h.aws.ExpireTokens()
	h.terminate()
	v = p.life("two notices", func(v lifecycle.View) bool { return len(v.Notices) == 2 })
	if v.Deadline.After(at) {
		t.Errorf("a second notice made it later: %+v", v)
	}
	for time.Now().Before(v.Deadline.Add(-200 * time.Millisecond)) {
		if st := h.live(); st.Live.Viewers != 2 {
			t.Fatalf("cut %s before the deadline: %+v", time.Until(v.Deadline), st)
		}
		wait(100 * time.Millisecond)
	}
	e := h.completed("drain")
	n := h.hasLeft()
	if late := e.Time.Sub(at); late > 0 {
		t.Errorf("the hook was completed %s after the machine's end", late)
	}
	if st := h.sessions(); st.Cut.Viewers != 2 || n.Cut == nil || *n.Cut != 2 {
		t.Errorf("the sessions: %+v, the row: %+v", st, n)
	}
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
				p := h.serving()
				h.viewers(1)
				away := func(when string) {
					if at == when {
						must.OK(t, h.mongo.Faults().Set(f))
					}
				}
				away("before")
				h.terminate()
				p.counted(1)
				away("draining")
				wait(time.Second)
				if p.ready() {
					t.Error("it is ready")
				}
				if at == "stopping" {
					h.people(http.MethodPost, "/behaviour", "slow_stop_ms", "1500")
				}
				h.viewersGo()
				gone := time.Now()
				if at == "stopping" {
					p.step(lifecycle.StepStopping)
					away("stopping")
				}
				e := h.completed("drain")
				took := e.Time.Sub(gone)
				t.Logf("completed %s after the last viewer", took.Round(time.Millisecond))
				if took > 20*time.Second {
					t.Errorf("MongoDB held it up: %s", took)
				}
				v := p.step(lifecycle.StepDone)
				if v.RegistryTold || !slices.ContainsFunc(v.Notes, func(n lifecycle.Note) bool { return strings.Contains(n.Text, "could not be updated") }) {
					t.Errorf("what is owed is not said: %+v", v)
				}
				// Also a daemon that is started meanwhile knows what is owed.
				if j == 0 {
					p.end(syscall.SIGKILL)
					p = h.daemon()
				}
				h.mongo.Faults().Clear()
				n := h.hasLeft()
				if n.Cut == nil || *n.Cut != 0 || n.Reason != "scale-in" {
					t.Errorf("the row: %+v", n)
				}
				p.life("it is told", func(v lifecycle.View) bool { return v.RegistryTold })
			})
		}
	}
}

// TestDrainOrigin: an origin waits for who publishes. Where neither MongoDB nor AMS
// can tell, it waits for the deadline, and no longer.
func TestDrainOrigin(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.30", fakeaws.AutoScalingOptions{}, endHook(time.Minute))
	h.aws.Update(func(i *fakeaws.Instance) { i.Tags["amsagent:role"] = "origin" })
	p := h.serving()
	h.people(http.MethodPost, "/stream", "id", "live1")
	out, code := h.run("drain", "--detach", "--deadline", "12s", "--reason", "new kernel", "--repair-streams")
	if code != 0 || !strings.Contains(out, "draining") {
		t.Fatalf("exit %d: %s", code, out)
	}
	v := p.life("the publisher is counted", func(v lifecycle.View) bool {
		return v.Sessions != nil && v.Sessions.Publishers != nil && *v.Sessions.Publishers == 1
	})
	wait(2 * time.Second)
	h.people(http.MethodPost, "/behaviour", "statistics", "500")
	must.OK(t, h.mongo.Faults().Set(mongod.Fault{Mode: mongod.Refuse}))
	p.life("nobody can count", func(v lifecycle.View) bool { return v.Trouble["sessions"] != "" })
	for time.Now().Before(v.Deadline.Add(-200 * time.Millisecond)) {
		if st := h.live(); st.Live.Publishers != 1 {
			t.Fatalf("cut %s before the deadline: %+v", time.Until(v.Deadline), st)
		}
		wait(100 * time.Millisecond)
	}
	// The server itself takes its time to stop without MongoDB.
	p.life("the server is stopped", func(v lifecycle.View) bool { return v.Step != lifecycle.StepDraining })
	if late := time.Since(v.Deadline); late > 4*time.Second {
		t.Errorf("it was stopped %s after the deadline", late)
	}
	until(t, "the server ends", func() string {
		if h.serverRuns() {
			return "it runs"
		}
		return ""
	})
	h.mongo.Faults().Clear()
	if n := h.hasLeft(); n.Cut != nil && *n.Cut != 1 {
		t.Errorf("the row: %+v", n)
	}
	p.step(lifecycle.StepDone)
}
