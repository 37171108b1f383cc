// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// onAlibaba is a machine on Alibaba Cloud on which the daemon runs.
type onAlibaba struct {
	*rig.Node
	ess  *fakealibaba.Cloud
	meta *fakealibaba.Server
}

const alibabaGroup = "asg-bp1ffogfdauy0jw0****"

// newESS starts Auto Scaling with one group.
func newESS(t *testing.T, o fakealibaba.CloudOptions, hooks ...fakes.Hook) *fakealibaba.Cloud {
	t.Helper()
	ess, err := fakealibaba.StartCloud(context.Background(), o)
	must.OK(t, err)
	t.Cleanup(func() {
		_ = ess.Close()
		if t.Failed() {
			for _, e := range ess.Books() {
				t.Logf("%s %s %s %s %s %s %s", e.Time.Format("05.000"), e.What, e.Instance, e.Hook, e.Text, e.By, e.Code)
			}
		}
	})
	ess.Group(alibabaGroup, hooks...)
	return ess
}

// newOnAlibaba starts a machine of the group. Its user data set MongoDB's address, the role and the group, so that its daemon
// joins by itself.
func newOnAlibaba(t *testing.T, db *mongod.Server, ess *fakealibaba.Cloud, n int, change func(*fakealibaba.Instance)) *onAlibaba {
	t.Helper()
	ip := fmt.Sprintf("10.0.62.%d", n)
	h := &onAlibaba{ess: ess, Node: newNode(t, db, "alibaba", fakecloud.ID("alibaba", n), ip)}
	i := fakealibaba.Sample()
	i.ID, i.Name, i.NICs[0].IPv4s, i.Tags = h.ID, fmt.Sprintf("edge-%d", n), []string{ip}, nil
	i.UserData = "#!/bin/sh\n# amsagent-role=edge\n# amsagent-group=eu\n# amsagent-mongo=" + db.LoginURI() + "\napt-get update\n"
	if change != nil {
		change(&i)
	}
	var err error
	if h.meta, err = fakealibaba.Start(context.Background(), fakealibaba.Options{Instance: &i, Cloud: ess}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.meta.Close() })
	must.OK(t, ess.Attach(alibabaGroup, "", h.meta))
	h.Env = append(h.Env,
		"AMSAGENT_ALIBABA_ENDPOINT="+h.meta.Endpoint(), "AMSAGENT_ALIBABA_ESS_ENDPOINT="+ess.Endpoint(), "AMSAGENT_ALIBABA_ECS_ENDPOINT="+ess.Endpoint())
	h.Config("")
	return h
}

// noted waits for a line of the books.
func (h *onAlibaba) noted(what fakes.What) fakes.Entry {
	h.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	e, err := h.ess.WaitFor(ctx, func(e fakes.Entry) bool { return e.What == what && e.Instance == h.ID })
	if err != nil {
		h.T.Fatalf("%s: %v", what, err)
	}
	return e
}

// written counts the lines of the books about all machines.
func written(c *fakealibaba.Cloud, what fakes.What) (n int) {
	for _, e := range c.Books() {
		if e.What == what {
			n++
		}
	}
	return n
}

// TestCloudAlibabaWorstDay: a scale-in with two hooks while viewers watch and the API fails: clock skew, throttling, lists in
// the form of 2014, and credentials that expire. No session is cut, and the hooks are completed last.
func TestCloudAlibabaWorstDay(t *testing.T) {
	t.Parallel()
	ess := newESS(t, fakealibaba.CloudOptions{
		ScalingOptions: fakes.ScalingOptions{WaitDelay: time.Second, ActionDelay: 2 * time.Second}, Skew: -time.Hour,
	},
		fakes.Hook{Name: "ash-one", Timeout: 20 * time.Second}, fakes.Hook{Name: "ash-two", Timeout: 25 * time.Second})
	ess.Wrap(true)
	h := newOnAlibaba(t, newDatabase(t), ess, 1, nil)
	h.Env = append(h.Env, "AMSAGENT_HOOKS=ash-*") // of two, none is known by its name
	p := h.Serving()
	if n := h.Record(); n.Provider != "alibaba" || n.Group != "eu" || n.Name != "edge-1" || n.ID != h.ID || n.Zone != "cn-hangzhou-i" || n.Role != "edge" {
		t.Errorf("the record: %+v", n)
	}
	if out, code := h.Run("metadata"); code != 0 || strings.Contains(out, daemonPassword) || strings.Contains(out, "STS.") || !strings.Contains(out, alibabaGroup) {
		t.Errorf("metadata: exit %d\n%s", code, out)
	}
	h.Viewers(2)
	begin := time.Now()
	must.OK(t, ess.ScaleIn(h.ID))
	h.RecordIs(cluster.StateDraining)
	t.Logf("the cluster knew %s after the scale-in", time.Since(begin).Round(10*time.Millisecond))
	if p.Ready() {
		t.Error("a node that drains is ready")
	}
	v := p.Counted(2)
	if v.Kind != lifecycle.Terminate || v.Reason != "scale-in" {
		t.Errorf("the drain: %+v", v)
	}
	v = p.Life("both hooks are known", func(v lifecycle.View) bool { return len(v.Hooks) == 2 })
	// By the first heartbeat they wait for as long as was asked.
	if left := time.Until(v.Deadline); left < 20*time.Minute {
		t.Errorf("it waits until %s: %+v", v.Deadline, v.Timeline)
	}
	// From here on the API is ill, and comes back when the last viewer has gone.
	h.meta.ExpireKeys()
	h.meta.ExpireTokens()
	must.OK(t, ess.AddFault(fakes.Fault{Code: "Throttling.User"}))
	wait(2 * time.Second)
	if st := h.Live(); st.Live.Viewers != 2 || !h.ServerRuns() {
		t.Errorf("the sessions: %+v", st)
	}
	h.ViewersGo()
	n := h.HasLeft()
	if written(ess, fakes.Completed) > 0 {
		t.Error("an API that takes no calls took one")
	}
	ess.ClearFaults()
	gone := h.noted(fakes.Gone)
	p.Step(lifecycle.StepDone)
	if gone.Text != fakes.ByHook || written(ess, fakes.Completed) != 2 || n.StateSince.After(gone.Time) {
		t.Errorf("%+v, %d completions, left at %s", gone, written(ess, fakes.Completed), n.StateSince)
	}
	if st := h.Sessions(); st.Cut.Viewers != 0 || st.Left.Viewers != 2 || n.Cut == nil || *n.Cut != 0 {
		t.Errorf("the sessions: %+v, the record: %+v", st, n)
	}
	if n := p.Said("clock of this machine differs"); n != 1 {
		t.Errorf("the clock: said %d times", n)
	}
	if strings.Contains(p.Output(), "STS.") || strings.Contains(p.Output(), "CAIS") {
		t.Error("credentials are in the log")
	}
}

// TestCloudAlibabaOneToken: one activity removes three machines with one token. The first machine without sessions leaves, and
// completes the hook only when the other one has left. The third runs no agent and delays nothing.
func TestCloudAlibabaOneToken(t *testing.T) {
	t.Parallel()
	ess := newESS(t, fakealibaba.CloudOptions{}, fakes.Hook{Name: "ash-drain", Timeout: 25 * time.Second})
	db := newDatabase(t)
	a, b := newOnAlibaba(t, db, ess, 2, nil), newOnAlibaba(t, db, ess, 3, nil)
	must.OK(t, ess.Attach(alibabaGroup, "i-bp13znx0m0me8cq9999", nil))
	pa, pb := a.Serving(), b.Serving()
	a.Viewers(1)
	b.Viewers(1)
	must.OK(t, ess.ScaleIn(a.ID, b.ID, "i-bp13znx0m0me8cq9999"))
	pa.Counted(1)
	pb.Counted(1)
	b.ViewersGo()
	b.HasLeft()
	pb.Life("it waits for the other", func(v lifecycle.View) bool {
		return v.Step == lifecycle.StepCompleting && strings.Contains(v.Trouble["continue"], a.ID)
	})
	wait(2 * time.Second)
	if st := a.Live(); st.Live.Viewers != 1 || !a.ServerRuns() || written(ess, fakes.Completed)+written(ess, fakes.Gone) > 0 {
		t.Errorf("the other was let go with a viewer on it: %+v", st)
	}
	a.ViewersGo()
	na := a.HasLeft()
	for _, h := range []*onAlibaba{a, b} {
		if e := h.noted(fakes.Gone); e.Text != fakes.ByHook || na.StateSince.After(e.Time) {
			t.Errorf("%+v, and the last had left at %s", e, na.StateSince)
		}
		if st := h.Sessions(); st.Cut.Viewers != 0 {
			t.Errorf("%s: %+v", h.ID, st)
		}
	}
	pa.Step(lifecycle.StepDone)
	pb.Step(lifecycle.StepDone)
	if n := written(ess, fakes.Completed); n != 1 {
		t.Errorf("the hook was completed %d times", n)
	}
}

// TestCloudAlibabaOOS: the hook starts a template of OOS, which runs `amsagent drain` on the machine and completes the hook
// itself. The agent needs no permission for that.
func TestCloudAlibabaOOS(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	var all together
	defer all.Wait()
	for n, tt := range map[int]struct {
		name string
		meta func(*fakealibaba.Instance)
		deny bool
	}{
		4: {"no role", func(i *fakealibaba.Instance) { i.Role = "" }, false},
		5: {"no permission", nil, true},
		6: {"every permission", nil, false},
	} {
		all.run(t, tt.name, func(t *testing.T) {
			ess := newESS(t, fakealibaba.CloudOptions{}, fakes.Hook{Name: "ash-oos", Timeout: time.Minute, Default: "ABANDON"})
			if tt.deny {
				ess.Deny("*")
			}
			h := newOnAlibaba(t, db, ess, n, tt.meta)
			p := h.Serving()
			h.Viewers(1)
			must.OK(t, ess.ScaleIn(h.ID))
			h.noted(fakes.Wait)
			waiting := ess.Members()[0].Waiting[0]
			// A command that times out fails: the template then completes with ABANDON, or waits.
			if out, code := h.Run("drain", "--timeout", "1s"); code == 0 || code == 2 {
				t.Errorf("a drain that is not over: exit %d\n%s", code, out)
			}
			cmd := h.Cmd("drain", "--reason", "scale-in by ESS")
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			must.OK(t, cmd.Start())
			p.Counted(1)
			wait(time.Second)
			if st := h.Live(); st.Live.Viewers != 1 {
				t.Errorf("the sessions: %+v", st)
			}
			h.ViewersGo()
			if err := cmd.Wait(); err != nil {
				t.Errorf("the command: %v\n%s", err, out.String())
			}
			if h.HasLeft(); h.Sessions().Cut.Viewers != 0 {
				t.Errorf("the sessions: %+v", h.Sessions())
			}
			err := ess.Complete(waiting.Hook, waiting.Token, "CONTINUE")
			if tt.name == "every permission" {
				// The agent and the template both complete the hook: the second completion finds the activity over.
				if n := written(ess, fakes.Completed); n != 1 {
					t.Errorf("the hook was completed %d times: %v", n, err)
				}
			} else if err != nil || written(ess, fakes.Completed) != 1 || written(ess, fakes.Heartbeat) != 0 {
				t.Errorf("%v, %d completions, %d heartbeats", err, written(ess, fakes.Completed), written(ess, fakes.Heartbeat))
			}
			h.noted(fakes.Gone)
			p.Step(lifecycle.StepDone)
			// A missing permission is logged once, and does not affect the drain.
			if n := p.Said("cannot be seen from here"); tt.name == "every permission" && n != 0 || tt.name != "every permission" && n != 1 {
				t.Errorf("\"cannot be seen from here\" is logged %d times:\n%s", n, p.Output())
			}
			if strings.Contains(p.Output(), "drain step failed") || strings.Contains(out.String(), "ess:") {
				t.Errorf("complaints:\n%s\n%s", out.String(), p.Output())
			}
			// A second drain succeeds: the machine is already out.
			if out, code := h.Run("drain"); code != 0 {
				t.Errorf("the second drain: exit %d\n%s", code, out)
			}
		})
	}
	// The template passes the machines and the token, and the agent completes the hook.
	all.run(t, "event", func(t *testing.T) {
		ess := newESS(t, fakealibaba.CloudOptions{}, fakes.Hook{Name: "ash-oos", Timeout: 30 * time.Second})
		h := newOnAlibaba(t, db, ess, 7, nil)
		p := h.Serving()
		must.OK(t, ess.ScaleIn(h.ID))
		h.noted(fakes.Wait)
		waiting := ess.Members()[0].Waiting[0]
		body := `{"regionId":"cn-hangzhou","instanceIds":"[\"` + h.ID + `\"]","lifecycleHookId":"` + waiting.Hook + `","lifecycleActionToken":"` + waiting.Token + `"}`
		if out, code := h.Event(strings.Replace(body, h.ID, "i-bp13znx0m0me8cq7777", 1)); code != 0 || !strings.Contains(out, "not this instance") {
			t.Errorf("another machine's: exit %d\n%s", code, out)
		}
		if out, code := h.Event(body); code != 0 || !strings.Contains(out, "out of the cluster") {
			t.Errorf("exit %d\n%s", code, out)
		}
		if e := h.noted(fakes.Gone); e.Text != fakes.ByHook {
			t.Errorf("%+v", e)
		}
		p.Step(lifecycle.StepDone)
	})
}

// TestCloudAlibabaSpot: an interruption leaves five minutes, here sixteen seconds, even with another notice pending. It needs
// no permission.
func TestCloudAlibabaSpot(t *testing.T) {
	t.Parallel()
	ess := newESS(t, fakealibaba.CloudOptions{})
	h := newOnAlibaba(t, newDatabase(t), ess, 8, func(i *fakealibaba.Instance) { i.Role = "" })
	p := h.Serving()
	h.Viewers(2)
	// A reboot in two days does not drain the node now.
	h.meta.Announce(`[{"EventId":"e-1","EventType":{"Name":"SystemMaintenance.Reboot"},"EventCycleStatus":{"Name":"Scheduled"},"NotBefore":"` +
		time.Now().Add(48*time.Hour).UTC().Format(time.RFC3339) + `"}]`)
	at := time.Now().Add(16 * time.Second).Truncate(time.Second)
	h.meta.Interrupt(at)
	h.RecordIs(cluster.StateDraining)
	v := p.Counted(2)
	if v.Kind != lifecycle.Interrupt || !v.Deadline.Before(at) || time.Until(v.Deadline) < time.Second {
		t.Errorf("the drain: %+v", v)
	}
	h.meta.ExpireTokens()
	for time.Now().Before(v.Deadline.Add(-200 * time.Millisecond)) {
		if st := h.Live(); st.Live.Viewers != 2 {
			t.Fatalf("cut %s before the deadline: %+v", time.Until(v.Deadline), st)
		}
		wait(100 * time.Millisecond)
	}
	n := h.HasLeft()
	if n.StateSince.After(at) || n.Cut == nil || *n.Cut != 2 || !strings.Contains(n.Reason, "spot") {
		t.Errorf("taken at %s, and the record: %+v", at, n)
	}
	p.Step(lifecycle.StepDone)
	if written(ess, fakes.Call) > 0 {
		t.Errorf("the API was called without a role: %+v", ess.Books())
	}
}

// TestCloudAlibabaLaunch: a scale-out waits until the node serves, and the node itself completes the launch hook.
func TestCloudAlibabaLaunch(t *testing.T) {
	t.Parallel()
	ess := newESS(t, fakealibaba.CloudOptions{}, fakes.Hook{Name: "ash-ready", Launching: true, Timeout: 30 * time.Second, Default: "ABANDON"})
	h := newOnAlibaba(t, newDatabase(t), ess, 9, nil)
	must.OK(t, ess.ScaleOut(h.ID))
	h.noted(fakes.Wait)
	p := h.Daemon()
	completed := h.noted(fakes.Completed)
	if completed.Text != "CONTINUE" || h.Record().State != cluster.StateActive || completed.Time.Before(h.Record().StateSince.Add(-clockGrain)) {
		t.Errorf("completed: %+v, the record: %+v", completed, h.Record())
	}
	if m := ess.Members(); len(m) != 1 || m[0].State != "InService" {
		t.Errorf("%+v", m)
	}
	p.Life("the start is over", func(v lifecycle.View) bool { return v.Start == "" && v.State == lifecycle.StateActive })
	// Standby and back: no hook waits for either.
	h.Viewers(1)
	must.OK(t, ess.Move(h.ID, "Standby"))
	h.RecordIs(cluster.StateDraining)
	h.ViewersGo()
	p.Life("it is parked", func(v lifecycle.View) bool { return v.State == lifecycle.StateParked && v.Step == lifecycle.StepDone })
	if h.ServerRuns() || h.Sessions().Cut.Viewers != 0 {
		t.Errorf("parked: %+v", h.Sessions())
	}
	must.OK(t, ess.Move(h.ID, "InService"))
	h.RecordIs(cluster.StateActive)
	if !h.ServerRuns() {
		t.Error("it is in service, and Ant Media Server does not run")
	}
}
