// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/lifecycle"
)

// left ends a drain as one should end.
func left(v *daemon.DrainView) {
	none := 0
	v.State, v.Step, v.Irreversible, v.Sessions = cluster.StateLeft, "", true, sessionsOf(0, 0)
	v.Ended, v.Outcome, v.Cut = v.Began.Add(4*time.Minute), daemon.OutcomeLeft, &none
}

func TestDrain(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain", "--deadline", "20m", "--reason", " kernel update ", "--repair-streams")
	c.says(`msg="2 publishers, 31 viewers left, 11m of the hook's budget"`)
	d.set(func(v *daemon.DrainView) { v.Sessions = sessionsOf(0, 0) })
	c.says(`msg="no publishers and no viewers left, 11m of the hook's budget"`)
	d.set(func(v *daemon.DrainView) { v.Irreversible, v.Step = true, "stopping Ant Media Server" })
	c.says(`msg="stopping Ant Media Server"`)
	d.set(func(v *daemon.DrainView) {
		left(v)
		v.Hook = &lifecycle.Hook{Provider: "aws", Group: "edge-asg", Name: "drain"}
	})
	c.ends(exitOK)
	const want = "left: this node is out of the cluster\n  reason  scale-in\n  hook    drain of edge-asg\n  took    4 min\n"
	if diff := cmp.Diff(want, c.stdout.String()); diff != "" {
		t.Error(diff)
	}
	wantReq := []daemon.DrainRequest{{Deadline: 20 * time.Minute, Reason: "kernel update", Who: "alice, amsagent drain", RepairStreams: true}}
	if diff := cmp.Diff(wantReq, d.drains); diff != "" {
		t.Error(diff)
	}
}

func TestDrainJSON(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain", "-o", "json")
	c.says(`"msg":"2 publishers, 31 viewers left, 11m of the hook's budget"`)
	d.set(func(v *daemon.DrainView) {
		left(v)
		cut := 3
		v.Cut, v.Notes = &cut, []string{"the hook could not be completed: permission autoscaling:CompleteLifecycleAction is missing"}
	})
	c.ends(exitOK)
	var got struct {
		SchemaVersion int `json:"schema_version"`
		Kind, Result  string
		Drain         daemon.DrainView
	}
	if err := json.Unmarshal(c.stdout.Bytes(), &got); err != nil {
		t.Fatal(err, c.stdout.String())
	}
	if got.SchemaVersion != 1 || got.Kind != "drain" || got.Result != "left" || got.Drain.ID != "d1" || *got.Drain.Cut != 3 {
		t.Errorf("%+v", got)
	}
	for line := range strings.Lines(c.stderr.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON on stderr: %s", line)
		}
	}
	c.said("permission autoscaling:CompleteLifecycleAction is missing")
}

// Sessions that were cut stand in the first line.
func TestDrainCut(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain", "--now")
	c.says("31 viewers")
	d.set(func(v *daemon.DrainView) {
		left(v)
		cut := 33
		v.Cut = &cut
	})
	c.ends(exitOK)
	if !strings.HasPrefix(c.stdout.String(), "left: this node is out of the cluster, 33 sessions cut\n") || !d.drains[0].Now {
		t.Errorf("%s%+v", c.stdout.String(), d.drains)
	}
}

// Who comes second joins the drain, and gets its result.
func TestDrainJoins(t *testing.T) {
	d := newFakeDaemon(t)
	one, two := d.run("drain"), d.run("drain", "--reason", "me too")
	one.says("31 viewers")
	two.says("31 viewers")
	d.set(left)
	one.ends(exitOK)
	two.ends(exitOK)
	// And who comes when all is over learns that.
	three := d.run("drain")
	d.mu.Lock()
	d.begin = func(*daemon.DrainView) {}
	d.mu.Unlock()
	three.ends(exitOK)
}

func TestDrainOfOneThatLeft(t *testing.T) {
	d := newFakeDaemon(t)
	d.set(func(v *daemon.DrainView) {
		*v = drainOf("d0", 0, 0)
		v.Began = v.Began.Add(-time.Hour)
		left(v)
	})
	d.begin = func(*daemon.DrainView) {}
	c := d.run("drain")
	c.ends(exitOK)
	if !strings.HasPrefix(c.stdout.String(), "left: ") {
		t.Error(c.stdout.String())
	}
	d.refuse = &daemon.Refusal{Code: daemon.RefusedNotMember, Message: "this node has left already", View: &d.view}
	for _, args := range [][]string{{"drain"}, {"drain", "--detach"}} {
		c = d.run(args...)
		c.ends(exitOK)
		if !strings.HasPrefix(c.stdout.String(), "left: ") {
			t.Error(c.stdout.String())
		}
	}
}

// What ended before it was asked is another drain's end: the new one is waited for.
func TestDrainAfterAnother(t *testing.T) {
	d := newFakeDaemon(t)
	d.set(func(v *daemon.DrainView) {
		*v = drainOf("d0", 0, 0)
		v.State, v.Ended, v.Outcome, v.By = cluster.StateActive, time.Now().Add(-time.Minute), daemon.OutcomeUndrained, "bob"
	})
	d.begin = func(*daemon.DrainView) {} // it takes a moment
	c := d.run("drain")
	eventually(t, func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.follows > 0 }, func() string { return "does not follow" })
	d.set(func(v *daemon.DrainView) { *v = drainOf("d1", 0, 1) })
	c.says("0 publishers, 1 viewer left")
	d.set(left)
	c.ends(exitOK)
}

func TestDrainDetach(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain", "--detach")
	c.ends(exitOK)
	const want = "draining: 2 publishers, 31 viewers left, 11m of the hook's budget\n`amsagent drain` follows it, `amsagent undrain` takes it back\n"
	if c.stdout.String() != want || d.follows != 0 {
		t.Errorf("%q, %d follow", c.stdout.String(), d.follows)
	}
	c = d.run("drain", "--detach", "-o", "json")
	c.ends(exitOK)
	if !strings.Contains(c.stdout.String(), `"result": "draining"`) {
		t.Error(c.stdout.String())
	}
}

func TestDrainRefused(t *testing.T) {
	for _, tt := range []struct {
		code daemon.RefusalCode
		exit int
	}{
		{daemon.RefusedNotMember, exitNotMember},
		{daemon.RefusedInvalid, exitUsage},
		{daemon.RefusedFailed, exitFailed},
		{"something-new", exitFailed},
	} {
		d := newFakeDaemon(t)
		d.refuse = &daemon.Refusal{Code: tt.code, Message: "this machine is no node"}
		c := d.run("drain")
		c.ends(tt.exit)
		c.said("amsagent: error: cannot drain [AMS-REFUSED]\n", "amsagent: cause: this machine is no node\n", "amsagent: nothing was changed on this machine\n")
	}
}

func TestDrainUsage(t *testing.T) {
	d := newFakeDaemon(t)
	for want, args := range map[string][]string{
		"contradict each other":        {"drain", "--now", "--deadline", "1h"},
		"--deadline: 10ms is outside":  {"drain", "--deadline", "10ms"},
		"--deadline: 200h is outside":  {"drain", "--deadline", "200h"},
		"--deadline: -1m is outside":   {"drain", "--deadline=-1m"},
		"one line of at most":          {"drain", "--reason", "a\nb"},
		"--timeout: -1s is before now": {"drain", "--timeout=-1s"},
		"--timeout bounds nothing":     {"event", "--detach", "--timeout", "1s"},
		"undrain takes no argument":    {"undrain", "x"},
		"unknown unit \"y\"":           {"drain", "--deadline", "1y"},
	} {
		c := d.run(args...)
		c.ends(exitUsage)
		c.said(want, "nothing was changed on this machine")
	}
	if len(d.drains) > 0 {
		t.Errorf("%+v", d.drains)
	}
}

func TestDrainUndrained(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	c.says("31 viewers")
	u := d.run("undrain")
	u.ends(exitOK)
	if u.stdout.String() != "active: this node serves again\n" {
		t.Error(u.stdout.String())
	}
	c.ends(exitFailed)
	c.said("amsagent: error: this node does not leave [AMS-UNDRAINED]\namsagent: cause: the drain was taken back by alice, amsagent undrain\namsagent: this node is active\n")
}

func TestDrainFailed(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	c.says("31 viewers")
	d.set(func(v *daemon.DrainView) {
		v.Ended, v.Outcome, v.Error = time.Now(), daemon.OutcomeFailed, "Ant Media Server does not stop: job timed out"
	})
	c.ends(exitFailed)
	c.said("amsagent: error: the drain failed", "amsagent: cause: Ant Media Server does not stop: job timed out\n", "amsagent: this node is draining still\n")
}

// The daemon is killed in the middle; its successor goes on with the same drain, and so do we.
func TestDrainDaemonKilled(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	c.says("31 viewers")
	d.kill()
	c.says("the daemon is away; it goes on where it was when it is back")
	d.start()
	c.says("the daemon is back after")
	d.set(func(v *daemon.DrainView) { v.Sessions = sessionsOf(0, 0) })
	c.says("no publishers and no viewers left")
	d.set(left)
	c.ends(exitOK)
	if len(d.drains) != 1 {
		t.Errorf("asked %d times", len(d.drains))
	}
}

// A stream that ends and can be had again at once, as with a daemon that bounds its answers, is nothing to tell.
func TestDrainStreamEnds(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	eventually(t, func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.follows > 0 }, func() string { return "does not follow" })
	d.kill()
	d.start()
	eventually(t, func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.follows > 1 }, func() string { return "does not follow again" })
	d.set(left)
	c.ends(exitOK)
	if strings.Contains(c.stderr.String(), "away") {
		t.Error(c.stderr.String())
	}
}

func TestDrainForgotten(t *testing.T) {
	for _, tt := range []struct {
		then daemon.DrainView
		exit int
		want string
	}{
		{daemon.DrainView{State: cluster.StateActive}, exitFailed, "the drain was taken back\n"},
		{daemon.DrainView{State: cluster.StateFailed}, exitFailed, "the daemon knows nothing of it any more\n"},
		{daemon.DrainView{State: cluster.StateLeft}, exitOK, ""},
		{daemon.DrainView{}, exitFailed, "this machine is no node of a cluster\n"},
	} {
		d := newFakeDaemon(t)
		c := d.run("drain")
		c.says("31 viewers")
		d.set(func(v *daemon.DrainView) { *v = tt.then })
		c.ends(tt.exit)
		c.said(tt.want)
	}
}

func TestDrainInterrupted(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	c.says("31 viewers")
	c.sig <- syscall.SIGINT
	c.ends(exitInterrupted)
	c.said("amsagent: error: stopped following; nothing else was stopped [AMS-INTERRUPTED]\n",
		"amsagent: hint: `amsagent drain` follows it again, `amsagent undrain` takes it back\n", "amsagent: the drain goes on\n")
	if len(d.undrain) > 0 || strings.Contains(c.stderr.String(), "stopping in order") {
		t.Errorf("%+v\n%s", d.undrain, c.stderr.String())
	}
	// Where there is no way back, none is offered.
	d.set(func(v *daemon.DrainView) { v.Irreversible, v.Step = true, "stopping Ant Media Server" })
	c = d.run("drain")
	c.says("stopping Ant Media Server")
	c.sig <- syscall.SIGTERM
	c.ends(exitInterrupted)
	c.said("it is too late to take it back")
}

func TestDrainTimeout(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain", "--timeout", "100ms")
	c.ends(exitUnknown)
	c.said("amsagent: error: it is not over after 100 ms [AMS-TIMEOUT]\n", "amsagent: cause: 2 publishers, 31 viewers left, 11m of the hook's budget\n", "amsagent: the drain goes on\n")
	c = d.run("drain", "--timeout", "100ms", "-o", "json")
	c.ends(exitUnknown)
	c.said(`"exit_code":4`)
	if c.stdout.Len() > 0 {
		t.Error(c.stdout.String())
	}
}

// quick is a follower that does in milliseconds what takes seconds.
func (d *fakeDaemon) quick(e *testEnv) (*globals, *follower) {
	g := plainGlobals(e)
	c := d.impatient(g)
	return g, &follower{g: g, c: c, began: time.Now(), pace: pace{
		every: 60 * time.Millisecond, gap: 20 * time.Millisecond, silence: 5 * time.Second,
		retry: 5 * time.Millisecond, patience: 300 * time.Millisecond, adopt: 200 * time.Millisecond,
	}}
}

func TestFollowLost(t *testing.T) {
	d := newFakeDaemon(t)
	d.begin(&d.view)
	e := &testEnv{}
	g, f := d.quick(e)
	first := d.view
	d.kill()
	err := g.followed(t.Context(), "drain", f, first, 0, drainData{})
	if code := g.report(t.Context(), err); code != exitUnknown {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{
		"the daemon is away; it goes on where it was when it is back", "the daemon has been away for", "amsagent: error: lost sight of it [AMS-NO-DAEMON]\n",
		"connection refused", "amsagent: the drain goes on when the daemon is back: systemctl start amsagent\n",
	} {
		if !strings.Contains(e.stderr.String(), want) {
			t.Errorf("lacks %q:\n%s", want, e.stderr.String())
		}
	}
}

// A daemon that hangs is one that is away: what it says last is not believed for ever.
func TestFollowHangs(t *testing.T) {
	d := newFakeDaemon(t)
	d.begin(&d.view)
	e := &testEnv{}
	g, f := d.quick(e)
	f.silence = 20 * time.Millisecond // far below what the daemon's stream keeps silent
	f.patience = 10 * time.Second
	done := make(chan error, 1)
	go func() { done <- g.followed(t.Context(), "drain", f, d.view, 0, drainData{}) }()
	eventually(t, func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.follows > 3 }, func() string { return "does not ask again" })
	d.set(left)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Who waits hears from us, at changes and at least every so often; and not of every viewer who goes.
func TestFollowPace(t *testing.T) {
	d := newFakeDaemon(t)
	d.begin(&d.view)
	e := &testEnv{}
	g, f := d.quick(e)
	done := make(chan error, 1)
	go func() { done <- g.followed(t.Context(), "drain", f, d.view, 0, drainData{}) }()
	lines := func() int { return strings.Count(e.stderr.String(), "\n") }
	eventually(t, func() bool { return lines() >= 4 }, func() string { return "is silent:\n" + e.stderr.String() })

	d.set(left)
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	e = &testEnv{}
	_, f = d.quick(e)
	f.g = plainGlobals(e)
	f.every, f.gap = time.Hour, time.Hour
	v := drainOf("d1", 2, 1000)
	for n := 1000; n >= 0; n-- {
		v.Sessions = sessionsOf(0, n)
		if done, err := f.take(v); done || err != nil {
			t.Fatal(done, err)
		}
	}
	if got := e.stderr.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "no publishers and no viewers left") {
		t.Errorf("%s", got)
	}
	// A moved deadline is news; a second more or less is none.
	v.Deadline = v.Deadline.Add(500 * time.Millisecond)
	_, _ = f.take(v)
	v.Deadline = v.Deadline.Add(-5 * time.Minute)
	_, _ = f.take(v)
	v.Notes = []string{"MongoDB is away"}
	_, _ = f.take(v)
	_, _ = f.take(v)
	if got := e.stderr.String(); strings.Count(got, "\n") != 4 || strings.Count(got, "MongoDB is away") != 1 || !strings.Contains(got, "6m of the hook's budget") {
		t.Errorf("%s", got)
	}
}

// A drain that was taken back and begun again between two looks is followed on: it is to be seen gone.
func TestDrainAnew(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	c.says("31 viewers")
	d.set(func(v *daemon.DrainView) { *v = drainOf("d2", 0, 7) })
	c.says("7 viewers")
	d.set(left)
	c.ends(exitOK)
}

// The daemon's words have the numbers in them, and change with each.
func TestFollowStepsWithNumbers(t *testing.T) {
	d := newFakeDaemon(t)
	e := &testEnv{}
	_, f := d.quick(e)
	f.every, f.gap = time.Hour, time.Hour
	v := drainOf("d1", 0, 50)
	for n := 50; n > 0; n-- {
		v.Sessions, v.Step = sessionsOf(0, n), count(n, "viewer")+" left"
		_, _ = f.take(v)
	}
	v.Irreversible, v.Step = true, "stopping Ant Media Server"
	_, _ = f.take(v)
	v.Step = "telling the cloud that it may go on"
	_, _ = f.take(v)
	if got := e.stderr.String(); strings.Count(got, "\n") != 3 || !strings.Contains(got, "telling the cloud") {
		t.Error(got)
	}
}

// The daemon takes it and does nothing.
func TestFollowNothingBegins(t *testing.T) {
	d := newFakeDaemon(t)
	g, f := d.quick(&testEnv{})
	d.view.Notes = []string{"alice overruled event (scale-in)"}
	err := g.followed(t.Context(), "drain", f, d.view, 0, drainData{})
	if !strings.Contains(err.Error(), "the daemon does nothing about it: alice overruled event (scale-in)") {
		t.Error(err)
	}
	if e := g.explain(err); !errors.Is(err, errNotBegun) || e.Exit != exitFailed || e.State != "this node is active" {
		t.Errorf("%+v", e)
	}
}

func TestProgressOf(t *testing.T) {
	now := fixedNow()
	one, none := 1, 0
	by := cluster.CountedByConnections
	for _, tt := range []struct {
		change func(*daemon.DrainView)
		want   string
	}{
		{func(*daemon.DrainView) {}, "2 publishers, 31 viewers left, 11m of the hook's budget"},
		{func(v *daemon.DrainView) { v.DeadlineOwner = "" }, "2 publishers, 31 viewers left, 11m to the deadline"},
		{func(v *daemon.DrainView) { v.DeadlineOwner = "--deadline of alice" }, "2 publishers, 31 viewers left, 11m to the deadline (--deadline of alice)"},
		{func(v *daemon.DrainView) { v.Deadline = now }, "2 publishers, 31 viewers left, the deadline has come"},
		{func(v *daemon.DrainView) { v.Deadline = time.Time{} }, "2 publishers, 31 viewers left"},
		{func(v *daemon.DrainView) {
			v.Sessions, v.Deadline = cluster.Sessions{Publishers: &one, Viewers: &one, By: by}, time.Time{}
		}, "1 publisher, about 1 viewer left"},
		{func(v *daemon.DrainView) { v.Sessions, v.Deadline = cluster.Sessions{Viewers: &none}, time.Time{} }, "0 viewers left, publishers not known"},
		{func(v *daemon.DrainView) { v.Sessions, v.Deadline = cluster.Sessions{Publishers: &one}, time.Time{} }, "1 publisher left, viewers not known"},
		{func(v *daemon.DrainView) { v.Sessions, v.Deadline = cluster.Sessions{}, time.Time{} }, "publishers and viewers not known"},
		{func(v *daemon.DrainView) { v.Irreversible = true }, "waiting for the sessions to end"},
		{func(v *daemon.DrainView) { v.Irreversible, v.Step = true, "" }, "leaving"},
		{func(v *daemon.DrainView) { v.Kind, v.Step = lifecycle.Launch, "" }, "waiting for this node to serve"},
		{func(v *daemon.DrainView) { v.ID = "" }, "waiting for the daemon to begin"},
	} {
		v := drainOf("d1", 2, 31)
		tt.change(&v)
		if got := progressOf(v, now); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestUndrain(t *testing.T) {
	d := newFakeDaemon(t)
	d.refuse = &daemon.Refusal{Code: daemon.RefusedNotDraining, Message: "this node is not draining", View: &daemon.DrainView{State: cluster.StateActive}}
	c := d.run("undrain")
	c.ends(exitOK)
	if c.stdout.String() != "nothing to do: this node is not draining\n" {
		t.Error(c.stdout.String())
	}
	c = d.run("undrain", "-o", "json")
	c.ends(exitOK)
	if !strings.Contains(c.stdout.String(), `"result": "not-draining"`) {
		t.Error(c.stdout.String())
	}
	d.refuse = &daemon.Refusal{Code: daemon.RefusedTooLate, Message: "Ant Media Server is being stopped", View: &daemon.DrainView{State: cluster.StateDraining}}
	c = d.run("undrain")
	c.ends(exitFailed)
	c.said("amsagent: error: it is too late to take the drain back [AMS-REFUSED]\namsagent: cause: Ant Media Server is being stopped\n", "amsagent: the drain goes on\n")
	d.refuse.View.State = cluster.StateLeft
	c = d.run("undrain")
	c.ends(exitFailed)
	c.said("amsagent: this node has left the cluster\n")
	d.refuse = &daemon.Refusal{Code: daemon.RefusedNotMember, Message: "this machine is no node of a cluster"}
	c = d.run("undrain")
	c.ends(exitNotMember)
}

const bridge = `{"detail-type":"EC2 Instance-terminate Lifecycle Action","time":"2026-11-20T07:59:00Z","detail":{"LifecycleActionToken":"t-1",
"AutoScalingGroupName":"edge-asg","LifecycleHookName":"drain","EC2InstanceId":"i-0abc","LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}}`

func launchOf(e string) string {
	return strings.NewReplacer("TERMINATING", "LAUNCHING", "instance-terminate", "instance-launch").Replace(e)
}

func TestEvent(t *testing.T) {
	d := newFakeDaemon(t)
	d.status.ID = "i-0abc"
	c := d.runWith(bridge, "event")
	c.says(`msg="scale-in of group edge-asg, hook drain (EventBridge event)"`)
	c.says("31 viewers left, 11m of the hook's budget")
	d.set(left)
	c.ends(exitOK)
	if !strings.HasPrefix(c.stdout.String(), "left: this node is out of the cluster\n") {
		t.Error(c.stdout.String())
	}
	want := []lifecycle.Notice{{
		ID: "aws/i-0abc/terminate", Source: "event", Kind: lifecycle.Terminate, Reason: "scale-in of group edge-asg, hook drain",
		Who: "Auto Scaling", Received: fixedNow(), Hook: &lifecycle.Hook{Provider: "aws", Group: "edge-asg", Name: "drain", Token: "t-1"},
	}}
	if diff := cmp.Diff(want, d.notices); diff != "" {
		t.Error(diff)
	}
}

func TestEventDetachAndFile(t *testing.T) {
	d := newFakeDaemon(t)
	d.status.ID = "i-0abc"
	if err := os.WriteFile(d.root+"/event.json", []byte(bridge), 0o600); err != nil {
		t.Fatal(err)
	}
	c := d.runWith("not this", "event", "--file", "/event.json", "--detach", "-o", "json")
	c.ends(exitOK)
	for _, want := range []string{`"kind": "event"`, `"result": "draining"`, `"instance_id": "i-0abc"`, `"shape": "EventBridge event"`} {
		if !strings.Contains(c.stdout.String(), want) {
			t.Errorf("lacks %q:\n%s", want, c.stdout.String())
		}
	}
	c = d.runWith(bridge, "event", "--file", "-", "--detach")
	c.ends(exitOK)
	if !strings.HasPrefix(c.stdout.String(), "draining: 2 publishers") {
		t.Error(c.stdout.String())
	}
}

// One command can be sent to a whole group: only the one that it is about acts.
func TestEventOfAnother(t *testing.T) {
	d := newFakeDaemon(t)
	d.status.ID = "i-9999"
	c := d.runWith(bridge, "event")
	c.ends(exitOK)
	if c.stdout.String() != "not this instance: the event is about i-0abc, this is i-9999\n" {
		t.Error(c.stdout.String())
	}
	c = d.runWith(bridge, "event", "-o", "json")
	c.ends(exitOK)
	if !strings.Contains(c.stdout.String(), `"result": "not-this-instance"`) {
		t.Error(c.stdout.String())
	}
	// What is given counts more than what the daemon says.
	c = d.runWith(bridge, "event", "--instance-id", "i-0abc", "--detach")
	c.ends(exitOK)
	c = d.runWith(`{"Event":"autoscaling:TEST_NOTIFICATION"}`, "event")
	c.ends(exitOK)
	if c.stdout.String() != "nothing to do: test notification\n" {
		t.Error(c.stdout.String())
	}
	d.mu.Lock()
	d.status.ID = "i-0abc"
	d.mu.Unlock()
	c = d.runWith(strings.Replace(bridge, "2026-11-20T07:59", "2026-11-17T07:59", 1), "event")
	c.ends(exitOK)
	if c.stdout.String() != "nothing to do: the event is from 3 d ago, and no hook waits that long\n" {
		t.Error(c.stdout.String())
	}
	if len(d.notices) != 1 {
		t.Errorf("%+v", d.notices)
	}
}

func TestEventLaunch(t *testing.T) {
	launch := func(v *daemon.DrainView) {
		*v = daemon.DrainView{ID: "l1", Kind: lifecycle.Launch, State: cluster.StateJoining, Began: time.Now(), Step: "waiting for Ant Media Server to show up"}
	}
	d := newFakeDaemon(t)
	d.status.ID = "i-0abc"
	d.begin = launch
	d.set(func(v *daemon.DrainView) { v.State = cluster.StateJoining })
	c := d.runWith(launchOf(bridge), "event")
	c.says("waiting for Ant Media Server to show up")
	d.set(func(v *daemon.DrainView) {
		v.State, v.Ended, v.Outcome = cluster.StateActive, time.Now(), daemon.OutcomeActive
	})
	c.ends(exitOK)
	if c.stdout.String() != "active: this node serves\n" || !d.notices[0].Hook.Launching || d.notices[0].Kind != lifecycle.Launch {
		t.Errorf("%s%+v", c.stdout.String(), d.notices)
	}

	d.set(launch)
	c = d.runWith(launchOf(bridge), "event", "--detach")
	c.ends(exitOK)
	if c.stdout.String() != "launching\n" {
		t.Error(c.stdout.String())
	}
	c = d.runWith(launchOf(bridge), "event")
	c.says("waiting for Ant Media Server to show up")
	d.set(func(v *daemon.DrainView) {
		v.State, v.Ended, v.Outcome, v.Error = cluster.StateFailed, time.Now(), daemon.OutcomeFailed, "Ant Media Server was not seen"
	})
	c.ends(exitFailed)
	c.said("amsagent: error: this node does not serve", "cause: Ant Media Server was not seen\n", "amsagent: this node is failed\n")

	// One that serves already, with nothing to complete.
	d.set(func(v *daemon.DrainView) { *v = daemon.DrainView{State: cluster.StateActive} })
	d.mu.Lock()
	d.begin = func(*daemon.DrainView) {}
	d.mu.Unlock()
	c = d.runWith(launchOf(bridge), "event")
	c.ends(exitOK)
}

func TestEventUsage(t *testing.T) {
	d := newFakeDaemon(t)
	d.status.ID = "i-0abc"
	for _, tt := range []struct {
		name, in string
		args     []string
		want     string
	}{
		{"empty stdin", "", nil, "[AMS-USAGE]"},
		{"blank stdin", " \n", nil, "standard input is empty"},
		{"no json", "i-0abc", nil, "[AMS-EVENT]"},
		{"other json", `{"a":1}`, nil, `it has "a"`},
		{"too much", strings.Repeat(" ", lifecycle.MaxEvent) + bridge, nil, "larger than 256 KiB"},
		{"no file", "", []string{"--file", "/nowhere"}, "no such file"},
		{"folder", "", []string{"--file", "/run"}, "not a regular file"},
	} {
		c := d.runWith(tt.in, append([]string{"event"}, tt.args...)...)
		c.ends(exitUsage)
		c.said(tt.want, "nothing was changed on this machine")
	}
	if len(d.notices) > 0 {
		t.Errorf("%+v", d.notices)
	}
}

// blockedReader is a standard input that somebody left open.
type blockedReader struct{ quit <-chan struct{} }

func (b blockedReader) Read([]byte) (int, error) {
	<-b.quit
	return 0, errors.New("closed")
}

func TestEventStdinStaysOpen(t *testing.T) {
	e := &testEnv{}
	env := e.env()
	env.Stdin = blockedReader{t.Context().Done()}
	g := newGlobals(env.withDefaults())
	g.setForm("text", "never", 0)
	_, err := g.readEvent(t.Context(), "", 20*time.Millisecond)
	if ex := g.explain(err); ex.Exit != exitUsage || !strings.Contains(ex.Msg, "standard input is open and said nothing for 20 ms") {
		t.Errorf("%+v", ex)
	}
	env.IsTerminal = func(any) bool { return true }
	_, err = newGlobals(env.withDefaults()).readEvent(t.Context(), "", time.Hour)
	if err == nil || !strings.Contains(err.Error(), "standard input is a terminal") {
		t.Error(err)
	}
}

// Without a daemon the metadata says who this is, so that foreign events stay none of ours.
func TestEventWithoutDaemon(t *testing.T) {
	d := newFakeDaemon(t)
	d.kill()
	if err := os.Remove(d.socket()); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(d.root+"/run/cloud-init", 0o755); err != nil {
		t.Fatal(err)
	}
	const data = `{"v1":{"cloud_name":"hetzner","instance_id":"i-7777","platform":"hetzner"}}`
	if err := os.WriteFile(d.root+"/run/cloud-init/instance-data.json", []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	c := d.runWith(bridge, "event", "--provider", "generic")
	c.ends(exitOK)
	if c.stdout.String() != "not this instance: the event is about i-0abc, this is i-7777\n" {
		t.Error(c.stdout.String())
	}
	c = d.runWith(strings.Replace(bridge, "i-0abc", "i-7777", 1), "event", "--provider", "generic")
	c.ends(exitFailed)
	c.said("amsagent: error: cannot act on the event [AMS-NO-DAEMON]\n", "amsagent: hint: systemctl start amsagent\n")
}
