// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

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

// stopping is the step from which a drain can no longer be cancelled.
func stopping(v *lifecycle.View) {
	v.Step, v.Progress = lifecycle.StepStopping, "stopping Ant Media Server"
}

func becomes(v lifecycle.View) func(*lifecycle.View) { return func(is *lifecycle.View) { *is = v } }

// following is a command that asks the daemon, and what becomes of it.
type following struct {
	args    []string
	in      string // standard input
	refusal *daemon.Refusal
	begins  func(*lifecycle.View)
	hangs   bool   // the daemon does, when it is asked again
	says    string // on standard error, before the next two
	then    func(*lifecycle.View)
	signal  os.Signal
	exit    int
	out     string   // how standard output begins
	said    []string // on standard error
	not     string   // not on standard error
	ignored bool     // the daemon was not asked
}

func followAll(t *testing.T, table map[string]following) {
	t.Helper()
	for name, tt := range table {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := withDaemon(t)
			m.status.ID, m.refuse, m.hangs = "i-0abc", tt.refusal, tt.hangs
			if tt.begins != nil {
				m.begin = tt.begins
			}
			c := m.runWith(&testEnv{stdin: strings.NewReader(tt.in)}, tt.args...)
			c.says(tt.says)
			if tt.hangs {
				m.followed(1)
			}
			if tt.then != nil {
				m.set(tt.then)
			}
			if tt.signal != nil {
				c.sig <- tt.signal
			}
			c.ends(tt.exit)
			c.said(tt.said...)
			if tt.not != "" && strings.Contains(c.stderr.String(), tt.not) {
				t.Errorf("it says %q:\n%s", tt.not, c.stderr.String())
			}
			if out := c.stdout.String(); !strings.HasPrefix(out, tt.out) || (out == "") != (tt.out == "") {
				t.Errorf("printed %q, want %q", out, tt.out)
			}
			if m.posted > 1 || tt.ignored != (m.posted == 0) {
				t.Errorf("asked %d times", m.posted)
			}
		})
	}
}

func TestDrainFollowed(t *testing.T) {
	drain := []string{"drain"}
	hasLeft := lifecycle.View{}
	left(&hasLeft)
	alreadyLeft := &daemon.Refusal{Code: daemon.RefusedLeft, Message: "this node has left already", View: &hasLeft}
	refused := func(code daemon.RefusalCode, exit int, id string) following {
		return following{
			args: drain, refusal: &daemon.Refusal{Code: code, Message: "this machine is not a cluster node"}, exit: exit,
			said: []string{"error: cannot drain [" + id + "]\n", "cause: this machine is not a cluster node\n", "amsagent: nothing was changed on this machine\n"},
		}
	}
	forgotten := func(v lifecycle.View, cause string) following {
		return following{args: drain, says: "31 viewers", then: becomes(v), exit: codeFailed, said: []string{"cause: " + cause + "\n"}}
	}
	followAll(t, map[string]following{
		"left already":       {args: []string{"drain", "--detach"}, refusal: alreadyLeft, out: "left: this node is out of the cluster\n"},
		"not a node":         refused(daemon.RefusedNotMember, codeNotMember, "AGENT-NOT-NODE"),
		"invalid":            refused(daemon.RefusedInvalid, codeUsage, "AGENT-REFUSED"),
		"cannot":             refused(daemon.RefusedFailed, codeFailed, "AGENT-REFUSED"),
		"of a later version": refused("something-new", codeFailed, "AGENT-REFUSED"),
		"cancelled":          forgotten(activeView(), "this node serves again"),
		"forgotten":          forgotten(lifecycle.View{}, "the daemon has no record of it any more"),
		"unknown state":      forgotten(lifecycle.View{State: "of a later version"}, "the daemon does not act on it"),
		"nothing begins":     {args: drain, begins: func(*lifecycle.View) {}, exit: codeFailed, said: []string{"the daemon does not act on it", "amsagent: this node is active\n"}},
		"the machine restarts": {
			args: drain, says: "31 viewers", then: func(v *lifecycle.View) { v.Step = lifecycle.StepDone },
			out: "draining: no sessions are left on this node; the machine is about to restart\n",
		},
		"parked": {args: drain, says: "31 viewers", then: func(v *lifecycle.View) {
			left(v)
			v.State, v.RegistryTold = lifecycle.StateParked, false
			v.Hooks = []lifecycle.HookView{{Hook: lifecycle.Hook{Name: "drain"}, Denied: "autoscaling:CompleteLifecycleAction"}}
		}, out: "parked: this node is out of the cluster, and comes back when the cloud wants it\n  reason      scale-in\n  asked by    Auto Scaling\n" +
			"  hook drain  waits for its timeout: permission autoscaling:CompleteLifecycleAction is missing\n" +
			"  registry    not written yet; the daemon tries again\n"},
		// It is no success, and is not waited for without end.
		"the server does not end": {
			args: drain, says: "31 viewers", then: func(v *lifecycle.View) { stopping(v); v.StopFailed = true }, exit: codeFailed,
			said: []string{"this node cannot leave", "Ant Media Server does not end", "the daemon stops it again until it ends"},
		},
		"interrupted": {args: drain, says: "31 viewers", signal: syscall.SIGINT, exit: codeInterrupted, said: []string{
			"amsagent: error: stopped following; nothing else was stopped [AGENT-INTERRUPTED]\n",
			"amsagent: hint: `amsagent drain` follows it again, `amsagent undrain` cancels it\n", "amsagent: the drain continues\n",
		}, not: "a second signal"}, // the signal ends the following alone, at once
		"interrupted too late": {
			args: drain, begins: func(v *lifecycle.View) { *v = drainOf(0, 0); stopping(v) }, says: "stopping Ant Media Server",
			signal: syscall.SIGTERM, exit: codeInterrupted, said: []string{"it can no longer be cancelled"},
		},
		// The node record is not written yet: that is no success.
		"undrain, interrupted": {
			args: []string{"undrain"}, begins: becomes(lifecycle.View{State: lifecycle.StateActive}), hangs: true, signal: syscall.SIGINT,
			exit: codeInterrupted, said: []string{"amsagent: this node is active\n"},
		},
		"timeout": {args: []string{"drain", "--timeout", "100ms"}, exit: codeUnknown, said: []string{
			"error: it is not over after 100 ms [AGENT-TIMEOUT]\n", "cause: 2 publishers, 31 viewers left, 11m of the hook's budget\n", "amsagent: the drain continues\n",
		}},
	})
}

// The daemon is killed in the middle; its successor continues the same drain, and so does the command. One that is back at
// once is not reported.
func TestDrainDaemonKilled(t *testing.T) {
	m := withDaemon(t)
	c := m.run("drain")
	m.followed(1)
	m.kill()
	m.start()
	m.followed(2)
	if strings.Contains(c.stderr.String(), "no answer") {
		t.Error(c.stderr.String())
	}
	m.kill()
	c.says("no answer")
	m.start()
	c.says("the daemon is back after")
	m.set(left)
	c.ends(codeOK)
	must.Equal(t, "asked (times)", m.posted, 1)
}

// followed waits until the view was asked for so often.
func (m *fakeMachine) followed(times int) {
	must.Until(m.t, "the command follows", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.follows >= times
	})
}

// quick is a follower that does in milliseconds what takes seconds. drain follows the drain as it stood then.
func (m *fakeMachine) quick(e *testEnv) (f *follower, drain func(timeout time.Duration) error) {
	g := plainGlobals(e)
	g.settings.Root = m.root
	f = newFollower(g)
	f.every, f.gap, f.ask, f.daemon.limit, f.cloud = 60*time.Millisecond, 20*time.Millisecond, 5*time.Millisecond, 300*time.Millisecond, 50*time.Millisecond
	m.begin(&m.view)
	first := m.view
	return f, func(timeout time.Duration) error {
		return f.finish(m.t.Context(), "drain", first, followOptions{timeout: timeout}, drainData{})
	}
}

func TestFollowLost(t *testing.T) {
	m := withDaemon(t)
	e := &testEnv{}
	f, drain := m.quick(e)
	m.kill()
	must.Equal(t, "exit", report(t.Context(), f.g, drain(0)), codeUnknown)
	must.Contain(t, "stderr", e.stderr.String(),
		"no answer", "the daemon has not answered for", "amsagent: error: lost sight of it [AGENT-DAEMON-DOWN]\n",
		"connection refused", "amsagent: hint: systemctl start amsagent\n", "amsagent: the daemon continues when it is back\n",
	)
}

// A daemon that hangs is one that is away.
func TestFollowHangs(t *testing.T) {
	m := withDaemon(t)
	m.hangs = true
	f, drain := m.quick(&testEnv{})
	f.c.Timeout, f.daemon.limit = 20*time.Millisecond, time.Minute
	done := make(chan error, 1)
	go func() { done <- drain(0) }()
	m.followed(4)
	m.set(func(v *lifecycle.View) { left(v); m.hangs = false })
	must.OK(t, <-done)

	// It hangs for longer than the command's limit, which is not the time that the operator gave.
	m.set(func(*lifecycle.View) { m.hangs = true })
	f, drain = m.quick(&testEnv{})
	f.c.Timeout, f.daemon.limit = 20*time.Millisecond, 50*time.Millisecond
	if e := f.g.explain(drain(time.Hour)); e.Msg != "lost sight of it" || e.ID != "AGENT-DAEMON-LOST" {
		t.Errorf("%+v", e)
	}
}

// A cloud that does not answer delays no command: the node is out of the cluster.
func TestFollowWithoutCloud(t *testing.T) {
	m := withDaemon(t)
	e := &testEnv{}
	onlyCloud := func(v *lifecycle.View) {
		left(v)
		v.Step, v.Trouble = lifecycle.StepCompleting, map[string]string{"discover": "the cloud cannot be asked for its hook: no route to host"}
	}
	_, drain := m.quick(e)
	m.set(onlyCloud)
	must.OK(t, drain(0))
	if out := e.stdout.String(); !strings.Contains(out, "left: this node is out of the cluster") || !strings.Contains(out, "not notified yet; the daemon tries again") {
		t.Errorf("%s", out)
	}
	must.Contain(t, "stderr", e.stderr.String(), "no route to host")

	// Nor does it if the daemon ends meanwhile.
	f, drain := m.quick(&testEnv{})
	m.set(onlyCloud)
	f.cloud, f.daemon.limit = 200*time.Millisecond, time.Minute
	asked := m.follows
	done := make(chan error, 1)
	go func() { done <- drain(0) }()
	m.followed(asked + 2)
	m.kill()
	must.OK(t, <-done)
}

// The progress of a drain is one line.
func TestDrainProgress(t *testing.T) {
	now := fixedNow()
	deadline := func(at time.Time) func(*lifecycle.View) { return func(v *lifecycle.View) { v.Deadline = at } }
	by := func(source string) func(*lifecycle.View) { return func(v *lifecycle.View) { v.DeadlineBy = source } }
	sessions := func(s *cluster.Sessions) func(*lifecycle.View) {
		return func(v *lifecycle.View) { v.Sessions, v.Deadline = s, time.Time{} }
	}
	for want, change := range map[string]func(*lifecycle.View){
		"2 publishers, 31 viewers left, 11m to the deadline":                       by(""),
		"2 publishers, 31 viewers left, 11m to the deadline (--deadline of alice)": by("--deadline of alice"),
		"2 publishers, 31 viewers left, 1h5m of the hook's budget":                 deadline(now.Add(65 * time.Minute)),
		"2 publishers, 31 viewers left, 2h of the hook's budget":                   deadline(now.Add(2 * time.Hour)),
		"2 publishers, 31 viewers left, 40s of the hook's budget":                  deadline(now.Add(40500 * time.Millisecond)),
		"2 publishers, 31 viewers left, the deadline is reached":                   deadline(now),
		"2 publishers, 31 viewers left":                                            deadline(time.Time{}),
		"counting the sessions":                                                    sessions(nil),
		"1 publisher, about 1 viewer left":                                         sessions(&cluster.Sessions{Publishers: new(1), Viewers: new(1), By: cluster.CountedByConnections}),
		"0 viewers left, publishers not known":                                     sessions(&cluster.Sessions{Viewers: new(0)}),
		"1 publisher left, viewers not known":                                      sessions(&cluster.Sessions{Publishers: new(1)}),
		"publishers and viewers not known":                                         sessions(&cluster.Sessions{}),
	} {
		v := drainOf(2, 31)
		change(&v)
		must.Equal(t, "progress", v.Line(now), want)
	}
}

const bridge = `{"detail-type":"EC2 Instance-terminate Lifecycle Action","time":"2026-11-20T07:59:00Z","detail":{"LifecycleActionToken":"t-1",
"AutoScalingGroupName":"edge-asg","LifecycleHookName":"drain","EC2InstanceId":"i-0abc","LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}}`

// warmPool adds a member to the detail of an event.
func warmPool(event, member string) string {
	return strings.Replace(event, `"LifecycleActionToken"`, `"`+member+`":"WarmPool","LifecycleActionToken"`, 1)
}

func TestEventFollowed(t *testing.T) {
	launch := strings.NewReplacer("TERMINATING", "LAUNCHING", "instance-terminate", "instance-launch").Replace(bridge)
	starting := becomes(lifecycle.View{State: lifecycle.StateActive, Start: "starting", Registry: cluster.StateJoining})
	start := func(s string) func(*lifecycle.View) { return func(v *lifecycle.View) { v.Start = s } }
	event, detached := []string{"event"}, []string{"event", "--detach"}
	followAll(t, map[string]following{
		"of another, as JSON": {
			in: strings.ReplaceAll(bridge, "i-0abc", "i-9999"), args: []string{"event", "-o", "json"}, ignored: true,
			out: "{\n  \"schema_version\": 1,\n  \"kind\": \"event\",\n  \"result\": \"not-this-instance\",",
		},
		// The flag wins over the daemon.
		"given id": {in: strings.ReplaceAll(bridge, "i-0abc", "i-9999"), args: append(detached, "--instance-id", "i-9999"), out: "draining: "},
		"test":     {in: `{"Event":"autoscaling:TEST_NOTIFICATION"}`, args: event, ignored: true, out: "nothing to do: test notification\n"},
		"stale": {
			in: strings.Replace(bridge, "2026-11-20T07:59", "2026-11-17T07:59", 1), args: event, ignored: true,
			out: "nothing to do: the event is from 3 d ago, and no hook waits that long\n",
		},
		"the machine is back": {in: warmPool(bridge, "Destination"), args: event, begins: func(*lifecycle.View) {}, out: "nothing to do: the event is from 60 s ago, and this node has come back since\n"},
		"launch":              {in: launch, args: event, begins: starting, says: "waiting for this node to serve", then: start("proved"), out: "active: this node serves\n"},
		"launch, detached":    {in: launch, args: detached, begins: starting, out: "launching\n"},
		"resume": {
			in: warmPool(launch, "Origin"), args: event, begins: becomes(lifecycle.View{State: lifecycle.StateResuming}),
			says: "resuming", then: becomes(activeView()), out: "active: this node serves\n",
		},
		"launch fails": {in: launch, args: event, begins: starting, says: "waiting for this node to serve", then: start("failed"), exit: codeFailed, said: []string{
			"error: this node does not serve", "cause: Ant Media Server is not seen in the cluster\n", "amsagent: this node is active\n",
		}},
		"launch while it drains": {in: launch, args: event, exit: codeFailed, said: []string{"cause: the daemon does not act on it\n", "amsagent: this node is draining\n"}},
		"overruled": {in: bridge, args: event, begins: func(v *lifecycle.View) {
			v.Dismissed, v.CancelledBy = []string{"aws-lifecycle/terminate"}, "bob"
		}, exit: codeFailed, said: []string{
			"error: this event was overruled by hand [AGENT-DRAIN-CANCELLED]\n", "cause: cancelled by bob\n",
			"hint: `amsagent drain` drains this node all the same\n", "amsagent: this node is active\n",
		}},
	})
}

func TestEventUsage(t *testing.T) {
	m := withDaemon(t)
	for _, tt := range []struct {
		in   string
		args []string
		want string
	}{
		{" \n", nil, "standard input is empty"},
		{"i-0abc", nil, "[AGENT-EVENT]"},
		{`{"a":1}`, nil, `it has "a"`},
		{strings.Repeat(" ", cloud.MaxEvent) + bridge, nil, "larger than 256 KiB"},
		{"", []string{"--file", "/nowhere"}, "no such file"},
		{"", []string{"--file", "/run"}, "not a regular file"},
	} {
		c := m.runWith(&testEnv{stdin: strings.NewReader(tt.in)}, append([]string{"event"}, tt.args...)...)
		c.ends(codeUsage)
		c.said(tt.want, "nothing was changed on this machine")
	}
	c := m.runWith(&testEnv{tty: true}, "event")
	c.ends(codeUsage)
	c.said("the event is missing: standard input is a terminal")
	must.Equal(t, "requests", m.posted, 0)
}

// Without a daemon the metadata has the id, so that other machines' events are ignored.
func TestEventWithoutDaemon(t *testing.T) {
	m := newMachine(t, map[string]string{"etc/hostname": "7777\n"})
	event := func(in string) *command { return m.runWith(&testEnv{stdin: strings.NewReader(in)}, "event") }
	c := event(bridge)
	c.ends(codeOK)
	must.Equal(t, "stdout", c.stdout.String(), "not this instance: the event is about i-0abc, this is host-7777\n")
	ours := strings.Replace(bridge, "i-0abc", "host-7777", 1)
	c = event(ours)
	c.ends(codeNotMember)
	c.said("this machine is not a cluster node")
	plant(t, m.root, map[string]string{"var/lib/amsagent/state.json!": `{"version":1,"phase":"joined","instance_id":"host-7777"}`})
	c = event(ours)
	c.ends(codeFailed)
	c.said("amsagent: error: cannot act on the event [AGENT-DAEMON-DOWN]\n", "amsagent: hint: systemctl start amsagent\n")
}
