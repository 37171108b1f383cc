// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// moment is one end of the wait for sessions.
type moment struct {
	at   instant
	ends instant // when the machine ends or the cloud stops waiting; 0 if neither
	by   string
}

// timeline returns all ends of the wait for sessions, earliest first. The operator's --deadline replaces the configured one,
// later or earlier; the cloud can only shorten it.
func (s situation) timeline() []moment {
	list := s.ownMoment()
	for _, n := range s.Notices {
		if n.Kind == Ask || n.Deadline == 0 {
			continue
		}
		reserve := reserveTime
		if n.Kind == Shutdown {
			reserve = shutdownReserve
		}
		span := max(0, n.Deadline.Sub(n.Received))
		list = append(list, moment{at: n.Deadline.Add(-min(reserve, span/2)), ends: n.Deadline, by: n.String()})
	}
	for i := range s.Hooks {
		if a := &s.Hooks[i]; a.waits(false) {
			list = append(list, a.moments(s.c.Hooks)...)
		}
	}
	if f := s.EndHooks.foreign; f != nil && s.goal() == goalLeave && !s.Hooks.anyWaits(false) {
		list = append(list, moment{at: f.lapse().Add(-min(reserveTime, time.Duration(f.Hook.Timeout)/4)), ends: f.lapse(), by: "another program's hook " + f.Hook.Name})
	}
	slices.SortStableFunc(list, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	return list
}

func (a *hook) moments(heartbeats bool) (list []moment) {
	name := "hook " + a.Hook.Name
	if limit := a.limit(); limit != 0 {
		list = append(list, moment{at: limit.Add(-min(reserveTime, limit.Sub(a.Since)/4)), ends: limit, by: name + ", which waits no longer than that"})
	}
	// The timeout matters only if heartbeats fail.
	if lapse := a.lapse(); lapse != 0 && (a.Failing || a.Denied != "" || !heartbeats) {
		why := ", unless a heartbeat gets through"
		if a.Denied != "" {
			why = ", which cannot be kept waiting: permission " + a.Denied + " is missing"
		}
		list = append(list, moment{at: lapse.Add(-min(reserveTime, time.Duration(a.Hook.Timeout)/4)), ends: lapse, by: name + why})
	}
	return list
}

func (s situation) ownMoment() []moment {
	switch n := s.has(Ask); {
	case n != nil && n.Deadline != 0:
		by := "--deadline"
		if n.Who != "" {
			by += " of " + n.Who
		}
		return []moment{{at: n.Deadline, by: by}}
	case s.Began != 0:
		return []moment{{at: s.Began.Add(s.budget()), by: "the configured deadline"}}
	}
	return nil
}

func (s situation) budget() time.Duration {
	if s.leaving() && s.Budget > 0 {
		return s.Budget
	}
	return s.c.Budget
}

// deadline returns when the wait for sessions ends; 0 without a limit.
func (s situation) deadline() instant {
	if list := s.timeline(); len(list) > 0 {
		return list[0].at
	}
	return 0
}

// shutdownEnds returns when a shutdown stops waiting for the drain, or 0. It waits neither for a silent cloud nor for a
// server that does not end.
func (s *state) shutdownEnds() instant {
	n := s.has(Shutdown)
	switch {
	case n == nil:
		return 0
	case s.Phase == StepCompleting || s.Phase == stepStopFailed:
		return min(n.Deadline, n.Received.Add(reserveTime))
	}
	return n.Deadline
}

// isOver reports whether no work is left before the machine is off.
func (s situation) isOver() bool {
	ends := s.shutdownEnds()
	if slices.Contains([]Step{StepNone, stepResuming, StepDone, stepDown}, s.Phase) {
		return ends != 0
	}
	return ends.reached(s.now)
}

// dueAt returns when the drain for a notice begins: for one days ahead, early enough for the budget.
func (s situation) dueAt(n notice) instant {
	if (n.Kind == Reboot || n.Kind == Interrupt) && n.Deadline.Sub(n.Received) > spotTime {
		return max(n.Received, n.Deadline.Add(-s.budget()-reserveTime))
	}
	return n.Received
}

func (n notice) String() string {
	reason := n.Reason
	text := n.Source
	switch n.Kind {
	case Ask:
		text = "drain requested"
		if who, _, _ := strings.Cut(n.Who, ", amsagent "); who != "" { // without the command's name
			text += " by " + who
		}
	case Shutdown:
		text, reason = "the stop of the machine", n.By
	default:
		if reason == "" {
			reason = string(n.Kind)
		}
	}
	if reason == "" {
		return text
	}
	return text + " (" + reason + ")"
}
