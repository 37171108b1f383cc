// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"slices"
	"sort"
	"strings"
	"time"
)

// Moment is one line of the timeline: when sessions are waited for no longer,
// and by whose word.
type Moment struct {
	// At is when the waiting ends by this word; the first of them decides.
	At time.Time `json:"at"`
	// Ends is when the cloud, or the machine, ends all; zero where nothing does.
	Ends time.Time `json:"ends,omitzero"`
	// By is whose word it is.
	By string `json:"by"`
	// Decides marks the one that counts.
	Decides bool `json:"decides,omitempty"`
}

// timeline is the one owner of the deadline: everything that ends the waiting,
// the first first.
//
// A person's --deadline stands in the place of the configured one, later or
// earlier. What the cloud says can only shorten that, and nobody lengthens it.
func (o *Options) timeline(r *record) []Moment {
	var list []Moment
	if by, at := o.asked(r); by != "" {
		list = append(list, Moment{At: at, By: by})
	}
	for _, n := range r.Notices {
		if n.Kind == Ask || n.Deadline.IsZero() {
			continue
		}
		reserve := reserveTime
		if n.Kind == Shutdown {
			reserve = shutdownReserve // systemd gives AMS and the deregistering times of their own
		}
		span := max(0, n.Deadline.Sub(n.Received))
		list = append(list, Moment{At: n.Deadline.Add(-min(reserve, span/2)), Ends: n.Deadline, By: noticeWord(n)})
	}
	for i := range r.Hooks {
		a := &r.Hooks[i]
		if a.Hook.Launching || a.End != "" || !r.hooked() {
			continue
		}
		name := "hook " + a.Hook.Name
		if limit := a.limit(); !limit.IsZero() {
			list = append(list, Moment{At: limit.Add(-min(reserveTime, limit.Sub(a.Since)/4)), Ends: limit, By: name + ", which waits no longer than that"})
		}
		// As long as it hears of us, its timeout says nothing.
		if lapse := a.lapse(); !lapse.IsZero() && (a.Failing || a.Denied != "" || o.Hooks == nil) {
			word := ", unless a heartbeat gets through"
			if a.Denied != "" {
				word = ", which cannot be kept waiting: permission " + a.Denied + " is missing"
			}
			list = append(list, Moment{At: lapse.Add(-min(reserveTime, a.Hook.Timeout/4)), Ends: lapse, By: name + word})
		}
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].At.Before(list[j].At) })
	if len(list) > 0 {
		list[0].Decides = true
	}
	return list
}

// shutdownReserve is what the daemon needs for itself once the last session is
// gone.
const shutdownReserve = time.Second

// asked is the deadline that people chose: the latest word of those who asked,
// else what is configured for this role.
func (o *Options) asked(r *record) (by string, at time.Time) {
	var last time.Time
	for _, n := range r.Notices {
		if n.Kind == Ask && !n.Deadline.IsZero() && !n.Received.Before(last) {
			last, at = n.Received, n.Deadline
			by = "--deadline"
			if n.Who != "" {
				by += " of " + n.Who
			}
		}
	}
	if by != "" || r.Begun.IsZero() {
		return by, at
	}
	return "the configured deadline", r.Begun.Add(o.wait(r))
}

// wait is how long this drain waits for sessions unless the operator names a time.
func (o *Options) wait(r *record) time.Duration {
	if r.Wait > 0 {
		return r.Wait
	}
	d, _ := o.Deadline()
	return d
}

func noticeWord(n Notice) string {
	text := n.Source
	if n.Kind == Ask {
		text = "drain requested"
		if who, _, _ := strings.Cut(n.Who, ", amsagent "); who != "" { // the command says nothing more
			text += " by " + who
		}
		if n.Reason != "" {
			text += " (" + n.Reason + ")"
		}
		return text
	}
	if n.Kind == Shutdown {
		text = "the stop of the machine"
		if n.By != "" {
			text += " (" + n.By + ")"
		}
		return text
	}
	if n.Reason != "" {
		text += " (" + n.Reason + ")"
	} else {
		text += " (" + string(n.Kind) + ")"
	}
	return text
}

// limit is when the cloud waits no longer, whatever it hears.
func (a *waiter) limit() time.Time {
	if !a.Hook.Limit.IsZero() || a.Hook.Timeout <= 0 {
		return a.Hook.Limit
	}
	return a.Since.Add(min(LongestWait, hookTimes*min(a.Hook.Timeout, LongestWait)))
}

// hookTimes is by how often its timeout a hook can be kept waiting.
const hookTimes = 100

// lapse is when the hook ends unless it hears of us; zero is not known.
func (a *waiter) lapse() time.Time {
	if a.Hook.Timeout <= 0 {
		return time.Time{}
	}
	return later(a.Since, a.Beaten).Add(a.Hook.Timeout)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// deadline is when sessions are waited for no longer.
func deadline(list []Moment) time.Time {
	if len(list) == 0 {
		return time.Time{}
	}
	return list[0].At
}

// end is when the machine is taken, or the hook stops waiting; zero where
// nothing ends.
func end(list []Moment) time.Time {
	var first time.Time
	for _, m := range list {
		if !m.Ends.IsZero() && (first.IsZero() || m.Ends.Before(first)) {
			first = m.Ends
		}
	}
	return first
}

// due is when the drain for a notice begins. What is announced for days ahead
// begins in time, not today: until then people are served.
func (o *Options) due(r *record, n Notice) time.Time {
	switch n.Kind {
	case Reboot, Interrupt:
		if n.Deadline.Sub(n.Received) > atOnce {
			wait := o.wait(r)
			if r.Step == StepNone {
				wait, _ = o.Deadline()
			}
			return later(n.Received, n.Deadline.Add(-wait-reserveTime))
		}
	case Terminate, Park, Ask, Shutdown, Resume, Launch, Withdrawn:
	}
	return n.Received
}

// atOnce is the longest notice of a spot machine. In its last minutes a machine gets no new
// sessions, also where the configured deadline is shorter.
const atOnce = 5 * time.Minute

func (o *Options) isDue(r *record, n Notice, now time.Time) bool { return !now.Before(o.due(r, n)) }

// inForce are the notices that are due; all, where none is: a drain that was begun goes
// on where the cloud moves the end of its time.
func (o *Options) inForce(r *record) []Notice {
	now := time.Now()
	due := slices.DeleteFunc(slices.Clone(r.Notices), func(n Notice) bool { return !o.isDue(r, n, now) })
	if len(due) == 0 {
		return r.Notices
	}
	return due
}

// goal is what the notices in force come to: one that is announced for a day to come
// makes no reboot of today the last one.
func (o *Options) goal(r *record) goal { return goalOfAll(o.inForce(r)) }

// cause is the weightiest of the notices in force.
func (o *Options) cause(r *record) Notice { return weightiest(o.inForce(r)) }
