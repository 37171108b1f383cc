// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// left ends a drain as one should end.
func left(v *lifecycle.View) {
	none := 0
	s := sessionsOf(0, 0)
	v.State, v.Step, v.Progress, v.Sessions, v.Cut = lifecycle.StateLeft, lifecycle.StepDone, "left", &s, &none
	v.Registry, v.RegistryTold, v.Deadline, v.DeadlineBy = cluster.StateLeft, true, time.Time{}, ""
}

// stopping is from where there is no way back.
func stopping(v *lifecycle.View) {
	v.Step, v.Progress = lifecycle.StepStopping, "stopping Ant Media Server"
}

func counted(publishers, viewers int) func(*lifecycle.View) {
	return func(v *lifecycle.View) {
		s := sessionsOf(publishers, viewers)
		v.Sessions = &s
	}
}

func TestDrainOfOneThatLeft(t *testing.T) {
	d := newFakeDaemon(t)
	v := drainOf(0, 0)
	left(&v)
	d.refuse = &daemon.Refusal{Code: daemon.RefusedLeft, Message: "this node has left already", View: &v}
	for _, args := range [][]string{{"drain"}, {"drain", "--detach"}} {
		c := d.run(args...)
		c.ends(exitOK)
		if !strings.HasPrefix(c.stdout.String(), "left: this node is out of the cluster\n") || d.follows > 0 {
			t.Error(c.stdout.String(), d.follows)
		}
	}
}

// What becomes of a machine that stays.
func TestDrainOtherEnds(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	c.says("31 viewers")
	d.set(func(v *lifecycle.View) {
		left(v)
		v.State, v.Registry, v.RegistryTold = lifecycle.StateParked, cluster.StateLeft, false
		v.Hooks = []lifecycle.HookView{{Hook: lifecycle.Hook{Name: "drain"}, Denied: "autoscaling:CompleteLifecycleAction"}}
	})
	c.ends(exitOK)
	const want = "parked: this node is out of the cluster, and comes back when the cloud wants it\n  reason      scale-in\n  asked by    Auto Scaling\n" +
		"  hook drain  waits for its timeout: permission autoscaling:CompleteLifecycleAction is missing\n" +
		"  registry    not written yet; the daemon tries again\n"
	if diff := cmp.Diff(want, c.stdout.String()); diff != "" {
		t.Error(diff)
	}

	d.set(func(v *lifecycle.View) { *v = drainOf(1, 1) })
	c = d.run("drain")
	c.says("1 viewer left")
	d.set(func(v *lifecycle.View) {
		v.Step, v.Progress = lifecycle.StepDone, "drained, waiting for the restart of the machine"
	})
	c.ends(exitOK)
	if !strings.HasPrefix(c.stdout.String(), "draining: no sessions are left on this node; the machine is about to restart\n") {
		t.Error(c.stdout.String())
	}
}

func TestDrainRefused(t *testing.T) {
	for _, tt := range []struct {
		code daemon.RefusalCode
		exit int
		id   string
	}{
		{daemon.RefusedNotMember, exitNotMember, idNotNode},
		{daemon.RefusedInvalid, exitUsage, idRefused},
		{daemon.RefusedFailed, exitFailed, idRefused},
		{"something-new", exitFailed, idRefused},
	} {
		d := newFakeDaemon(t)
		d.refuse = &daemon.Refusal{Code: tt.code, Message: "this machine is not a cluster node"}
		c := d.run("drain")
		c.ends(tt.exit)
		c.said("amsagent: error: cannot drain ["+tt.id+"]\n", "amsagent: cause: this machine is not a cluster node\n", "amsagent: nothing was changed on this machine\n")
	}
}

func TestDrainUsage(t *testing.T) {
	d := newFakeDaemon(t)
	for want, args := range map[string][]string{
		"contradict each other":       {"drain", "--now", "--deadline", "1h"},
		"--deadline: 10ms is outside": {"drain", "--deadline", "10ms"},
		"--deadline: 200h is outside": {"drain", "--deadline", "200h"},
		"--deadline: 0s is outside":   {"drain", "--deadline", "0"},

		`invalid argument "1" for "--deadline" flag`:   {"drain", "--deadline", "1"},
		`invalid argument "1d" for "--deadline" flag`:  {"drain", "--deadline", "1d"},
		`invalid argument "maybe" for "--detach" flag`: {"drain", "--detach=maybe"},
		"--deadline: -1m is outside":                   {"drain", "--deadline=-1m"},
		"one line of at most":                          {"drain", "--reason", "a\nb"},
		"--timeout: -1s is before now":                 {"drain", "--timeout=-1s"},
		"--detach and --timeout contradict":            {"event", "--detach", "--timeout", "1s"},
		"undrain takes no argument":                    {"undrain", "x"},
		`invalid argument "1y" for "--deadline" flag`:  {"drain", "--deadline", "1y"},
	} {
		c := d.run(args...)
		c.ends(exitUsage)
		c.said(want, "nothing was changed on this machine")
	}
	if len(d.drains) > 0 {
		t.Errorf("%+v", d.drains)
	}
}

// The daemon is killed in the middle; its successor goes on with the same drain, and so do we.
func TestDrainDaemonKilled(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	c.says("31 viewers")
	d.kill()
	c.says("no answer, asking again")
	d.start()
	c.says("the daemon is back after")
	d.set(counted(0, 0))
	c.says("no publishers and no viewers left")
	d.set(left)
	c.ends(exitOK)
	if len(d.drains) != 1 {
		t.Errorf("asked %d times", len(d.drains))
	}
}

// A daemon that is back at once is nothing to tell.
func TestDrainDaemonRestarted(t *testing.T) {
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
		then lifecycle.View
		want string
	}{
		{activeView(), "amsagent: cause: this node serves again\n"},
		{lifecycle.View{}, "amsagent: cause: the daemon has no record of it any more\n"},
		{lifecycle.View{State: "of a later version"}, "amsagent: cause: the daemon has no record of it any more\n"},
	} {
		d := newFakeDaemon(t)
		c := d.run("drain")
		c.says("31 viewers")
		d.set(func(v *lifecycle.View) { *v = tt.then })
		c.ends(exitFailed)
		c.said(tt.want)
	}
}

func TestDrainInterrupted(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	c.says("31 viewers")
	c.sig <- syscall.SIGINT
	c.ends(exitInterrupted)
	c.said("amsagent: error: stopped following; nothing else was stopped [AGENT-INTERRUPTED]\n",
		"amsagent: hint: `amsagent drain` follows it again, `amsagent undrain` cancels it\n", "amsagent: the drain continues\n")
	if len(d.undrain) > 0 || strings.Contains(c.stderr.String(), "stopping; a second signal") {
		t.Errorf("%+v\n%s", d.undrain, c.stderr.String())
	}
	// Where there is no way back, none is offered.
	d.set(stopping)
	c = d.run("drain")
	c.says("stopping Ant Media Server")
	c.sig <- syscall.SIGTERM
	c.ends(exitInterrupted)
	c.said("it can no longer be cancelled")
}

// A server that does not end is no success, and is not waited for without end.
func TestDrainUnstopped(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain")
	c.says("31 viewers")
	d.set(func(v *lifecycle.View) { stopping(v); v.StopFailed = true })
	c.ends(exitFailed)
	c.said("this node cannot leave", "Ant Media Server does not end", "the daemon stops it again until it ends")
	if c.stdout.Len() > 0 {
		t.Error(c.stdout.String())
	}
}

func TestDrainTimeout(t *testing.T) {
	d := newFakeDaemon(t)
	c := d.run("drain", "--timeout", "100ms")
	c.ends(exitUnknown)
	c.said("amsagent: error: it is not over after 100 ms [AGENT-TIMEOUT]\n", "amsagent: cause: 2 publishers, 31 viewers left, 11m of the hook's budget\n", "amsagent: the drain continues\n")
	c = d.run("drain", "--timeout", "100ms", "-o", "json")
	c.ends(exitUnknown)
	c.said(`"exit_code":4`)
	if c.stdout.Len() > 0 {
		t.Error(c.stdout.String())
	}
}

// quick is a follower that does in milliseconds what takes seconds, and finishes a drain.
func (d *fakeDaemon) quick(e *testEnv) *follower {
	g := plainGlobals(e)
	g.settings.Root = d.root
	f := newFollower(g)
	f.c.Timeout = time.Minute
	f.pace = pace{every: 60 * time.Millisecond, gap: 20 * time.Millisecond, ask: 5 * time.Millisecond, patience: 300 * time.Millisecond}
	return f
}

func (f *follower) drain(ctx context.Context, first lifecycle.View, timeout time.Duration) error {
	return f.finish(ctx, "drain", first, followOptions{timeout: timeout}, drainData{})
}

func TestFollowLost(t *testing.T) {
	d := newFakeDaemon(t)
	d.begin(&d.view)
	e := &testEnv{}
	f := d.quick(e)
	first := d.view
	d.kill()
	err := f.drain(t.Context(), first, 0)
	if code := report(t.Context(), f.g, err); code != exitUnknown {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{
		"no answer, asking again", "the daemon has been away for", "amsagent: error: lost sight of it [AGENT-DAEMON-DOWN]\n",
		"connection refused", "amsagent: hint: systemctl start amsagent\n", "amsagent: the daemon continues when it is back\n",
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
	f := d.quick(e)
	f.c.Timeout, f.patience = 20*time.Millisecond, time.Minute
	d.hangs = true
	first, done := d.view, make(chan error, 1)
	go func() { done <- f.drain(t.Context(), first, 0) }()
	eventually(t, func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.follows > 3 }, func() string { return "does not ask again" })
	d.set(func(v *lifecycle.View) { left(v); d.hangs = false })
	if err := <-done; err != nil {
		t.Error(err)
	}

	// It hangs for longer than the command's patience, which is no end of the time that the user gave.
	d.set(func(v *lifecycle.View) { d.hangs = true })
	f = d.quick(e)
	f.c.Timeout, f.patience = 20*time.Millisecond, 50*time.Millisecond
	err := f.drain(t.Context(), first, time.Hour)
	if e := f.g.explain(err); e.Msg != "lost sight of it" || e.ID != idLostDaemon {
		t.Errorf("%+v", e)
	}
}

// A cloud that cannot be told holds up nobody: the node is out of the cluster.
func TestFollowWithoutCloud(t *testing.T) {
	d := newFakeDaemon(t)
	d.begin(&d.view)
	e := &testEnv{}
	f := d.quick(e)
	f.cloud = 50 * time.Millisecond
	first := d.view
	d.set(func(v *lifecycle.View) {
		left(v)
		v.Step, v.Trouble = lifecycle.StepCompleting, map[string]string{"discover": "the cloud cannot be asked for its hook: no route to host"}
	})
	must.OK(t, f.drain(t.Context(), first, 0))
	if out := e.stdout.String(); !strings.Contains(out, "left: this node is out of the cluster") || !strings.Contains(out, "not notified yet; the daemon tries again") {
		t.Errorf("%s", out)
	}
	if !strings.Contains(e.stderr.String(), "no route to host") {
		t.Errorf("%s", e.stderr.String())
	}
}

// The daemon takes it and does nothing.
func TestFollowNothingBegins(t *testing.T) {
	d := newFakeDaemon(t)
	f := d.quick(&testEnv{})
	err := f.drain(t.Context(), d.view, 0)
	if e := f.g.explain(err); !errors.Is(err, errNotTaken) || e.Exit != exitFailed || e.State != "this node is active" {
		t.Errorf("%+v", e)
	}
}

func TestProgressOf(t *testing.T) {
	now := fixedNow()
	one, none := 1, 0
	by := cluster.CountedByConnections
	sessions := func(s cluster.Sessions) func(*lifecycle.View) {
		return func(v *lifecycle.View) { v.Sessions, v.Deadline = &s, time.Time{} }
	}
	for _, tt := range []struct {
		change func(*lifecycle.View)
		want   string
	}{
		{func(*lifecycle.View) {}, "2 publishers, 31 viewers left, 11m of the hook's budget"},
		{func(v *lifecycle.View) { v.DeadlineBy = "" }, "2 publishers, 31 viewers left, 11m to the deadline"},
		{func(v *lifecycle.View) { v.DeadlineBy = "--deadline of alice" }, "2 publishers, 31 viewers left, 11m to the deadline (--deadline of alice)"},
		{func(v *lifecycle.View) { v.Deadline = now.Add(65 * time.Minute) }, "2 publishers, 31 viewers left, 1h5m of the hook's budget"},
		{func(v *lifecycle.View) { v.Deadline = now.Add(2 * time.Hour) }, "2 publishers, 31 viewers left, 2h of the hook's budget"},
		{func(v *lifecycle.View) { v.Deadline = now.Add(40500 * time.Millisecond) }, "2 publishers, 31 viewers left, 40s of the hook's budget"},
		{func(v *lifecycle.View) { v.Deadline = now }, "2 publishers, 31 viewers left, the deadline is reached"},
		{func(v *lifecycle.View) { v.Deadline = time.Time{} }, "2 publishers, 31 viewers left"},
		{func(v *lifecycle.View) { v.Sessions, v.Deadline = nil, time.Time{} }, "counting the sessions"},
		{sessions(cluster.Sessions{Publishers: &one, Viewers: &one, By: by}), "1 publisher, about 1 viewer left"},
		{sessions(cluster.Sessions{Viewers: &none}), "0 viewers left, publishers not known"},
		{sessions(cluster.Sessions{Publishers: &one}), "1 publisher left, viewers not known"},
		{sessions(cluster.Sessions{}), "publishers and viewers not known"},
		{stopping, "stopping Ant Media Server"},
		{func(v *lifecycle.View) { *v = lifecycle.View{State: lifecycle.StateActive, Start: "starting"} }, "waiting for this node to serve"},
		{func(v *lifecycle.View) { *v = lifecycle.View{State: lifecycle.StateResuming} }, "resuming"},
	} {
		v := drainOf(2, 31)
		tt.change(&v)
		if got := progressOf(v, now); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

const bridge = `{"detail-type":"EC2 Instance-terminate Lifecycle Action","time":"2026-11-20T07:59:00Z","detail":{"LifecycleActionToken":"t-1",
"AutoScalingGroupName":"edge-asg","LifecycleHookName":"drain","EC2InstanceId":"i-0abc","LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}}`

func launchOf(e string) string {
	return strings.NewReplacer("TERMINATING", "LAUNCHING", "instance-terminate", "instance-launch").Replace(e)
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

// The daemon knows that the machine has come back since the cloud made the event.
func TestEventLate(t *testing.T) {
	d := newFakeDaemon(t)
	d.status.ID = "i-0abc"
	d.begin = func(*lifecycle.View) {}
	c := d.runWith(strings.Replace(bridge, `"LifecycleActionToken"`, `"Destination":"WarmPool","LifecycleActionToken"`, 1), "event")
	c.ends(exitOK)
	if !strings.HasPrefix(c.stdout.String(), "nothing to do: the event is from ") || !strings.HasSuffix(c.stdout.String(), ", and this node has come back since\n") {
		t.Error(c.stdout.String())
	}
}

func TestEventLaunch(t *testing.T) {
	launch := func(v *lifecycle.View) {
		*v = lifecycle.View{State: lifecycle.StateActive, Start: "starting", Registry: cluster.StateJoining}
	}
	d := newFakeDaemon(t)
	d.status.ID = "i-0abc"
	d.begin = launch
	c := d.runWith(launchOf(bridge), "event")
	c.says("waiting for this node to serve")
	d.set(func(v *lifecycle.View) { v.Start = "proved" })
	c.ends(exitOK)
	if !strings.HasPrefix(c.stdout.String(), "active: this node serves\n") || !d.notices[0].Hook.Launching || d.notices[0].Kind != lifecycle.Launch {
		t.Errorf("%s%+v", c.stdout.String(), d.notices)
	}
	c = d.runWith(launchOf(bridge), "event", "--detach")
	c.ends(exitOK)
	if c.stdout.String() != "launching\n" {
		t.Error(c.stdout.String())
	}
	// A parked machine comes back.
	d.begin = func(v *lifecycle.View) { v.State, v.Start = lifecycle.StateResuming, "starting" }
	resume := strings.Replace(launchOf(bridge), `"LifecycleActionToken"`, `"Origin":"WarmPool","LifecycleActionToken"`, 1)
	c = d.runWith(resume, "event")
	c.says("waiting for this node to serve")
	d.set(func(v *lifecycle.View) { *v = activeView() })
	c.ends(exitOK)

	d.begin = launch
	c = d.runWith(launchOf(bridge), "event")
	c.says("waiting for this node to serve")
	d.set(func(v *lifecycle.View) { v.Start = "failed" })
	c.ends(exitFailed)
	c.said("amsagent: error: this node does not serve", "cause: Ant Media Server is not seen in the cluster\n", "amsagent: this node is active\n")

	// One that is to go does not come.
	d.set(func(v *lifecycle.View) { *v = drainOf(0, 1) })
	c = d.runWith(launchOf(bridge), "event")
	c.ends(exitFailed)
	c.said("cause: the daemon does not act on it\n", "amsagent: this node is draining\n")
}

// What a person has overruled stays so, and is said.
func TestEventOverruled(t *testing.T) {
	d := newFakeDaemon(t)
	d.status.ID = "i-0abc"
	d.begin = func(v *lifecycle.View) {
		v.Dismissed = []string{"aws-lifecycle/terminate"}
		v.CancelledBy = "bob"
	}
	c := d.runWith(bridge, "event")
	c.ends(exitFailed)
	c.said("amsagent: error: this event was overruled by hand [AGENT-DRAIN-CANCELLED]\n", "amsagent: cause: cancelled by bob\n",
		"amsagent: hint: `amsagent drain` drains this node all the same\n", "amsagent: this node is active\n")
}

func TestEventUsage(t *testing.T) {
	d := newFakeDaemon(t)
	d.status.ID = "i-0abc"
	for _, tt := range []struct {
		name, in string
		args     []string
		want     string
	}{
		{"empty stdin", "", nil, "[AGENT-USAGE]"},
		{"blank stdin", " \n", nil, "standard input is empty"},
		{"no json", "i-0abc", nil, "[AGENT-EVENT]"},
		{"other json", `{"a":1}`, nil, `it has "a"`},
		{"too much", strings.Repeat(" ", cloud.MaxEvent) + bridge, nil, "larger than 256 KiB"},
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
	g := globalsOf(env)
	g.out.SetForm("text", "never", 0)
	err := runEvent(t.Context(), eventOptions{followOptions: followOptions{timeout: 20 * time.Millisecond}}, g)
	if ex := g.explain(err); ex.Exit != exitUsage || !strings.Contains(ex.Msg, "standard input is open and said nothing for 20 ms") {
		t.Errorf("%+v", ex)
	}
	env.IsTerminal = func(any) bool { return true }
	_, err = readEvent(t.Context(), globalsOf(env), "", time.Hour)
	if err == nil || !strings.Contains(err.Error(), "standard input is a terminal") {
		t.Error(err)
	}
}

// Without a daemon the metadata says who this is, so that foreign events stay none of ours.
func TestEventWithoutDaemon(t *testing.T) {
	d := newFakeDaemon(t)
	d.kill()
	must.OK(t, os.Remove(d.socket()))
	must.OK(t, os.MkdirAll(d.root+"/etc", 0o755))
	must.OK(t, os.WriteFile(d.root+"/etc/hostname", []byte("7777\n"), 0o644))
	c := d.runWith(bridge, "event", "--provider", "generic")
	c.ends(exitOK)
	if c.stdout.String() != "not this instance: the event is about i-0abc, this is host-7777\n" {
		t.Error(c.stdout.String())
	}
	ours := strings.Replace(bridge, "i-0abc", "host-7777", 1)
	c = d.runWith(ours, "event", "--provider", "generic")
	c.ends(exitNotMember)
	c.said("this machine is not a cluster node")
	must.OK(t, os.MkdirAll(d.root+"/var/lib/amsagent", 0o700))
	must.OK(t, os.WriteFile(d.root+"/var/lib/amsagent/state.json", []byte(`{"version":1,"phase":"joined","instance_id":"host-7777"}`), 0o600))
	c = d.runWith(ours, "event", "--provider", "generic")
	c.ends(exitFailed)
	c.said("amsagent: error: cannot act on the event [AGENT-DAEMON-DOWN]\n", "amsagent: hint: systemctl start amsagent\n")
}
