// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/books"
	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// AutoScalingOptions says how to start. The zero value is an account without a
// group, on a free port of loopback.
type AutoScalingOptions struct {
	// Listen is the address of the API; default 127.0.0.1:0.
	Listen string
	// Control is the address of an HTTP control port; empty: none.
	Control string
	// Region is the one that requests have to be signed for; default eu-west-1.
	Region string
	// WaitDelay is the time from the change of the target state to the wait of the
	// hooks: a group takes the machine out of its load balancer first.
	WaitDelay time.Duration
	// ActionDelay is how long the API knows of no lifecycle action although the
	// wait is on.
	ActionDelay time.Duration
	// AnyKey takes every access key for a good one, instead of those alone that an
	// attached metadata service gives out.
	AnyKey bool
	// Log gets a line for each entry of the books; default none.
	Log *slog.Logger
}

// AutoScaling is a fake of the Auto Scaling API with the groups behind it: it
// moves instances through their states, tells their metadata services, waits at
// hooks, and keeps books of who said what when.
type AutoScaling struct {
	control.Ports
	faults.List[APIFault]
	o   AutoScalingOptions
	log *slog.Logger

	mu      sync.Mutex
	groups  map[string]*group
	members map[string]*member
	owners  map[string]*Server // whose role's keys are good, in a group or not
	denied  map[string]bool
	books   *books.Books[Entry]
	closed  bool
}

// Hook is one lifecycle hook of a group.
type Hook struct {
	Name      string `json:"name"`
	Launching bool   `json:"launching,omitempty"`
	// HeartbeatTimeout is how long it waits from word to word, GlobalTimeout how
	// long in all; default 1h, and the lesser of 48h and 100 times that. The API
	// tells them in whole seconds, rounded up.
	HeartbeatTimeout time.Duration `json:"heartbeat_timeout_ns,omitempty"`
	GlobalTimeout    time.Duration `json:"global_timeout_ns,omitempty"`
	// Continue is the default result: CONTINUE in place of ABANDON.
	Continue bool `json:"continue,omitempty"`
}

func (h Hook) transition() string {
	if h.Launching {
		return "autoscaling:EC2_INSTANCE_LAUNCHING"
	}
	return "autoscaling:EC2_INSTANCE_TERMINATING"
}

func (h Hook) heartbeat() time.Duration { return cmp.Or(h.HeartbeatTimeout, time.Hour) }

func (h Hook) global() time.Duration {
	return cmp.Or(h.GlobalTimeout, min(48*time.Hour, 100*h.heartbeat()))
}

type group struct {
	name  string
	hooks []Hook
}

// member is one instance of a group.
type member struct {
	id     string
	group  *group
	meta   *Server // nil: nobody is told
	state  string
	target string
	// step counts the changes of state: a timer of an older one does nothing.
	step    int
	actions map[string]*action
	abandon bool
	gone    chan struct{} // closed when it is terminated
}

type action struct {
	hook    Hook
	token   string
	began   time.Time
	visible time.Time // for the API
	beats   int
	done    bool
	timer   *time.Timer
	proceed func() // what follows when all are done
}

// Entry is one line of the books.
type Entry struct {
	Time     time.Time `json:"time"`
	What     What      `json:"what"`
	Instance string    `json:"instance,omitempty"`
	Group    string    `json:"group,omitempty"`
	Hook     string    `json:"hook,omitempty"`
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
	Wait      What = "wait"      // a hook began to wait
	Heartbeat What = "heartbeat" // a hook was told to wait longer
	Completed What = "completed" // a hook was completed, Text is the result
	TimedOut  What = "timed out" // a hook waited in vain, Text is which timeout
	Call      What = "call"      // the API was called
)

// Groups without a hook, instances that are not there and the like.
var errUnknown = errors.New("not known here")

// StartAutoScaling serves until Close or until ctx is done.
func StartAutoScaling(ctx context.Context, o AutoScalingOptions) (*AutoScaling, error) {
	o.Region = cmp.Or(o.Region, "eu-west-1")
	a := &AutoScaling{
		o: o, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		groups: map[string]*group{}, members: map[string]*member{}, owners: map[string]*Server{}, denied: map[string]bool{},
	}
	a.books = books.NewBounded[Entry](&a.mu)
	var err error
	a.Ports, err = control.ServeBoth(ctx, o.Listen, http.HandlerFunc(a.serve), o.Control, a.Handler())
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = a.Close() })
	return a, nil
}

// Close ends the API and everything that was under way.
func (a *AutoScaling) Close() error {
	a.ClearFaults()
	a.mu.Lock()
	a.closed = true
	for _, m := range a.members {
		a.enter(m, m.state) // its timers are no longer meant
	}
	a.mu.Unlock()
	return a.Ports.Close()
}

// Group adds a group, or gives it other hooks. Actions that wait go on.
func (a *AutoScaling) Group(name string, hooks ...Hook) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.groups[name]
	if g == nil {
		g = &group{name: name}
		a.groups[name] = g
	}
	g.hooks = slices.Clone(hooks)
}

// Attach makes an instance a member of a group, InService and without running
// any hook. meta is its metadata service, which is told the target state from now
// on; nil: nobody is told, and the id is needed.
func (a *AutoScaling) Attach(groupName, id string, meta *Server) error {
	if meta != nil {
		id = meta.Instance().ID
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.groups[groupName]
	if g == nil || id == "" {
		return fmt.Errorf("attaching %q to %q: %w", id, groupName, errUnknown)
	}
	m := &member{id: id, group: g, meta: meta, gone: make(chan struct{})}
	a.members[id] = m
	if meta != nil {
		a.owners[id] = meta
		meta.Update(func(i *Instance) {
			if i.Tags == nil {
				i.Tags = map[string]string{}
			}
			i.Tags["aws:autoscaling:groupName"] = groupName
		})
	}
	a.aim(m, "InService")
	a.enter(m, "InService")
	return nil
}

// begin looks up a member, under the lock.
func (a *AutoScaling) begin(doing, id string) (*member, error) {
	m := a.members[id]
	if m == nil || a.closed {
		return nil, fmt.Errorf("%s %q: %w", doing, id, errUnknown)
	}
	return m, nil
}

// Terminate plays a scale-in of the instance, in time: the target state becomes
// Terminated, after WaitDelay the hooks wait, and when all are completed or have
// timed out the instance is gone. It returns at once.
func (a *AutoScaling) Terminate(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, err := a.begin("terminating", id)
	if err != nil {
		return err
	}
	a.terminate(m)
	return nil
}

func (a *AutoScaling) terminate(m *member) {
	prefix := ""
	if strings.HasPrefix(m.state, "Warmed:") {
		prefix = "Warmed:"
	}
	a.aim(m, prefix+"Terminated")
	a.through(m, prefix+"Terminating", false, func() {
		a.enter(m, prefix+"Terminated")
		a.remove(m)
	})
}

// Launch plays the way of an instance into service, from its start or out of the
// warm pool: the launch hooks wait. With one of them abandoned it is terminated.
func (a *AutoScaling) Launch(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, err := a.begin("launching", id)
	if err != nil {
		return err
	}
	a.aim(m, "InService")
	a.through(m, "Pending", true, func() {
		if m.abandon {
			a.terminate(m)
			return
		}
		a.enter(m, "InService")
	})
	return nil
}

// Pool plays the way into the warm pool, to be kept there as Stopped, Running or
// Hibernated. From service the termination hooks wait, as with an instance reuse
// policy; for an instance that has just started the launch hooks.
func (a *AutoScaling) Pool(id, kept string, started bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, err := a.begin("pooling", id)
	if err != nil {
		return err
	}
	a.aim(m, "Warmed:"+kept)
	a.through(m, "Warmed:Pending", started, func() { a.enter(m, "Warmed:"+kept) })
	return nil
}

// Standby puts the instance aside. No hook is run.
func (a *AutoScaling) Standby(id string) error {
	return a.move(id, "Standby", "EnteringStandby", "Standby")
}

// Restore puts the instance into service whatever it was about to do, without
// running a hook: out of standby, or because a termination was taken back.
func (a *AutoScaling) Restore(id string) error {
	return a.move(id, "InService", "Pending", "InService")
}

// Detach takes the instance out of its group. No hook is run, and it goes on running.
func (a *AutoScaling) Detach(id string) error {
	if err := a.move(id, "Detached", "Detaching", "Detached"); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.members[id]; m != nil {
		a.remove(m)
		if m.meta != nil {
			m.meta.Update(func(i *Instance) { delete(i.Tags, "aws:autoscaling:groupName") })
		}
	}
	return nil
}

func (a *AutoScaling) move(id, target string, states ...string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, err := a.begin("moving", id)
	if err != nil {
		return err
	}
	a.aim(m, target)
	for _, s := range states {
		a.enter(m, s)
	}
	return nil
}

// aim changes the target state, and what the metadata says of it.
func (a *AutoScaling) aim(m *member, target string) {
	m.target = target
	if m.meta != nil {
		m.meta.SetTarget(target)
	}
	a.write(Entry{What: Target, Instance: m.id, Group: m.group.name, Text: target})
}

// enter changes the state. Whatever waited waits no longer.
func (a *AutoScaling) enter(m *member, state string) {
	m.step++
	for _, act := range m.actions {
		act.timer.Stop()
	}
	m.actions = nil
	if m.state == state {
		return
	}
	m.state = state
	a.write(Entry{What: State, Instance: m.id, Group: m.group.name, Text: state})
}

// after calls f under the lock, unless the state has changed meanwhile.
func (a *AutoScaling) after(m *member, d time.Duration, f func()) *time.Timer {
	step := m.step
	return time.AfterFunc(d, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if m.step == step && !a.closed {
			f()
		}
	})
}

// through plays STATE, STATE:Wait for the hooks, STATE:Proceed, and then what follows.
func (a *AutoScaling) through(m *member, state string, launching bool, then func()) {
	a.enter(m, state)
	m.abandon = false
	proceed := func() {
		a.enter(m, state+":Proceed")
		then()
	}
	a.after(m, a.o.WaitDelay, func() {
		var hooks []Hook
		for _, h := range m.group.hooks {
			if h.Launching == launching {
				hooks = append(hooks, h)
			}
		}
		if len(hooks) == 0 {
			proceed()
			return
		}
		a.enter(m, state+":Wait")
		m.actions = map[string]*action{}
		for _, h := range hooks {
			now := time.Now()
			act := &action{hook: h, token: rand.Text(), began: now, visible: now.Add(a.o.ActionDelay), proceed: proceed}
			m.actions[h.Name] = act
			a.arm(m, act)
			a.write(Entry{What: Wait, Instance: m.id, Group: m.group.name, Hook: h.Name})
		}
	})
}

// arm sets the timer of a wait: to the heartbeat's timeout, or to the global one.
func (a *AutoScaling) arm(m *member, act *action) {
	which, d := "heartbeat timeout", act.hook.heartbeat()
	if left := time.Until(act.began.Add(act.hook.global())); left < d {
		which, d = "global timeout", left
	}
	if act.timer != nil {
		act.timer.Stop()
	}
	var armed *time.Timer
	armed = a.after(m, d, func() {
		if act.done || act.timer != armed {
			return
		}
		a.write(Entry{What: TimedOut, Instance: m.id, Group: m.group.name, Hook: act.hook.Name, Text: which})
		a.finish(m, act, act.hook.Continue)
	})
	act.timer = armed
}

// finish ends the wait of one hook. An abandoned one ends the others' too.
func (a *AutoScaling) finish(m *member, act *action, goOn bool) {
	act.done = true
	act.timer.Stop()
	if !goOn {
		m.abandon = true
	}
	for _, other := range m.actions {
		if !other.done && !m.abandon {
			return
		}
	}
	act.proceed()
}

func (a *AutoScaling) remove(m *member) {
	if a.members[m.id] == m {
		delete(a.members, m.id)
		close(m.gone)
	}
}

// write adds an entry, under the lock.
func (a *AutoScaling) write(e Entry) {
	e.Time = time.Now()
	a.log.Info("auto scaling", "what", e.What, "instance", e.Instance, "group", e.Group, "hook", e.Hook, "text", e.Text, "by", e.By, "code", e.Code)
	a.books.Write(e)
}

// Books are what has happened, oldest first.
func (a *AutoScaling) Books() []Entry { return a.books.All() }

// Follow returns the books, and a channel that is closed with their next entry.
func (a *AutoScaling) Follow() ([]Entry, <-chan struct{}) { return a.books.Follow() }

// WaitFor waits until the books hold an entry that fits, and returns the first.
func (a *AutoScaling) WaitFor(ctx context.Context, fits func(Entry) bool) (Entry, error) {
	return a.books.WaitFor(ctx, "Auto Scaling", fits)
}

// Member is what the groups know of an instance.
type Member struct {
	Instance string          `json:"instance"`
	Group    string          `json:"group"`
	State    string          `json:"state"`
	Target   string          `json:"target"`
	Waiting  []WaitingAction `json:"waiting,omitempty"`
}

// WaitingAction is one hook that waits for word.
type WaitingAction struct {
	Hook       string    `json:"hook"`
	Token      string    `json:"token"`
	Began      time.Time `json:"began"`
	Heartbeats int       `json:"heartbeats"`
}

// Members lists the instances of all groups.
func (a *AutoScaling) Members() []Member {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := []Member{}
	for _, id := range slices.Sorted(maps.Keys(a.members)) {
		m := a.members[id]
		e := Member{Instance: id, Group: m.group.name, State: m.state, Target: m.target}
		for _, name := range slices.Sorted(maps.Keys(m.actions)) {
			if act := m.actions[name]; !act.done {
				e.Waiting = append(e.Waiting, WaitingAction{Hook: name, Token: act.token, Began: act.began, Heartbeats: act.beats})
			}
		}
		out = append(out, e)
	}
	return out
}

// Gone is closed when the instance is in no group any more. It is nil for one that is not known.
func (a *AutoScaling) Gone(id string) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.members[id]; m != nil {
		return m.gone
	}
	return nil
}

// Deny takes permissions away (CompleteLifecycleAction, ...), Allow gives all back.
func (a *AutoScaling) Deny(actions ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range actions {
		a.denied[strings.TrimPrefix(name, "autoscaling:")] = true
	}
}

// Allow gives all permissions back.
func (a *AutoScaling) Allow() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.denied)
}

// APIFault spoils the answers to some calls. Delay may go with any other field; of
// the others one is to be set.
type APIFault struct {
	// Action is the call it is about; empty: every one.
	Action string `json:"action,omitempty"`
	// Delay holds the answer back.
	Delay time.Duration `json:"delay_ns,omitempty"`
	// Code is the error that is answered, with Status (default 400) and Message:
	// Throttling, ResourceContention, InternalFailure with 500.
	Code    string `json:"code,omitempty"`
	Status  int    `json:"status,omitempty"`
	Message string `json:"message,omitempty"`
	// Body is answered as it is, with status 200 where none is given.
	Body string `json:"body,omitempty"`
	// Empty answers nothing, with status 200 where none is given.
	Empty bool `json:"empty,omitempty"`
	// Hang never answers, Reset resets the connection.
	Hang  bool `json:"hang,omitempty"`
	Reset bool `json:"reset,omitempty"`
	// Deaf does what is asked and then resets the connection.
	Deaf bool `json:"deaf,omitempty"`
	// Times ends it after so many calls; 0 means never.
	Times int `json:"times,omitempty"`
}

// HTTP implements [faults.Fault]. It leaves Status out, which is no kind of its own but goes with Code, Body or Empty.
func (f APIFault) HTTP() faults.HTTP {
	return faults.HTTP{Delay: f.Delay, Hang: f.Hang, Reset: f.Reset, Times: f.Times}
}

// Validate implements [faults.Fault].
func (f APIFault) Validate() error {
	err := f.HTTP().Validate("a fault of the API has one kind: code, body, empty, hang, reset or deaf", f.Code != "", f.Body != "", f.Empty, f.Deaf)
	if err != nil {
		return err
	}
	return faults.ValidStatus(f.Status)
}
