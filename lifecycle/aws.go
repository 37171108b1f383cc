// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/aws"
)

// awsWatcher is what an AWS source needs of metadata/aws.
type awsWatcher interface {
	Watch(ctx context.Context, o aws.WatchOptions, fn func(aws.Signal))
}

// NewAWSSource makes notices of what the metadata of the EC2 instance with this id
// signals. The logger may be nil.
//
// A first look at a machine in service gives [Resume]: it may have been parked
// before this process began, and only the manager knows.
func NewAWSSource(w awsWatcher, instance string, o aws.WatchOptions, log *slog.Logger) Source {
	unknown := newUnknownSignals(log)
	return sourceFunc(func(ctx context.Context, report func(Notice)) {
		w.Watch(ctx, o, func(s aws.Signal) {
			notices, known := awsNotices(instance, s)
			if !known {
				unknown.say(string(s.Kind), s.Value, s.Text)
			}
			for _, n := range notices {
				report(n)
			}
		})
	})
}

// awsNotices tells what a signal means.
func awsNotices(instance string, s aws.Signal) (notices []Notice, known bool) {
	n := Notice{Received: s.Seen, Deadline: s.At}
	as := func(kind Kind, source, who, reason string) {
		n.ID, n.Kind, n.Source, n.Who, n.Reason = NoticeID(providerAWS, instance, kind), kind, source, who, reason
		if s.ID != "" {
			// Several maintenance events may be announced at once.
			n.ID += "/" + s.ID
		}
		if s.Gone {
			n.Kind, n.Deadline = Withdrawn, time.Time{}
		}
	}
	switch s.Kind {
	case aws.SignalTarget:
		return awsTarget(instance, s)
	case aws.SignalSpot:
		as(Interrupt, "aws-spot", "EC2 Spot", "spot interruption ("+s.Value+")")
		if s.Value == "hibernate" && !s.Gone {
			// EC2 resumes the machine with its memory, so in the same boot. That the item is
			// gone by then is not documented; where it stays, it is over after an hour.
			n.Kind = Park
		}
	case aws.SignalScheduled:
		reason := "scheduled event " + s.Value
		if s.Text != "" {
			reason += ": " + s.Text
		}
		switch s.Value {
		case "instance-stop", "instance-retirement":
			// No group and no hook is behind it, only a date.
			as(Interrupt, "aws-scheduled", "EC2", reason)
		case "instance-reboot", "system-reboot", "system-maintenance":
			// Maintenance of network or power takes the machine away for a while, too.
			as(Reboot, "aws-scheduled", "EC2", reason)
			n.Served = s.Value == "instance-reboot"
		default:
			return nil, false
		}
		if s.At.IsZero() && !s.Gone {
			// Without a date it could be in two weeks: nobody is sent away for that.
			return nil, false
		}
	default:
		return nil, false
	}
	return []Notice{n}, true
}

// awsTarget tells what a change of the target lifecycle state means.
func awsTarget(instance string, s aws.Signal) (notices []Notice, known bool) {
	add := func(kind Kind, about Kind, reason string) {
		notices = append(notices, Notice{
			ID: NoticeID(providerAWS, instance, about), Kind: kind, Source: "aws-lifecycle", Who: "Auto Scaling",
			Reason: reason, Received: s.Seen,
		})
	}
	goes := func(state string) bool { return state == aws.TargetTerminated || state == aws.TargetWarmedTerminated }
	switch {
	case s.Value == aws.TargetInService:
		// What ends a termination is no resumption: the machine was never away.
		if !goes(s.Before) {
			add(Resume, Resume, "in service again")
		}
	case goes(s.Value):
		add(Terminate, Terminate, "scale-in")
	case s.Value == aws.TargetDetached:
		// It may be attached again, and until then nobody sends viewers to it.
		add(Park, Park, "detached from the group")
	case s.Value == aws.TargetStandby:
		add(Park, Park, "standby")
	case strings.HasPrefix(s.Value, "Warmed:"):
		add(Park, Park, "return to the warm pool ("+strings.TrimPrefix(s.Value, "Warmed:")+")")
	default:
		return nil, false
	}
	if goes(s.Before) && !goes(s.Value) {
		// After what comes in its place, so that nothing is taken up in between.
		add(Withdrawn, Terminate, "target state "+s.Value+" in place of "+s.Before)
	}
	return notices, true
}

// awsAPI is what an AWSCompleter needs of metadata/aws.
type awsAPI interface {
	Membership(ctx context.Context) (*aws.Membership, error)
	Hooks(ctx context.Context, group string) ([]aws.LifecycleHook, error)
	Heartbeat(ctx context.Context, a aws.Action) error
	Complete(ctx context.Context, a aws.Action) error
}

// AWSCompleterOptions are the settings of an AWSCompleter; the zero value works.
type AWSCompleterOptions struct {
	// Group is the group as the instance's tag names it; "" asks the API.
	Group string
	// Hooks names the hooks that are ours to complete. It is asked each time, for a
	// setting may change; nil is no names.
	Hooks func() HookNames
	// Log may be nil.
	Log *slog.Logger
}

// hooksFresh is how long what was discovered is not asked for again, except for an end:
// hooks are changed by people.
const hooksFresh = 10 * time.Minute

// AWSCompleter completes the hooks of an Auto Scaling group.
//
// Where several hooks of a group wait at the same transition, they are one [Hook]
// here with all their names, separated by a comma, which no name can hold: it is
// completed when each of them is.
type AWSCompleter struct {
	api  awsAPI
	opts AWSCompleterOptions
	log  *slog.Logger

	mu    sync.Mutex
	group string
	hooks []aws.LifecycleHook
	asked time.Time // when the hooks were; zero: never
	// sought are the names for which they were asked.
	sought map[string]bool
	// done are the hooks of this wait that are completed while others are not.
	done map[string]bool
	// blind is until when it is not tried again to ask where the instance is,
	// since that is forbidden.
	blind time.Time
}

var _ Completer = (*AWSCompleter)(nil)

// NewAWSCompleter makes a completer. It asks nothing.
func NewAWSCompleter(api awsAPI, o AWSCompleterOptions) *AWSCompleter {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Hooks == nil {
		o.Hooks = func() HookNames { return nil }
	}
	return &AWSCompleter{api: api, opts: o, log: o.Log, group: o.Group, done: map[string]bool{}, sought: map[string]bool{}}
}

const hookSeparator = ","

// Discover implements Completer. For an end it asks the API each time, and names a hook
// known from before where the API does not answer or the permission is gone. Where
// hooks wait and none is ours it is an [OthersHooksError].
func (c *AWSCompleter) Discover(ctx context.Context, launching bool) (*Hook, error) {
	names := c.opts.Hooks()
	group, hooks, err := c.known(ctx, !launching)
	switch {
	case err == nil:
	case group == "" && errors.Is(err, ErrGone):
		return nil, nil //nolint:nilnil // in no group no hook waits, which is no error
	case group != "" && names.literal() && !errors.Is(err, ErrGone):
		// All that is needed was given.
		return &Hook{Provider: providerAWS, Group: group, Name: strings.Join(names, hookSeparator), Launching: launching}, nil
	default:
		return nil, err
	}
	return pick(group, hooks, names, launching)
}

// known returns the group and its hooks, as they were last read where they cannot be
// read now. For an end they are always read: that none was there before would leave the
// whole drain without a hook. A name that is not among them may have been made since: for
// that they are read again, once. With an error, the group is as far as it is known.
func (c *AWSCompleter) known(ctx context.Context, end bool, names ...string) (string, []aws.LifecycleHook, error) {
	c.mu.Lock()
	group, hooks, asked := c.group, c.hooks, c.asked
	missing := slices.ContainsFunc(names, func(name string) bool {
		return !c.sought[name] && !slices.ContainsFunc(hooks, func(h aws.LifecycleHook) bool { return h.Name == name })
	})
	c.mu.Unlock()
	if end || missing || asked.IsZero() || time.Since(asked) > hooksFresh {
		g, h, err := c.ask(ctx, group, end)
		switch {
		case err == nil:
			group, hooks = g, h
			c.mu.Lock()
			c.group, c.hooks, c.asked = g, h, time.Now()
			for _, name := range names {
				remember(c.sought, name, true)
			}
			c.mu.Unlock()
		case !missing && !asked.IsZero() && !errors.Is(err, ErrGone) && (!end || len(transition(hooks, false)) > 0):
			c.log.Warn("the hooks of the group cannot be read, going on with those known from before", "group", group, "err", err)
		default:
			return group, nil, err
		}
	}
	return group, hooks, nil
}

// in makes a group the one whose hooks are known: a machine may be moved to another one.
func (c *AWSCompleter) in(group string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if group != "" && group != c.group {
		c.group, c.hooks, c.asked = group, nil, time.Time{}
		clear(c.sought)
	}
}

// transition are the names of the hooks of an end, or of a launch.
func transition(hooks []aws.LifecycleHook, launching bool) (names []string) {
	for _, h := range hooks {
		if h.Launching == launching {
			names = append(names, h.Name)
		}
	}
	return names
}

// pick makes one hook of those of a transition that are ours; nil where none waits.
func pick(group string, hooks []aws.LifecycleHook, ours HookNames, launching bool) (*Hook, error) {
	all := transition(hooks, launching)
	if len(all) == 0 {
		return nil, nil //nolint:nilnil // no hook waits, which is no error
	}
	names := ours.ours(all)
	if len(names) == 0 {
		return nil, &OthersHooksError{Group: group, Hooks: all, Named: len(ours) > 0}
	}
	var timeout, limit time.Duration
	least := func(to *time.Duration, d time.Duration) {
		if d > 0 && (*to == 0 || d < *to) {
			*to = d
		}
	}
	for _, h := range hooks {
		if h.Launching != launching || !slices.Contains(names, h.Name) {
			continue
		}
		least(&timeout, h.Timeout)
		least(&limit, h.Limit)
	}
	hook := &Hook{Provider: providerAWS, Group: group, Name: strings.Join(names, hookSeparator), Launching: launching, Timeout: timeout}
	if limit > 0 {
		// From now on at the latest: the wait has not begun, or just now.
		hook.Limit = time.Now().Add(limit)
	}
	return hook, nil
}

// mine is an error where a hook that an event named is not ours. Where no names are given and the role may not list the hooks of the group,
// the event is believed: somebody led it here.
func (c *AWSCompleter) mine(ctx context.Context, h Hook) error {
	names := strings.Split(h.Name, hookSeparator)
	ours := c.opts.Hooks()
	foreign := func(name string) bool { return !ours.match(name) }
	if len(ours) == 0 {
		if h.Ours {
			return nil
		}
		c.in(h.Group)
		_, hooks, err := c.known(ctx, false, names...)
		if _, denied := errors.AsType[*DeniedError](err); denied {
			return nil
		}
		if err != nil {
			return err
		}
		own := ours.ours(transition(hooks, h.Launching))
		foreign = func(name string) bool { return !slices.Contains(own, name) }
	}
	if !slices.ContainsFunc(names, foreign) {
		return nil
	}
	return &OthersHooksError{Group: h.Group, Hooks: names, Named: len(ours) > 0}
}

// ask asks the API for the hooks of the group, and for the group where it is not known, or
// may be another one by now.
func (c *AWSCompleter) ask(ctx context.Context, group string, end bool) (string, []aws.LifecycleHook, error) {
	if group == "" || end {
		m, err := c.api.Membership(ctx)
		switch {
		case m != nil && m.Group != "":
			group = m.Group
		case group != "":
		case err != nil:
			return "", nil, awsError(err)
		default:
			return "", nil, fmt.Errorf("%w: the instance is in no group", ErrGone)
		}
	}
	hooks, err := c.api.Hooks(ctx, group)
	return group, hooks, awsError(err)
}

// Heartbeat implements Completer. It has worked where one hook of several was told.
func (c *AWSCompleter) Heartbeat(ctx context.Context, h Hook) error {
	if err := c.mine(ctx, h); err != nil {
		return err
	}
	var first error
	told := false
	for _, a := range c.actions(h) {
		err := byEither(a, func(a aws.Action) error { return c.api.Heartbeat(ctx, a) })
		switch {
		case err == nil:
			told = true
		case first == nil || (errors.Is(first, aws.ErrNoAction) && !errors.Is(err, aws.ErrNoAction)):
			first = err
		}
	}
	if first == nil || (told && errors.Is(first, aws.ErrNoAction)) {
		return nil
	}
	return c.explain(ctx, h, first)
}

// Complete implements Completer. The result is always CONTINUE: ABANDON keeps a machine that is not wanted, or skips the
// hooks of others.
func (c *AWSCompleter) Complete(ctx context.Context, h Hook) error {
	if err := c.mine(ctx, h); err != nil {
		return err
	}
	var first error
	for _, a := range c.actions(h) {
		err := byEither(a, func(a aws.Action) error { return c.api.Complete(ctx, a) })
		if err == nil {
			c.mu.Lock()
			c.done[a.Hook] = true
			c.mu.Unlock()
			continue
		}
		if first == nil || errors.Is(first, aws.ErrNoAction) {
			first = err
		}
	}
	if first != nil {
		first = c.explain(ctx, h, first)
	}
	if first == nil || errors.Is(first, ErrGone) {
		// The same hooks may wait again, for a machine that comes out of a warm pool.
		c.mu.Lock()
		clear(c.done)
		c.mu.Unlock()
	}
	return first
}

// byEither calls with the token, and where that waits for nothing, without: the
// token of an event that came late, or twice, is another action's, while the
// instance's id is good for whichever waits.
func byEither(a aws.Action, call func(aws.Action) error) error {
	err := call(a)
	if a.Token != "" && errors.Is(err, aws.ErrNoAction) {
		a.Token = ""
		err = call(a)
	}
	return err
}

// actions are those of a hook's names that are not completed yet.
func (c *AWSCompleter) actions(h Hook) []aws.Action {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []aws.Action
	names := strings.Split(h.Name, hookSeparator)
	for _, name := range names {
		if c.done[name] {
			continue
		}
		a := aws.Action{Group: h.Group, Hook: name}
		if len(names) == 1 {
			a.Token = h.Token
		}
		out = append(out, a)
	}
	return out
}

// explain finds out whether a hook that does not wait will wait yet.
func (c *AWSCompleter) explain(ctx context.Context, h Hook, err error) error {
	if !errors.Is(err, aws.ErrNoAction) {
		return awsError(err)
	}
	c.mu.Lock()
	blind := time.Now().Before(c.blind)
	c.mu.Unlock()
	if blind {
		return awsError(err)
	}
	m, merr := c.api.Membership(ctx)
	switch {
	case merr != nil:
		if _, denied := errors.AsType[*aws.DeniedError](merr); denied {
			c.mu.Lock()
			c.blind = time.Now().Add(hooksFresh)
			c.mu.Unlock()
			c.log.Info("whether the hook is over cannot be asked, so it is tried until the machine goes", "err", merr)
		}
		return awsError(err)
	case m == nil:
		return fmt.Errorf("%w: the instance is in no group any more", ErrGone)
	case m.Group != "" && m.Group != h.Group:
		c.in(m.Group)
		return fmt.Errorf("%w: the instance is in group %s now, not in %s", errMoved, m.Group, h.Group)
	case awsOver(m.State, h.Launching), h.Parking && awsParked(m.State):
		return fmt.Errorf("%w: the instance is %s", ErrGone, m.State)
	}
	return fmt.Errorf("%w (the instance is %s)", awsError(err), m.State)
}

// awsParked reports whether a machine in this lifecycle state is where a parking leads.
func awsParked(state string) bool {
	switch state {
	case "Standby", "Warmed:Running", "Warmed:Stopped", "Warmed:Hibernated":
		return true
	}
	return false
}

// awsOver reports whether in this lifecycle state no hook will wait for the
// transition any more. The API may lag behind the metadata that told of the
// transition, so a state that can come before it says nothing.
func awsOver(state string, launching bool) bool {
	main, step, _ := strings.Cut(strings.TrimPrefix(state, "Warmed:"), ":")
	switch main {
	case "Terminated", "Detached", "Detaching":
		return true
	case "Terminating":
		return launching || step == "Proceed" || step == "Retained"
	case "Pending":
		return launching && state == "Pending:Proceed"
	case "InService":
		return launching
	}
	return false
}

func awsError(err error) error {
	if err == nil {
		return nil
	}
	if d, ok := errors.AsType[*aws.DeniedError](err); ok {
		return &DeniedError{Permission: d.Action, Policy: d.Policy, Err: errors.New(d.Reason)}
	}
	switch {
	case errors.Is(err, aws.ErrNoAction):
		return fmt.Errorf("%w: %w", ErrNoAction, err)
	case errors.Is(err, aws.ErrNoGroup):
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}
