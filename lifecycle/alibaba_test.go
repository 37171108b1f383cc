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
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/alibaba"
)

func TestAlibabaNotices(t *testing.T) {
	t.Parallel()
	seen := time.Date(2026, 11, 20, 8, 20, 0, 0, time.UTC)
	at := seen.Add(5 * time.Minute)
	state := func(before, value string) alibaba.Signal {
		return alibaba.Signal{Kind: alibaba.SignalScaling, Before: before, Value: value, Seen: seen}
	}
	event := func(kind, state string, at time.Time) alibaba.Signal {
		return alibaba.Signal{Kind: alibaba.SignalEvent, Value: kind, State: state, ID: "e-1", At: at, Seen: seen}
	}
	notice := func(id string, kind Kind, reason string) Notice {
		return Notice{ID: "alibaba/i-1/" + id, Kind: kind, Source: "alibaba-scaling", Who: "Auto Scaling", Reason: reason, Received: seen}
	}
	served := func(notices []Notice) []Notice {
		notices[0].Served = true
		return notices
	}
	of := func(id string, kind Kind, reason string, at time.Time) []Notice {
		return []Notice{{ID: "alibaba/i-1/" + id, Kind: kind, Source: "alibaba-events", Who: "ECS", Reason: reason, Received: seen, Deadline: at}}
	}
	resume := []Notice{notice("resume", Resume, "in service again")}
	terminate := []Notice{notice("terminate", Terminate, "scale-in")}
	for _, tt := range []struct {
		name   string
		signal alibaba.Signal
		want   []Notice
		known  bool
	}{
		{"first look in service", state("", "InService"), resume, true},
		{"first look protected", state("", "Protected"), resume, true},
		{"protected now", state("InService", "Protected"), nil, true},
		{"first look removing", state("", "Removing:Wait"), terminate, true},
		{"scale-in", state("InService", "Removing"), terminate, true},
		{"scale-in of one that was protected", state("Protected", "Removing"), terminate, true},
		{"scale-in waits", state("Removing", "Removing:Wait"), terminate, true},
		{"a step to come", state("Removing:Wait", "Removing:Proceed"), terminate, true},
		{"rolled back", state("Removing:Wait", "InService"), []Notice{notice("terminate", Withdrawn, "state InService in place of Removing:Wait")}, true},
		{"gone from the group", state("Removing:Wait", ""), nil, true},
		{"detached", state("InService", ""), nil, true},
		{"attached", state("", "Pending"), nil, true},
		{"the launch waits", state("Pending", "Pending:Wait"), []Notice{notice("launch", Launch, "launch")}, true},
		{"launched", state("Pending:Wait", "InService"), resume, true},
		{"standby", state("InService", "Standby"), []Notice{notice("park", Park, "standby")}, true},
		{"out of standby", state("Standby", "InService"), resume, true},
		{"stopped", state("InService", "Stopped"), []Notice{notice("park", Park, "stopped by the group")}, true},
		{"standby in place of an end", state("Removing", "Standby"), []Notice{
			notice("park", Park, "standby"), notice("terminate", Withdrawn, "state Standby in place of Removing"),
		}, true},
		{"unheard of", state("InService", "Frozen:Deep"), nil, false},
		{"spot", alibaba.Signal{Kind: alibaba.SignalSpot, At: at, Seen: seen}, []Notice{
			{ID: "alibaba/i-1/interrupt", Kind: Interrupt, Source: "alibaba-spot", Who: "ECS spot", Reason: "spot instance is taken back", Received: seen, Deadline: at},
		}, true},
		{"spot taken back", alibaba.Signal{Kind: alibaba.SignalSpot, At: at, Seen: seen, Gone: true}, []Notice{
			{ID: "alibaba/i-1/interrupt", Kind: Withdrawn, Source: "alibaba-spot", Who: "ECS spot", Reason: "spot instance is taken back", Received: seen},
		}, true},
		{"reboot", event("SystemMaintenance.Reboot", "Scheduled", at), of("reboot/e-1", Reboot, "system event SystemMaintenance.Reboot", at), true},
		{"another host", event("SystemMaintenance.Redeploy", "Scheduled", at), of("reboot/e-1", Reboot, "system event SystemMaintenance.Redeploy", at), true},
		{"a disk is isolated", event("SystemMaintenance.RebootAndIsolateErrorDisk", "Scheduled", at), of("reboot/e-1", Reboot, "system event SystemMaintenance.RebootAndIsolateErrorDisk", at), true},
		{"it fails now", event("InstanceFailure.Reboot", "Executing", time.Time{}), served(of("reboot/e-1", Reboot, "system event InstanceFailure.Reboot", seen)), true},
		{"stop", event("SystemMaintenance.Stop", "Scheduled", at), of("interrupt/e-1", Interrupt, "system event SystemMaintenance.Stop", at), true},
		{"not paid for", event("InstanceExpiration.Delete", "Scheduled", at), of("interrupt/e-1", Interrupt, "system event InstanceExpiration.Delete", at), true},
		{"without a date", event("SystemMaintenance.Stop", "Scheduled", time.Time{}), nil, false},
		{"live migration", event("SystemMaintenance.Migrate", "Scheduled", at), nil, false},
		{"unheard of event", event("SystemMaintenance.Dance", "Scheduled", at), nil, false},
		{"unheard of signal", alibaba.Signal{Kind: "weather"}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, known := alibabaNotices("i-1", tt.signal)
			if diff := cmp.Diff(tt.want, got); diff != "" || known != tt.known {
				t.Errorf("known %v\n%s", known, diff)
			}
		})
	}
}

// signals is a watcher that says what it is told to.
type alibabaSignals []alibaba.Signal

func (s alibabaSignals) Watch(_ context.Context, _ alibaba.WatchOptions, fn func(alibaba.Signal)) {
	for _, signal := range s {
		fn(signal)
	}
}

// What nobody knows is said once.
func TestAlibabaUnknownOnce(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	odd := alibaba.Signal{Kind: alibaba.SignalScaling, Value: "Frozen"}
	s := NewAlibabaSource(alibabaSignals{odd, odd, {Kind: alibaba.SignalScaling, Value: "Removing"}, odd}, "i-1", alibaba.WatchOptions{}, slog.New(slog.NewTextHandler(&log, nil)))
	n := 0
	_ = s.Watch(t.Context(), func(Notice) { n++ })
	if n != 1 || strings.Count(log.String(), "does not know") != 1 {
		t.Errorf("%d notices\n%s", n, log.String())
	}
}

// essFake is a group as the API tells of it.
type essFake struct {
	member  *alibaba.Membership
	actions []alibaba.Action
	// waits are the tokens that wait.
	waits map[string]bool
	// longest is what may still be waited for, by how the cloud counts.
	longest time.Duration
	err     map[string]error // by call
	appears int              // looks after which the actions are listed
	hooks   []alibaba.LifecycleHook
	said    []string
}

func (f *essFake) Membership(context.Context) (*alibaba.Membership, error) {
	return f.member, f.err["membership"]
}

func (f *essFake) Pending(_ context.Context, group string) ([]alibaba.Action, error) {
	if err := f.err["pending"]; err != nil || group != f.member.Group {
		return nil, cmp2(err, errors.New("another group"))
	}
	if f.appears--; f.appears >= 0 {
		return nil, nil
	}
	var out []alibaba.Action
	for _, a := range f.actions {
		if f.waits[a.Token] {
			out = append(out, a)
		}
	}
	return out, nil
}

func (f *essFake) Hooks(_ context.Context, group string) ([]alibaba.LifecycleHook, error) {
	if group == "" {
		return nil, errors.New("no group")
	}
	return f.hooks, f.err["hooks"]
}

func cmp2(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (f *essFake) Heartbeat(_ context.Context, hook, token string, wait time.Duration) error {
	f.said = append(f.said, fmt.Sprintf("beat %s %s %s", hook, token, wait))
	switch {
	case f.err["beat"] != nil:
		return f.err["beat"]
	case !f.waits[token]:
		return alibaba.ErrOver
	case f.longest > 0 && wait > f.longest:
		return alibaba.ErrLimit
	}
	return nil
}

func (f *essFake) Complete(_ context.Context, hook, token string) error {
	f.said = append(f.said, fmt.Sprintf("complete %s %s", hook, token))
	switch {
	case f.err[token] != nil:
		return f.err[token]
	case !f.waits[token]:
		return alibaba.ErrOver
	}
	delete(f.waits, token)
	return nil
}

func removing(actions ...alibaba.Action) *essFake {
	f := &essFake{member: &alibaba.Membership{Group: "asg-1", State: "Removing:Wait"}, actions: actions, waits: map[string]bool{}, err: map[string]error{}}
	for _, a := range actions {
		f.waits[a.Token] = true
		name := "amsagent-" + a.Hook
		f.hooks = append(f.hooks, alibaba.LifecycleHook{ID: a.Hook, Name: name}, alibaba.LifecycleHook{ID: a.Hook, Name: name, Launching: true})
	}
	return f
}

func TestAlibabaDiscover(t *testing.T) {
	t.Parallel()
	alone := alibaba.Action{Hook: "ash-1", Token: "t-1"}
	shared := alibaba.Action{Hook: "ash-2", Token: "t-2", Others: []string{"i-3", "i-2"}}
	in := func(state string, f *essFake) *essFake {
		f.member = nil
		if state != "" {
			f.member = &alibaba.Membership{Group: "asg-1", State: state}
		}
		return f
	}
	denied := &alibaba.DeniedError{Action: "ess:DescribeLifecycleActions", Policy: "{}", Reason: "no"}
	hook := func(name, token string, timeout time.Duration, others ...string) *Hook {
		return &Hook{Provider: "alibaba", Group: "asg-1", Name: name, Token: token, Timeout: timeout, Others: others}
	}
	noBeat := &alibaba.DeniedError{Action: "ess:RecordLifecycleActionHeartbeat", Policy: "{}", Reason: "no"}
	unheld := func(beat error, own time.Duration, hooks error) *essFake {
		f := removing(alone)
		f.err["beat"], f.err["hooks"] = beat, hooks
		f.hooks = []alibaba.LifecycleHook{{ID: "ash-1", Name: "amsagent", Timeout: own}, {ID: "ash-9", Name: "logs", Timeout: time.Minute}}
		return f
	}
	hooked := func(f *essFake, hooks ...alibaba.LifecycleHook) *essFake {
		f.hooks = hooks
		return f
	}
	fixed := hook("ash-1", "t-1", 5*time.Minute)
	fixed.Fixed = true
	for _, tt := range []struct {
		name      string
		api       *essFake
		launching bool
		want      *Hook
		err       error
	}{
		{"alone", removing(alone), false, hook("ash-1", "t-1", 40*time.Minute), nil},
		{"one token for three machines", removing(shared), false, hook("ash-2", "t-2", 2*time.Hour, "i-2", "i-3"), nil},
		{"two hooks", removing(alone, shared), false, hook("ash-1,ash-2", "t-1,t-2", 2*time.Hour, "i-2", "i-3"), nil},
		{"another's beside ours", hooked(removing(alone, shared), alibaba.LifecycleHook{ID: "ash-1", Name: "amsagent-drain"}, alibaba.LifecycleHook{ID: "ash-2", Name: "logs"}), false, hook("ash-1", "t-1", 40*time.Minute), nil},
		{"two of others", hooked(removing(alone, shared), alibaba.LifecycleHook{ID: "ash-1", Name: "drain"}, alibaba.LifecycleHook{ID: "ash-2", Name: "logs"}), false, nil, &OthersHooksError{}},
		{"one of others waits first", hooked(removing(shared), alibaba.LifecycleHook{ID: "ash-1", Name: "amsagent-drain"}, alibaba.LifecycleHook{ID: "ash-2", Name: "logs"}), false, nil, &OthersHooksError{}},
		{"listed a moment later", &essFake{member: removing().member, actions: []alibaba.Action{alone}, hooks: []alibaba.LifecycleHook{{ID: "ash-1"}}, waits: map[string]bool{"t-1": true}, appears: 3}, false, hook("ash-1", "t-1", 40*time.Minute), nil},
		{"removing, and not yet waiting", hooked(in("Removing", removing()), alibaba.LifecycleHook{ID: "ash-1"}), false, nil, ErrNoAction},
		{"a group without a hook", in("Removing", removing()), false, nil, nil},
		{"a group with the other hook", hooked(in("Removing", removing()), alibaba.LifecycleHook{ID: "ash-1", Launching: true}), false, nil, nil},
		{"one that is not listed", hooked(removing(alone), alibaba.LifecycleHook{ID: "ash-9"}), false, nil, &OthersHooksError{}},
		{"nobody may look at the hooks", &essFake{member: in("Removing", removing()).member, err: map[string]error{"hooks": noBeat}}, false, nil, ErrNoAction},
		{"in no group", in("", removing(alone)), false, nil, nil},
		{"standby", in("Standby", removing(alone)), false, nil, nil},
		{"in service still", in("InService", removing(alone)), false, nil, ErrNoAction},
		{"a launch that nobody waits for", in("InService", removing(alone)), true, nil, nil},
		{"no launch but an end", removing(alone), true, nil, nil},
		{"a launch", hooked(in("Pending:Wait", removing(alone)), alibaba.LifecycleHook{ID: "ash-1", Launching: true, Timeout: 15 * time.Minute}), true, hook("ash-1", "t-1", 15*time.Minute), nil},
		{"a launch of three", in("Pending:Wait", removing(shared)), true, hook("ash-2", "t-2", 10*time.Minute), nil},
		{"no heartbeat is allowed", unheld(noBeat, 5*time.Minute, nil), false, hook("ash-1", "t-1", 5*time.Minute), nil},
		{"no heartbeat, and no look at the hooks", unheld(noBeat, 0, noBeat), false, hook("ash-1", "t-1", 10*time.Minute), nil},
		{"no heartbeat is left", unheld(alibaba.ErrOften, 5*time.Minute, nil), false, fixed, nil},
		{"a heartbeat in a storm", unheld(alibaba.ErrThrottled, 0, nil), false, nil, alibaba.ErrThrottled},
		{"over meanwhile", unheld(alibaba.ErrOver, 0, nil), false, nil, ErrNoAction},
		{"no list of the hooks", unheld(nil, 0, alibaba.ErrThrottled), false, nil, alibaba.ErrThrottled},
		{"denied", &essFake{member: removing().member, err: map[string]error{"pending": denied}}, false, nil, &DeniedError{}},
		{"ill", &essFake{member: removing().member, err: map[string]error{"membership": alibaba.ErrThrottled}}, false, nil, alibaba.ErrThrottled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				got, err := NewAlibabaCompleter(tt.api, AlibabaCompleterOptions{}).Discover(t.Context(), tt.launching)
				if _, isDenied := errors.AsType[*DeniedError](tt.err); isDenied {
					d, ok := errors.AsType[*DeniedError](err)
					if !ok || d.Permission != denied.Action || d.Policy != "{}" {
						t.Errorf("%v", err)
					}
				} else if others, ok := errors.AsType[*OthersHooksError](tt.err); ok {
					if !errors.As(err, &others) || len(others.Hooks) != len(tt.api.actions) {
						t.Errorf("%v", err)
					}
				} else if !errors.Is(err, tt.err) {
					t.Errorf("%v, want %v", err, tt.err)
				}
				if tt.want != nil {
					tt.want.Launching = tt.launching
				}
				if tt.launching && len(tt.api.said) > 0 {
					t.Errorf("a start was given more time: %v", tt.api.said)
				}
				if got != nil {
					if left := time.Until(got.Limit); left != map[bool]time.Duration{false: 6 * time.Hour, true: 5*time.Minute - 12*time.Second}[got.Fixed] {
						t.Errorf("it waits for %s at most", left)
					}
					got.Limit = time.Time{}
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// A drain of six hours with its heartbeats: never more than the twenty that a token is allowed, however many machines have
// one token, and never one that comes too late.
func TestAlibabaHeartbeats(t *testing.T) {
	t.Parallel()
	for _, machines := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 40} {
		synctest.Test(t, func(t *testing.T) {
			others := make([]string, machines-1)
			for i := range others {
				others[i] = fmt.Sprintf("i-%d", i)
			}
			f := removing(alibaba.Action{Hook: "ash-1", Token: "t-1", Others: others})
			c := NewAlibabaCompleter(f, AlibabaCompleterOptions{})
			h, err := c.Discover(t.Context(), false)
			must.OK(t, err)
			end := time.Now().Add(6 * time.Hour)
			for time.Now().Before(end) {
				must.OK(t, c.Heartbeat(t.Context(), *h))
				<-time.After(h.Timeout / 2) // as the manager does
			}
			// The cloud allows a token twenty heartbeats.
			if all := len(f.said) * machines; all > max(20, 2*machines) || all < machines {
				t.Errorf("%d machines beat %d times", machines, all)
			}
			for _, s := range f.said {
				var hook, token, wait string
				_, _ = fmt.Sscanf(s, "beat %s %s %s", &hook, &token, &wait)
				if d, err := time.ParseDuration(wait); err != nil || d < alibaba.LeastWait || d > alibaba.LongestWait {
					t.Errorf("%s", s)
				}
			}
		})
	}
}

func TestAlibabaHeartbeatLimit(t *testing.T) {
	t.Parallel()
	f := removing(alibaba.Action{Hook: "ash-1", Token: "t-1"})
	f.longest = 7 * time.Minute
	c := NewAlibabaCompleter(f, AlibabaCompleterOptions{})
	h, err := c.Discover(t.Context(), false)
	if err != nil || h.Timeout != 5*time.Minute {
		t.Fatal(h, err)
	}
	// What the discovery has said needs not be said once more.
	if err := c.Heartbeat(t.Context(), *h); err != nil {
		t.Error(err)
	}
	if want := []string{"beat ash-1 t-1 40m0s", "beat ash-1 t-1 20m0s", "beat ash-1 t-1 10m0s", "beat ash-1 t-1 5m0s"}; !cmp.Equal(f.said, want) {
		t.Errorf("%v", f.said)
	}
	clear(c.beaten)
	// None is left: it is told, and the hook is not over.
	f.longest = time.Second
	if err := c.Heartbeat(t.Context(), *h); !errors.Is(err, alibaba.ErrLimit) || errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	// Too often is too often, however short. With more machines than heartbeats that is no trouble: others have asked.
	f.err["beat"], f.said = alibaba.ErrOften, nil
	if err := c.Heartbeat(t.Context(), *h); !errors.Is(err, alibaba.ErrOften) || len(f.said) != 1 {
		t.Errorf("%v %v", err, f.said)
	}
	many := *h
	many.Timeout = alibaba.LongestWait
	if err := c.Heartbeat(t.Context(), many); err != nil {
		t.Errorf("%v", err)
	}
	delete(f.err, "beat")
	delete(f.waits, "t-1")
	if err := c.Heartbeat(t.Context(), *h); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
}

func TestAlibabaComplete(t *testing.T) {
	t.Parallel()
	one, two := alibaba.Action{Hook: "ash-1", Token: "t-1"}, alibaba.Action{Hook: "ash-2", Token: "t-2"}
	f := removing(one, two)
	c := NewAlibabaCompleter(f, AlibabaCompleterOptions{})
	h, err := c.Discover(t.Context(), false)
	must.OK(t, err)
	// One of two does not answer: the other is not told twice.
	f.err["t-1"] = alibaba.ErrThrottled
	if err := c.Complete(t.Context(), *h); !errors.Is(err, alibaba.ErrThrottled) {
		t.Errorf("%v", err)
	}
	f.err["t-1"] = nil
	if err := c.Complete(t.Context(), *h); err != nil {
		t.Error(err)
	}
	if want := []string{"complete ash-1 t-1", "complete ash-2 t-2", "complete ash-1 t-1"}; !cmp.Equal(f.said[2:], want) {
		t.Errorf("%v", f.said)
	}
	// OOS was first: that is the end, and no trouble.
	if err := c.Complete(t.Context(), *h); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	// One was told by somebody else, the other by us.
	f.said, f.waits["t-2"] = nil, true
	if err := c.Complete(t.Context(), *h); err != nil {
		t.Errorf("%v", err)
	}
	// An end is never abandoned: it would skip the other hooks.
	f.said, f.waits["t-1"] = nil, true
	if err := c.Complete(t.Context(), Hook{Provider: "alibaba", Name: "ash-1", Token: "t-1"}); err != nil || f.said[0] != "complete ash-1 t-1" {
		t.Errorf("%v %v", err, f.said)
	}
	// Without a token it is looked up.
	f.said, f.waits["t-2"] = nil, true
	if err := c.Complete(t.Context(), Hook{Provider: "alibaba", Name: "ash-2"}); err != nil || len(f.said) != 1 {
		t.Errorf("%v %v", err, f.said)
	}
	if err := c.Complete(t.Context(), Hook{Provider: "alibaba", Name: "ash-2"}); !errors.Is(err, ErrNoAction) {
		t.Errorf("%v", err)
	}
	f.err["t-1"] = &alibaba.DeniedError{Action: "ess:CompleteLifecycleAction", Policy: "{}"}
	if _, ok := errors.AsType[*DeniedError](c.Complete(t.Context(), Hook{Provider: "alibaba", Name: "ash-1", Token: "t-1"})); !ok {
		t.Error("not denied")
	}
}

// What an OOS template hands over.
func TestParseEventOOS(t *testing.T) {
	t.Parallel()
	hook := Hook{Provider: "alibaba", Name: "ash-1", Token: "F324B880"}
	e := func(change func(*Event)) Event {
		e := Event{InstanceID: "i-1", Kind: Terminate, Hook: hook, Shape: "OOS placeholders"}
		if change != nil {
			change(&e)
		}
		return e
	}
	several := e(func(e *Event) { e.Instances = []string{"i-1", "i-2"} })
	const rest = `,"lifecycleHookId":"ash-1","lifecycleActionToken":"F324B880"}`
	for _, tt := range []struct {
		name, body string
		want       Event
		bad        string
	}{
		{"one", `{"regionId":"cn-hangzhou","instanceIds":["i-1"]` + rest, e(nil), ""},
		{"several", `{"instanceIds":["i-2","i-1","i-2"]` + rest, several, ""},
		{"a list as text", `{"instanceIds":"[\"i-2\",\"i-1\"]"` + rest, several, ""},
		{"commas", `{"instanceIds":"i-2, i-1"` + rest, several, ""},
		{"all as text", `"{\"instanceIds\":[\"i-1\"],\"lifecycleHookId\":\"ash-1\",\"lifecycleActionToken\":\"F324B880\"}"`, e(nil), ""},
		{"scale-out", `{"instanceIds":["i-1"],"lifecycleTransition":"SCALE_OUT"` + rest, e(func(e *Event) { e.Kind, e.Hook.Launching = Launch, true }), ""},
		{"with the group", `{"scalingGroupId":"asg-1","instanceIds":["i-1"]` + rest, e(func(e *Event) { e.Group, e.Hook.Group = "asg-1", "asg-1" }), ""},
		{"no instances", `{"instanceIds":[]` + rest, Event{}, "names no instance"},
		{"no token", `{"instanceIds":["i-1"],"lifecycleHookId":"ash-1"}`, Event{}, "names no lifecycle action"},
		{"nobody replaced it", `{"instanceIds":["i-1"],"lifecycleHookId":"${lifecycleHookId}","lifecycleActionToken":"x"}`, Event{}, "placeholder"},
		{"no ids", `{"instanceIds":["rm -rf /"]` + rest, Event{}, "no instance id"},
		{"no list", `{"instanceIds":{"a":1}` + rest, Event{}, "no list"},
		{"another transition", `{"instanceIds":["i-1"],"lifecycleTransition":"PARTY"` + rest, Event{}, "neither SCALE_IN nor SCALE_OUT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseEvent([]byte(tt.body))
			if (err != nil) != (tt.bad != "") || err != nil && !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("error %v, want %q", err, tt.bad)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, ok := several.For("i-3"); ok {
		t.Error("it is about a machine that it does not name")
	}
	mine, ok := several.For("i-2")
	now := time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)
	n := mine.Notice(now)
	want := Notice{
		ID: "alibaba/i-2/terminate", Source: "event", Kind: Terminate, Who: "Auto Scaling", Reason: "scale-in, hook ash-1", Received: now,
		Hook: &Hook{Provider: "alibaba", Name: "ash-1", Token: "F324B880", Others: []string{"i-1"}, Timeout: 80 * time.Minute, Limit: now.Add(6 * time.Hour)},
	}
	if diff := cmp.Diff(want, n); !ok || diff != "" {
		t.Error(diff)
	}
}

// The same on Alibaba Cloud.
func TestAlibabaHookMadeLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &essFake{member: &alibaba.Membership{Group: "asg", State: "Removing"}, hooks: []alibaba.LifecycleHook{{ID: "ash-1", Name: "amsagent-end"}}}
		c := NewAlibabaCompleter(f, AlibabaCompleterOptions{})
		// An event need not name the group.
		if err := c.mine(t.Context(), Hook{Name: "ash-1"}); err != nil {
			t.Error(err)
		}
		f.hooks = append(f.hooks, alibaba.LifecycleHook{ID: "ash-2", Name: "logs"})
		tick(10 * time.Second)
		f.err = map[string]error{"hooks": alibaba.ErrThrottled}
		if err := c.mine(t.Context(), Hook{Group: "asg", Name: "ash-2"}); !errors.Is(err, alibaba.ErrThrottled) {
			t.Error(err)
		}
		f.err = nil
		for _, id := range []string{"ash-2", "ash-3"} {
			err := c.mine(t.Context(), Hook{Group: "asg", Name: id})
			if _, ok := errors.AsType[*OthersHooksError](err); !ok {
				t.Errorf("%s: %v, calls %v", id, err, f.said)
			}
		}
		f.err = map[string]error{"hooks": &alibaba.DeniedError{Action: "ess:DescribeLifecycleHooks"}}
		if err := c.mine(t.Context(), Hook{Group: "asg", Name: "ash-4"}); err != nil {
			t.Error(err)
		}
	})
}
