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
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// op is one call to the cloud.
type op string

const (
	opNone     op = ""
	opDiscover op = "discover"
	opBeat     op = "heartbeat"
	opContinue op = "continue"
)

// try is the memory of one kind of call.
type try struct {
	at      time.Time // not before
	backOff time.Duration
	since   time.Time // of the first try
	denied  string
	told    bool // of the cap being near
}

func (m *Manager) tryAt(key string) *try {
	t := m.tries[key]
	if t == nil {
		t = &try{}
		m.tries[key] = t
	}
	return t
}

func (m *Manager) tryOf(a *waiter, o op) *try {
	return m.tryAt(string(o) + "/" + a.key())
}

func (a *waiter) key() string { return hookKey(a.Hook) }

func hookKey(h Hook) string {
	return h.Provider + "/" + h.Group + "/" + cmp.Or(h.ID, h.Name) + "/" + strconv.FormatBool(h.Launching)
}

// call is what is to be done next about a hook.
type call struct {
	op        op
	hook      Hook
	launching bool
	try       *try
	reread    time.Time // see Manager.reread
}

// hooks keeps the cloud waiting and tells it when it needs to wait no longer.
// One call after the other, and a call that is not wanted any more is cut short.
func (m *Manager) hooks(ctx context.Context) {
	if m.o.Hooks == nil {
		return
	}
	for ctx.Err() == nil {
		m.mu.Lock()
		now := time.Now()
		next, found := m.nextCall()
		changed := m.changed
		m.mu.Unlock()
		switch {
		case !found:
			sleep(ctx, time.Hour, changed)
		case next.try.at.After(now):
			sleep(ctx, next.try.at.Sub(now), changed)
		default:
			m.do(ctx, next)
		}
	}
}

// nextCall finds the call whose time comes first. The lock is held.
func (m *Manager) nextCall() (best call, found bool) {
	consider := func(c call) {
		if !found || c.try.at.Before(best.try.at) {
			best, found = c, true
		}
	}
	for _, launching := range []bool{false, true} {
		if m.wantsDiscovery(launching) {
			consider(call{op: opDiscover, launching: launching, try: m.tryAt(discovery(launching)), reread: m.reread})
		}
	}
	parked := m.r.Step != StepNone && m.o.goal(m.r) == goalPark
	for i := range m.r.Hooks {
		a := &m.r.Hooks[i]
		if o := m.wanted(a); o != opNone {
			h := a.Hook
			h.Parking = parked
			consider(call{op: o, hook: h, launching: a.Hook.Launching, try: m.tryOf(a, o)})
		}
	}
	return best, found
}

// discovery is what the tries to find a hook are kept by.
func discovery(launching bool) string { return string(opDiscover) + strconv.FormatBool(launching) }

// wantsDiscovery tells that a hook may wait of which nobody told us.
func (m *Manager) wantsDiscovery(launching bool) bool {
	r := m.r
	for i := range r.Hooks {
		if a := &r.Hooks[i]; a.Hook.Launching == launching {
			if a.End == "" && !m.isOurs(a) {
				return true
			}
			continue
		}
	}
	if slices.ContainsFunc(r.Hooks, func(a waiter) bool { return a.Hook.Launching == launching }) {
		return false
	}
	if launching {
		if m.parking() {
			return !r.NoLaunchHook
		}
		return r.Start != nil && !r.NoLaunchHook && m.o.Prove != nil
	}
	return r.Step != StepNone && r.asks() && !r.NoHook
}

// parking tells that this machine is on its way out of service to come back: a
// pool lets either hook wait for that, the launch hook where the machine has never
// served.
func (m *Manager) parking() bool {
	return m.r.Step != StepNone && m.r.Step != StepDone && m.o.goal(m.r) == goalPark
}

// pooled tells that the hook is completed by which this machine goes into a pool:
// only one of them waits for that, and the other one's next wait is for the way back.
func (m *Manager) pooled() bool {
	return m.parking() && slices.ContainsFunc(m.r.Hooks, func(a waiter) bool { return a.End == EndCompleted })
}

// wanted is what is to be done about a hook now.
func (m *Manager) wanted(a *waiter) op {
	r := m.r
	switch {
	case a.End != "", m.pooled(), !m.isOurs(a):
		return opNone
	case a.Hook.Launching && r.Start != nil && m.parking():
		return opNone // the machine comes back: the hook waits for a node that serves
	case a.Hook.Launching && !m.parking():
		switch {
		case r.Start == nil || m.o.Prove == nil:
			return opNone
		case r.Start.Proved:
			return opContinue
		case !r.Start.Failed:
			return opBeat
		}
		return opNone
	}
	switch r.Step {
	case StepCompleting, StepDone:
		return opContinue
	case StepAnnouncing, StepDraining, StepStopping, StepDeregistering:
		if r.StopFailed {
			return opContinue
		}
		if r.HookFirst || a.Hook.Fixed {
			return opNone
		}
		return opBeat
	case StepNone:
	}
	return opNone
}

// settled tells that nothing more is to be had from the cloud about the end of
// this machine. A permission that is missing settles it: nobody waits at 3 am for
// somebody to grant it, although it is tried on.
func (m *Manager) settled() bool {
	if m.o.Hooks == nil {
		return true
	}
	parking := m.parking()
	for _, launching := range []bool{false, true} {
		if (!launching || parking) && m.wantsDiscovery(launching) &&
			m.tryAt(discovery(launching)).denied == "" {
			return false
		}
	}
	if m.pooled() {
		return true
	}
	return !m.waits(func(h Hook) bool { return !h.Launching || parking })
}

// waits tells that one of these hooks waits for our word, and that we may say it.
func (m *Manager) waits(which func(Hook) bool) bool {
	return slices.ContainsFunc(m.r.Hooks, func(a waiter) bool {
		return which(a.Hook) && a.End == "" && m.tryOf(&a, opContinue).denied == ""
	})
}

// find gives the hook of a call as the record has it now, if the call is wanted
// still.
func (m *Manager) find(c call) *waiter {
	for i := range m.r.Hooks {
		if a := &m.r.Hooks[i]; a.same(c.hook) && m.wanted(a) == c.op {
			return a
		}
	}
	return nil
}

// do makes one call and takes its answer.
func (m *Manager) do(ctx context.Context, c call) {
	wanted, cancel := m.during(ctx, func() bool {
		if c.op == opDiscover {
			return m.wantsDiscovery(c.launching)
		}
		return m.find(c) != nil
	})
	defer cancel()
	bound, stop := context.WithTimeout(wanted, callTime)
	defer stop()
	var (
		err   error
		found []Hook
		waits time.Duration
	)
	switch c.op {
	case opDiscover:
		found, err = m.o.Filter().Find(bound, m.o.Hooks, c.launching)
	case opBeat:
		waits, err = m.o.Hooks.Extend(bound, c.hook)
	case opContinue:
		if err = alone(bound, m.o.Peers, c.hook); err == nil {
			err = m.o.Hooks.Complete(bound, c.hook)
		}
	case opNone:
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil && err != nil {
		return
	}
	now := time.Now()
	if c.try.since.IsZero() {
		c.try.since = now
	}
	if c.op == opDiscover {
		if m.wantsDiscovery(c.launching) && c.reread.Equal(m.reread) {
			m.discovered(c, found, err, now)
		}
		return
	}
	a := m.find(c)
	if a == nil && err == nil && c.op != opBeat {
		// It was told although it is not wanted any more; that cannot be taken back.
		for i := range m.r.Hooks {
			if m.r.Hooks[i].same(c.hook) && m.r.Hooks[i].End == "" {
				a = &m.r.Hooks[i]
			}
		}
	}
	if a != nil {
		if waits > 0 {
			a.Hook.Timeout = waits
		}
		m.answered(c, a, err, now)
	}
}

// discovered takes the answer to the question for a hook.
func (m *Manager) discovered(c call, found []Hook, err error, now time.Time) {
	r := m.r
	var denied *cloud.DeniedError
	var others *cloud.OthersHooksError
	if c.launching && err == nil {
		m.launchHooks = ""
	}
	switch {
	case errors.As(err, &denied):
		// An event says which hook waits: it is ours by its name, or else because the operator led the event here.
		f := m.o.Filter()
		if m.believe(c, func(a *waiter) bool { return len(f) == 0 || f.Match(a.Hook) }) {
			return
		}
		m.denied(c, denied, now)
	case errors.As(err, &others):
		// One that this agent has kept waiting stays its own by default, although there are others by now.
		if m.believe(c, func(a *waiter) bool { return !others.Named && a.Beaten.After(m.reread) }) {
			return
		}
		m.noHook(c.launching)
		m.othersHooks(others, c.launching)
	case err != nil && !errors.Is(err, cloud.ErrGone):
		m.unheld(c.launching, err)
		most := callTime
		if m.startLasts(c, now) {
			most = startEvery
		}
		m.failed(c, "the cloud cannot be asked for its hook: "+err.Error(), most, now)
	case len(found) == 0 || err != nil:
		m.forgetUnverified(c.launching)
		m.noHook(c.launching)
		m.troubleLocked(string(c.op), "")
		m.commit()
	default:
		since := now
		if n := r.has(Terminate, Park); n != nil && !c.launching {
			since = n.Received
		} else if r.Start != nil && c.launching {
			since = r.Start.Notice.Received
		}
		for _, h := range found {
			h.Launching, h.Limit = c.launching, anchor(h.Limit, now)
			remember(m.verified, hookKey(h), true)
			r.learn(h, since)
			m.noteLocked("hook " + h.Name + " of group " + h.Group + " waits for this machine")
		}
		m.forgetUnverified(c.launching)
		m.troubleLocked(string(c.op), "")
		m.commit()
	}
}

// believe takes hooks of a transition for ours although the cloud did not say so, and forgets the others. It reports whether
// any is left that waits.
func (m *Manager) believe(c call, which func(*waiter) bool) bool {
	for i := range m.r.Hooks {
		if a := &m.r.Hooks[i]; a.Hook.Launching == c.launching && which(a) {
			remember(m.verified, a.key(), true)
		}
	}
	m.forgetUnverified(c.launching)
	if m.r.open(c.launching) == nil {
		return false
	}
	m.troubleLocked(string(c.op), "")
	m.commit()
	return true
}

// unheld notes that the hooks that an event named get no heartbeat, since the cloud cannot be asked whether they are ours.
func (m *Manager) unheld(launching bool, err error) {
	failing, changed := !errors.Is(err, cloud.ErrNotWaiting), false
	for i := range m.r.Hooks {
		if a := &m.r.Hooks[i]; a.Hook.Launching == launching && a.End == "" && !m.isOurs(a) && a.Failing != failing {
			a.Failing, changed = failing, true
		}
	}
	if changed {
		m.commit()
	}
}

// forgetUnverified drops the hooks of a transition that are not ours, or not there.
func (m *Manager) forgetUnverified(launching bool) {
	for _, a := range slices.Clone(m.r.Hooks) {
		if a.Hook.Launching == launching && a.End == "" && !m.isOurs(&a) {
			m.forgetHook(a.Hook)
		}
	}
}

// Reconsider asks again for hooks of which none was ours: there may be other settings now.
func (m *Manager) Reconsider() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reread = time.Now() // the answer to a question under way is by the former settings
	clear(m.verified)
	if m.trouble[troubleHooks] == "" && m.launchHooks == "" {
		return
	}
	r := m.r
	if m.launchHooks != "" && r.Start == nil && r.Step == StepNone && m.o.Prove != nil {
		// The start was over once no hook was ours. One that is may still wait for it.
		r.Start = &start{Notice: Notice{ID: "reload", Source: "reload", Kind: Launch, Received: time.Now()}}
		m.tries = map[string]*try{}
	}
	delete(m.trouble, troubleHooks)
	m.launchHooks, r.NoHook, r.NoLaunchHook = "", false, false
	m.commit()
}

// isOurs reports whether it is known that a hook is ours. One that nothing prolongs came with its notice.
func (m *Manager) isOurs(a *waiter) bool { return a.Hook.Fixed || m.verified[a.key()] }

func (m *Manager) noHook(launching bool) {
	if launching {
		m.r.NoLaunchHook = true
	} else {
		m.r.NoHook = true
	}
}

// troubleHooks is the kind of trouble that lasts as long as the drain.
const troubleHooks = "hooks"

// othersHooks tells that hooks wait which are not ours. They are other programs', and
// nobody keeps them waiting or completes them here. At a launch that is no trouble: the
// node serves, and whose hook it is completes it. On the way into a pool it is.
func (m *Manager) othersHooks(err *cloud.OthersHooksError, launching bool) {
	switch {
	case !launching || m.parking():
		m.trouble[troubleHooks] = err.Error()
	case !err.Named:
		m.launchHooks = err.Error()
	}
	m.noteLocked(err.Error())
	m.commit()
}

// answered takes the cloud's answer about a hook.
func (m *Manager) answered(c call, a *waiter, err error, now time.Time) {
	var denied *cloud.DeniedError
	switch {
	case errors.Is(err, cloud.ErrMoved):
		m.noteLocked("hook " + a.Hook.Name + ": " + err.Error())
		m.forgetHook(a.Hook)
		m.tryAt(discovery(c.launching)).at = now.Add(noActionEvery)
		m.commit()
	case err == nil && c.op == opBeat:
		a.Beats++
		a.Beaten, a.Denied, a.Failing = now, "", false
		c.try.backOff, c.try.denied, c.try.at = 0, "", now.Add(beatEvery(a.Hook.Timeout))
		m.troubleLocked(string(c.op), "")
		m.nearCap(a, c.try, now)
		m.commit()
	case err == nil:
		a.End = EndCompleted
		m.ended(a, c, now)
		m.noteLocked("hook " + a.Hook.Name + " is " + string(a.End))
		m.commit()
	case errors.Is(err, cloud.ErrGone):
		a.End = EndGone
		m.ended(a, c, now)
		m.noteLocked("hook " + a.Hook.Name + " did not wait for our word: " + err.Error())
		m.commit()
	case errors.Is(err, cloud.ErrNotWaiting):
		c.try.backOff, c.try.denied, c.try.at = 0, "", now.Add(noActionEvery)
		if (a.Hook.Launching || c.hook.Parking) && now.Sub(c.try.since) > time.Minute {
			// Most starts of the agent are none of the machine: be kind to the API.
			c.try.at = now.Add(6 * noActionEvery)
		}
		// A hook that was named when the machine was parked may wait for another end of it.
		parked := m.r.Step == StepDone && m.o.goal(m.r) == goalPark
		why := ""
		if c.op == opContinue && now.Sub(c.try.since) > noActionTime && !parked {
			// It may come to that, or never: nobody who follows the drain waits for it.
			why = "hook " + a.Hook.Name + " does not wait for this machine now: " + err.Error()
		}
		m.troubleLocked(string(c.op), why)
		if a.Beats == 0 && c.op == opBeat {
			// Its time has not begun.
			a.Since = now
		}
		if c.op == opBeat && (a.Denied != "" || a.Failing) {
			a.Denied, a.Failing = "", false
			m.commit()
		}
		idle := idleHookTime
		if parked {
			idle = parkedHookTime
		}
		if (a.Hook.Launching || parked) && c.op != opBeat && now.Sub(c.try.since) > idle {
			a.End, a.EndedAt = EndLeft, now
			m.troubleLocked(string(c.op), "")
			m.noteLocked("hook " + a.Hook.Name + " does not wait for this machine")
			m.commit()
			return
		}
		m.publish(now)
	case errors.Is(err, errOthers):
		// Who looks at this machine is to know why it still waits.
		c.try.backOff, c.try.at = 0, now.Add(noActionEvery)
		if limit := a.Hook.Limit; !limit.IsZero() && limit.Before(c.try.at) {
			c.try.at = limit
		}
		m.troubleLocked(string(c.op), err.Error())
		m.publish(now)
	case errors.As(err, &denied):
		if c.op == opBeat {
			a.Denied, a.Failing = denied.Permission, true
		}
		m.denied(c, denied, now)
	default:
		// A heartbeat has time until its hook lapses, but not for a second failure
		// of that length.
		if c.op == opBeat && !a.Failing {
			a.Failing = true
			m.commit()
		}
		most := callTime
		if a.Hook.Timeout > 0 && c.op == opBeat {
			most = min(most, max(a.Hook.Timeout/16, time.Second))
		}
		m.failed(c, fmt.Sprintf("hook %s: %s: %v", a.Hook.Name, c.op, err), most, now)
	}
}

// errOthers: other machines behind the same word of ours have not left yet.
var errOthers = errors.New("other machines wait for the same word")

// alone tells whether our word about a hook cuts nobody else's sessions: it lets
// all machines of the hook go. When the cloud waits no longer, it is said all the
// same: then it tells no more than that we have left.
func alone(ctx context.Context, p Peers, h Hook) error {
	if len(h.Others) == 0 || !h.Limit.IsZero() && !time.Now().Before(h.Limit) {
		return nil
	}
	if p == nil {
		return fmt.Errorf("%w, and nobody can be asked whether they have left: %s", errOthers, strings.Join(h.Others, ", "))
	}
	serving, err := p.Serving(ctx, h.Others)
	switch {
	case err != nil:
		return fmt.Errorf("%w, and it is not known whether they have left (%s): %w", errOthers, strings.Join(h.Others, ", "), err)
	case len(serving) > 0:
		return fmt.Errorf("%w, and have not left yet: %s", errOthers, strings.Join(serving, ", "))
	}
	return nil
}

// forgetHook takes a hook out of the record, and out of the notices that named it.
func (m *Manager) forgetHook(h Hook) {
	m.r.Hooks = slices.DeleteFunc(m.r.Hooks, func(a waiter) bool { return a.same(h) })
	for i := range m.r.Notices {
		if in := m.r.Notices[i].Hook; in != nil && same(*in, h) {
			m.r.Notices[i].Hook = nil
		}
	}
	if s := m.r.Start; s != nil && s.Notice.Hook != nil && same(*s.Notice.Hook, h) {
		s.Notice.Hook = nil
	}
}

func (m *Manager) ended(a *waiter, c call, now time.Time) {
	a.EndedAt, a.Denied = now, ""
	m.troubleLocked(string(opBeat), "")
	m.troubleLocked(string(c.op), "")
}

// denied says once what has to be granted. The drain goes on without.
func (m *Manager) denied(c call, err *cloud.DeniedError, now time.Time) {
	if c.try.denied != err.Permission {
		c.try.denied = err.Permission
		m.noteLocked("this machine may not " + err.Permission + "; the least policy that grants it: " + cmp.Or(err.Policy, "not known"))
	}
	m.troubleLocked(string(c.op), err.Error())
	c.try.at = now.Add(deniedEvery)
	if m.startLasts(c, now) {
		c.try.at = now.Add(startEvery)
	}
	m.commit()
}

// startLasts reports whether a call is about the hook of a start, for longer than one
// that is there takes to be known.
func (m *Manager) startLasts(c call, now time.Time) bool {
	return c.launching && !m.parking() && now.Sub(c.try.since) > idleHookTime
}

// failed plans the next try of a call.
func (m *Manager) failed(c call, text string, most time.Duration, now time.Time) {
	c.try.backOff = min(max(2*c.try.backOff, time.Second), most)
	c.try.at = now.Add(time.Duration((0.5 + m.o.Rand()/2) * float64(c.try.backOff)))
	if m.troubleLocked(string(c.op), text) {
		m.publish(now)
	}
}

// beatEvery is from one heartbeat to the next: half the hook's timeout.
func beatEvery(timeout time.Duration) time.Duration {
	if timeout <= 0 {
		timeout = unknownTimeout
	}
	return timeout / 2
}

// nearCap says once that the hook cannot be kept waiting for much longer.
func (m *Manager) nearCap(a *waiter, t *try, now time.Time) {
	limit := a.limit()
	if t.told || limit.IsZero() || limit.Sub(now) > limit.Sub(a.Since)/10 {
		return
	}
	t.told = true
	m.noteLocked(fmt.Sprintf("hook %s can be kept waiting for %s more, whatever it hears (%d heartbeats so far)",
		a.Hook.Name, limit.Sub(now).Round(time.Second), a.Beats))
}

// LastWord is what is known of a node that goes for whoever deregisters after AMS
// has stopped, in a process of its own; nil where no drain of this boot tells.
func LastWord(files Files, boot string) (*Tombstone, error) {
	r, err := load(files)
	if err != nil || r == nil || r.Step == StepNone || r.Boot != "" && boot != "" && r.Boot != boot {
		return nil, err
	}
	if r.Tomb == nil { // the drain was killed, so nobody counted
		return weightiest(r.Notices).tombstone(r.Repair), nil
	}
	return r.Tomb, nil
}

// FinishStop tells the cloud what a drain could not tell because the machine went
// down in the middle of it. It is for whoever deregisters after AMS has stopped,
// in a process of its own: one attempt, and only where a hook waits.
//
// A hook that others wait behind is left to the last of them, of whom p tells.
func FinishStop(ctx context.Context, files Files, c cloud.Hooks, f cloud.Filter, p Peers, log *slog.Logger) error {
	r, err := load(files)
	if err != nil || r == nil || c == nil {
		return err
	}
	if r.Step == StepNone || goalOfAll(r.Notices) < goalPark {
		return nil
	}
	var errs []error
	ours, err := r.ours(ctx, c, f)
	if err != nil {
		errs = append(errs, fmt.Errorf("asking for the hook that waits: %w", err))
	}
	for i := range r.Hooks {
		a := &r.Hooks[i]
		if a.Hook.Launching || a.End != "" || !ours[a.key()] {
			continue
		}
		err := alone(ctx, p, a.Hook)
		if err == nil {
			err = c.Complete(ctx, a.Hook)
		}
		switch {
		case err == nil:
			log.Info("the hook is completed", "hook", a.Hook.Name)
		case errors.Is(err, errOthers):
			log.Info("the hook is left to the last of its machines", "hook", a.Hook.Name, "why", err.Error())
		case errors.Is(err, cloud.ErrGone), errors.Is(err, cloud.ErrNotWaiting):
			log.Info("the hook does not wait", "hook", a.Hook.Name, "answer", err.Error())
		default:
			errs = append(errs, fmt.Errorf("completing hook %s: %w", a.Hook.Name, err))
		}
	}
	return errors.Join(errs...)
}

// ours says, by its key, which hooks of the end of the machine are ours. It asks the cloud where the record does not say it, and
// learns what waits.
func (r *record) ours(ctx context.Context, c cloud.Hooks, f cloud.Filter) (map[string]bool, error) {
	ours, ask := map[string]bool{}, len(r.Hooks) == 0 && r.asks() && !r.NoHook
	for i := range r.Hooks {
		a := &r.Hooks[i]
		// As in Manager: nothing prolongs it, or it was kept waiting.
		ours[a.key()] = a.Hook.Fixed || len(f) == 0 && !a.Beaten.IsZero()
		ask = ask || !a.Hook.Launching && a.End == "" && !ours[a.key()]
	}
	if !ask {
		return ours, nil
	}
	found, err := f.Find(ctx, c, false)
	if _, denied := errors.AsType[*cloud.DeniedError](err); denied && r.open(false) != nil {
		for i := range r.Hooks {
			a := &r.Hooks[i]
			ours[a.key()] = ours[a.key()] || len(f) == 0 || f.Match(a.Hook)
		}
		return ours, nil
	}
	for _, h := range found {
		r.learn(h, time.Now())
		ours[hookKey(h)] = true
	}
	return ours, err
}
