// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// config has the inputs of a step besides the state.
type config struct {
	// Joined reports whether the machine is a node, JoinedAt the end of the last join. Each reads a file.
	Joined   func() bool
	JoinedAt func() time.Time
	Role     string
	// Budget limits the wait for sessions. It is not Final while an instance tag may change it.
	Budget time.Duration
	Final  bool
	Hooks  bool // the cloud has hooks
	Wall   wallClock
	Before cluster.Sessions // counted shortly before, or unknown
}

const (
	// reserveTime is for stopping, deregistering and completing: with streams the server takes about 17 s to end, each other
	// step about 1 s.
	reserveTime = 30 * time.Second
	// shutdownReserve applies if systemd stops the server.
	shutdownReserve = time.Second
	// announceTime bounds the wait for the node record, announceNobodyTime that of a shutdown without sessions.
	announceTime       = 2 * time.Second
	announceNobodyTime = 500 * time.Millisecond
	// balancerTime bounds the wait for load balancers that confirm their state: they read the registry each second.
	balancerTime = 10 * time.Second
	// deregisterTime bounds the wait for the node record.
	deregisterTime = 10 * time.Second
	// uncountableTime bounds a shutdown's wait for sessions that cannot be counted.
	uncountableTime = 2 * time.Minute
	// peersTime bounds the wait for connections of other nodes, which may be viewers behind a proxy, after the last session.
	peersTime = 5 * time.Minute
	// lastCountTime bounds the wait for a count at the deadline.
	lastCountTime = time.Second
	// proveTime bounds a start.
	proveTime = 10 * time.Minute
	// idleHookTime is how long a hook is tried that may not exist for this transition: detach, standby, most launches.
	idleHookTime = 10 * time.Minute
	// parkedHookTime is longer than a load balancer takes to release a machine, before a pool's hook waits.
	parkedHookTime = 2 * time.Hour
	// longestTimeout is the longest hook timeout of a cloud: AWS 2 h, Alibaba Cloud 6 h.
	longestTimeout = 6 * time.Hour
	// spotTime is the longest notice of a spot machine, which gets no new sessions in its last minutes.
	spotTime = 5 * time.Minute
)

// Consecutive counts without a session. An HLS player may be between two connections.
const (
	zerosNeeded        = 2
	zerosByConnections = 10
)

// situation is the input of every guard and derived value.
type situation struct {
	*state
	now instant
	c   *config
}

// event changes facts; the transitions follow from these.
type event func(situation) error

func change(do func(situation)) event {
	return func(s situation) error {
		do(s)
		return nil
	}
}

var passed = change(func(situation) {}) // time

// step applies an event and all transitions that follow. It reads no clock and does no I/O.
func step(s situation, apply event) (state, error) {
	next := s.clone()
	s.state = &next
	err := apply(s)
	s.update()
	for i := 0; i < len(transitions); i++ {
		if t := transitions[i]; t.from == s.Phase && t.when(s) {
			s.Phase, s.Entered = t.to, s.now
			if t.do != nil {
				t.do(s)
			}
			s.update()
			i = -1 // restart with the first transition
		}
	}
	return next, err
}

type transition struct {
	from, to Step
	why      string // for docs/drain.md
	when     func(situation) bool
	do       func(situation)
}

// transitions is the state machine: the first one that applies is taken.
var transitions = []transition{
	{StepNone, StepAnnouncing, "a notice is due", joinedAndDue, begin},
	{StepNone, StepCompleting, "a machine that has not joined leaves", neverJoined, begin},
	{StepAnnouncing, StepNone, "no notice is due any more", nothingDue, serveAgain},
	{StepAnnouncing, StepDraining, "the record says draining (2 s at most) and no known load balancer sends sessions here (10 s at most), or the deadline", announced, noteBalancers},
	{StepDraining, StepNone, "no notice is due any more", nothingDue, serveAgain},
	{StepDraining, stepDown, "no session is left, or the deadline; the machine shuts down", drainedForShutdown, recordDeparture},
	{StepDraining, StepDone, "no session is left, or the deadline; the machine reboots", drainedForReboot, drainedBeforeReboot},
	{StepDraining, StepStopping, "no session is left, or the deadline", drained, recordDeparture},
	{StepStopping, StepDeregistering, "the server has ended", stopped, deregister},
	{StepStopping, stepStopFailed, "it does not end in time", stopOverdue, failStop},
	{stepStopFailed, StepDeregistering, "the server has ended", stopped, deregister},
	{StepDeregistering, StepCompleting, "the record says left, or 10 s have passed", deregistered, nil},
	{StepCompleting, StepAnnouncing, "the machine has joined after all", joinedAfterAll, begin},
	{StepCompleting, StepDone, "no hook waits, or none can be completed", hooksDone, finish},
	{StepDone, StepNone, "the machine was joined again", rejoined, forgetDrain},
	{StepDone, StepAnnouncing, "a notice above the reboot is due", aboveReboot, begin},
	{StepDone, StepNone, "no reboot is due any more", rebootWithdrawn, serveAgain},
	{StepDone, StepCompleting, "a hook waits", hookWaits, nil},
	{StepDone, stepResuming, "the group has the parked machine in service again", backInService, resume},
	{stepResuming, StepAnnouncing, "a notice is due", joinedAndDue, begin},
	{stepResuming, StepCompleting, "a machine that has not joined leaves", neverJoined, begin},
	{stepResuming, StepNone, "the node is seen in the cluster", proved, nil},
}

func (s situation) update() {
	s.dropWithdrawn()
	for i := range s.Notices {
		if n := &s.Notices[i]; s.leaving() && n.inForce() && s.dueAt(*n) <= s.now {
			n.Begun = true
		}
	}
	if s.leaving() && s.Budget == 0 && s.c.Final {
		s.Budget = s.c.Budget
	}
	if s.Phase != StepDraining {
		delete(s.trouble, troubleSessions)
	}
	if len(s.Notices) < maxNotices {
		s.setTrouble(troubleNotices, "")
	}
	s.updateStart()
}

func (s situation) counted() bool {
	return s.sessions != nil && s.now.Sub(s.countedAt) <= 3*sampleEvery
}

func (s situation) isLate() bool { return s.deadline().reached(s.now) }

func (s *state) none() bool {
	if s.sessions != nil && s.sessions.By == cluster.CountedByConnections {
		return s.zeros >= zerosByConnections
	}
	return s.zeros >= zerosNeeded
}

// uncountableEnds returns when a shutdown stops waiting for sessions that cannot be counted; 0 if it does not.
func (s *state) uncountableEnds() instant {
	n := s.has(Shutdown)
	if n == nil || s.uncountableSince == 0 {
		return 0
	}
	return max(s.uncountableSince, n.Received).Add(uncountableTime)
}

func joinedAndDue(s situation) bool {
	return s.goal() > goalNone && s.c.Joined()
}

func neverJoined(s situation) bool {
	return s.goal() >= goalPark && !s.c.Joined()
}

func nothingDue(s situation) bool { return s.goal() == goalNone }

// stepEnds returns when a step with a limit of its own ends at the latest; 0 for all other steps.
func (s situation) stepEnds() instant {
	switch {
	case s.Phase == StepAnnouncing:
		limit := announceTime
		switch {
		case len(s.balancers) > 0:
			limit = balancerTime
		case s.noneBefore():
			limit = announceNobodyTime
		}
		return min(s.Entered.Add(limit), cmp.Or(s.deadline(), math.MaxInt64))
	case s.Phase == StepStopping:
		return s.StopBy
	case s.Phase == StepDeregistering:
		return s.Entered.Add(deregisterTime)
	}
	return 0
}

func announced(s situation) bool {
	said := s.Have == cluster.StateDraining && s.balancersAsked && len(s.balancers) == 0
	return said || s.stepEnds().reached(s.now)
}

func noteBalancers(s situation) {
	if len(s.balancers) > 0 {
		s.note("load balancers still send sessions to this node", "balancers", strings.Join(s.balancers, ", "))
	}
}

func (s situation) noneBefore() bool {
	n, known := s.left(s.c.Before)
	return s.has(Shutdown) != nil && known && n == 0 && !s.c.Before.HasPeers()
}

func drained(s situation) bool {
	if s.isLate() && !s.none() {
		// The departure record needs the number of cut sessions.
		return s.counted() || max(s.Entered, s.deadline()).Add(lastCountTime).reached(s.now)
	}
	return s.none() || s.uncountableEnds().reached(s.now)
}

func drainedForShutdown(s situation) bool {
	return drained(s) && s.has(Shutdown) != nil
}

func drainedForReboot(s situation) bool {
	return drained(s) && s.goal() == goalReboot
}

func stopped(s situation) bool { return s.StoppedAt != 0 }

func stopOverdue(s situation) bool { return s.stopOverdue }

func failStop(s situation) {
	s.note("the server did not end in time; hooks are completed, the node record stays, and the stop is retried")
}

func deregistered(s situation) bool {
	return s.Have == cluster.StateLeft || s.stepEnds().reached(s.now)
}

func joinedAfterAll(s situation) bool { return s.NeverJoined && s.c.Joined() }

func hooksDone(s situation) bool {
	return s.hasNoPendingHook() || s.goal() == goalPark && (s.Entered.Add(idleHookTime).reached(s.now) || backInService(s))
}

func hookWaits(s situation) bool {
	return s.goal() == goalLeave && !s.hasNoPendingHook()
}

func rejoined(s situation) bool {
	if s.StoppedAt == 0 {
		return false
	}
	at := s.c.JoinedAt()
	if at.IsZero() || s.JoinedAt.IsZero() { // unreadable at the stop
		return s.c.Wall.instant(at) > s.StoppedAt
	}
	return !at.Equal(s.JoinedAt)
}

func aboveReboot(s situation) bool {
	return s.Goal == goalReboot && s.goal() > goalReboot
}

func rebootWithdrawn(s situation) bool {
	return s.Goal == goalReboot && s.goal() == goalNone
}

// backInService reports whether a parked machine, or one being parked, is in service again.
func backInService(s situation) bool { return s.Goal == goalPark && len(s.due()) == 0 }

func proved(s situation) bool { return s.Start == nil || s.Start.Proved != 0 }

func begin(s situation) {
	if s.Start != nil {
		s.note("start given up: the machine leaves")
		if s.Start = nil; s.goal() != goalPark { // its hook may wait for the parking
			s.LaunchHooks.None = false
			s.dropHooks(true)
		}
	}
	s.resetCounts()
	s.cancelledBy, s.EndHooks.others = "", ""
	s.Goal, s.Began, s.Deadline, s.Role, s.Budget = goalNone, s.now, 0, s.c.Role, 0
	s.Departure, s.NeverJoined = nil, !s.c.Joined()
	s.update()
	cause := s.cause()
	details := map[string]string{"kind": string(cause.Kind)}
	if s.NeverJoined {
		s.Goal = s.goal()
		s.note("node never joined: completing its hook without draining")
		details["joined"] = "never"
	} else {
		s.Want, s.Have = cluster.StateDraining, ""
		details["deadline"] = s.c.Wall.time(s.deadline()).UTC().Format(time.RFC3339)
	}
	s.history = append(s.history, cause.event("drain", details))
}

func serveAgain(s situation) {
	who := cmp.Or(s.cancelledBy, "the cloud")
	s.note("node serves again", "cancelled_by", who)
	s.history = append(s.history, cluster.Event{Kind: "undrain", Who: who, Why: map[bool]string{true: "cancelled", false: "withdrawn"}[s.cancelledBy != ""]})
	s.reset()
	s.Want, s.Have = cluster.StateActive, ""
	s.dropHooks(false)
}

func recordDeparture(s situation) {
	s.Goal, s.Deadline = max(s.Goal, s.goal()), s.deadline()
	why := "no session is left"
	peers := s.sessions != nil && s.sessions.HasPeers()
	switch {
	case s.none() && peers:
		why = "only connections of other nodes are left"
	case s.none():
	case s.isLate():
		why = "deadline reached"
	default:
		why = "sessions could not be counted for " + uncountableTime.String() + ", and the machine shuts down"
	}
	var left, by string
	if s.sessions != nil && (peers || !s.none()) {
		left = s.sessions.Left()
	}
	if list := s.timeline(); len(list) > 0 && s.isLate() {
		by = list[0].by
	}
	s.note(why, "sessions", left, "deadline_by", by)
	s.Departure = s.cause().departure(s.Repair)
	if s.counted() {
		if n, known := s.left(*s.sessions); known {
			if s.role() == "edge" && s.sessions.Publishers != nil {
				n += *s.sessions.Publishers
			}
			if n > 0 || !peers {
				s.Departure.Cut = &n
			}
		}
	}
	if s.Phase == stepDown {
		recordEnd(s, "the machine shuts down")
	}
}

func drainedBeforeReboot(s situation) {
	recordDeparture(s)
	s.Departure = nil
	recordEnd(s, "drained")
}

func recordEnd(s situation, result string) {
	e := s.cause().event("drained", map[string]string{"result": result})
	if s.Departure != nil && s.Departure.Cut != nil {
		n := int64(*s.Departure.Cut)
		e.Cut = &n
	}
	s.history = append(s.history, e)
}

func deregister(s situation) {
	s.Want, s.Have, s.JoinedAt = cluster.StateLeft, "", s.c.JoinedAt()
	s.setTrouble(troubleStop, "")
}

func finish(s situation) {
	s.Goal = max(s.Goal, s.goal())
	// The agent retries a termination hook. The launch hook waits for the return.
	for i := range s.Hooks {
		if a := &s.Hooks[i]; a.End == "" && s.Goal == goalPark && a.Hook.Launching && a.completionDenied == "" {
			s.endHook(a, endLeft, nil)
		}
	}
	result := "left"
	if s.Goal == goalPark {
		result = "parked"
	}
	if s.NeverJoined {
		s.Departure = s.cause().departure(false)
	}
	if s.Want != cluster.StateLeft {
		s.Want, s.Have = cluster.StateLeft, ""
	}
	if s.Have != s.Want {
		s.note("node record could not be updated; it is when MongoDB is back")
	}
	s.note("drain done", "result", result)
	recordEnd(s, result)
}

func resume(s situation) {
	s.note("parked machine serves again")
	s.history = append(s.history, cluster.Event{Kind: "resume", Who: s.cause().Who, Why: "in service again"})
	s.Notices = slices.DeleteFunc(s.Notices, func(n notice) bool { return !n.inForce() || n.Kind == Park || n.Begun && goals[n.Kind] == goalReboot })
	s.reset()
	s.leaveRecord()
	// The parking's hooks have ended, and the launch hook is queried again.
	s.Hooks = slices.DeleteFunc(s.Hooks, func(a hook) bool { return !a.Hook.Launching || a.End != "" })
	s.Start = &start{ID: "resume", Since: s.now, Server: true}
}

func (s *state) reset() {
	s.resetCounts()
	s.Goal, s.Began, s.StopBy, s.StoppedAt, s.JoinedAt, s.Departure, s.Repair = goalNone, 0, 0, 0, time.Time{}, nil, false
	s.NeverJoined, s.EndHooks, s.LaunchHooks.None = false, answer{}, false
}

func (s *state) resetCounts() {
	s.sessions, s.countedAt, s.uncountableSince, s.zeros, s.stopOverdue = nil, 0, 0, 0, false
	s.balancers, s.balancersAsked = nil, false
	for _, about := range []string{troubleStop, troubleStart, troubleDiscover, troubleHeartbeat, troubleComplete} {
		delete(s.trouble, about)
	}
}

// leaveRecord returns the node record to the daemon after a drain.
func (s *state) leaveRecord() { s.Want, s.Have, s.Forgotten = "", "", true }

// forgetDrain keeps notices that came after the start of the drain or are due later: a join answers only those that caused
// the drain.
func forgetDrain(s situation) {
	stays := s.outlasting()
	s.Notices = slices.DeleteFunc(s.Notices, func(n notice) bool {
		switch {
		case !n.inForce():
			return true
		case stays(n):
			return false
		case n.Kind == Park || n.Listed:
			// The cloud still reports it; a parking also after a boot.
			s.overrule(n, n.Kind == Park)
		}
		return true
	})
	s.Overruling = s.now
	s.note("machine was joined again")
	hooks, none := s.Hooks, s.EndHooks.None
	s.reset()
	s.leaveRecord()
	s.Hooks = nil
	if s.asks() || slices.ContainsFunc(hooks, func(a hook) bool { return s.notice(a.Notice) != nil }) {
		s.Hooks, s.EndHooks.None = hooks, none // already completed
	}
}

// outlasting returns a function that reports whether a notice outlives a join.
func (s situation) outlasting() func(notice) bool {
	never, joined := s.NeverJoined && s.goal() > goalNone, s.c.Joined()
	return func(n notice) bool {
		ends := n.Kind == Shutdown ||
			(n.Kind == Terminate || n.Kind == Interrupt || n.Kind == Reboot || n.Kind == Reimage) && s.dueAt(n) > s.Began
		return never || joined && (ends || !s.isDue(n))
	}
}

func (s *state) overrule(n notice, rejoined bool) {
	s.Overruled = append(s.Overruled, overruled{ID: n.ID, Deadline: n.Deadline, Rejoined: rejoined})
	if n := len(s.Overruled); n > maxOverruled {
		s.Overruled = slices.Delete(s.Overruled, 0, n-maxOverruled)
	}
}
