// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Errors of the operator's requests.
var (
	// ErrNotJoined means that this machine has not joined: there is nothing to drain.
	ErrNotJoined = errors.New("this machine is not a cluster node")
	// ErrNotDraining means that there is no drain to cancel.
	ErrNotDraining = errors.New("this node is not draining")
	// ErrTooLate means that the server is already being stopped, or the machine shuts down.
	ErrTooLate = errors.New("it is too late to cancel the drain")
	// ErrLeft means that the node has left or is parked.
	ErrLeft = errors.New("this node has left already")
	// ErrBusy means that a drain is in progress.
	ErrBusy = errors.New("a drain is under way")
)

// Keys of [View.Trouble].
const (
	troubleRecord    = "record"
	troubleRegistry  = "registry"
	troubleNotices   = "notices"
	troubleSessions  = "sessions"
	troubleStop      = "stop"
	troubleStart     = "start"
	troubleHooks     = "hooks"
	troubleDiscover  = "discover"
	troubleHeartbeat = "heartbeat"
	troubleComplete  = "continue"
)

// Troubles returns all keys of [View.Trouble].
func Troubles() []string {
	return []string{
		troubleRecord, troubleRegistry, troubleNotices, troubleSessions, troubleStop, troubleStart,
		troubleHooks, troubleDiscover, troubleHeartbeat, troubleComplete,
	}
}

// requestID is shared by all requests of the operator, so that the last one counts.
const requestID = "drain"

// usualStopTime is systemd's default, for a shutdown without a known deadline.
const usualStopTime = 90 * time.Second

func (s situation) reported(topic string, current []cloud.Notice) error {
	group, unknown := groupNotice(topic+"/"), false
	var listed []string
	for _, n := range current {
		in := Notice{ID: n.ID, Source: topic, Kind: n.Kind, Reason: n.Reason, Who: n.Who}.bounded()
		listed = append(listed, in.ID)
		if n.Kind == cloud.Unknown {
			unknown = true
			s.unknownSignal(in)
			continue
		}
		s.take(notice{Notice: in, Received: s.now, Deadline: s.c.Wall.instant(n.At), Listed: true}, n.Hook, n.Past, n.Counted)
	}
	if group && unknown {
		return nil // it may be a new form of an earlier notice
	}
	s.countMissing(topic, listed)
	if !group || len(current) > 0 {
		return nil
	}
	s.inService = s.now
	if s.launched {
		return nil
	}
	// A launch hook may wait; the cloud does not announce that.
	s.launched = true
	return s.launch(Notice{ID: topic + "/launch", Kind: Launch})
}

func (s *state) unknownSignal(n Notice) {
	if slices.Contains(s.unknown, n.ID) || len(s.unknown) >= 2*maxNotices {
		return
	}
	s.unknown = append(s.unknown, n.ID)
	s.note("unknown cloud signal ignored", "signal", n.Reason, "topic", n.Source)
	s.history = append(s.history, cluster.Event{Kind: "unknown-signal", Who: n.Source, Why: n.Reason})
}

// take adds a notice, or updates a known one. A past notice is not new, and an estimated deadline replaces no other.
func (s situation) take(n notice, h *Hook, past, estimated bool) {
	if i := slices.IndexFunc(s.Overruled, func(o overruled) bool { return o.ID == n.ID }); i >= 0 {
		o := &s.Overruled[i]
		if o.Missing = 0; estimated || o.Deadline == 0 || n.Deadline <= o.Deadline.Add(putOffTime) {
			return
		}
		s.Overruled = slices.Delete(s.Overruled, i, i+1) // postponed: it has not been overruled for then
	}
	known := s.notice(n.ID)
	if known == nil {
		if !past {
			s.add(n, h)
		}
		return
	}
	known.Missing, known.Listed, known.Kept = 0, known.Listed || n.Listed, false
	if known.Kind != n.Kind {
		known.Kind, known.Reason, known.Who = n.Kind, n.Reason, n.Who
		s.note("notice changed", "notice", *known, "kind", known.Kind)
	}
	if n.Deadline != 0 && !(estimated && known.Deadline != 0) && known.Deadline.Sub(n.Deadline).Abs() > time.Second {
		known.Deadline = n.Deadline
		s.note("deadline of a notice changed", "notice", *known, "deadline", s.c.Wall.time(n.Deadline).Format(time.RFC3339))
	}
	s.learn(h, false, n.ID, known.Received)
}

func (s situation) countMissing(topic string, listed []string) {
	gone := func(id string, missing *int) bool {
		if topicOf(id) != topic || slices.Contains(listed, id) {
			return false
		}
		*missing = min(*missing+1, goneAfter)
		return *missing == goneAfter
	}
	for i := range s.Overruled {
		gone(s.Overruled[i].ID, &s.Overruled[i].Missing)
	}
	s.Overruled = slices.DeleteFunc(s.Overruled, func(o overruled) bool { return o.Missing == goneAfter })
	for i := range s.Notices {
		n := &s.Notices[i]
		if n.Kind == Reimage && !n.Listed {
			continue // the metadata may not report it
		}
		if was := n.inForce(); gone(n.ID, &n.Missing) && was {
			s.note("notice withdrawn", "notice", *n)
		}
	}
	s.dropWithdrawn()
}

// dropWithdrawn also drops what no hook holds since a boot. It keeps a drain's notices that cannot be cancelled, for display.
func (s situation) dropWithdrawn() {
	if !s.reversible(s.goal()) {
		return
	}
	held := slices.ContainsFunc(s.Hooks, func(a hook) bool { return a.waits(false) && !a.ends().reached(s.now) })
	for i := range s.Notices {
		if n := &s.Notices[i]; n.Kept && n.inForce() && !held {
			n.Missing = goneAfter
			s.warn("termination of an earlier boot dropped: no hook waits for it any more", "notice", *n)
		}
	}
	s.Notices = slices.DeleteFunc(s.Notices, func(n notice) bool { return !n.inForce() })
	s.dropUnnamedHooks()
}

func (s situation) add(n notice, h *Hook) {
	before := s.goal()
	s.Notices = append(s.Notices, n)
	if s.boundNotices(); s.notice(n.ID) == nil {
		return
	}
	if slices.Contains(hookKinds(), n.Kind) {
		// A hook may wait for this notice even if none waited before.
		s.EndHooks.None, s.EndHooks.denied, s.EndHooks.foreign, s.askNotBefore = false, "", nil, 0
		if before == goalPark && n.Kind == Terminate || s.Phase == StepDone && before >= goalPark {
			s.waitAgain(n.Received)
			s.Start = nil
		}
	}
	s.learn(h, false, n.ID, n.Received)
	if len(s.Notices) <= manyNotices {
		s.note("notice received", "notice", n)
	}
}

// manyNotices bounds the log: beyond it, new notices are not logged.
const manyNotices = 8

// waitAgain resets the termination hooks that were completed for the parking.
func (s *state) waitAgain(since instant) {
	for i := range s.Hooks {
		if a := &s.Hooks[i]; !a.Hook.Launching && (a.End != "" || s.Phase == StepDone) {
			*a = hook{Hook: a.Hook, Notice: a.Notice, Since: since, Ours: a.Ours}
		}
	}
}

func (s situation) noticed(n Notice) error {
	n.ID = cmp.Or(n.ID, n.Source+"/"+string(n.Kind))
	received := s.c.Wall.instant(n.Received)
	if received == 0 || received > s.now {
		received = s.now
	}
	in := notice{Notice: n.bounded(), Received: received, Deadline: s.c.Wall.instant(n.Deadline)}
	n.ID = in.ID
	switch n.Kind {
	case Launch:
		return s.launch(n)
	case Resume:
		return s.resumeNoticed(n, received)
	case Shutdown:
		if in.Deadline == 0 {
			in.Deadline = s.now.Add(usualStopTime)
		}
	case Terminate, Interrupt, Reboot, Park, Reimage:
	default:
		return fmt.Errorf("unknown kind of notice %q", n.Kind)
	}
	// A queue may redeliver the event after the return to service: EC2 may stop the machine before it deletes the message.
	back := n.Kind == Park && received < max(s.inService, 0) || n.Kind == Reimage && received < max(s.Overruling, 0)
	if back && s.notice(n.ID) == nil {
		return errors.New("the event is late: the machine has come back since")
	}
	s.take(in, n.Hook, false, false)
	return nil
}

func (s situation) resumeNoticed(n Notice, received instant) error {
	if s.leaving() && received < s.Began {
		return errors.New("the event is late: the machine leaves since")
	}
	s.inService = max(s.inService, received)
	s.Overruled = slices.DeleteFunc(s.Overruled, func(o overruled) bool { return groupNotice(o.ID) })
	if !s.leaving() {
		return s.launch(n)
	}
	for i := range s.Notices {
		if in := &s.Notices[i]; in.Kind == Park || groupNotice(in.ID) {
			in.Missing = goneAfter
		}
	}
	s.learn(n.Hook, true, "", received)
	s.dropWithdrawn()
	if s.goal() == goalLeave {
		return errors.New("the machine leaves for another reason")
	}
	return nil
}

func (s situation) drainRequested(q DrainRequest) error {
	n := notice{Notice: Notice{ID: requestID, Source: requestID, Kind: Ask, Reason: q.Reason, Who: q.Who}.bounded(), Received: s.now}
	switch {
	case q.Deadline < 0:
		return fmt.Errorf("invalid deadline %s: must not be negative", q.Deadline)
	case s.Phase == StepDone && s.goal() >= goalPark:
		return ErrLeft
	case !s.leaving() && !s.c.Joined():
		return ErrNotJoined
	case q.Now:
		n.Deadline = s.now
	case q.Deadline > 0:
		n.Deadline = s.now.Add(time.Duration(q.Deadline))
	}
	s.Repair = s.Repair || q.RepairStreams && s.Departure == nil
	known := s.notice(requestID)
	if known == nil {
		s.add(n, nil)
		return nil
	}
	if n.Deadline != 0 {
		known.Deadline, known.Received, known.Who = n.Deadline, s.now, n.Who
		s.note("deadline changed", "deadline", s.c.Wall.time(n.Deadline).Format(time.RFC3339), "by", n.Who)
	}
	return nil
}

func (s situation) drainCancelled(who string, recorded cluster.State) error {
	who = cmp.Or(who, "an unnamed user")
	switch {
	case !s.leaving() && !s.c.Joined():
		return ErrNotJoined
	case !s.leaving() && recorded != cluster.StateDraining:
		return ErrNotDraining
	case !s.leaving():
		s.cancelledBy = who
		serveAgain(s)
		return nil
	case !s.reversible(s.goal()):
		return fmt.Errorf("%w (step %s)", ErrTooLate, s.viewStep())
	case s.has(Shutdown) != nil:
		return fmt.Errorf("%w: the machine is shutting down", ErrTooLate)
	}
	for _, n := range s.due() {
		if n.Kind != Ask {
			s.overrule(n, false)
			s.note("notice overruled; the cloud may still terminate the machine", "notice", n, "by", who)
		}
	}
	s.Notices = slices.DeleteFunc(s.Notices, s.isDue)
	s.Overruling, s.cancelledBy = s.now, who
	return nil
}

func (s situation) joinSeen(joining bool) error {
	switch {
	case !s.leaving():
		return nil
	case s.Phase != StepDone:
		return ErrBusy
	}
	stays := s.outlasting()
	if slices.ContainsFunc(s.due(), stays) && (joining || !s.c.Joined()) {
		return nil
	}
	forgetDrain(s)
	s.Phase, s.Entered = StepNone, s.now
	return nil
}

func (s situation) sessionsCounted(sessions cluster.Sessions, err error) {
	if s.Phase != StepDraining {
		return
	}
	first := s.sessions == nil
	s.sessions, s.countedAt = &sessions, s.now
	n, known := s.left(sessions)
	if first || !known || n > 0 {
		s.lastSession = s.now
	}
	switch {
	case known || anySession(sessions):
		s.uncountableSince = 0
	case s.uncountableSince == 0:
		s.uncountableSince = s.now
	}
	switch {
	case !known:
		s.zeros = 0
		s.setTrouble(troubleSessions, s.uncountable(sessions, err))
		return
	case n > 0, sessions.HasPeers() && !s.lastSession.Add(peersTime).reached(s.now):
		s.zeros = 0
	case first && s.noneBefore():
		s.zeros = zerosByConnections
	default:
		s.zeros++
	}
	s.setTrouble(troubleSessions, "")
}

func (s *state) uncountable(sessions cluster.Sessions, err error) string {
	why := "not all of them are known"
	switch {
	case err != nil:
		why = err.Error()
	case sessions.PublishersBy == cluster.CountedByConnections && sessions.Viewers != nil:
		why = errNoPublishers
	}
	if s.has(Shutdown) != nil && s.uncountableSince != 0 {
		return "sessions cannot be counted; a machine that shuts down waits for " + uncountableTime.String() + " at most: " + why
	}
	return "sessions cannot be counted, so the drain waits until the deadline: " + why
}

func anySession(s cluster.Sessions) bool {
	return s.Publishers != nil && *s.Publishers > 0 || s.Viewers != nil && *s.Viewers > 0
}

// stopTried is final once the time limit is over.
func (s situation) stopTried(err error, final bool) {
	switch {
	case s.Phase != StepStopping && s.Phase != stepStopFailed:
	case err == nil:
		s.StoppedAt = s.now
	case errors.Is(err, ErrNotManaged):
		s.StoppedAt = s.now
		s.note("the server is not managed here: stop it by hand")
	default:
		s.setTrouble(troubleStop, "Ant Media Server cannot be stopped: "+err.Error())
		s.stopOverdue = s.stopOverdue || final
	}
}

func (s situation) recordWritten(state cluster.State, err error) {
	switch {
	case state != s.Want:
	case err == nil:
		s.Have = s.Want
		s.setTrouble(troubleRegistry, "")
	case state != cluster.StateLeft && refused(err):
		s.note("the registry refuses the state; the record stays as it is", "state", state, "error", err)
		s.Have = s.Want
		s.setTrouble(troubleRegistry, "")
	default:
		s.setTrouble(troubleRegistry, "the node record could not be set to "+string(state)+": "+err.Error())
	}
}

// refused reports whether a retry is futile because the record's state is final. A joining record becomes active soon.
func refused(err error) bool {
	te, ok := errors.AsType[*cluster.TransitionError](err)
	return ok && te.From != cluster.StateJoining
}
