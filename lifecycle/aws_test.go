// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/metadata/aws"
)

func TestAWSNotices(t *testing.T) {
	t.Parallel()
	seen := time.Date(2026, 11, 20, 8, 20, 0, 0, time.UTC)
	at := seen.Add(2 * time.Minute)
	target := func(before, value string) aws.Signal {
		return aws.Signal{Kind: aws.SignalTarget, Before: before, Value: value, Seen: seen}
	}
	notice := func(id string, kind Kind, reason string) Notice {
		return Notice{ID: "aws/i-1/" + id, Kind: kind, Source: "aws-lifecycle", Who: "Auto Scaling", Reason: reason, Received: seen}
	}
	terminate := notice("terminate", Terminate, "scale-in")
	for _, tt := range []struct {
		name   string
		signal aws.Signal
		want   []Notice
		known  bool
	}{
		{"first look in service", target("", "InService"), []Notice{notice("resume", Resume, "in service again")}, true},
		{"first look terminated", target("", "Terminated"), []Notice{terminate}, true},
		{"scale-in", target("InService", "Terminated"), []Notice{terminate}, true},
		{"scale-in taken back", target("Terminated", "InService"), []Notice{notice("terminate", Withdrawn, "target state InService in place of Terminated")}, true},
		{"into the pool", target("InService", "Warmed:Stopped"), []Notice{notice("park", Park, "return to the warm pool (Stopped)")}, true},
		{"a pool to come", target("InService", "Warmed:Frozen"), []Notice{notice("park", Park, "return to the warm pool (Frozen)")}, true},
		{"out of the pool", target("Warmed:Hibernated", "InService"), []Notice{notice("resume", Resume, "in service again")}, true},
		{"end in the pool", target("Warmed:Running", "Warmed:Terminated"), []Notice{terminate}, true},
		{"standby", target("InService", "Standby"), []Notice{notice("park", Park, "standby")}, true},
		{"detached", target("InService", "Detached"), []Notice{notice("park", Park, "detached from the group")}, true},
		{"attached again", target("Detached", "InService"), []Notice{notice("resume", Resume, "in service again")}, true},
		{"standby in place of an end", target("Terminated", "Standby"), []Notice{
			notice("park", Park, "standby"), notice("terminate", Withdrawn, "target state Standby in place of Terminated"),
		}, true},
		{"unheard of", target("InService", "Frozen"), nil, false},
		{"spot", aws.Signal{Kind: aws.SignalSpot, Value: "terminate", At: at, Seen: seen}, []Notice{
			{ID: "aws/i-1/interrupt", Kind: Interrupt, Source: "aws-spot", Who: "EC2 Spot", Reason: "spot interruption (terminate)", Received: seen, Deadline: at},
		}, true},
		{"spot taken back", aws.Signal{Kind: aws.SignalSpot, Value: "terminate", At: at, Seen: seen, Gone: true}, []Notice{
			{ID: "aws/i-1/interrupt", Kind: Withdrawn, Source: "aws-spot", Who: "EC2 Spot", Reason: "spot interruption (terminate)", Received: seen},
		}, true},
		{"reboot", aws.Signal{Kind: aws.SignalScheduled, Value: "system-reboot", ID: "e1", At: at, Text: "because", Seen: seen}, []Notice{
			{ID: "aws/i-1/reboot/e1", Kind: Reboot, Source: "aws-scheduled", Who: "EC2", Reason: "scheduled event system-reboot: because", Received: seen, Deadline: at},
		}, true},
		{"retirement canceled", aws.Signal{Kind: aws.SignalScheduled, Value: "instance-retirement", ID: "e2", At: at, Seen: seen, Gone: true}, []Notice{
			{ID: "aws/i-1/interrupt/e2", Kind: Withdrawn, Source: "aws-scheduled", Who: "EC2", Reason: "scheduled event instance-retirement", Received: seen},
		}, true},
		{"without a date", aws.Signal{Kind: aws.SignalScheduled, Value: "instance-stop", ID: "e3", Seen: seen}, nil, false},
		{"an event unheard of", aws.Signal{Kind: aws.SignalScheduled, Value: "instance-party", ID: "e4", At: at, Seen: seen}, nil, false},
		{"a signal unheard of", aws.Signal{Kind: "weather"}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, known := awsNotices("i-1", tt.signal)
			if known != tt.known {
				t.Errorf("known: %v", known)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

type watcherFunc func(ctx context.Context, o aws.WatchOptions, fn func(aws.Signal))

func (f watcherFunc) Watch(ctx context.Context, o aws.WatchOptions, fn func(aws.Signal)) {
	f(ctx, o, fn)
}

func TestAWSSource(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	s := NewAWSSource(watcherFunc(func(ctx context.Context, o aws.WatchOptions, fn func(aws.Signal)) {
		if o.StateInterval != time.Second {
			t.Errorf("options %+v", o)
		}
		for _, state := range []string{"InService", "Frozen", "InService", "Frozen", "Terminated", "Terminated"} {
			fn(aws.Signal{Kind: aws.SignalTarget, Value: state})
		}
		cancel()
	}), "i-1", aws.WatchOptions{StateInterval: time.Second}, slog.New(slog.NewTextHandler(&log, nil)))
	var kinds []Kind
	if err := s.Watch(ctx, func(n Notice) { kinds = append(kinds, n.Kind) }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if diff := cmp.Diff([]Kind{Resume, Resume, Terminate, Terminate}, kinds); diff != "" {
		t.Error(diff)
	}
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "Frozen") {
		t.Errorf("log:\n%s", log.String())
	}
}

// fakeAWS is a group as its API shows it.
type fakeAWS struct {
	member    *aws.Membership
	memberErr error
	hooks     []aws.LifecycleHook
	hooksErr  error
	wait      map[string]error // by hook: what is answered to a word
	calls     []string
}

func (f *fakeAWS) Membership(context.Context) (*aws.Membership, error) {
	f.calls = append(f.calls, "membership")
	return f.member, f.memberErr
}

func (f *fakeAWS) Hooks(_ context.Context, group string) ([]aws.LifecycleHook, error) {
	f.calls = append(f.calls, "hooks "+group)
	return f.hooks, f.hooksErr
}

func (f *fakeAWS) Heartbeat(_ context.Context, a aws.Action) error {
	f.calls = append(f.calls, strings.TrimSpace("beat "+a.Group+" "+a.Hook+" "+a.Token))
	return f.wait[a.Hook]
}

func (f *fakeAWS) Complete(_ context.Context, a aws.Action) error {
	f.calls = append(f.calls, strings.TrimSpace(fmt.Sprint("complete ", a.Group, " ", a.Hook, " ", a.Token)))
	return f.wait[a.Hook]
}

func (f *fakeAWS) said() []string {
	out := f.calls
	f.calls = nil
	return out
}

func deniedAWS(action string) error {
	return &aws.DeniedError{Action: "autoscaling:" + action, Policy: `{"x":1}`, Reason: "not authorized"}
}

func wantCalls(t *testing.T, f *fakeAWS, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, f.said()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestAWSDiscover(t *testing.T) {
	t.Parallel()
	hooks := []aws.LifecycleHook{
		{Name: "amsagent-a", Timeout: time.Hour, Limit: 48 * time.Hour},
		{Name: "amsagent-b", Timeout: 5 * time.Minute, Limit: 8 * time.Hour},
		{Name: "up", Launching: true, Timeout: time.Minute},
	}
	t.Run("by the tag, once", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: hooks}
		c := NewAWSCompleter(f, AWSCompleterOptions{Group: "g"})
		h, err := c.Discover(t.Context(), false)
		if err != nil || h == nil {
			t.Fatal(h, err)
		}
		if left := time.Until(h.Limit); left > 8*time.Hour || left < 8*time.Hour-time.Minute {
			t.Error(h.Limit)
		}
		h.Limit = time.Time{}
		if diff := cmp.Diff(&Hook{Provider: "aws", Group: "g", Name: "amsagent-a,amsagent-b", Timeout: 5 * time.Minute}, h); diff != "" {
			t.Error(diff)
		}
		h, err = c.Discover(t.Context(), true)
		if diff := cmp.Diff(&Hook{Provider: "aws", Group: "g", Name: "up", Launching: true, Timeout: time.Minute}, h); diff != "" || err != nil {
			t.Error(diff, err)
		}
		wantCalls(t, f, "membership", "hooks g")
	})
	t.Run("by the API", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: hooks, member: &aws.Membership{Group: "g2"}}
		c := NewAWSCompleter(f, AWSCompleterOptions{Hooks: named("*-b")})
		h, err := c.Discover(t.Context(), false)
		if err != nil || h == nil || h.Name != "amsagent-b" || h.Group != "g2" {
			t.Fatal(h, err)
		}
		wantCalls(t, f, "membership", "hooks g2")
	})
	t.Run("of other programs", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: []aws.LifecycleHook{{Name: "drain"}, {Name: "ship-logs"}, {Name: "CodeDeploy", Launching: true}}}
		c := NewAWSCompleter(f, AWSCompleterOptions{Group: "g"})
		h, err := c.Discover(t.Context(), false)
		if others, ok := errors.AsType[*OthersHooksError](err); !ok || h != nil || len(others.Hooks) != 2 {
			t.Error(h, err)
		}
		// The only one of its transition.
		if h, err := c.Discover(t.Context(), true); err != nil || h == nil || h.Name != "CodeDeploy" {
			t.Error(h, err)
		}
	})
	t.Run("in no group, or without a hook", func(t *testing.T) {
		t.Parallel()
		if h, err := NewAWSCompleter(&fakeAWS{}, AWSCompleterOptions{}).Discover(t.Context(), false); h != nil || err != nil {
			t.Error(h, err)
		}
		if h, err := NewAWSCompleter(&fakeAWS{}, AWSCompleterOptions{Group: "g"}).Discover(t.Context(), false); h != nil || err != nil {
			t.Error(h, err)
		}
	})
	t.Run("denied", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooksErr: deniedAWS("DescribeLifecycleHooks")}
		_, err := NewAWSCompleter(f, AWSCompleterOptions{Group: "g"}).Discover(t.Context(), false)
		d, ok := errors.AsType[*DeniedError](err)
		if !ok || d.Permission != "autoscaling:DescribeLifecycleHooks" || d.Policy != `{"x":1}` || d.Err.Error() != "not authorized" {
			t.Error(err)
		}
		// With all names given there is nothing to be asked.
		h, err := NewAWSCompleter(f, AWSCompleterOptions{Group: "g", Hooks: named("drain")}).Discover(t.Context(), false)
		if diff := cmp.Diff(&Hook{Provider: "aws", Group: "g", Name: "drain"}, h); diff != "" || err != nil {
			t.Error(diff, err)
		}
	})
	t.Run("the group is gone", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooksErr: fmt.Errorf("x: %w", aws.ErrNoGroup)}
		if _, err := NewAWSCompleter(f, AWSCompleterOptions{Group: "g"}).Discover(t.Context(), false); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
	})
	t.Run("known from before", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: hooks}
		c := NewAWSCompleter(f, AWSCompleterOptions{Group: "g"})
		if _, err := c.Discover(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		c.asked = c.asked.Add(-2 * hooksFresh)
		for _, bad := range []error{errors.New("throttled"), deniedAWS("DescribeLifecycleHooks")} {
			f.hooksErr = bad
			if h, err := c.Discover(t.Context(), false); err != nil || h == nil || h.Name != "amsagent-a,amsagent-b" {
				t.Error(h, err)
			}
		}
	})
}

// A hook that is made after the daemon's start, when it looked for a launch hook, counts at the next scale-in. Where the API
// fails then, it is asked again.
func TestAWSHookMadeAfterStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.viewers = p(3)
		f := &fakeAWS{member: &aws.Membership{Group: "g", State: "InService"}}
		l := w.live(func(o *Options) { o.Completer = NewAWSCompleter(f, AWSCompleterOptions{Group: "g"}) })
		defer l.kill()
		l.Notice(Notice{ID: "aws/i-1/resume", Source: "aws-lifecycle", Kind: Resume, Received: time.Now()})
		tick(5 * time.Minute)
		f.hooks = []aws.LifecycleHook{{Name: "amsagent-terminate", Timeout: 5 * time.Minute, Limit: 8 * time.Hour}}
		f.hooksErr = errors.New("throttled")
		f.member = &aws.Membership{Group: "g", State: "Terminating:Wait"}
		l.Notice(Notice{ID: "aws/i-1/terminate", Source: "aws-lifecycle", Kind: Terminate, Received: time.Now()})
		tick(30 * time.Second)
		f.hooksErr = nil
		tick(20 * time.Minute)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Beats < 5 {
			t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
		}
	})
}

// movedAWS is two groups. The instance was moved from a to b, and waits there.
type movedAWS struct{ fakeAWS }

func (f *movedAWS) answer(group string) error {
	if group == "b" {
		return nil
	}
	return fmt.Errorf("%w: no active Lifecycle Action found with instance ID i-1", aws.ErrNoAction)
}

func (f *movedAWS) Heartbeat(ctx context.Context, a aws.Action) error {
	_ = f.fakeAWS.Heartbeat(ctx, a)
	return f.answer(a.Group)
}

func (f *movedAWS) Complete(ctx context.Context, a aws.Action) error {
	_ = f.fakeAWS.Complete(ctx, a)
	return f.answer(a.Group)
}

// The hook of the group that a machine is in is completed, whatever the daemon knew at its start, and whatever a late event names.
func TestAWSMovedGroup(t *testing.T) {
	for name, event := range map[string]*Hook{
		"found":                           nil,
		"named by an event of the former": {Provider: "aws", Group: "a", Name: "drain"},
		"named by an event":               {Provider: "aws", Group: "b", Name: "drain"},
	} {
		for _, failing := range []bool{false, true} {
			t.Run(fmt.Sprint(name, failing), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w, f := newWorld(t), &movedAWS{}
					f.hooks = []aws.LifecycleHook{{Name: "drain", Timeout: 5 * time.Minute, Limit: 8 * time.Hour}}
					f.member = &aws.Membership{Group: "b", State: "Terminating:Wait"}
					if failing {
						f.member, f.memberErr = nil, errors.New("throttled")
					}
					w.viewers = p(3)
					l := w.live(func(o *Options) { o.Completer = NewAWSCompleter(f, AWSCompleterOptions{Group: "a"}) })
					defer l.kill()
					l.Notice(Notice{ID: "aws/i-1/terminate", Source: "aws-lifecycle", Kind: Terminate, Received: time.Now(), Hook: event})
					tick(30 * time.Second)
					f.member, f.memberErr = &aws.Membership{Group: "b", State: "Terminating:Wait"}, nil
					tick(20 * time.Minute)
					if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Group != "b" || v.Hooks[0].Beats < 5 {
						t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
					}
					w.set(func(w *world) { w.viewers = p(0) })
					l.until("done", time.Minute, isDone)
					if said := strings.Join(f.said(), "\n"); !strings.Contains(said, "complete b drain") {
						t.Error(said)
					}
				})
			})
		}
	}
}

func TestAWSComplete(t *testing.T) {
	t.Parallel()
	none := fmt.Errorf("x: %w", aws.ErrNoAction)
	hook := Hook{Provider: "aws", Group: "g", Name: "drain", Token: "tok"}
	two := Hook{Provider: "aws", Group: "g", Name: "a,b", Token: "tok"}
	drain := []aws.LifecycleHook{{Name: "drain"}}
	both := named("a", "b")
	open := func(f *fakeAWS) *AWSCompleter { return NewAWSCompleter(f, AWSCompleterOptions{Group: "g"}) }

	t.Run("the end always goes on", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: drain}
		if err := open(f).Complete(t.Context(), hook); err != nil {
			t.Error(err)
		}
		wantCalls(t, f, "hooks g", "complete g drain tok")
	})
	t.Run("not yet, and then over", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: drain, wait: map[string]error{"drain": none}, member: &aws.Membership{State: "Terminating"}}
		c := open(f)
		if err := c.Complete(t.Context(), hook); !errors.Is(err, ErrNoAction) || errors.Is(err, ErrGone) {
			t.Error(err)
		}
		f.member.State = "Terminating:Proceed"
		if err := c.Complete(t.Context(), hook); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		f.member = nil
		if err := c.Heartbeat(t.Context(), hook); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
	})
	t.Run("not yet, and blind", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: drain, wait: map[string]error{"drain": none}, memberErr: deniedAWS("DescribeAutoScalingInstances")}
		c := open(f)
		for range 3 {
			if err := c.Complete(t.Context(), hook); !errors.Is(err, ErrNoAction) {
				t.Error(err)
			}
		}
		// What is forbidden is not asked for every five seconds.
		wantCalls(t, f, "hooks g", "complete g drain tok", "complete g drain", "membership",
			"complete g drain tok", "complete g drain", "complete g drain tok", "complete g drain")
	})
	t.Run("each of several", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{wait: map[string]error{"b": none}, member: &aws.Membership{State: "Terminating:Wait"}}
		c := NewAWSCompleter(f, AWSCompleterOptions{Group: "g", Hooks: both})
		if err := c.Heartbeat(t.Context(), two); err != nil {
			t.Error(err)
		}
		if err := c.Complete(t.Context(), two); !errors.Is(err, ErrNoAction) {
			t.Error(err)
		}
		f.wait = nil
		if err := c.Complete(t.Context(), two); err != nil {
			t.Error(err)
		}
		// And all of them again, when they wait again.
		if err := c.Complete(t.Context(), two); err != nil {
			t.Error(err)
		}
		wantCalls(t, f, "beat g a", "beat g b", "complete g a", "complete g b", "membership", "complete g b", "complete g a", "complete g b")
	})
	t.Run("of another program", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: []aws.LifecycleHook{{Name: "drain"}, {Name: "amsagent-end"}}}
		c := open(f)
		for _, err := range []error{c.Heartbeat(t.Context(), hook), c.Complete(t.Context(), hook)} {
			if others, ok := errors.AsType[*OthersHooksError](err); !ok || others.Hooks[0] != "drain" || others.Group != "g" {
				t.Error(err)
			}
		}
		// One that is not listed is no hook of the group: the list is read again, once.
		for range 2 {
			err := c.Complete(t.Context(), Hook{Group: "g", Name: "new"})
			if _, ok := errors.AsType[*OthersHooksError](err); !ok {
				t.Error(err)
			}
		}
		wantCalls(t, f, "hooks g", "hooks g")
	})
	t.Run("in no group at the moment", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: []aws.LifecycleHook{{Name: "drain"}}}
		c := NewAWSCompleter(f, AWSCompleterOptions{})
		if _, err := c.Discover(t.Context(), true); err != nil {
			t.Error(err)
		}
		f.member = &aws.Membership{Group: "g"}
		if h, err := c.Discover(t.Context(), false); err != nil || h == nil || h.Group != "g" {
			t.Error("what was no answer was kept:", h, err)
		}
		wantCalls(t, f, "membership", "membership", "hooks g")
	})
	t.Run("named, or not", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{}
		c := NewAWSCompleter(f, AWSCompleterOptions{Group: "g", Hooks: named("amsagent*")})
		err := c.Complete(t.Context(), hook)
		if _, ok := errors.AsType[*OthersHooksError](err); !ok {
			t.Error(err)
		}
		if err := c.Complete(t.Context(), Hook{Group: "g", Name: "amsagent-end"}); err != nil {
			t.Error(err)
		}
		wantCalls(t, f, "complete g amsagent-end")
	})
	t.Run("the list does not answer", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{}
		c := open(f)
		for _, name := range []string{"drain", "amsagent-end"} {
			f.hooks, f.hooksErr = append(f.hooks, aws.LifecycleHook{Name: name}), errThrottled
			h := Hook{Group: "g", Name: name}
			if err := c.Complete(t.Context(), h); !errors.Is(err, errThrottled) {
				t.Error(name, err)
			}
			f.hooksErr = nil
			if err := c.Complete(t.Context(), h); err != nil {
				t.Error(name, err)
			}
		}
		wantCalls(t, f, "hooks g", "hooks g", "complete g drain", "hooks g", "hooks g", "complete g amsagent-end")
	})
	t.Run("nobody may list them", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooksErr: deniedAWS("DescribeLifecycleHooks")}
		if err := open(f).Complete(t.Context(), hook); err != nil {
			t.Error(err)
		}
	})
	t.Run("one of several is denied", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{wait: map[string]error{"a": none, "b": deniedAWS("CompleteLifecycleAction")}}
		c := NewAWSCompleter(f, AWSCompleterOptions{Group: "g", Hooks: both})
		err := c.Complete(t.Context(), two)
		if d, ok := errors.AsType[*DeniedError](err); !ok || d.Permission != "autoscaling:CompleteLifecycleAction" {
			t.Error(err)
		}
		if err := c.Heartbeat(t.Context(), two); err == nil || errors.Is(err, ErrNoAction) {
			t.Error(err)
		}
	})
}

func TestAWSOver(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		state      string
		end, start bool // whether a hook of that transition is over
	}{
		{"Pending", false, false},
		{"Pending:Wait", false, false},
		{"Pending:Proceed", false, true},
		{"InService", false, true},
		{"Terminating", false, true},
		{"Terminating:Wait", false, true},
		{"Terminating:Proceed", true, true},
		{"Terminating:Retained", true, true},
		{"Terminated", true, true},
		{"Detaching", true, true},
		{"Detached", true, true},
		{"EnteringStandby", false, false},
		{"Standby", false, false},
		{"Warmed:Pending", false, false},
		{"Warmed:Pending:Wait", false, false},
		{"Warmed:Pending:Proceed", false, false},
		{"Warmed:Stopped", false, false},
		{"Warmed:Running", false, false},
		{"Warmed:Hibernated", false, false},
		{"Warmed:Terminating", false, true},
		{"Warmed:Terminating:Wait", false, true},
		{"Warmed:Terminating:Proceed", true, true},
		{"Warmed:Terminated", true, true},
		{"Frozen", false, false},
	} {
		if end, start := awsOver(tt.state, false), awsOver(tt.state, true); end != tt.end || start != tt.start {
			t.Errorf("%s: end %v, start %v", tt.state, end, start)
		}
	}
}

// Once a machine is parked no hook waits for that. The launch hook waits next for its way
// back, and is not told of the way out.
func TestAWSParked(t *testing.T) {
	t.Parallel()
	for state, over := range map[string]bool{
		"InService": false, "Terminating:Wait": false, "EnteringStandby": false, "Standby": true,
		"Warmed:Pending": false, "Warmed:Pending:Wait": false, "Warmed:Running": true, "Warmed:Stopped": true, "Warmed:Hibernated": true,
	} {
		f := &fakeAWS{
			hooks: []aws.LifecycleHook{{Name: "end"}}, member: &aws.Membership{State: state},
			wait: map[string]error{"end": aws.ErrNoAction},
		}
		c := NewAWSCompleter(f, AWSCompleterOptions{Group: "g"})
		for _, parking := range []bool{false, true} {
			err := c.Complete(t.Context(), Hook{Group: "g", Name: "end", Parking: parking})
			if errors.Is(err, ErrGone) != (over && parking) || err == nil {
				t.Errorf("%s, parking %v: %v", state, parking, err)
			}
		}
	}
}

// A hook of another program that was made after the hooks were read is not taken for ours.
func TestHookMadeLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &fakeAWS{hooks: []aws.LifecycleHook{{Name: "amsagent-end"}}}
		c := NewAWSCompleter(f, AWSCompleterOptions{Group: "g"})
		if err := c.Heartbeat(t.Context(), Hook{Group: "g", Name: "amsagent-end"}); err != nil {
			t.Error(err)
		}
		f.hooks = append(f.hooks, aws.LifecycleHook{Name: "logs"})
		tick(10 * time.Second)
		err := c.Complete(t.Context(), Hook{Group: "g", Name: "logs"})
		if _, ok := errors.AsType[*OthersHooksError](err); !ok {
			t.Errorf("got %v, calls %v", err, f.calls)
		}
	})
}

// EC2 resumes a hibernated Spot machine in the same boot, and the process goes on.
func TestAWSSpotHibernates(t *testing.T) {
	for name, withHook := range map[string]bool{"alone": false, "in a group with a hook": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t)
				if withHook {
					// It does not wait for a machine that is in service.
					w.hook, w.waitsFrom = &Hook{Provider: "aws", Group: "edge", Name: "drain", Timeout: time.Hour}, time.Now().Add(1000*time.Hour)
				}
				l := w.live()
				defer l.kill()
				say := func(s aws.Signal) {
					s.Kind, s.Value, s.Seen = aws.SignalSpot, "hibernate", time.Now()
					notices, known := awsNotices("i-1", s)
					if !known || len(notices) != 1 {
						t.Fatalf("%+v: %+v", s, notices)
					}
					l.Notice(notices[0])
				}
				say(aws.Signal{At: time.Now()})
				tick(5 * time.Minute)
				if v := l.View(); v.State != StateParked || w.row != cluster.StateLeft || w.running {
					t.Errorf("asleep: state %s, row %s, server runs %t", v.State, w.row, w.running)
				}
				say(aws.Signal{Gone: true})
				tick(time.Minute)
				if v := l.View(); v.State != StateActive || !w.running || len(v.Trouble) != 0 {
					t.Errorf("back: state %s, step %s, row %s, server runs %t, trouble %v", v.State, v.Step, w.row, w.running, v.Trouble)
				}
				// The same again.
				say(aws.Signal{At: time.Now()})
				tick(time.Hour)
				if v := l.View(); v.State != StateParked || w.running {
					t.Errorf("asleep again: state %s, server runs %t", v.State, w.running)
				}
			})
		})
	}
}
