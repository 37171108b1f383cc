// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/alibaba"
)

const providerAlibaba = alibaba.Name

// alibabaWatcher is what an Alibaba source needs of metadata/alibaba.
type alibabaWatcher interface {
	Watch(ctx context.Context, o alibaba.WatchOptions, fn func(alibaba.Signal))
}

// NewAlibabaSource makes notices of what the metadata of the ECS instance with this
// id and its scaling group signal. The logger may be nil.
//
// A first look at a machine in service gives [Resume]: it may have been parked
// before this process began, and only the manager knows.
func NewAlibabaSource(w alibabaWatcher, instance string, o alibaba.WatchOptions, log *slog.Logger) Source {
	unknown := newUnknownSignals(log)
	return sourceFunc(func(ctx context.Context, report func(Notice)) {
		w.Watch(ctx, o, func(s alibaba.Signal) {
			notices, known := alibabaNotices(instance, s)
			if !known {
				unknown.say(string(s.Kind), s.Value, s.Text)
			}
			for _, n := range notices {
				report(n)
			}
		})
	})
}

// alibabaNotices tells what a signal means.
func alibabaNotices(instance string, s alibaba.Signal) (notices []Notice, known bool) {
	n := Notice{Received: s.Seen, Deadline: s.At}
	as := func(kind Kind, source, who, reason string) {
		n.ID, n.Kind, n.Source, n.Who, n.Reason = NoticeID(providerAlibaba, instance, kind), kind, source, who, reason
		if s.ID != "" {
			// Several system events may be announced at once.
			n.ID += "/" + s.ID
		}
		if s.Gone {
			n.Kind, n.Deadline = Withdrawn, time.Time{}
		}
	}
	switch s.Kind {
	case alibaba.SignalScaling:
		return alibabaScaling(instance, s)
	case alibaba.SignalSpot:
		as(Interrupt, "alibaba-spot", "ECS spot", "spot instance is taken back")
	case alibaba.SignalEvent:
		reason := "system event " + s.Value
		if s.Text != "" {
			reason += ": " + s.Text
		}
		_, does, _ := strings.Cut(s.Value, ".")
		switch {
		case strings.HasPrefix(does, "Reboot"), does == "Redeploy":
			// On another host, without what its local disks held, and it comes back.
			as(Reboot, "alibaba-events", "ECS", reason)
			n.Served = s.State == "Executing"
		case does == "Stop", does == "Delete", does == "Release":
			as(Interrupt, "alibaba-events", "ECS", reason)
		default:
			return nil, false
		}
		if s.At.IsZero() && !s.Gone {
			if s.State != "Executing" {
				// Without a date it could be in two weeks: nobody is sent away for that.
				return nil, false
			}
			n.Deadline = s.Seen
		}
	default:
		return nil, false
	}
	return []Notice{n}, true
}

// alibabaStep is the part of a lifecycle state that says what is done: Removing of
// Removing:Wait. An instance that is protected from scale-in is in service.
func alibabaStep(state string) string {
	step, _, _ := strings.Cut(state, ":")
	if step == alibaba.StateProtected {
		return alibaba.StateInService
	}
	return step
}

// alibabaScaling tells what a change of the state in the scaling group means.
func alibabaScaling(instance string, s alibaba.Signal) (notices []Notice, known bool) {
	add := func(kind Kind, about Kind, reason string) {
		notices = append(notices, Notice{
			ID: NoticeID(providerAlibaba, instance, about), Kind: kind, Source: "alibaba-scaling", Who: "Auto Scaling",
			Reason: reason, Received: s.Seen,
		})
	}
	step, before := alibabaStep(s.Value), alibabaStep(s.Before)
	if s.Value == "" {
		// Out of the group: released, or removed by somebody who keeps it. What was
		// announced before that stands.
		return nil, true
	}
	switch step {
	case alibaba.StateInService:
		// What ends a removal is no resumption: the machine was never away.
		if before != alibaba.StateRemoving && before != alibaba.StateInService {
			add(Resume, Resume, "in service again")
		}
	case alibaba.StateRemoving:
		add(Terminate, Terminate, "scale-in")
	case alibaba.StateStandby:
		add(Park, Park, "standby")
	case alibaba.StateStopped:
		add(Park, Park, "stopped by the group")
	case alibaba.StatePending:
		if s.Value != step { // a hook waits
			add(Launch, Launch, "launch")
		}
	default:
		return nil, false
	}
	if before == alibaba.StateRemoving && step != before {
		// After what comes in its place, so that nothing is taken up in between.
		add(Withdrawn, Terminate, "state "+s.Value+" in place of "+s.Before)
	}
	return notices, true
}

// alibabaAPI is what an AlibabaCompleter needs of metadata/alibaba.
type alibabaAPI interface {
	Membership(ctx context.Context) (*alibaba.Membership, error)
	Pending(ctx context.Context, group string) ([]alibaba.Action, error)
	Hooks(ctx context.Context, group string) ([]alibaba.LifecycleHook, error)
	Heartbeat(ctx context.Context, hook, token string, wait time.Duration) error
	Complete(ctx context.Context, hook, token string) error
}

// AlibabaCompleterOptions are the settings of an AlibabaCompleter; the zero value
// works.
type AlibabaCompleterOptions struct {
	// Hooks names the hooks that are ours, by name or id; else as
	// AWSCompleterOptions.Hooks.
	Hooks func() HookNames
	// Log may be nil.
	Log *slog.Logger
}

const (
	// alibabaBeats is how many heartbeats are planned for the whole of a wait, of
	// the twenty that a token is allowed: for all its machines together.
	alibabaBeats = 18
	// alibabaSoon: who has beaten just now needs not beat again.
	alibabaSoon = time.Minute
	// alibabaPatience is how long an action is looked for that is not there yet, and
	// alibabaEvery how often: it is listed some moments after the instance has begun to
	// wait. It is less than a call may take.
	alibabaPatience = 6 * time.Second
	alibabaEvery    = time.Second
	// alibabaUnseen is how long a machine may have waited before it was seen: it is
	// looked at every ten seconds or so.
	alibabaUnseen = alibaba.DefaultScalingInterval + 2*time.Second
)

// AlibabaCompleter completes the lifecycle actions of a scaling group of ESS.
//
// A hook has no name that stays good: each of its waits has a token, which is to
// be found by asking. Where several hooks wait for this machine, they are one
// [Hook] here, with their ids and, in the same order, their tokens, each separated
// by a comma, which neither can hold.
//
// One token may be that of several machines. Then all beat, and each of them as
// much less often as they are many: the cloud counts the heartbeats of a token.
type AlibabaCompleter struct {
	api  alibabaAPI
	opts AlibabaCompleterOptions
	log  *slog.Logger

	mu sync.Mutex
	// done are the tokens that are completed, or over, while others are not; beaten
	// says when each that waits has heard of us.
	done   map[string]bool
	beaten map[string]time.Time
	// hooks are those of the group, as they were read at asked; zero is never. sought are the
	// ids for which they were.
	hooks  []alibaba.LifecycleHook
	asked  time.Time
	sought map[string]bool
}

var _ Completer = (*AlibabaCompleter)(nil)

// NewAlibabaCompleter makes a completer. It asks nothing.
func NewAlibabaCompleter(api alibabaAPI, o AlibabaCompleterOptions) *AlibabaCompleter {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Hooks == nil {
		o.Hooks = func() HookNames { return nil }
	}
	return &AlibabaCompleter{api: api, opts: o, log: o.Log, done: map[string]bool{}, beaten: map[string]time.Time{}, sought: map[string]bool{}}
}

// Discover implements Completer. A machine that is on its way and does not wait
// yet is an error, so that it is asked about again.
func (c *AlibabaCompleter) Discover(ctx context.Context, launching bool) (*Hook, error) {
	deadline := time.Now().Add(alibabaPatience)
	for {
		h, err := c.look(ctx, launching)
		if !errors.Is(err, ErrNoAction) || time.Now().Add(alibabaEvery).After(deadline) {
			return h, err
		}
		timer := time.NewTimer(alibabaEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		case <-timer.C:
		}
	}
}

func (c *AlibabaCompleter) look(ctx context.Context, launching bool) (*Hook, error) {
	m, err := c.api.Membership(ctx)
	if err != nil {
		return nil, alibabaError(err)
	}
	if m == nil {
		return nil, nil //nolint:nilnil // in no group, so no hook
	}
	step := alibabaStep(m.State)
	switch {
	case launching && step != alibaba.StatePending,
		!launching && step != alibaba.StateRemoving && step != alibaba.StateInService:
		return nil, nil //nolint:nilnil // no hook waits in this state, nor in one that follows on it
	case !launching && step == alibaba.StateInService:
		// Somebody else saw the end first, or it was taken back, which is told by another notice.
		return nil, fmt.Errorf("%w: the instance is %s", ErrNoAction, m.State)
	}
	actions, err := c.api.Pending(ctx, m.Group)
	if err != nil {
		return nil, alibabaError(err)
	}
	if len(actions) == 0 {
		hooks, err := c.api.Hooks(ctx, m.Group)
		if err == nil && !slices.ContainsFunc(hooks, func(h alibaba.LifecycleHook) bool { return h.Launching == launching }) {
			return nil, nil //nolint:nilnil // nothing will wait
		}
		return nil, fmt.Errorf("%w: the instance is %s, and no lifecycle action is pending", ErrNoAction, m.State)
	}
	if actions, err = c.choose(ctx, m.Group, actions, launching); err != nil {
		return nil, err
	}
	return c.hold(ctx, alibabaHook(m.Group, actions, launching, time.Now()))
}

// choose returns the actions of those hooks that are ours. Where the role may not list the
// hooks of the group, an action that waits alone is believed to be, if no names are given.
func (c *AlibabaCompleter) choose(ctx context.Context, group string, actions []alibaba.Action, launching bool) ([]alibaba.Action, error) {
	var ids []string
	for _, a := range actions {
		ids = append(ids, a.Hook)
	}
	hooks, err := c.known(ctx, group, ids...)
	if err != nil {
		if _, denied := errors.AsType[*DeniedError](err); !denied {
			return nil, err
		}
		c.log.Debug("the hooks of the group cannot be read", "group", group, "err", err)
		for _, a := range actions {
			hooks = append(hooks, alibaba.LifecycleHook{ID: a.Hook, Launching: launching})
		}
	}
	names := c.opts.Hooks()
	ours := AlibabaOurs(names, hooks, launching)
	var out []alibaba.Action
	var others []string
	for _, a := range actions {
		if ours(a.Hook) {
			out = append(out, a)
			continue
		}
		others = append(others, a.Hook)
	}
	if len(out) == 0 {
		return nil, &OthersHooksError{Group: group, Hooks: others, Named: len(names) > 0}
	}
	return out, nil
}

// AlibabaOurs tells by its id whether a hook of a transition is ours. One that is not
// among the hooks of the group has no other name.
func AlibabaOurs(names HookNames, hooks []alibaba.LifecycleHook, launching bool) func(id string) bool {
	hooks = slices.DeleteFunc(slices.Clone(hooks), func(h alibaba.LifecycleHook) bool { return h.Launching != launching })
	return func(id string) bool {
		i := slices.IndexFunc(hooks, func(h alibaba.LifecycleHook) bool { return h.ID == id })
		switch {
		case i < 0:
			return names.match(id)
		case len(names) == 0 && len(hooks) == 1:
			return true
		}
		return names.match(hooks[i].Name) || names.match(id)
	}
}

// known returns the hooks of the group, as they were read a short time ago. For an id that
// is not among them they are read again, once: it may have been made since.
func (c *AlibabaCompleter) known(ctx context.Context, group string, ids ...string) ([]alibaba.LifecycleHook, error) {
	c.mu.Lock()
	hooks, asked := c.hooks, c.asked
	missing := slices.ContainsFunc(ids, func(id string) bool {
		return !c.sought[id] && !slices.ContainsFunc(hooks, func(h alibaba.LifecycleHook) bool { return h.ID == id })
	})
	c.mu.Unlock()
	if !missing && !asked.IsZero() && time.Since(asked) < hooksFresh {
		return hooks, nil
	}
	if group == "" { // an event need not name it
		m, err := c.api.Membership(ctx)
		if err != nil {
			return nil, alibabaError(err)
		}
		if m == nil {
			return nil, fmt.Errorf("%w: the instance is in no group any more", ErrGone)
		}
		group = m.Group
	}
	hooks, err := c.api.Hooks(ctx, group)
	if err != nil {
		return nil, alibabaError(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hooks, c.asked = hooks, time.Now()
	for _, id := range ids {
		remember(c.sought, id, true)
	}
	return hooks, nil
}

// mine is an error where a hook that an event named is not ours. Where the role may not list
// them the ids say it, and without names the event is believed.
func (c *AlibabaCompleter) mine(ctx context.Context, h Hook) error {
	ids := strings.Split(h.Name, hookSeparator)
	names := c.opts.Hooks()
	if h.Ours && len(names) == 0 {
		return nil
	}
	hooks, err := c.known(ctx, h.Group, ids...)
	_, denied := errors.AsType[*DeniedError](err)
	switch {
	case denied && len(names) == 0:
		return nil
	case err != nil && !denied:
		return err
	}
	ours := AlibabaOurs(names, hooks, h.Launching)
	if !slices.ContainsFunc(ids, func(id string) bool { return !ours(id) }) {
		return nil
	}
	return &OthersHooksError{Group: h.Group, Hooks: ids, Named: len(names) > 0}
}

// hold makes a hook that was found wait, and learns from that for how long it can.
// Without a heartbeat it waits for a time of its own, which is mostly shorter than
// what we ask for, and a drain has to be over before that. A start is given the time that
// the hook has by itself: one that fails is to be replaced.
func (c *AlibabaCompleter) hold(ctx context.Context, h *Hook) (*Hook, error) {
	if h.Launching {
		h.Timeout = c.ownTime(ctx, h)
		return h, nil
	}
	held, err := c.beat(ctx, *h)
	_, denied := errors.AsType[*DeniedError](err)
	limited := errors.Is(err, alibaba.ErrLimit)
	switch {
	case err == nil:
		h.Timeout = min(h.Timeout, held)
		return h, nil
	case errors.Is(err, ErrGone):
		return nil, fmt.Errorf("%w any more: %w", ErrNoAction, err)
	case !denied && !limited:
		return nil, err
	}
	own := c.ownTime(ctx, h)
	h.Timeout = own
	if limited {
		// Nothing prolongs it.
		h.Fixed, h.Limit = true, time.Now().Add(own-min(alibabaUnseen, own/2))
	}
	c.log.Info("the hook waits for its own time, since no heartbeat of ours gets through", "hook", h.Name, "timeout", own, "err", err)
	return h, nil
}

// ownTime is the shortest of the times that the parts of a hook wait by themselves.
func (c *AlibabaCompleter) ownTime(ctx context.Context, h *Hook) time.Duration {
	all, err := c.known(ctx, h.Group)
	if err != nil {
		c.log.Debug("the hooks of the group cannot be read", "group", h.Group, "err", err)
	}
	var least time.Duration
	for _, one := range all {
		if slices.Contains(strings.Split(h.Name, hookSeparator), one.ID) && one.Timeout > 0 && (least == 0 || one.Timeout < least) {
			least = one.Timeout
		}
	}
	return cmp.Or(least, alibaba.DefaultWait)
}

// alibabaHook makes one hook of the actions that wait for this machine.
func alibabaHook(group string, actions []alibaba.Action, launching bool, now time.Time) *Hook {
	h := &Hook{Provider: providerAlibaba, Group: group, Launching: launching, Limit: now.Add(alibaba.LongestWait)}
	var names, tokens []string
	for _, a := range actions {
		names, tokens = append(names, a.Hook), append(tokens, a.Token)
		for _, id := range a.Others {
			if !slices.Contains(h.Others, id) {
				h.Others = append(h.Others, id)
			}
		}
	}
	slices.Sort(h.Others)
	h.Name, h.Token = strings.Join(names, hookSeparator), strings.Join(tokens, hookSeparator)
	h.Timeout = alibabaTimeout(len(h.Others))
	if launching {
		// Others are waited for until they have left, and those who start with us
		// have only come: the first that serves says so for all. Nobody is sent to
		// the others before their health is known to the load balancer.
		h.Others = nil
	}
	return h
}

// alibabaTimeout is what a heartbeat of one of several machines asks for. The
// manager beats at half of that: so each machine's share of the heartbeats lasts
// for the longest wait.
func alibabaTimeout(others int) time.Duration {
	share := max(1, alibabaBeats/(1+others))
	return min(2*alibaba.LongestWait/time.Duration(share), alibaba.LongestWait)
}

// Heartbeat implements Completer. It has worked where one action of several was
// told.
func (c *AlibabaCompleter) Heartbeat(ctx context.Context, h Hook) error {
	if err := c.mine(ctx, h); err != nil {
		return err
	}
	_, err := c.beat(ctx, h)
	return err
}

// beat makes a hook wait, and tells for how long it does.
func (c *AlibabaCompleter) beat(ctx context.Context, h Hook) (least time.Duration, err error) {
	wait := max(h.Timeout, alibabaTimeout(0))
	if h.Launching {
		wait = max(cmp.Or(h.Timeout, c.ownTime(ctx, &h)), alibaba.LeastWait)
	}
	if left := time.Until(h.Limit).Truncate(time.Second); !h.Limit.IsZero() && left < wait {
		if left < alibaba.LeastWait {
			return left, nil // nothing is to be had any more, and the manager knows
		}
		wait = left
	}
	least = wait
	err = c.each(ctx, h, func(hook, token string) error {
		c.mu.Lock()
		last, before := c.beaten[token]
		c.mu.Unlock()
		if before && time.Since(last) < alibabaSoon {
			return nil
		}
		for wait := wait; ; wait = max(wait/2, alibaba.LeastWait) {
			err := c.api.Heartbeat(ctx, hook, token, wait)
			switch {
			case err == nil:
				c.mu.Lock()
				c.beaten[token] = time.Now()
				c.mu.Unlock()
				least = min(least, wait)
				return nil
			case errors.Is(err, alibaba.ErrOften) && h.Timeout >= alibaba.LongestWait:
				// More machines than heartbeats: others have asked for as long as there is.
				return nil
			case !errors.Is(err, alibaba.ErrLimit), errors.Is(err, alibaba.ErrOften), wait <= alibaba.LeastWait:
				return err
			}
			// How the six hours are counted is not written anywhere: less may be had.
		}
	}, false)
	return least, err
}

// Complete implements Completer. The result is always CONTINUE: to roll a scale-in back would keep a machine that is not
// wanted.
func (c *AlibabaCompleter) Complete(ctx context.Context, h Hook) error {
	if err := c.mine(ctx, h); err != nil {
		return err
	}
	return c.each(ctx, h, func(hook, token string) error {
		return c.api.Complete(ctx, hook, token)
	}, true)
}

// each says something about every action of a hook that is not done with. last
// tells that what is said ends the wait.
func (c *AlibabaCompleter) each(ctx context.Context, h Hook, say func(hook, token string) error, last bool) error {
	actions, err := c.actions(ctx, h)
	if err != nil {
		return err
	}
	var first error
	told, over := 0, 0
	for _, a := range actions {
		c.mu.Lock()
		done := c.done[a.Token]
		c.mu.Unlock()
		if done {
			told++
			continue
		}
		err := say(a.Hook, a.Token)
		switch {
		case err == nil:
			told++
		case errors.Is(err, alibaba.ErrOver):
			over++
		default:
			first = cmp.Or(first, err)
			continue
		}
		if last && len(actions) > 1 {
			c.mu.Lock()
			c.done[a.Token] = true
			c.mu.Unlock()
		}
	}
	switch {
	case first != nil:
		return alibabaError(first)
	case told == 0:
		// Somebody else has completed it, or its time is over.
		return fmt.Errorf("%w: the lifecycle action is completed, or its time was over", ErrGone)
	}
	if last {
		c.mu.Lock()
		clear(c.done)
		clear(c.beaten)
		c.mu.Unlock()
	}
	return nil
}

// actions are those that a hook is made of. One that came without its tokens is
// looked up.
func (c *AlibabaCompleter) actions(ctx context.Context, h Hook) ([]alibaba.Action, error) {
	names, tokens := strings.Split(h.Name, hookSeparator), strings.Split(h.Token, hookSeparator)
	if h.Token != "" && len(names) == len(tokens) {
		out := make([]alibaba.Action, len(names))
		for i := range names {
			out[i] = alibaba.Action{Hook: names[i], Token: tokens[i]}
		}
		return out, nil
	}
	m, err := c.api.Membership(ctx)
	if err != nil {
		return nil, alibabaError(err)
	}
	if m == nil {
		return nil, fmt.Errorf("%w: the instance is in no group any more", ErrGone)
	}
	all, err := c.api.Pending(ctx, m.Group)
	if err != nil {
		return nil, alibabaError(err)
	}
	all = slices.DeleteFunc(all, func(a alibaba.Action) bool { return !slices.Contains(names, a.Hook) })
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: the instance is %s", ErrNoAction, m.State)
	}
	return all, nil
}

func alibabaError(err error) error {
	if d, ok := errors.AsType[*alibaba.DeniedError](err); ok {
		return &DeniedError{Permission: d.Action, Policy: d.Policy, Err: errors.New(d.Reason)}
	}
	if errors.Is(err, alibaba.ErrOver) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}
