// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

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

// CloudOptions says how to start. The zero value is an account without a group, on a
// free port of loopback.
type CloudOptions struct {
	// Listen is the address of the API; default 127.0.0.1:0.
	Listen string
	// WaitDelay is the time from Removing to Removing:Wait, ActionDelay how long no
	// lifecycle action is listed although the wait is on.
	WaitDelay, ActionDelay time.Duration
	// Longest is how long a wait can last, and Beats how often it can be prolonged;
	// default 6h and 20.
	Longest time.Duration
	Beats   int
	// Skew is how far the API's clock is ahead of this machine's.
	Skew time.Duration
	// Log gets a line for each entry of the books; default none.
	Log *slog.Logger
}

// Cloud is a fake of the APIs of Auto Scaling (ESS) and ECS, on one port, with the
// groups behind them: it moves instances through their states, waits at hooks, and
// keeps books of who said what when.
type Cloud struct {
	faults.List[Fault]
	o    CloudOptions
	log  *slog.Logger
	http *control.Server

	mu         sync.Mutex
	groups     map[string]*group
	members    map[string]*member
	owners     []*Server // whose role's keys are good
	activities map[string]*activity
	denied     map[string]bool
	nonces     map[string]bool
	secrets    map[string]secret // of KMS
	wrapped    bool
	skew       time.Duration
	books      *books.Books[Entry]
	closed     bool
}

// Hook is one lifecycle hook of a group.
type Hook struct {
	ID        string `json:"id"`
	Launching bool   `json:"launching,omitempty"`
	// Timeout is how long it waits for a first word; default 10m. The API tells it in
	// whole seconds, rounded up.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	// Default is what is done when it has waited in vain: CONTINUE (the default),
	// ABANDON or ROLLBACK.
	Default string `json:"default,omitempty"`
}

type group struct {
	id    string
	hooks []Hook
}

type member struct {
	id    string
	group *group
	meta  *Server // nil: nobody is told
	state string
}

// activity is one scaling activity with the instances that it is about.
type activity struct {
	id      string
	group   *group
	out     bool // scale-out
	members []*member
	actions []*action
	over    bool
}

type action struct {
	activity *activity
	hook     Hook
	token    string
	began    time.Time
	visible  time.Time // for the API
	beats    int
	done     bool
	timer    *time.Timer
}

// Entry is one line of the books.
type Entry struct {
	Time     time.Time `json:"time"`
	What     What      `json:"what"`
	Instance string    `json:"instance,omitempty"`
	Group    string    `json:"group,omitempty"`
	Hook     string    `json:"hook,omitempty"`
	Token    string    `json:"token,omitempty"`
	// Text is the state, the result, or the call.
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
	State     What = "state"     // an instance's state changed
	Wait      What = "wait"      // a hook began to wait, once for each instance
	Heartbeat What = "heartbeat" // it was made to wait longer; Text is for how long
	Completed What = "completed" // it was completed, Text is the result
	TimedOut  What = "timed out" // its time was over
	Gone      What = "gone"      // an instance was released; Text says by what
	Call      What = "call"      // the API was called
)

// The texts of Gone.
const (
	ByHook = "no hook waits any more"
	ByTime = "its time was over"
)

var errUnknown = errors.New("not known here")

// StartCloud serves until Close or until ctx is done.
func StartCloud(ctx context.Context, o CloudOptions) (*Cloud, error) {
	o.Longest, o.Beats = cmp.Or(o.Longest, 6*time.Hour), cmp.Or(o.Beats, 20)
	c := &Cloud{
		o: o, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), skew: o.Skew,
		groups: map[string]*group{}, members: map[string]*member{}, activities: map[string]*activity{},
		denied: map[string]bool{}, nonces: map[string]bool{}, secrets: map[string]secret{},
	}
	c.books = books.NewBounded[Entry](&c.mu)
	var err error
	if c.http, err = control.Serve(ctx, cmp.Or(o.Listen, "127.0.0.1:0"), http.HandlerFunc(c.serve)); err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = c.Close() })
	return c, nil
}

// Endpoint is the origin of both APIs, without a path.
func (c *Cloud) Endpoint() string { return "http://" + c.http.Addr() }

// Close ends the API and everything that was under way.
func (c *Cloud) Close() error {
	c.ClearFaults()
	c.mu.Lock()
	c.closed = true
	for _, a := range c.activities {
		c.end(a)
	}
	c.mu.Unlock()
	if err := c.http.Close(); err != nil {
		return fmt.Errorf("closing the API: %w", err)
	}
	return nil
}

func (c *Cloud) know(s *Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owners = append(c.owners, s)
}

// Wrap makes the API wrap its lists as that of 2014 does, or not.
func (c *Cloud) Wrap(wrapped bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrapped = wrapped
}

// SetSkew changes how far the API's clock is ahead.
func (c *Cloud) SetSkew(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skew = d
}

// Deny takes permissions away (CompleteLifecycleAction, ...; * is all of them), Allow
// gives all back.
func (c *Cloud) Deny(actions ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range actions {
		c.denied[name] = true
	}
}

// Allow gives all permissions back.
func (c *Cloud) Allow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.denied)
}

// Group adds a group, or gives it other hooks. Actions that wait go on.
func (c *Cloud) Group(id string, hooks ...Hook) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.groups[id]
	if g == nil {
		g = &group{id: id}
		c.groups[id] = g
	}
	g.hooks = slices.Clone(hooks)
}

// Attach makes an instance a member of a group, InService and without running any
// hook. meta is its metadata service; nil: none, and the id is needed.
func (c *Cloud) Attach(groupID, id string, meta *Server) error {
	if meta != nil {
		id = meta.Instance().ID
		meta.Update(func(i *Instance) {
			if i.Tags == nil {
				i.Tags = map[string]string{}
			}
			i.Tags["acs:autoscaling:scalingGroupId"] = groupID
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.groups[groupID]
	if g == nil || id == "" {
		return fmt.Errorf("attaching %q to %q: %w", id, groupID, errUnknown)
	}
	m := &member{id: id, group: g, meta: meta}
	c.members[id] = m
	c.enter(m, "InService")
	return nil
}

// ScaleIn plays the scale-in of some instances of one group by one activity, in time.
// It returns at once.
func (c *Cloud) ScaleIn(ids ...string) error { return c.begin("Removing", false, ids) }

// ScaleOut plays the start of some instances by one activity.
func (c *Cloud) ScaleOut(ids ...string) error { return c.begin("Pending", true, ids) }

// Move puts an instance into a state (Standby, Protected, InService, Stopped), and
// runs no hook. Whatever was under way with it alone is over.
func (c *Cloud) Move(id, state string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.members[id]
	if m == nil {
		return fmt.Errorf("moving %q: %w", id, errUnknown)
	}
	for _, a := range c.activities {
		if !a.over && len(a.members) == 1 && a.members[0] == m {
			c.end(a)
		}
	}
	c.enter(m, state)
	return nil
}

func (c *Cloud) begin(state string, out bool, ids []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &activity{id: "asa-" + strings.ToLower(rand.Text()), out: out}
	for _, id := range ids {
		m := c.members[id]
		if m == nil || a.group != nil && a.group != m.group || c.closed {
			return fmt.Errorf("scaling %q: %w", id, errUnknown)
		}
		a.group, a.members = m.group, append(a.members, m)
	}
	if a.group == nil {
		return fmt.Errorf("scaling nothing: %w", errUnknown)
	}
	c.activities[a.id] = a
	for _, m := range a.members {
		c.enter(m, state)
	}
	time.AfterFunc(c.o.WaitDelay, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !a.over && !c.closed {
			c.wait(a, state)
		}
	})
	return nil
}

// wait lets the hooks wait: each has one action, and one token, for all instances.
func (c *Cloud) wait(a *activity, state string) {
	now := time.Now()
	for _, h := range a.group.hooks {
		if h.Launching != a.out {
			continue
		}
		act := &action{activity: a, hook: h, token: requestID(), began: now, visible: now.Add(c.o.ActionDelay)}
		a.actions = append(a.actions, act)
		c.arm(act, cmp.Or(h.Timeout, 10*time.Minute))
		for _, m := range a.members {
			c.write(Entry{What: Wait, Instance: m.id, Group: a.group.id, Hook: h.ID, Token: act.token})
		}
	}
	if len(a.actions) == 0 {
		c.proceed(a, "CONTINUE", ByHook)
		return
	}
	for _, m := range a.members {
		c.enter(m, state+":Wait")
	}
}

// arm sets the timer of a wait, which is never longer than all of it may be.
func (c *Cloud) arm(act *action, d time.Duration) {
	d = min(d, time.Until(act.began.Add(c.o.Longest)))
	if act.timer != nil {
		act.timer.Stop()
	}
	var armed *time.Timer
	armed = time.AfterFunc(d, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if act.done || act.timer != armed || c.closed {
			return
		}
		for _, m := range act.activity.members {
			c.write(Entry{What: TimedOut, Instance: m.id, Group: act.activity.group.id, Hook: act.hook.ID, Token: act.token})
		}
		c.finish(act, cmp.Or(act.hook.Default, "CONTINUE"), ByTime)
	})
	act.timer = armed
}

// finish ends the wait of one action. One that is not continued ends the others' too.
func (c *Cloud) finish(act *action, result, by string) {
	act.done = true
	act.timer.Stop()
	if result == "CONTINUE" {
		for _, other := range act.activity.actions {
			if !other.done {
				return
			}
		}
	}
	c.proceed(act.activity, result, by)
}

// end takes the timers from an activity.
func (c *Cloud) end(a *activity) {
	a.over = true
	for _, act := range a.actions {
		act.done = true
		act.timer.Stop()
	}
}

// proceed does what the activity was for.
func (c *Cloud) proceed(a *activity, result, by string) {
	c.end(a)
	for _, m := range a.members {
		switch {
		case !a.out && result == "ROLLBACK", a.out && result == "CONTINUE":
			c.enter(m, "InService")
		default:
			if c.members[m.id] == m {
				delete(c.members, m.id)
			}
			c.write(Entry{What: Gone, Instance: m.id, Group: m.group.id, Text: by})
		}
	}
}

func (c *Cloud) enter(m *member, state string) {
	if m.state == state {
		return
	}
	m.state = state
	c.write(Entry{What: State, Instance: m.id, Group: m.group.id, Text: state})
}

// write adds an entry, under the lock.
func (c *Cloud) write(e Entry) {
	e.Time = time.Now()
	c.log.Info("scaling", "what", e.What, "instance", e.Instance, "group", e.Group, "hook", e.Hook, "text", e.Text, "by", e.By, "code", e.Code)
	c.books.Write(e)
}

// Books are what has happened, oldest first.
func (c *Cloud) Books() []Entry { return c.books.All() }

// Follow gives the books, and a channel that is closed with the next entry.
func (c *Cloud) Follow() ([]Entry, <-chan struct{}) { return c.books.Follow() }

// WaitFor waits until the books hold an entry that fits, and returns the first.
func (c *Cloud) WaitFor(ctx context.Context, fits func(Entry) bool) (Entry, error) {
	return c.books.WaitFor(ctx, "ESS", fits)
}

// Member is what the groups know of an instance.
type Member struct {
	Instance string   `json:"instance"`
	Group    string   `json:"group"`
	State    string   `json:"state"`
	Tokens   []string `json:"tokens,omitempty"`
}

// Members lists the instances of all groups, with the tokens of what waits for them.
func (c *Cloud) Members() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := []Member{}
	for _, id := range slices.Sorted(maps.Keys(c.members)) {
		m := c.members[id]
		e := Member{Instance: id, Group: m.group.id, State: m.state}
		for _, a := range c.activities {
			if !slices.Contains(a.members, m) {
				continue
			}
			for _, act := range a.actions {
				if !act.done {
					e.Tokens = append(e.Tokens, act.hook.ID+"="+act.token)
				}
			}
		}
		slices.Sort(e.Tokens)
		out = append(out, e)
	}
	return out
}

func requestID() string {
	t := strings.ToUpper(rand.Text() + rand.Text())
	return t[:8] + "-" + t[8:12] + "-" + t[12:16] + "-" + t[16:20] + "-" + t[20:32]
}
