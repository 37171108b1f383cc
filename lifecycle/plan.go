// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "time"

// plan is the work that a state requires. After a kill, the daemon derives it again from drain.json.
type plan struct {
	Balancers bool // ask which ones send sessions here
	Count     bool // sessions
	Stop      bool // the server
	Start     bool // a parked machine's server
	Prove     bool // that the node is seen in the cluster
	// FindHooks are the transitions whose hooks are queried; false is the termination.
	FindHooks map[bool]bool
	Hooks     []hookWork
	Exit      bool // no work is left before the machine is off
	// WakeAt is when the state changes without an event; 0 means never.
	WakeAt instant
}

type hookWork struct {
	Hook Hook
	op   hookOp
}

func (s situation) plan() plan {
	p := plan{
		Balancers: s.Phase == phaseAnnouncing, Count: s.Phase == phaseDraining, Stop: s.Phase == phaseStopping || s.Phase == phaseStopFailed,
		Prove: s.Start != nil && s.Start.Proved == 0 && !s.leaving(), FindHooks: map[bool]bool{},
	}
	p.Start = p.Prove && s.Start.Server
	for _, launching := range []bool{false, true} {
		p.FindHooks[launching] = s.wantsHooks(launching)
	}
	for i := range s.Hooks {
		if op := s.hookOp(&s.Hooks[i]); op != opNone && s.c.Hooks {
			p.Hooks = append(p.Hooks, hookWork{s.Hooks[i].Hook, op})
		}
	}
	if ends := s.shutdownEnds(); ends != 0 {
		p.Exit = s.Phase == phaseServing || s.Phase == phaseResuming || s.Phase == phaseDone || s.Phase == phaseDown || ends.reached(s.now)
	}
	p.WakeAt = wakeAt(s)
	return p
}

// wakeAt returns when a guard next changes without an event.
func wakeAt(s situation) (next instant) {
	at := func(times ...instant) {
		for _, t := range times {
			if t > s.now && (next == 0 || t < next) {
				next = t
			}
		}
	}
	at(s.shutdownEnds())
	for _, n := range s.Notices {
		at(s.dueAt(n))
	}
	poll := len(s.due()) > 0 && !s.leaving() // for the join
	switch s.Phase {
	case phaseAnnouncing:
		at(s.Entered.Add(announceNobodyTime), s.Entered.Add(announceTime), s.Entered.Add(balancerTime), s.deadline())
	case phaseDraining:
		at(s.deadline(), max(s.Entered, s.deadline()).Add(lastCountTime), s.uncountableEnds())
	case phaseDeregistering:
		at(s.Entered.Add(s.stepTime(deregisterTime, time.Second, s.Entered)))
	case phaseCompleting:
		at(s.Entered.Add(idleHookTime))
		poll = s.NeverJoined
	case phaseServing, phaseResuming, phaseStopping, phaseStopFailed, phaseDown, phaseDone:
	}
	if poll {
		at(s.now.Add(s.c.Sample))
	}
	if st := s.Start; st != nil {
		at(st.Since.Add(proveTime))
		if st.Proved != 0 {
			at(st.Proved.Add(longestTimeout))
		}
	}
	return next
}
