// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/fakes/control"
)

// ScalingOptions are the address of the API and the times of the groups.
type ScalingOptions struct {
	// Listen is the address of the API; default 127.0.0.1:0.
	Listen string
	// WaitDelay is the time from the start of a scaling activity to the wait of the hooks: a group takes the machine out of
	// its load balancer first.
	WaitDelay time.Duration
	// ActionDelay is how long the API lists no lifecycle action although the wait is on.
	ActionDelay time.Duration
	// Log gets a line for each entry of the books; default none.
	Log *slog.Logger
}

// Hook is one lifecycle hook of a group.
type Hook struct {
	Name      string
	Launching bool
	// Timeout is how long it waits for the first heartbeat, Limit how long in all.
	Timeout, Limit time.Duration
	// Default is what is done at the timeout: CONTINUE, ABANDON or ROLLBACK.
	Default string
}

// ParseHook reads a hook of the command line, NAME:TRANSITION[:TIMEOUT[:LIMIT]].
func ParseHook(s, terminating, launching string) (Hook, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 4 || parts[0] == "" || parts[1] != terminating && parts[1] != launching {
		return Hook{}, fmt.Errorf("%q is not NAME:%s|%s[:TIMEOUT[:LIMIT]]", s, terminating, launching)
	}
	h := Hook{Name: parts[0], Launching: parts[1] == launching}
	for i, text := range parts[2:] {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return Hook{}, fmt.Errorf("%q is not a timeout of a hook", text)
		}
		*[]*time.Duration{&h.Timeout, &h.Limit}[i] = d
	}
	return h, nil
}

// Entry is one line of the books.
type Entry struct {
	Time     time.Time `json:"time"`
	What     What      `json:"what"`
	Instance string    `json:"instance,omitempty"`
	Group    string    `json:"group,omitempty"`
	Hook     string    `json:"hook,omitempty"`
	Token    string    `json:"token,omitempty"`
	// Text is the state, the target, the result, or the call.
	Text string `json:"text,omitempty"`
	// By is the instance whose key signed the call.
	By string `json:"by,omitempty"`
	// Code is the error that was answered; empty: none.
	Code string `json:"code,omitempty"`
}

// What happened.
type What string

// What can be in the books.
const (
	Target    What = "target"    // the target state changed
	State     What = "state"     // the lifecycle state changed
	Wait      What = "wait"      // a hook began to wait, one line for each instance
	Heartbeat What = "heartbeat" // a hook was made to wait longer
	Completed What = "completed" // a hook was completed, Text is the result
	TimedOut  What = "timed out" // a hook has expired, Text is which timeout
	Gone      What = "gone"      // an instance was released, Text is the cause
	Call      What = "call"      // the API was called
)

// The texts of Gone.
const (
	ByHook = "no hook waits any more"
	ByTime = "its time was over"
)

// errUnknown is an instance or a group that the account does not have.
var errUnknown = errors.New("not known here")

// Scaling is an account with scaling groups: it moves instances through their states, waits at hooks, and keeps books. The
// names of the states and the format of the calls are those of a cloud, as are times and results that a hook leaves open.
type Scaling struct {
	FaultList
	*EventLog[Entry]
	o     ScalingOptions
	usual func(Hook) Hook
	http  *control.Server

	Mu         sync.Mutex
	Groups     map[string][]Hook
	Instances  map[string]*Instance
	Activities []*Activity
	denied     map[string]bool
	closed     bool
}

// Instance is one instance of a group. Its fields are guarded by the lock of the account.
type Instance struct {
	ID, Group, State, Target string
	// Aimed is called with each new target; nil: the cloud has no targets.
	Aimed func(target string)
}

// Activity takes some instances of one group from one state to another.
type Activity struct {
	ID, Group string
	Launching bool
	Instances []*Instance
	Actions   []*Action
	Over      bool
	late      bool
	then      func(result, by string)
}

// Action is one wait of a hook: one token for all instances of the activity.
type Action struct {
	Hook     Hook
	Activity *Activity
	Token    string
	Began    time.Time
	Visible  time.Time // for the API
	Beats    int
	Done     bool
	timer    *time.Timer
}

// Init sets up an account. whose is its name in errors, usual returns a hook with what it leaves open.
func (s *Scaling) Init(whose string, o ScalingOptions, usual func(Hook) Hook) {
	s.api, s.o, s.usual = true, o, usual
	s.EventLog = NewEventLog[Entry](whose, &s.Mu, o.Log)
	s.Groups, s.Instances, s.denied = map[string][]Hook{}, map[string]*Instance{}, map[string]bool{}
}

// Start answers calls with api until Close or until ctx is done.
func (s *Scaling) Start(ctx context.Context, api http.Handler) (err error) {
	if s.http, err = control.Serve(ctx, cmp.Or(s.o.Listen, "127.0.0.1:0"), api); err == nil {
		context.AfterFunc(ctx, func() { _ = s.Close() })
	}
	return err
}

// Endpoint is the origin of the API, without a path.
func (s *Scaling) Endpoint() string { return "http://" + s.http.Addr() }

// Close ends the API and all activities.
func (s *Scaling) Close() error {
	s.ClearFaults()
	s.Mu.Lock()
	s.closed = true
	for _, a := range s.Activities {
		a.end()
	}
	s.Mu.Unlock()
	return s.http.Close()
}

// Group adds a group, or changes its hooks. Actions that wait continue.
func (s *Scaling) Group(name string, hooks ...Hook) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	all := []Hook{} // never nil: nil is a group that does not exist
	for _, h := range hooks {
		all = append(all, s.usual(h))
	}
	s.Groups[name] = all
}

// Join makes an instance a member of a group without running a hook.
func (s *Scaling) Join(i *Instance) error {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if _, ok := s.Groups[i.Group]; !ok || i.ID == "" {
		return fmt.Errorf("attaching %q to %q: %w", i.ID, i.Group, errUnknown)
	}
	s.Instances[i.ID] = i
	s.Aim(i, "InService")
	s.Enter(i, "InService")
	return nil
}

// With looks up instances of one group and calls f under the lock.
func (s *Scaling) With(ids []string, f func([]*Instance)) error {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	var all []*Instance
	for _, id := range ids {
		i := s.Instances[id]
		if i == nil || s.closed || len(all) > 0 && all[0].Group != i.Group {
			return fmt.Errorf("scaling %q: %w", id, errUnknown)
		}
		all = append(all, i)
	}
	if len(all) == 0 {
		return fmt.Errorf("scaling nothing: %w", errUnknown)
	}
	f(all)
	return nil
}

// Move puts an instance into a target through some states, and runs no hook.
func (s *Scaling) Move(id, target string, states ...string) error {
	return s.With([]string{id}, func(all []*Instance) {
		s.stop(all[0])
		s.Aim(all[0], target)
		for _, state := range states {
			s.Enter(all[0], state)
		}
	})
}

// Through takes instances to STATE, lets the hooks wait in STATE:Wait, and calls then. The lock is held.
func (s *Scaling) Through(all []*Instance, state string, launching bool, then func(result, by string)) {
	a := &Activity{ID: "asa-" + strings.ToLower(rand.Text()), Group: all[0].Group, Launching: launching, Instances: all, then: then}
	for _, i := range all {
		s.stop(i)
		s.Enter(i, state)
	}
	s.Activities = append(s.Activities, a)
	s.after(a, s.o.WaitDelay, func() { s.wait(a, state) })
}

// stop ends the activity that is about an instance alone. The lock is held.
func (s *Scaling) stop(i *Instance) {
	for _, a := range s.Activities {
		if len(a.Instances) == 1 && a.Instances[0] == i {
			a.end()
		}
	}
}

func (a *Activity) end() {
	a.Over = true
	for _, act := range a.Actions {
		act.Done = true
		act.timer.Stop()
	}
}

// after calls f under the lock, unless the activity is over by then.
func (s *Scaling) after(a *Activity, d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() {
		s.Mu.Lock()
		defer s.Mu.Unlock()
		if !a.Over && !s.closed {
			f()
		}
	})
}

func (s *Scaling) wait(a *Activity, state string) {
	hooks := slices.DeleteFunc(slices.Clone(s.Groups[a.Group]), func(h Hook) bool { return h.Launching != a.Launching })
	if len(hooks) == 0 {
		s.proceed(a, "CONTINUE")
		return
	}
	for _, i := range a.Instances {
		s.Enter(i, state+":Wait")
	}
	now := time.Now()
	for _, h := range hooks {
		act := &Action{Hook: h, Activity: a, Token: GUID(), Began: now, Visible: now.Add(s.o.ActionDelay)}
		a.Actions = append(a.Actions, act)
		s.arm(act, h.Timeout)
		for _, i := range a.Instances {
			s.Note(Entry{What: Wait, Instance: i.ID, Group: a.Group, Hook: h.Name, Token: act.Token})
		}
	}
}

// arm sets the timer of a wait, which never lasts longer than the limit of the hook.
func (s *Scaling) arm(act *Action, d time.Duration) {
	which := "heartbeat timeout"
	if left := time.Until(act.Began.Add(act.Hook.Limit)); left < d {
		which, d = "global timeout", left
	}
	if act.timer != nil {
		act.timer.Stop()
	}
	var armed *time.Timer
	armed = s.after(act.Activity, d, func() {
		if act.Done || act.timer != armed {
			return
		}
		act.Activity.late = true
		for _, i := range act.Activity.Instances {
			s.Note(Entry{What: TimedOut, Instance: i.ID, Group: i.Group, Hook: act.Hook.Name, Token: act.Token, Text: which})
		}
		s.finish(act, act.Hook.Default)
	})
	act.timer = armed
}

// Beat makes an action wait for another d. The lock is held.
func (s *Scaling) Beat(act *Action, d time.Duration, instance, by, text string) {
	act.Beats++
	s.arm(act, d)
	s.Note(Entry{What: Heartbeat, Instance: instance, Group: act.Activity.Group, Hook: act.Hook.Name, Token: act.Token, Text: text, By: by})
}

// Complete ends the wait of an action. The lock is held.
func (s *Scaling) Complete(act *Action, result, instance, by string) {
	s.Note(Entry{What: Completed, Instance: instance, Group: act.Activity.Group, Hook: act.Hook.Name, Token: act.Token, Text: result, By: by})
	s.finish(act, result)
}

// finish ends one wait. A result other than CONTINUE ends those of the other hooks, too.
func (s *Scaling) finish(act *Action, result string) {
	act.Done = true
	act.timer.Stop()
	waits := func(other *Action) bool { return !other.Done }
	if result != "CONTINUE" || !slices.ContainsFunc(act.Activity.Actions, waits) {
		s.proceed(act.Activity, result)
	}
}

func (s *Scaling) proceed(a *Activity, result string) {
	a.end()
	by := ByHook
	if a.late {
		by = ByTime
	}
	a.then(result, by)
}

// Aim changes the target state, in a cloud that has one. The lock is held.
func (s *Scaling) Aim(i *Instance, target string) {
	if i.Aimed != nil {
		i.Target = target
		i.Aimed(target)
		s.Note(Entry{What: Target, Instance: i.ID, Group: i.Group, Text: target})
	}
}

// Enter changes the state. The lock is held.
func (s *Scaling) Enter(i *Instance, state string) {
	if i.State != state {
		i.State = state
		s.Note(Entry{What: State, Instance: i.ID, Group: i.Group, Text: state})
	}
}

// Release takes an instance out of its group. The lock is held.
func (s *Scaling) Release(i *Instance, by string) {
	if s.Instances[i.ID] == i {
		delete(s.Instances, i.ID)
	}
	s.Note(Entry{What: Gone, Instance: i.ID, Group: i.Group, Text: by})
}

// Waiting are the actions that wait, for which the API may be called. The lock is held.
func (s *Scaling) Waiting(fits func(*Action) bool) *Action {
	for _, a := range s.Activities {
		for _, act := range a.Actions {
			if !act.Done && fits(act) {
				return act
			}
		}
	}
	return nil
}

// Note writes an entry. The lock is held.
func (s *Scaling) Note(e Entry) {
	e.Time = time.Now()
	s.Write(e)
}

// Deny takes permissions away (CompleteLifecycleAction, ...; * is all of them).
func (s *Scaling) Deny(actions ...string) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	for _, name := range actions {
		s.denied[name] = true
	}
}

// Allow restores all permissions.
func (s *Scaling) Allow() {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	clear(s.denied)
}

// Denied reports whether a call is denied. The lock is held.
func (s *Scaling) Denied(call string) bool { return s.denied[call] || s.denied["*"] }

// Member is what the groups know of an instance.
type Member struct {
	Instance string          `json:"instance"`
	Group    string          `json:"group"`
	State    string          `json:"state"`
	Target   string          `json:"target,omitempty"`
	Waiting  []WaitingAction `json:"waiting,omitempty"`
}

// WaitingAction is one hook that waits.
type WaitingAction struct {
	Hook       string    `json:"hook"`
	Token      string    `json:"token"`
	Began      time.Time `json:"began"`
	Heartbeats int       `json:"heartbeats"`
}

// Members lists the instances of all groups.
func (s *Scaling) Members() []Member {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	out := []Member{}
	for _, id := range slices.Sorted(maps.Keys(s.Instances)) {
		i := s.Instances[id]
		e := Member{Instance: id, Group: i.Group, State: i.State, Target: i.Target}
		for _, a := range s.Activities {
			for _, act := range a.Actions {
				if !act.Done && slices.Contains(a.Instances, i) {
					e.Waiting = append(e.Waiting, WaitingAction{act.Hook.Name, act.Token, act.Began, act.Beats})
				}
			}
		}
		out = append(out, e)
	}
	return out
}

// Verbs of the groups, with those of a cloud.
func (s *Scaling) Verbs(more ...Verb) Verbs {
	return s.FaultList.with(Verbs{
		Shown: "/members",
		Views: map[string]func() any{
			"/members": func() any { return s.Members() }, "/books": func() any { return s.Books() },
		},
		Verbs: append(more,
			With("POST /deny", "action", []string(nil), func(actions []string) error {
				s.Deny(actions...)
				return nil
			}),
			Do("DELETE /deny", s.Allow),
		),
	})
}

// APIError is an error that an API answers.
type APIError struct {
	Status        int
	Code, Message string
}

// Refuse makes an error.
func Refuse(status int, code, message string) *APIError { return &APIError{status, code, message} }

// Serve answers one call of the API: what the fault in force says, or else what do returns, under the lock. The call is in
// the books.
func (s *Scaling) Serve(w http.ResponseWriter, r *http.Request, e Entry, do func() (by string, result any, err *APIError), reply func(any, *APIError)) {
	e.What = Call
	note := func(code string) {
		s.Mu.Lock()
		defer s.Mu.Unlock()
		e.Code = code
		s.Note(e)
	}
	f, done := s.strike(w, r, note, e.Text)
	switch {
	case done:
		return
	case f.Code != "":
		note(f.Code)
		reply(nil, Refuse(cmp.Or(f.Status, http.StatusBadRequest), f.Code, cmp.Or(f.Message, "Fault of the sandbox")))
		return
	case f.Empty, f.Body != "", f.Status != 0:
		note("(fault)")
		w.WriteHeader(cmp.Or(f.Status, http.StatusOK))
		_, _ = io.WriteString(w, f.Body)
		return
	}
	s.Mu.Lock()
	by, result, err := do()
	e.By = by
	if err != nil {
		e.Code = err.Code
	}
	s.Note(e)
	s.Mu.Unlock()
	if f.Deaf && err == nil {
		reset(w)
		return
	}
	reply(result, err)
}

// List are the parameters PREFIX1, PREFIX2, ... of a call.
func List(q url.Values, prefix string) []string {
	var out []string
	for i := 1; q.Has(prefix + strconv.Itoa(i)); i++ {
		out = append(out, q.Get(prefix+strconv.Itoa(i)))
	}
	return out
}

// WholeSeconds rounds up.
func WholeSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// GUID is a random id.
func GUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
