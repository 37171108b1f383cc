// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// TestDaemonUnreadableFile: a file that cannot be repaired does not keep the node from registering.
func TestDaemonUnreadableFile(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.registry.Remove(rows, nodeID)
		var unread atomic.Bool
		unread.Store(true)
		c.machine.converge = func(context.Context) (*bootstrap.Convergence, error) {
			joined := &bootstrap.Convergence{Phase: bootstrap.PhaseJoined, Node: c.machine.node}
			if unread.Load() {
				return joined, errors.New("half a file")
			}
			return joined, nil
		}
		c.start()
		sleep.For(t.Context(), 10*time.Minute)
		must.Equal(t, "it was logged (times)", strings.Count(c.said.text(), "comparing or repairing the files failed"), 1)
		must.Equal(t, "trouble", c.d.view.get().Trouble, "half a file")
		must.Equal(t, "state", c.node().State, cluster.StateActive)
		unread.Store(false)
		must.Until(t, "nothing is wrong", func() bool { return c.d.view.get().Trouble == "" })
	})
}

// Facts that the cloud does not report stay in the record, and are corrected when the cloud answers, while the node serves.
func TestDaemonUnidentified(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		type facts struct {
			zone, kind, public string
			incomplete         bool
		}
		var is atomic.Pointer[facts]
		c.machine.converge = func(context.Context) (*bootstrap.Convergence, error) {
			n, f := c.machine.node, is.Load()
			n.Zone, n.Type, n.PublicIP = f.zone, f.kind, f.public
			return &bootstrap.Convergence{Phase: bootstrap.PhaseJoined, Node: n, Incomplete: f.incomplete}, nil
		}
		has := func(want string) {
			t.Helper()
			row := func() string {
				n := c.node()
				return fmt.Sprint(n.Zone, " ", n.Type, " ", n.PublicIP, " ", n.State)
			}
			must.Until(t, "the record has "+want, func() bool { return row() == want })
			sleep.For(t.Context(), 2*time.Minute)
			must.Equal(t, "later, the record has", row(), want)
		}
		is.Store(&facts{zone: "2", kind: "F8s"})
		c.start()
		has("2 F8s  active")
		c.stop()
		is.Store(&facts{incomplete: true})
		c.start()
		has("2 F8s  active")
		is.Store(&facts{zone: "3", kind: "F16s", public: "203.0.113.9"})
		has("3 F16s 203.0.113.9 active")
		is.Store(&facts{kind: "F32s", incomplete: true})
		has("3 F32s 203.0.113.9 active")
		is.Store(&facts{zone: "3", kind: "F16s"})
		has("3 F16s  active")
	})
}

// TestDaemonMongoElsewhere: MongoDB is gone, and the settings name another one. The agent uses it without a signal.
func TestDaemonMongoElsewhere(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		second := fakemongo.NewMemory()
		defer second.Close()
		defer c.stop()
		elsewhere, err := cluster.ParseTarget("mongodb://elsewhere")
		must.OK(t, err)
		var moved atomic.Bool
		first := c.o.Mongo
		c.o.Mongo = func(ctx context.Context) (Named, error) {
			if moved.Load() {
				return Named{Target: elsewhere}, nil
			}
			return first(ctx)
		}
		c.o.Connect = func(_ context.Context, to cluster.Target) (*cluster.Client, error) {
			if to.Equal(elsewhere) {
				return c.connect(second), nil
			}
			return c.connect(c.link), nil
		}
		c.start()
		moved.Store(true)
		sleep.For(t.Context(), 5*time.Minute)
		if second.Get(rows, nodeID) != nil {
			t.Error("the node left a MongoDB that answers")
		}
		c.link.Cut.Store(true)
		must.Until(t, "the node is in the other MongoDB", func() bool { return second.Get(rows, nodeID) != nil })
	})
}

// TestDaemonKeepsWhatIsNamed: what an operator writes into the agent's own file is what the machine is compared with, never the
// old value, and nothing is compared while the file has half a line.
func TestDaemonKeepsWhatIsNamed(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		var named atomic.Value
		named.Store("mongodb://memory")
		c.o.Mongo = func(context.Context) (Named, error) {
			target, err := cluster.ParseTarget(named.Load().(string))
			return Named{Target: target, Stored: true}, err
		}
		compared := func() string {
			c.machine.mu.Lock()
			defer c.machine.mu.Unlock()
			return fmt.Sprint(c.machine.asked.Mongo.URI().Reveal(), " ", c.machine.asked.MongoStored)
		}
		c.start()
		const again = "mongodb://memory/?retryWrites=true" // the same servers, as with another password
		named.Store(again)
		must.Until(t, "the files are compared with it", func() bool { return compared() == again+" true" })
		named.Store("mongodb://[half")
		c.says("comparing or repairing the files failed", 1)
		before := c.machine.looks()
		sleep.For(t.Context(), 10*time.Minute)
		must.Equal(t, "comparisons with half a line", c.machine.looks(), before)
		must.Equal(t, "state", c.node().State, cluster.StateActive)
		named.Store("mongodb://elsewhere")
		must.Until(t, "the files are compared with that", func() bool { return compared() == "mongodb://elsewhere true" })
	})
}

// cloudAway is a cloud whose API fails until it is back.
type cloudAway struct {
	hookCalls

	back atomic.Bool
}

func (c *cloudAway) Pending(context.Context, bool) ([]lifecycle.Hook, error) {
	if c.back.Load() {
		return nil, nil
	}
	return nil, errors.New("503")
}

// notices are what the test's cloud has in force.
type notices chan cloud.Notice

func (n notices) Watch(ctx context.Context, report cloud.Report) {
	var current []cloud.Notice
	for {
		select {
		case <-ctx.Done():
			return
		case notice := <-n:
			current = append(current, notice)
			report("test", current)
		}
	}
}

// While the completion of a drain cannot reach the cloud, an operator starts the server and joins. The node serves again once
// the cloud has the completion.
func TestJoinWhileCloudIsAway(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		away, source := &cloudAway{}, make(notices)
		c.o.Lifecycle.Hooks, c.o.Lifecycle.Watcher = away, source
		c.start()
		source <- cloud.Notice{ID: "test/t", Kind: cloud.Terminate, At: time.Now()}
		c.turns(cluster.StateLeft)
		must.Until(t, "the completion is pending", func() bool {
			l := c.d.life.manager.View()
			return l.Step == lifecycle.StepCompleting && l.RegistryTold
		})
		sleep.For(t.Context(), time.Minute)
		joined := c.machine.node
		joined.State, joined.Reason = cluster.StateActive, cluster.ReasonJoin
		_, err := c.client.Register(t.Context(), joined, cluster.RegisterOptions{})
		must.OK(t, err)
		c.machine.set(&bootstrap.State{Phase: bootstrap.PhaseJoined, Since: time.Now().Truncate(time.Second)})
		sleep.For(t.Context(), time.Minute)
		must.Equal(t, "step", c.step(), lifecycle.StepCompleting)
		must.Equal(t, "state after the join", c.node().State, cluster.StateActive)
		away.back.Store(true)
		must.Until(t, "the drain has ended", func() bool { return c.step() != lifecycle.StepCompleting })
		c.serves()
		// From now on, a registration ends no drain that an operator wrote into the registry.
		must.Until(t, "the forgotten drain is settled with the registry", func() bool { return !c.d.life.manager.Forgotten() })
	})
}

// A record that an operator removed during a drain is registered again in the state draining, even if the answer to the
// registration comes too late.
func TestRecordRemovedDuringADrain(t *testing.T) {
	for name, late := range map[string]time.Duration{"well": 0, "late": 6 * time.Second} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *clustered) {
				source := make(notices)
				c.o.Lifecycle.Watcher = source
				c.start()
				c.sees(1) // a viewer that stays
				source <- cloud.Notice{ID: "test/t", Kind: cloud.Terminate, At: time.Now().Add(time.Hour)}
				c.turns(cluster.StateDraining)
				sleep.For(t.Context(), time.Minute) // the drain does not change the record any more
				var registered atomic.Bool
				c.registry.SetFault(func(command, coll string) fakemongo.Fate {
					if command == "findAndModify" && coll == rows && registered.CompareAndSwap(false, true) {
						defer sleep.For(t.Context(), late) // longer than a client waits
						return fakemongo.Done
					}
					return fakemongo.Done
				})
				c.registry.Remove(rows, nodeID)
				var back time.Time
				must.Until(t, "the record is back, and draining", func() bool {
					row := c.row()
					if row != nil && back.IsZero() {
						back = time.Now()
					}
					return row != nil && row["state"] == "draining"
				})
				if late := time.Since(back); late > 15*time.Second { // the daemon writes it every 30 s in any case
					t.Errorf("for %s the record was not draining", late)
				}
				sleep.For(t.Context(), time.Minute) // while a late answer is awaited, the driver's close spins
			})
		})
	}
}

// TestDaemonOnACopiedDisk: while it is not known whether the machine is the node, it does not register, is not ready and
// drains alone. The status shows why. Once it is known, the record of another boot must be silent, and the other hardware is an event.
func TestDaemonOnACopiedDisk(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		was := c.alive(c.machine.node)
		c.machine.node.BootID = "boot-2"
		var known, told atomic.Bool
		c.machine.converge = func(context.Context) (*bootstrap.Convergence, error) {
			found := &bootstrap.Convergence{Phase: bootstrap.PhaseJoined, Node: c.machine.node}
			if known.Load() {
				found.OtherHardware = !told.Swap(true)
			} else {
				found.Unidentified = "other hardware than " + nodeID
			}
			return found, nil
		}
		c.begin()
		must.Until(t, "the status shows why", func() bool { return c.d.view.get().Trouble == "other hardware than "+nodeID })
		c.post(PathDrain, `{"now":true}`)
		must.Until(t, "the copy has drained", func() bool { return c.step() == lifecycle.StepDone })
		if v := c.d.view.get(); v.Ready || v.State != "" {
			t.Errorf("ready %t, record %q", v.Ready, v.State)
		}
		must.NoDiff(t, "the copy changed the record of the original", c.row(), was)
		c.stop()

		known.Store(true)
		c.machine.set(&bootstrap.State{Phase: bootstrap.PhaseJoined, Since: time.Now()}) // a join by hand
		c.begin()
		must.Until(t, "the status shows that the record is fresh", func() bool { return strings.Contains(c.d.view.line(), "uses this node's record") })
		must.NoDiff(t, "the next boot changed a fresh record", c.row(), was)
		sleep.For(t.Context(), time.Minute)
		must.Equal(t, "events of another machine's record", c.kinds(), "")
		c.silent(11 * time.Minute)
		c.serves()
		must.Until(t, "an event of the other hardware", func() bool { return strings.Count(c.kinds(), "hardware") == 1 })
	})
}

// TestDaemonDrainOfADuplicate: of two machines with one id, the second drains, and its daemon is started again. The record of the
// first stays as it is.
func TestDaemonDrainOfADuplicate(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.sees(3)
		began := time.Now()
		c.o.Lifecycle.Uptime = func() (string, time.Duration) { return "boot-1", time.Since(began) + 1 }
		c.start()
		was := c.alive(c.other())
		c.says("another machine uses this node's id", 1)
		c.post(PathDrain, "{}")
		must.Until(t, "it drains", func() bool { return c.step() == lifecycle.StepDraining })
		c.stop()
		// The registry is written before the session begins.
		c.machine.converge = func(ctx context.Context) (*bootstrap.Convergence, error) {
			sleep.For(ctx, 30*time.Second)
			return &bootstrap.Convergence{Phase: bootstrap.PhaseJoined, Node: c.machine.node}, nil
		}
		c.begin()
		sleep.For(t.Context(), 4*time.Minute)
		must.Equal(t, "step", c.step(), lifecycle.StepDraining)
		must.NoDiff(t, "it changed the record of the other machine", c.row(), was)
	})
}

// TestDaemonGetsAnotherMachinesAnswer: once the record is the node's, one odd answer of the metadata does not change who it is:
// the machine knows that, and is asked for who it is once in each look.
func TestDaemonGetsAnotherMachinesAnswer(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		asked := 0
		c.o.Identify = func(context.Context) (metadata.Instance, error) {
			asked++
			return metadata.Instance{ID: nodeID}, nil
		}
		c.begin()
		registered := func() bool {
			c.machine.mu.Lock()
			defer c.machine.mu.Unlock()
			return c.machine.asked.Registered
		}
		must.Equal(t, "registered at the start", registered(), false)
		c.serves()
		sleep.For(t.Context(), 2*time.Minute)
		must.Equal(t, "registered later", registered(), true)
		must.Equal(t, "asked (times)", asked, c.machine.looks())
	})
}

// TestDaemonAndItsCopy: if another machine uses the daemon's record, the daemon logs it once and does not write, until the
// other machine is silent.
func TestDaemonAndItsCopy(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		was := c.alive(c.other())
		c.says("another machine uses this node's id", 1)
		must.Until(t, "the status names it", func() bool { return strings.Contains(c.d.view.line(), "10.0.0.77 uses this node's ") })
		sleep.For(t.Context(), time.Minute)
		must.NoDiff(t, "the daemon wrote over the other's record", c.row(), was)
		c.silent(4 * time.Minute)
		c.serves()
		must.Until(t, "the record is this machine's again", func() bool { return c.node().IP == own })
		must.Equal(t, "logged (times)", strings.Count(c.said.text(), "another machine uses this node's id"), 1)
	})
}

// TestDaemonOldRequest: the daemon refuses a request that is two minutes old.
func TestDaemonOldRequest(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		c.edit("drain_request", map[string]any{"id": "x", "asked_by": "ann", "at": time.Now().Add(-2 * time.Minute)})
		c.happens("refused")
		if e := c.events()[0]; e.Who != "ann" || !strings.Contains(e.Why, "the request is 2m") {
			t.Errorf("%+v", e)
		}
		if n := c.node(); n.DrainRequest != nil || n.State != cluster.StateActive {
			t.Errorf("%+v", n)
		}
	})
}

// TestDaemonRefusesRemoteDrain: with remote_drain: false, a request in the registry is refused, with the reason in the record. A
// drain on the machine works.
func TestDaemonRefusesRemoteDrain(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		settings := c.o.Settings()
		settings.NoRemoteDrain = true
		c.o.Settings = func() Settings { return settings }
		c.start()
		for _, events := range []string{"refused", "refused refused"} {
			id, err := c.client.AskDrain(t.Context(), c.node(), cluster.DrainRequest{Who: "ann"})
			must.OK(t, err)
			c.happens(events)
			n := c.node()
			if n.DrainRequest != nil || n.DrainRefused == nil || *n.DrainRefused != (cluster.DrainRefusal{ID: id, Reason: cluster.RefusedRemoteDrain}) {
				t.Errorf("%+v", n)
			}
		}
		c.says("a request to drain was refused", 2)
		must.Equal(t, "the state", c.node().State, cluster.StateActive)
		c.post(PathDrain, `{"asked_by":"uid 0"}`)
		c.turns(cluster.StateLeft)
	})
}

// TestDaemonClockAhead: other machines read the deadline of a drain by MongoDB's clock, not by this machine's.
func TestDaemonClockAhead(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.registry.Now = func() time.Time { return time.Now().Add(-time.Hour) }
		c.sees(1)
		c.start()
		c.post(PathDrain, `{"asked_by":"ann"}`)
		must.Until(t, "the record has the deadline", func() bool { return c.node().Drain != nil })
		must.Equal(t, "time to the deadline", c.node().Drain.Until.Sub(c.registry.Now()).Round(time.Minute), time.Hour)
	})
}

// TestDaemonBadRecord: a record that cannot be read any more is registered again.
func TestDaemonBadRecord(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		c.edit("balancers", map[string]any{"x": map[string]any{"text": strings.Repeat("x", 20<<10)}})
		must.Until(t, "the record can be read", func() bool {
			n, err := c.client.Node(t.Context(), nodeID)
			return err == nil && n.State == cluster.StateActive
		})
	})
}

// TestDaemonTakeLost: the daemon gets an error for accepting a request, but MongoDB has done it. The request is carried out after
// that.
func TestDaemonTakeLost(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		n := c.node()
		c.registry.SetFault(func(command, coll string) fakemongo.Fate {
			if command == "findAndModify" {
				return fakemongo.Fails
			}
			return fakemongo.Done
		})
		c.edit("drain_request", map[string]any{"id": "x", "asked_by": "ann", "at": time.Now()})
		c.says("a drain request could not be accepted", 1)
		c.registry.Edit(rows, nodeID, func(row map[string]any) {
			delete(row, "drain_request")
			row["drain_taken"] = map[string]any{"id": "x", "by": n.Instance()}
		})
		c.registry.SetFault(nil)
		c.turns(cluster.StateLeft)
		must.Contain(t, "the log", c.said.text(), "another machine requests a drain of this node")
	})
}

// TestDaemonEventOnce: the answer to an event is lost again and again. Each try is the same event.
func TestDaemonEventOnce(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		var tries atomic.Int64
		c.registry.SetFault(func(command, coll string) fakemongo.Fate {
			if command == "update" && coll == "amsagent.events" {
				tries.Add(1)
				return fakemongo.Lost
			}
			return fakemongo.Done
		})
		_, err := c.client.AskDrain(t.Context(), c.node(), cluster.DrainRequest{Who: "ann"})
		must.OK(t, err)
		must.Until(t, "the event is tried twice", func() bool { return tries.Load() >= 2 })
		c.registry.SetFault(nil)
		must.Until(t, "the next event is written", func() bool { return strings.Contains(c.kinds(), "drained") })
		must.Equal(t, "the event is there (times)", strings.Count(" "+c.kinds()+" ", " drain "), 1)
	})
}

// TestDaemonRestored: MongoDB is restored from a backup of yesterday, whose record of a running node is another one
// (docs/operations.md).
func TestDaemonRestored(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		restore := func(change map[string]any) {
			c.registry.Edit(rows, nodeID, func(row map[string]any) {
				delete(row, "heartbeat")
				row["updated_at"] = time.Now().Add(-24 * time.Hour)
				for key, value := range change {
					row[key] = value
				}
			})
		}
		becomes := func(what string, state cluster.State) {
			t.Helper()
			must.Until(t, what, func() bool {
				n, err := c.client.Node(t.Context(), nodeID)
				return err == nil && n.State == state && n.BootID == "boot-1" && n.Heartbeats() && c.d.view.get().State == state
			})
		}
		c.registry.Remove(rows, nodeID)
		becomes("a record that is missing is registered again", cluster.StateActive)
		restore(nil)
		becomes("heartbeats continue in its own record", cluster.StateActive)
		restore(map[string]any{"boot_id": "boot-0"})
		becomes("the record of an earlier boot is taken", cluster.StateActive)
		restore(map[string]any{"boot_id": "boot-0", "state": "left", "left_by": "leave"})
		becomes("the record of an earlier boot, which left, is taken", cluster.StateActive)

		for _, state := range []cluster.State{cluster.StateDraining, cluster.StateLeft} {
			restore(map[string]any{"state": string(state)})
			becomes("the record says "+string(state), state)
			sleep.For(t.Context(), 10*time.Minute)
			becomes("it still does", state)
			if v := c.d.view.get(); v.Ready || v.Trouble == "" {
				t.Errorf("%s: ready %v, trouble %q", state, v.Ready, v.Trouble)
			}
			if state == cluster.StateDraining {
				c.post(PathUndrain, `{"asked_by":"root"}`)
			} else {
				c.stop()
				c.start()
			}
			becomes("it is active again after "+string(state), cluster.StateActive)
		}
	})
}

// TestHealthAmongOthers: a node whose server hangs is unhealthy, but not while half of the other nodes of its group do not
// serve either.
func TestHealthAmongOthers(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		peers := map[string]bool{}
		is := func(status int, when string) {
			t.Helper()
			for range 60 { // longer than the server's limit, and than the others are asked again
				for id, up := range peers { // their agents live
					c.registry.Edit(rows, id, func(row map[string]any) {
						row["updated_at"], row["heartbeat"] = time.Now(), map[string]any{"seq": 1, "serving": map[string]any{"up": up}}
					})
				}
				sleep.For(t.Context(), 6*time.Second)
			}
			must.Equal(t, "/healthz: "+when, c.health(), status)
		}
		peer := func(id, group string, up bool) {
			row := c.row()
			row["_id"], row["group"] = id, group
			c.registry.Put(rows, row)
			peers[id] = up
		}
		is(http.StatusOK, "all is well")
		c.f.set(ams.AppSilent, "LiveApp")
		is(http.StatusServiceUnavailable, "there is no other node")
		peer("i-elsewhere", "another group", false)
		peer("i-serves", "edges", true)
		is(http.StatusServiceUnavailable, "the other node of the group serves")
		peer("i-down", "edges", false)
		is(http.StatusOK, "one of two others does not serve either")
		peer("i-serves-too", "edges", true)
		is(http.StatusServiceUnavailable, "two of three others serve")
		c.registry.Edit(rows, "i-serves-too", func(row map[string]any) { row["state"] = "draining" })
		is(http.StatusOK, "one that drains does not count")
		c.registry.Remove(rows, "i-down")
		is(http.StatusServiceUnavailable, "the one that does not serve is gone")
		c.f.set("")
		is(http.StatusOK, "it serves again")
	})
}

// TestDaemonHistory: what happened in a night without an operator is among the events: a boot, the agent's death, MongoDB away,
// another role.
func TestDaemonHistory(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		c.stop()
		c.silent(11 * time.Minute) // it died
		c.machine.node.BootID = "boot-2"
		c.start()
		c.happens("boot serving")
		c.stop()
		c.start() // an upgrade
		c.stop()
		c.silent(11 * time.Minute)
		c.start()
		c.happens("boot serving back")
		sleep.For(t.Context(), time.Minute)
		c.link.Cut.Store(true)
		sleep.For(t.Context(), 5*time.Minute)
		c.link.Cut.Store(false)
		c.happens("boot serving back back")
		c.stop()
		c.machine.node.Role = "origin"
		c.start()
		c.happens("boot serving back back role")
	})
}

// TestDaemonWaitsForABalancer: a drain waits until the load balancer that confirms what it does has taken the node out.
func TestDaemonWaitsForABalancer(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		must.OK(t, c.client.SetBalancer(t.Context(), "lb-1", []string{nodeID}))
		_, err := c.client.AskDrain(t.Context(), c.node(), cluster.DrainRequest{})
		must.OK(t, err)
		must.Until(t, "the drain waits", func() bool { return strings.Contains(c.d.view.line(), "waiting for load balancers: lb-1") })
		must.Until(t, "the record has the deadline and its source", func() bool {
			n := c.node()
			return n.Drain != nil && n.Drain.By != "" && n.Drain.Until.After(n.UpdatedAt)
		})
		must.OK(t, c.client.SetBalancer(t.Context(), "lb-1", nil))
		c.turns(cluster.StateLeft)
	})
}
