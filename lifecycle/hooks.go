// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata/cloud"
)

type hookOp string

const (
	opNone     hookOp = ""
	opExtend   hookOp = troubleHeartbeat
	opComplete hookOp = troubleComplete
)

const (
	// callTime bounds one call to the cloud or the registry.
	callTime = 10 * time.Second
	// notWaitingEvery is the call interval for a hook that does not wait yet, which is trouble after notWaitingTime.
	notWaitingEvery = 5 * time.Second
	notWaitingTime  = 30 * time.Second
	// deniedEvery is the retry interval of a denied call: the operator may grant the permission.
	deniedEvery = time.Minute
	// launchEvery is the call interval for a launch hook after idleHookTime: most groups have none.
	launchEvery = 5 * time.Minute
	// unknownTimeout is the shortest timeout of any cloud.
	unknownTimeout = 30 * time.Second
)

// parking reports whether the machine moves into a pool and returns later. The hook that waits may be the launch hook, if
// the machine has never served.
func (s situation) parking() bool {
	return s.leaving() && s.Phase != StepDone && s.goal() == goalPark
}

// pooled reports whether the hook of the move into a pool is completed. The other hook waits for the return.
func (s situation) pooled() bool {
	return s.parking() && slices.ContainsFunc(s.Hooks, func(a hook) bool { return a.End == endCompleted })
}

func (s situation) wantsHooks(launching bool) bool {
	if !s.c.Hooks {
		return false
	}
	of := func(a hook) bool { return a.Hook.Launching == launching }
	if slices.ContainsFunc(s.Hooks, func(a hook) bool { return of(a) && a.End == "" && !a.isOurs() }) {
		return true
	}
	switch {
	case slices.ContainsFunc(s.Hooks, of), s.answer(launching).None:
		return false
	case !launching:
		return s.leaving() && s.asks()
	}
	return s.parking() || s.Start != nil && !s.leaving()
}

func (s situation) hookOp(a *hook) hookOp {
	parking := s.parking()
	switch {
	case !s.c.Hooks, a.End != "", !a.isOurs(), s.pooled(), a.Hook.Launching && parking && backInService(s):
		return opNone
	case a.Hook.Launching && !parking:
		switch {
		case s.Start == nil || s.leaving():
		case s.Start.Proved != 0:
			return opComplete
		case !s.Start.Failed:
			return opExtend
		}
		return opNone
	}
	switch s.Phase {
	case StepCompleting, StepDone, stepStopFailed:
		return opComplete
	case StepAnnouncing, StepDraining, StepStopping, StepDeregistering:
		if !a.Hook.Fixed {
			return opExtend
		}
	case StepNone, stepDown, stepResuming:
	}
	return opNone
}

// hasNoPendingHook reports whether this agent can complete nothing more for the termination. A denied call does not count,
// but is retried.
func (s situation) hasNoPendingHook() bool {
	if !s.c.Hooks {
		return true
	}
	parking := s.parking()
	if s.EndHooks.denied == "" && s.wantsHooks(false) || parking && s.LaunchHooks.denied == "" && s.wantsHooks(true) {
		return false
	}
	return s.pooled() || !slices.ContainsFunc(s.Hooks, func(a hook) bool {
		return (!a.Hook.Launching || parking) && a.End == "" && a.completionDenied == ""
	})
}

type hooksFound struct {
	launching bool
	filter    cloud.Filter
	hooks     []Hook
	err       error
}

func (e hooksFound) apply(s situation) {
	if !s.wantsHooks(e.launching) {
		return
	}
	denied, isDenied := errors.AsType[*cloud.DeniedError](e.err)
	others, hasOthers := errors.AsType[*cloud.OthersHooksError](e.err)
	if e.err != nil && !isDenied && !hasOthers && !errors.Is(e.err, cloud.ErrGone) {
		e.failed(s)
		return
	}
	e.confirm(s, isDenied)
	s.setTrouble(troubleDiscover, "")
	answer := s.answer(e.launching)
	waits := s.Hooks.anyWaits(e.launching) // also one that was confirmed before
	switch {
	case isDenied && !waits:
		if s.EndHooks.denied != denied.Permission && s.LaunchHooks.denied != denied.Permission {
			s.noteDenied(denied)
		}
		answer.denied = denied.Permission
		s.setTrouble(troubleDiscover, denied.Error())
		return
	case hasOthers && (!waits || !e.launching):
		e.noteOthers(s, others)
	case e.launching:
		answer.others = ""
	}
	answer.None, answer.denied = len(e.hooks) == 0 && !waits, ""
}

func (e hooksFound) failed(s situation) {
	// Hooks that an event named get no heartbeat until a query succeeds.
	for i := range s.Hooks {
		if a := &s.Hooks[i]; a.Hook.Launching == e.launching && a.End == "" && !a.isOurs() {
			a.Failing = !errors.Is(e.err, cloud.ErrNotWaiting)
		}
	}
	s.setTrouble(troubleDiscover, "the cloud cannot be asked for its hooks: "+e.err.Error())
}

// confirm keeps only hooks that are this agent's.
func (e hooksFound) confirm(s situation, denied bool) {
	since := s.now
	if n := s.has(hookKinds()...); n != nil && !e.launching {
		since = n.Received
	}
	for _, h := range e.hooks {
		h.Launching = e.launching
		s.learn(&h, e.launching, "", since)
		if a := s.Hooks.find(h); a != nil {
			a.Ours = true
		}
		s.note("hook waits for this machine", "hook", h.Name, "group", h.Group)
	}
	for i := range s.Hooks {
		if a := &s.Hooks[i]; denied && a.Hook.Launching == e.launching {
			// Select sees only this hook: the operator sends its events here.
			ours, _ := e.filter.Select([]Hook{a.Hook}, nil)
			a.Ours = a.Ours || len(ours) > 0
		}
	}
	s.Hooks = slices.DeleteFunc(s.Hooks, func(a hook) bool { return a.Hook.Launching == e.launching && a.End == "" && !a.isOurs() })
}

// noteOthers: at a launch this is no trouble. The node serves, and the other program completes its hook.
func (e hooksFound) noteOthers(s situation, err *cloud.OthersHooksError) {
	if e.launching && !s.parking() {
		s.note("hooks of other programs wait", "error", err)
		if !err.Named {
			s.LaunchHooks.others = err.Error()
		}
		return
	}
	s.EndHooks.others = err.Error()
	if n := s.has(Terminate, Reimage); n != nil && !e.launching && err.Ends != nil {
		s.EndHooks.foreign = &hook{Hook: *err.Ends, Since: n.Received}
		at := s.c.Wall.time(s.EndHooks.foreign.lapse()).Local()
		s.EndHooks.others += "; the machine may end at " + at.Format("15:04") + ", with hook " + err.Ends.Name
	}
	s.warn("hooks of other programs wait", "error", s.EndHooks.others)
}

func (s *state) noteDenied(e *cloud.DeniedError) {
	s.note("permission missing", "permission", e.Permission, "policy", cmp.Or(e.Policy, "unknown"))
}

// settingsRead repeats the query for hooks.
func (s situation) settingsRead() {
	s.settings++
	for i := range s.Hooks {
		s.Hooks[i].Ours = false
	}
	if s.EndHooks.others == "" && s.LaunchHooks.others == "" {
		return
	}
	if s.LaunchHooks.others != "" && s.Start == nil && s.Phase == StepNone {
		s.Start = &start{ID: "reload", Since: s.now}
	}
	s.EndHooks, s.LaunchHooks = answer{denied: s.EndHooks.denied}, answer{denied: s.LaunchHooks.denied}
}

type hookAnswered struct {
	hook    Hook
	op      hookOp
	timeout time.Duration // from a heartbeat
	err     error
	since   instant // of the first attempt
}

func (e hookAnswered) apply(s situation) {
	a := s.Hooks.find(e.hook)
	if a == nil {
		return
	}
	denied, isDenied := errors.AsType[*cloud.DeniedError](e.err)
	if e.op == opComplete && !isDenied {
		a.completionDenied = ""
	}
	if e.err == nil && !s.Used.has(a.Hook) {
		s.Used = append(s.Used[max(0, len(s.Used)-maxHooks+1):], hookKey(a.Hook))
	}
	trouble := ""
	switch {
	case errors.Is(e.err, cloud.ErrMoved):
		s.note("machine is in another group", "hook", a.Hook.Name, "error", e.err)
		s.Hooks = slices.DeleteFunc(s.Hooks, func(a hook) bool { return sameHook(a.Hook, e.hook) })
		s.askNotBefore = s.now.Add(notWaitingEvery)
	case e.err == nil && e.op == opExtend:
		e.extended(s, a)
	case e.err == nil:
		s.endHook(a, endCompleted, nil)
	case errors.Is(e.err, cloud.ErrGone):
		s.endHook(a, endGone, e.err)
	case errors.Is(e.err, cloud.ErrNotWaiting):
		trouble = e.notWaiting(s, a)
	case errors.Is(e.err, errOthers):
		trouble = e.err.Error()
	case isDenied:
		e.denied(s, a, denied)
		trouble = denied.Error()
	default:
		a.Failing = a.Failing || e.op == opExtend
		trouble = fmt.Sprintf("hook %s: %s: %v", a.Hook.Name, e.op, e.err)
	}
	s.setTrouble(string(e.op), trouble)
}

func (e hookAnswered) extended(s situation, a *hook) {
	a.Extends, a.Extended, a.Denied, a.Failing = a.Extends+1, s.now, "", false
	a.Hook.Timeout = cmp.Or(seconds.Duration(max(0, e.timeout)), a.Hook.Timeout)
	if limit := a.limit(); !a.capNoted && limit != 0 && limit.Sub(s.now) <= limit.Sub(a.Since)/10 {
		a.capNoted = true
		s.note("hook can be kept waiting for little longer", "hook", a.Hook.Name, "time left", limit.Sub(s.now).Round(time.Second), "heartbeats", a.Extends)
	}
}

func (e hookAnswered) denied(s situation, a *hook, err *cloud.DeniedError) {
	known := &a.completionDenied
	if e.op == opExtend {
		known, a.Failing = &a.Denied, true
	}
	if *known != err.Permission {
		s.noteDenied(err)
	}
	*known = err.Permission
}

func (e hookAnswered) notWaiting(s situation, a *hook) (trouble string) {
	if e.op == opExtend {
		if a.Denied, a.Failing = "", false; a.Extends == 0 {
			a.Since = s.now // its timeout has not begun
		}
		return ""
	}
	parked, tried := s.Phase == StepDone && s.goal() == goalPark, s.now.Sub(e.since)
	limit := idleHookTime
	if parked {
		limit = parkedHookTime
	}
	switch {
	case (a.Hook.Launching || parked) && tried > limit:
		s.endHook(a, endLeft, nil)
	case tried > notWaitingTime && !parked:
		return "hook " + a.Hook.Name + " does not wait for this machine now: " + e.err.Error()
	}
	return ""
}

var endTexts = map[End]string{
	endCompleted: "hook completed",
	endGone:      "hook does not wait any more",
	endLeft:      "hook does not wait for this machine",
}

func (s *state) endHook(a *hook, end End, err error) {
	a.End, a.Denied = end, ""
	s.setTrouble(troubleHeartbeat, "")
	s.setTrouble(troubleComplete, "")
	s.note(endTexts[end], "hook", a.Hook.Name, "error", err)
}

func (r *Runner) discover(ctx context.Context, launching bool, notBefore instant) {
	if !sleep.For(ctx, notBefore.Sub(r.now())) {
		return
	}
	first := r.now()
	for backOff := time.Duration(0); ; {
		filter := r.o.Filter()
		bound, cancel := context.WithTimeout(ctx, callTime)
		hooks, err := filter.Find(bound, r.o.Hooks, launching, r.View().used.has)
		cancel()
		r.accept(ctx, hooksFound{launching: launching, filter: filter, hooks: hooks, err: err}.apply)
		if !sleep.For(ctx, pauseAfter(err, longestPause(launching, r.now().Sub(first)), &backOff)) {
			return
		}
	}
}

// longestPause bounds the pause between failed calls.
func longestPause(launching bool, tried time.Duration) time.Duration {
	if launching && tried > idleHookTime {
		return launchEvery
	}
	return callTime
}

// pauseAfter returns the pause after a failed call. It doubles up to longest.
func pauseAfter(err error, longest time.Duration, backOff *time.Duration) time.Duration {
	if _, denied := errors.AsType[*cloud.DeniedError](err); denied {
		return max(deniedEvery, longest)
	}
	*backOff = min(max(2**backOff, time.Second), longest)
	return jitter(*backOff)
}

func (r *Runner) callHook(ctx context.Context, h Hook, op hookOp) {
	first := r.now()
	for backOff := time.Duration(0); ; {
		e := hookAnswered{hook: h, op: op, since: first}
		call, ok := r.callOnce(ctx, &e)
		if !ok || !sleep.For(ctx, e.pause(call, r.now().Sub(first), &backOff)) {
			return
		}
	}
}

// callOnce skips a call that is no longer wanted. Completions are serialized: after the first success for a move into a
// pool, no other is sent.
func (r *Runner) callOnce(ctx context.Context, e *hookAnswered) (call Hook, ok bool) {
	if e.op == opComplete {
		r.completing.Lock()
		defer r.completing.Unlock()
	}
	if call, ok = r.pendingHook(e.hook, e.op); !ok || ctx.Err() != nil {
		return call, false
	}
	bound, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if e.op == opExtend {
		e.timeout, e.err = r.o.Hooks.Extend(bound, call)
	} else {
		e.err = complete(bound, r.o.Hooks, r.o.Peers, call)
	}
	if ctx.Err() != nil && e.err != nil {
		return call, false
	}
	_ = r.observe(change(e.apply))
	return call, true
}

func (e hookAnswered) pause(h Hook, tried time.Duration, backOff *time.Duration) time.Duration {
	switch {
	case e.err == nil:
		return cmp.Or(max(0, e.timeout), time.Duration(h.Timeout), unknownTimeout) / 2
	case errors.Is(e.err, cloud.ErrNotWaiting) && (h.Launching || h.Parking) && tried > time.Minute:
		return 6 * notWaitingEvery // most launches have no hook
	case errors.Is(e.err, cloud.ErrNotWaiting), errors.Is(e.err, errOthers):
		return notWaitingEvery
	case e.op == opExtend && h.Timeout > 0:
		return pauseAfter(e.err, min(callTime, max(time.Duration(h.Timeout)/16, time.Second)), backOff)
	}
	return pauseAfter(e.err, longestPause(h.Launching && !h.Parking, tried), backOff)
}

// errOthers: other machines of the same completion have not left yet.
var errOthers = errors.New("other machines wait for the same completion")

// complete does not complete a hook whose other machines still have sessions, until its limit: after that it does no harm.
func complete(ctx context.Context, c cloud.Hooks, p Peers, h Hook) error {
	if len(h.Others) > 0 && (h.Limit.IsZero() || time.Now().Before(h.Limit)) {
		serving, err := p.Serving(ctx, h.Others)
		if err != nil {
			return fmt.Errorf("%w, and it is not known whether they have left (%s): %w", errOthers, strings.Join(h.Others, ", "), err)
		}
		if len(serving) > 0 {
			return fmt.Errorf("%w, and have not left yet: %s", errOthers, strings.Join(serving, ", "))
		}
	}
	return c.Complete(ctx, h)
}
