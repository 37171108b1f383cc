// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

// TestDrainLateWrite: what Ant Media Server wrote as it ended reaches MongoDB after its document was removed.
func TestDrainLateWrite(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.73", fakeaws.AutoScalingOptions{}, endHook(20*time.Second))
	p := h.Serving()
	c, err := mongo.Connect(options.Client().ApplyURI(h.Mongo.LoginURI()))
	must.OK(t, err)
	defer func() { _ = c.Disconnect(context.Background()) }()
	// The document comes back after each removal: the test does not know when the daemon checks.
	ctx, stop := context.WithCancel(t.Context())
	var writes sync.WaitGroup
	defer writes.Wait()
	defer stop()
	var came atomic.Int64
	doc := bson.M{"_id": "late" + h.Address, "ip": h.Address, "lastUpdateTime": time.Now().UnixMilli()}
	writes.Go(func() {
		for ctx.Err() == nil {
			switch _, err := c.Database("clusterdb").Collection("clusternode").InsertOne(ctx, doc); {
			case err == nil:
				came.Add(1)
			case !mongo.IsDuplicateKeyError(err) && ctx.Err() == nil:
				t.Error(err)
				return
			}
			wait(20 * time.Millisecond)
		}
	})
	times := func(n int64) {
		until(t, fmt.Sprintf("it came %d times", n), func() string {
			if got := came.Load(); got < n {
				return fmt.Sprintf("%d\n%s", got, p.Output())
			}
			return ""
		})
	}
	times(1)
	h.terminate()
	times(3) // after the removal, and after the second look
}

// TestDrainRace: of concurrent commands at most one drain remains, and the last undrain cancels it. No session is cut.
func TestDrainRace(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.2", fakeaws.AutoScalingOptions{}, endHook(time.Minute))
	p := h.Serving()
	h.Viewers(3)
	touched := h.Touches()
	for range 3 {
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				args := []string{"drain", "--detach", "--reason", "kernel"}
				if i%2 == 1 {
					args = []string{"undrain"}
				}
				out, code := h.Run(args...)
				// An undrain fails if another drain begins meanwhile.
				if code != 0 && (i%2 == 0 || !strings.Contains(out, "another one has begun")) {
					t.Errorf("%v: exit %d\n%s", args, code, out)
				}
			})
		}
		all.Wait()
	}
	h.Must("undrain")
	h.RecordIs(cluster.StateActive)
	p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
	if st := h.Live(); st.Live.Viewers != 3 || h.Touches() != touched {
		t.Errorf("the sessions: %+v, touched %d times after %d", st, h.Touches(), touched)
	}
}

// TestDrainPark: standby and a warm pool. The node leaves and rejoins, and its launch hook is completed only when its server is
// seen.
func TestDrainPark(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.4", fakeaws.AutoScalingOptions{}, endHook(30*time.Second),
		fakes.Hook{Name: "serve", Launching: true, Timeout: 30 * time.Second})
	p := h.Serving()
	// Aside and back while they watch: nothing is stopped.
	h.Viewers(2)
	touched := h.Touches()
	must.OK(t, h.asg.Standby(h.ID))
	p.Counted(2)
	h.RecordIs(cluster.StateDraining)
	must.OK(t, h.asg.Restore(h.ID))
	h.RecordIs(cluster.StateActive)
	if st := h.Live(); st.Live.Viewers != 2 || h.Touches() != touched {
		t.Errorf("the sessions: %+v", st)
	}
	// Aside, for good.
	must.OK(t, h.asg.Standby(h.ID))
	h.RecordIs(cluster.StateDraining)
	h.ViewersGo()
	h.HasLeft()
	p.Life("parked", func(v lifecycle.View) bool { return v.State == lifecycle.StateParked })
	must.OK(t, h.asg.Restore(h.ID))
	h.RecordIs(cluster.StateActive)
	v := p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
	if !h.ServerRuns() || len(h.Documents()) != 1 || v.Lifecycle.Step != "" {
		t.Errorf("back in service: %+v", v)
	}
	if n := len(h.entries(func(e fakes.Entry) bool { return e.What == fakes.Completed })); n != 0 {
		t.Errorf("hooks were completed for a standby:\n%s", h.story())
	}
	// Into the pool: the hook waits for us.
	must.OK(t, h.asg.Pool(h.ID, "Running", false))
	h.completed("drain")
	h.HasLeft()
	p.Step(lifecycle.StepDone)
	// Out of it, with an AMS that takes its time.
	must.OK(t, h.asg.Launch(h.ID))
	e := h.completed("serve")
	n := h.Record()
	if n.State != cluster.StateActive || e.Time.Before(n.StateSince.Add(-50*time.Millisecond)) || len(h.Documents()) != 1 {
		t.Errorf("the launch hook was completed at %s, and the record is %+v\n%s", e.Time, n, h.story())
	}
	p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
	// Into the pool again, and from there to its end.
	must.OK(t, h.asg.Pool(h.ID, "Running", false))
	until(t, "in the pool", func() string {
		if m := h.asg.Members(); m[0].State != "Warmed:Running" {
			return h.story()
		}
		return ""
	})
	p.Step(lifecycle.StepDone)
	h.terminate()
	until(t, "the end of the machine", func() string {
		if n := h.entries(func(e fakes.Entry) bool { return e.Text == "Warmed:Terminated" && e.What == fakes.State }); len(n) == 0 {
			return h.story()
		}
		return ""
	})
	h.HasLeft()
}

// TestDrainReimage: an instance refresh replaces the root volume. The node drains, leaves and is expected back. The new root has no
// state of the agent: it joins under the same id, and its launch hook is completed after that.
func TestDrainReimage(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	h := newScaled(t, db, "10.0.8.60", fakeaws.AutoScalingOptions{}, endHook(30*time.Second),
		fakes.Hook{Name: "serve", Launching: true, Timeout: 30 * time.Second})
	p := h.Serving()
	h.Viewers(1)
	must.OK(t, h.asg.ReplaceRoot(h.ID))
	p.Counted(1)
	h.ViewersGo()
	h.completed("drain")
	if n := h.HasLeft(); n.LeftBy != cluster.LeftByReimage || n.Cut == nil || *n.Cut != 0 {
		t.Errorf("the record: %+v", n)
	}
	p.Step(lifecycle.StepDone)
	if out, code := h.Run("nodes"); code != 0 || !strings.Contains(out, "reimaging") {
		t.Errorf("nodes: exit %d\n%s", code, out)
	}
	p.End(syscall.SIGKILL)

	root := &onAWS{Node: newNode(t, db, "aws", h.ID, h.Address), asg: h.asg}
	root.aws, root.Env = h.aws, h.Env
	root.Config("")
	// The machine boots before the replacement is over.
	must.OK(t, h.asg.Move(h.ID, "RootVolumeReplaced", "ReplacingRootVolume:Proceed"))
	p = root.Daemon()
	p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
	must.OK(t, h.asg.Launch(h.ID))
	e := root.completed("serve")
	n := root.Record()
	if n.State != cluster.StateActive || n.LeftBy != "" || e.Time.Before(n.StateSince.Add(-50*time.Millisecond)) || len(root.Documents()) != 1 {
		t.Errorf("the launch hook was completed at %s, and the record is %+v\n%s", e.Time, n, root.story())
	}
	p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
}

// TestDrainNeverJoined: a machine that has not finished joining does not delay its termination, and does not join after the
// notice.
func TestDrainNeverJoined(t *testing.T) {
	t.Parallel()
	var all together
	defer all.Wait()
	for i, why := range []string{"without MongoDB", "without evidence"} {
		all.run(t, why, func(t *testing.T) {
			h := newScaled(t, newDatabase(t), fmt.Sprintf("10.0.8.%d", 40+i), fakeaws.AutoScalingOptions{}, endHook(time.Minute),
				fakes.Hook{Name: "serve", Launching: true, Timeout: time.Minute})
			if i == 0 {
				h.Fault(mongod.Fault{Mode: mongod.Refuse})
			} else {
				silent := h.StandIn.Service
				silent.Args = append(slices.Clone(h.StandIn.Service.Args), "--silent")
				must.OK(t, silent.WriteWrapper(h.StandIn.Wrapper+".silent"))
			}
			must.OK(t, h.asg.Launch(h.ID))
			p := h.Daemon()
			p.Life("it starts", func(v lifecycle.View) bool { return v.Start == "starting" })
			if i == 1 {
				h.RecordIs(cluster.StateJoining)
				p.Says("starting ")
			}
			wait(time.Second)
			h.terminate()
			asked := time.Now()
			e := h.completed("drain")
			took := e.Time.Sub(asked)
			t.Logf("completed %s after the notice", took.Round(time.Millisecond))
			p.Step(lifecycle.StepDone)
			if e := h.entries(func(e fakes.Entry) bool { return e.What == fakes.Completed && e.Hook == "serve" }); len(e) > 0 {
				t.Errorf("the launch hook was completed: %+v", e)
			}
			h.Mongo.Faults().Clear()
			p.ViewIs("it gives up", func(v daemon.View) bool { return v.Activity == "this node has left the cluster" })
			gone := func() string {
				nodes, err := h.Client.Nodes(t.Context())
				must.OK(t, err)
				for _, n := range nodes {
					if n.State != cluster.StateLeft && n.State != cluster.StateFailed {
						return fmt.Sprintf("%+v", n)
					}
				}
				return ""
			}
			until(t, "the registry knows that the machine is gone", gone)
			wait(2 * time.Second)
			if row := gone(); row != "" {
				t.Errorf("a machine that is gone joined: %s", row)
			}
		})
	}
}

// TestDrainDuringAbsence: the notice comes while no daemon runs. The next daemon treats the machine as a node with viewers, not
// as one that never joined.
func TestDrainDuringAbsence(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.6", fakeaws.AutoScalingOptions{}, endHook(time.Minute))
	p := h.Serving()
	h.Viewers(2)
	p.End(syscall.SIGTERM)
	h.terminate()
	// Another command holds the lock, so that the daemon gets the notice before it has checked the machine.
	lock, err := (&conf.Store{Root: h.StandIn.Tree.Root, Dir: bootstrap.StateDir}).Lock(t.Context(), "/run/amsagent/lock", nil)
	must.OK(t, err)
	p = h.Daemon()
	p.Step(lifecycle.StepDraining)
	wait(2 * time.Second)
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
	p.Counted(2)
	h.RecordIs(cluster.StateDraining)
	wait(2 * time.Second)
	completions := h.entries(func(e fakes.Entry) bool { return e.What == fakes.Call && e.Text == "CompleteLifecycleAction" })
	if st := h.Live(); st.Live.Viewers != 2 || len(completions) > 0 {
		t.Errorf("the sessions: %+v\n%s", st, h.story())
	}
	h.ViewersGo()
	h.completed("drain")
	h.HasLeft()
}

// TestDrainHungMetadata: the daemon starts while the metadata service hangs, and the operator runs drain --now. The server's stop
// needs the machine's lock, so the daemon must not hold it during a request.
func TestDrainHungMetadata(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.12", fakeaws.AutoScalingOptions{})
	h.Serving().End(syscall.SIGTERM)
	h.Viewers(1)
	must.OK(t, h.aws.AddFault(fakes.Fault{Hang: true}))
	asked, begun := len(h.aws.Requests()), time.Now()
	p := h.Daemon()
	until(t, "the daemon asks who this machine is", func() string {
		if len(h.aws.Requests()) == asked {
			return soFar(p.Output())
		}
		return ""
	})
	h.Must("drain", "--now")
	h.HasLeft()
	// After two seconds the daemon continues without an answer, and holds the lock for a moment.
	log := p.Output()
	if waited := regexp.MustCompile(`(?m)^time=(\S+) .*another command or the daemon is at work`).FindStringSubmatch(log); waited != nil {
		at, err := time.Parse(time.RFC3339Nano, waited[1])
		if err != nil || at.Before(begun.Add(2*time.Second)) {
			t.Errorf("the stop waited for a request to the metadata service (%v):\n%s", err, log)
		}
	}
}

// TestDrainReboot: a machine that is about to be started again drains, stays a node,
// and serves again after that. A restart of the agent before it ends nothing.
func TestDrainReboot(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.31", fakeaws.AutoScalingOptions{}, endHook(time.Minute))
	p := h.Serving()
	p.End(syscall.SIGTERM)
	h.Viewers(1)
	h.aws.Schedule(fakeaws.Scheduled{ID: "instance-event-2", Code: "instance-reboot", State: "active", NotBefore: time.Now().Add(10 * time.Minute)})
	p = h.Daemon()
	v := p.Counted(1)
	h.RecordIs(cluster.StateDraining)
	p.End(syscall.SIGTERM)
	p = h.Daemon()
	w := p.Counted(1)
	if !w.Begun.Equal(v.Begun) || w.Deadline.Sub(v.Deadline).Abs() > time.Second || h.Record().State != cluster.StateDraining {
		t.Errorf("another drain: %+v\nbefore: %+v", w, v)
	}
	h.ViewersGo()
	p.Step(lifecycle.StepDone)
	if !h.ServerRuns() || p.Ready() || h.Record().State != cluster.StateDraining {
		t.Errorf("drained: %+v", h.Record())
	}
	// The boot.
	h.kept(func(s lifecycle.Step) bool { return s == lifecycle.StepDone })
	p.End(syscall.SIGKILL)
	h.aws.ClearSignals()
	h.Write("proc/sys/kernel/random/boot_id", "99999999-2222-3333-4444-555555555555\n")
	p = h.Daemon()
	h.RecordIs(cluster.StateActive)
	p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
}
