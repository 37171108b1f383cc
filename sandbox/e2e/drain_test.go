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

// TestDrainScaleIn: a group terminates a machine with viewers. They are served to the end, then the node leaves, and the hook is
// completed.
func TestDrainScaleIn(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.1", fakeaws.AutoScalingOptions{ScalingOptions: fakes.ScalingOptions{WaitDelay: 3 * time.Second, ActionDelay: time.Second}}, endHook(20*time.Second))
	p := h.Serving()
	h.Viewers(2)
	p.UntilReady()
	h.terminate()
	h.RecordIs(cluster.StateDraining)
	if p.Ready() {
		t.Error("a node that drains is ready")
	}
	v := p.Counted(2)
	if v.Kind != lifecycle.Terminate || v.Reason != "scale-in" || v.State != lifecycle.StateDraining || v.Deadline.IsZero() {
		t.Errorf("the drain: %+v", v)
	}
	// Heartbeats extend the hook while they watch.
	until(t, "two heartbeats", func() string {
		if n := len(h.entries(func(e fakes.Entry) bool { return e.What == fakes.Heartbeat })); n < 2 {
			return h.story()
		}
		return ""
	})
	if st := h.Live(); st.Live.Viewers != 2 || !h.ServerRuns() {
		t.Errorf("the sessions: %+v", st)
	}
	h.ViewersGo()
	gone := time.Now()
	e := h.completed("drain")
	t.Logf("the hook was completed %s after the last viewer", e.Time.Sub(gone).Round(time.Millisecond))
	n := h.HasLeft()
	if st := h.Sessions(); st.Cut.Viewers != 0 || st.Left.Viewers != 2 || st.State != "stopped" {
		t.Errorf("the sessions: %+v", st)
	}
	if n.Reason != "scale-in" || n.Cut == nil || *n.Cut != 0 {
		t.Errorf("the record: %+v", n)
	}
	p.Step(lifecycle.StepDone)
	h.kept(func(s lifecycle.Step) bool { return s == lifecycle.StepDone })
	// The daemon that comes after this one has nothing to do.
	touched, completions := h.Touches(), len(h.calls("CompleteLifecycleAction"))
	p.End(syscall.SIGKILL)
	p = h.Daemon()
	p.ViewIs("it has left", func(v daemon.View) bool { return v.Activity == "this node has left the cluster" })
	wait(2 * time.Second)
	if h.Touches() != touched || len(h.calls("CompleteLifecycleAction")) != completions || h.Record().State != cluster.StateLeft || h.ServerRuns() {
		t.Errorf("after it had left: %+v\n%s", h.Record(), h.story())
	}
}

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

// TestDrainWords: notices without effect, drains that are cancelled, and concurrent commands. None of them cuts a session.
func TestDrainWords(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.2", fakeaws.AutoScalingOptions{}, endHook(time.Minute))
	h.aws.Schedule(fakeaws.Scheduled{ID: "instance-event-1", Code: "instance-reboot", State: "active", NotBefore: time.Now().Add(72 * time.Hour)})
	p := h.Serving()
	h.Viewers(3)
	touched := h.Touches()

	// A reboot in three days does not drain the node now.
	v := p.Life("the reboot is known", func(v lifecycle.View) bool { return len(v.Notices) == 1 })
	if v.Notices[0].Kind != lifecycle.Reboot || v.NextDrain.Before(time.Now().Add(70*time.Hour)) || !v.Ready {
		t.Errorf("a reboot in three days: %+v", v)
	}
	h.aws.Update(func(i *fakeaws.Instance) { // a rebalance recommendation ends no machine
		fakes.Set(&i.Extra, "events/recommendations/rebalance", `{"noticeTime": "2026-11-20T08:00:00Z"}`)
	})

	say := func(want, exit int, text string, args ...string) {
		t.Helper()
		out, code := h.Run(args...)
		if code != exit || !strings.Contains(out, text) || want != 0 && p.View().Lifecycle.State != lifecycle.StateActive {
			t.Errorf("%v: exit %d\n%s", args, code, out)
		}
	}
	for _, ev := range []struct{ name, text, says string }{
		{"a test notification", `{"AutoScalingGroupName":"edge-asg","Service":"AWS Auto Scaling","Time":"2026-11-20T08:00:00.000Z","AccountId":"123456789012","Event":"autoscaling:TEST_NOTIFICATION","RequestId":"1","AutoScalingGroupARN":"arn:aws:autoscaling:eu-west-1:123456789012:autoScalingGroup:1:autoScalingGroupName/edge-asg"}`, "nothing to do"},
		{"another machine's", hookEvent("i-0fffffffffffffff0", "drain", false), "not this instance"},
	} {
		if out, code := h.Event(ev.text); code != 0 || !strings.Contains(out, ev.says) {
			t.Errorf("%s: exit %d\n%s", ev.name, code, out)
		}
	}
	say(1, 0, "this node is not draining", "undrain")
	p.UntilReady()
	if h.Record().State != cluster.StateActive {
		t.Errorf("after events without effect: %+v", h.Record())
	}

	// Concurrent commands: at most one drain, and the last undrain cancels it.
	for range 3 {
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				args := []string{"drain", "--detach", "--reason", "kernel"}
				if i%2 == 1 {
					args = []string{"undrain"}
				}
				if out, code := h.Run(args...); code != 0 {
					// An undrain fails if another drain begins meanwhile.
					if i%2 == 0 || !strings.Contains(out, "another one has begun") {
						t.Errorf("%v: exit %d\n%s", args, code, out)
					}
				}
			})
		}
		all.Wait()
	}
	say(0, 0, "", "undrain")
	h.RecordIs(cluster.StateActive)
	p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })

	// An undrain overrules the cloud, also if the notice is repeated.
	if out, code := h.Event(hookEvent(h.ID, "drain", false), "--detach"); code != 0 {
		t.Errorf("a hook's event: exit %d\n%s", code, out)
	}
	v = p.Counted(3)
	h.terminate()
	h.RecordIs(cluster.StateDraining)
	if out, code := h.Event(hookEvent(h.ID, "drain", false), "--detach"); code != 0 {
		t.Errorf("the same event: exit %d\n%s", code, out)
	}
	p.Life("both notices are known", func(v lifecycle.View) bool { return len(v.Notices) == 2 })
	wait(3 * time.Second)
	if w := p.View().Lifecycle; len(w.Notices) != 2 || !w.Begun.Equal(v.Begun) || w.Deadline.Sub(v.Deadline).Abs() > 2*time.Second {
		t.Errorf("one drain from two notices: %+v\nbefore: %+v", w, v)
	}
	say(0, 0, "overruled", "undrain")
	h.RecordIs(cluster.StateActive)
	wait(3 * time.Second)
	v = *p.View().Lifecycle
	if v.State != lifecycle.StateActive || len(v.Dismissed) != 1 {
		t.Errorf("the cloud was overruled: %+v", v)
	}
	if out, code := h.Event(hookEvent(h.ID, "drain", false)); code != 1 || !strings.Contains(out, "overruled by hand") {
		t.Errorf("the event that was overruled: exit %d\n%s", code, out)
	}
	// A drain with --now overrules the undrain, and cuts the sessions.
	out, code := h.Run("drain", "--now", "--repair-streams")
	if code != 0 || !strings.Contains(out, "3 sessions cut") {
		t.Errorf("drain --now: exit %d\n%s", code, out)
	}
	h.HasLeft()
	if st := h.Sessions(); st.Cut.Viewers != 3 || h.Touches() != touched+1 {
		t.Errorf("the sessions: %+v, touched %d times after %d", st, h.Touches(), touched)
	}
	say(0, 1, "the drain has ended", "undrain")
	say(0, 0, "left", "drain") // already so
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
	if st := h.Live(); st.Live.Viewers != 2 || len(h.calls("CompleteLifecycleAction")) > 0 {
		t.Errorf("the sessions: %+v\n%s", st, h.story())
	}
	h.ViewersGo()
	h.completed("drain")
	h.HasLeft()
}

// TestDrainAPI: an API that answers with everything but what it should.
func TestDrainAPI(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	var all together
	defer all.Wait()
	all.run(t, "denied", func(t *testing.T) {
		h := newScaled(t, db, "10.0.8.7", fakeaws.AutoScalingOptions{}, endHook(time.Minute))
		h.asg.Deny("DescribeAutoScalingInstances", "DescribeLifecycleHooks", "RecordLifecycleActionHeartbeat", "CompleteLifecycleAction")
		p := h.Serving()
		h.Viewers(1)
		h.terminate()
		p.Counted(1)
		h.ViewersGo()
		h.HasLeft()
		p.Step(lifecycle.StepDone)
		p.Says("permission=autoscaling:DescribeLifecycleHooks")
		text := p.Output()
		for _, permission := range []string{"autoscaling:DescribeLifecycleHooks"} {
			if n := strings.Count(text, "permission="+permission); n == 0 || n > 2 {
				t.Errorf("%s is missed %d times in the log", permission, n)
			}
		}
		if !strings.Contains(text, `\"Effect\":\"Allow\"`) && !strings.Contains(text, `\"Effect\": \"Allow\"`) {
			t.Errorf("no policy in the log")
		}
		out, _ := h.Run("status", "-o", "json")
		if !strings.Contains(out, "autoscaling:DescribeLifecycleHooks") {
			t.Errorf("the status does not name the permission: %s", out)
		}
		// The operator grants the permissions.
		h.asg.Allow()
	})
	all.run(t, "completion denied", func(t *testing.T) {
		h := newScaled(t, db, "10.0.8.8", fakeaws.AutoScalingOptions{}, endHook(8*time.Second))
		h.asg.Deny("RecordLifecycleActionHeartbeat", "CompleteLifecycleAction")
		p := h.Serving()
		h.Viewers(1)
		h.terminate()
		v := p.Life("the hook cannot be kept waiting", func(v lifecycle.View) bool { return strings.Contains(v.DeadlineBy, "is missing") })
		if left := time.Until(v.Deadline); left > 8*time.Second {
			t.Errorf("the deadline does not know that the hook lapses: %+v", v)
		}
		// The viewer stays: cut at the deadline, not before.
		until(t, "the server ends", func() string {
			if h.ServerRuns() {
				return "it runs"
			}
			if early := time.Until(v.Deadline); early > 0 {
				t.Errorf("cut %s before the deadline", early)
			}
			return ""
		})
		h.HasLeft()
		out, code := h.Run("drain")
		if code != 0 || !strings.Contains(out, "permission autoscaling:CompleteLifecycleAction is missing") {
			t.Errorf("drain: exit %d\n%s", code, out)
		}
	})
	all.run(t, "faults", func(t *testing.T) {
		h := newScaled(t, db, "10.0.8.9", fakeaws.AutoScalingOptions{}, endHook(20*time.Second))
		p := h.Serving()
		h.Viewers(1)
		for _, f := range []fakes.Fault{
			{Code: "Throttling", Message: "Rate exceeded", Times: 2},
			{Code: "InternalFailure", Status: 500, Times: 2},
			{Empty: true, Times: 1},
			{Body: "<html>a proxy's</html>", Times: 1},
			{Reset: true, Times: 1},
		} {
			must.OK(t, h.asg.AddFault(f))
		}
		h.terminate()
		p.Counted(1)
		until(t, "the faults are over", func() string {
			if f := h.asg.Faults(); len(f) > 0 {
				return fmt.Sprint(f)
			}
			return ""
		})
		if st := h.Live(); st.Live.Viewers != 1 {
			t.Errorf("the sessions: %+v", st)
		}
		for _, f := range []fakes.Fault{
			{Path: "CompleteLifecycleAction", Code: "Throttling", Times: 1},
			{Path: "CompleteLifecycleAction", Code: "ServiceUnavailable", Status: 503, Times: 1},
			{Path: "CompleteLifecycleAction", Deaf: true, Times: 1}, // done, but the answer is lost
		} {
			must.OK(t, h.asg.AddFault(f))
		}
		h.ViewersGo()
		h.completed("drain")
		h.HasLeft()
		p.Step(lifecycle.StepDone)
	})
	all.run(t, "timed out meanwhile", func(t *testing.T) {
		hook := endHook(4 * time.Second)
		hook.Limit = 6 * time.Second
		h := newScaled(t, db, "10.0.8.10", fakeaws.AutoScalingOptions{}, hook)
		must.OK(t, h.asg.AddFault(fakes.Fault{Path: "RecordLifecycleActionHeartbeat", Hang: true}))
		p := h.Serving()
		h.Viewers(1)
		h.terminate()
		h.HasLeft() // by its deadline
		p.Step(lifecycle.StepDone)
		until(t, "the machine is gone", func() string {
			if len(h.asg.Members()) > 0 {
				return h.story()
			}
			return ""
		})
	})
}

// TestDrainMetadata: the metadata service is away, refuses the token, and forgets.
func TestDrainMetadata(t *testing.T) {
	t.Parallel()
	h := newScaled(t, newDatabase(t), "10.0.8.11", fakeaws.AutoScalingOptions{}, endHook(time.Minute))
	p := h.Serving()
	h.Viewers(1)
	h.aws.ExpireTokens()
	must.OK(t, h.aws.AddFault(fakes.Fault{Path: "meta-data/autoscaling/*", Status: 401, Times: 3}))
	h.terminate()
	p.Counted(1)
	// In the middle: 404 for what said Terminated, then 503, then silence.
	for _, f := range []fakes.Fault{
		{Path: "meta-data/autoscaling/*", Status: 404, Times: 2},
		{Path: "meta-data/autoscaling/*", Status: 503, Times: 1},
		{Path: "/latest/api/token", Status: 403, Times: 1},
	} {
		must.OK(t, h.aws.AddFault(f))
	}
	h.aws.ExpireKeys()
	wait(6 * time.Second)
	if v := p.View(); v.State != cluster.StateDraining || h.Live().Live.Viewers != 1 {
		t.Errorf("the drain: %+v", v)
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
