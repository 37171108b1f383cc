// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// goal is the purpose of a drain: the highest of its due notices.
type goal int

const (
	goalNone   goal = iota
	goalReboot      // the machine returns by itself: drain only
	goalPark        // out of service until the cloud returns it
	goalLeave
)

var goals = map[Kind]goal{
	Terminate: goalLeave, Interrupt: goalLeave, Reimage: goalLeave, Ask: goalLeave,
	Park:   goalPark,
	Reboot: goalReboot, Shutdown: goalReboot,
}

// state is the content of drain.json, and what the agent has observed since its start.
type state struct {
	Phase   Step    `json:"step,omitempty"`
	Entered instant `json:"entered,omitempty"` // this phase
	// Goal is set when the server is stopped, and then may only rise.
	Goal    goal     `json:"goal,omitempty"`
	Notices []notice `json:"notices,omitempty"`
	// Overruled lists notices that the operator overruled, until the cloud withdraws them.
	Overruled []overruled `json:"overruled,omitempty"`
	// Overruling is when the operator did so last. An earlier event may be delivered again.
	Overruling instant `json:"overruling,omitempty"`
	Began      instant `json:"began,omitempty"`
	// Role is the node's at the start of the drain: with another one, other sessions would count.
	Role string `json:"role,omitempty"`
	// Budget is the setting at the start of the drain: a restart with another moves no deadline. It is 0 until final.
	Budget time.Duration `json:"budget_ns,omitempty"`
	// Deadline is the one in force when the drain ended.
	Deadline instant `json:"deadline,omitempty"`
	// Want is the desired state of the node record, Have the actual one.
	Want  cluster.State `json:"want,omitempty"`
	Have  cluster.State `json:"have,omitempty"`
	Hooks hooks         `json:"hooks,omitempty"`
	// EndHooks and LaunchHooks are the answers about the hooks of both transitions.
	EndHooks    answer `json:"end_hooks,omitzero"`
	LaunchHooks answer `json:"launch_hooks,omitzero"`
	// Used are hooks that the agent extended or completed, also in earlier drains and boots.
	Used hookKeys `json:"used_hooks,omitempty"`
	// NeverJoined: the machine leaves before its join, so there are no sessions to wait for.
	NeverJoined bool       `json:"never_joined,omitempty"`
	Repair      bool       `json:"repair_streams,omitempty"`
	Departure   *Departure `json:"departure,omitempty"`
	StopBy      instant    `json:"stop_by,omitempty"` // else the stop has failed
	StoppedAt   instant    `json:"stopped,omitempty"`
	// JoinedAt is the end of the last join before the stop. Any other value, even an earlier one, is a join after the stop: the
	// clock may have been set.
	JoinedAt time.Time `json:"joined_at,omitzero"`
	// Forgotten: the node record may still show a forgotten drain.
	Forgotten bool   `json:"forgotten,omitempty"`
	Start     *start `json:"start,omitempty"`

	observed
}

// observed has what the agent observes again after a restart.
type observed struct {
	balancers        []string // that send new sessions here
	balancersAsked   bool
	sessions         *cluster.Sessions
	countedAt        instant
	uncountableSince instant
	lastSession      instant // when one was last counted, or not known
	zeros            int
	stopOverdue      bool // the time limit is over
	askNotBefore     instant
	settings         int      // how often read again
	inService        instant  // when the group last had the machine in service
	launched         bool     // the launch hook was looked for
	unknown          []string // ids of unknown signals
	cancelledBy      string
	trouble          map[string]string
	notes            []note
	history          []cluster.Event // of this step
}

// answer is the cloud's answer about the hooks of a transition.
type answer struct {
	None    bool   `json:"none,omitempty"` // none is for this agent
	others  string // about hooks of other programs
	denied  string // the permission that the query lacks
	foreign *hook  // another program's, which ends the machine
}

func (s *state) answer(launching bool) *answer {
	if launching {
		return &s.LaunchHooks
	}
	return &s.EndHooks
}

type overruled struct {
	ID      string `json:"id"`
	Missing int    `json:"missing,omitempty"`
	// Deadline is the notice's; one that is postponed is in force again.
	Deadline instant `json:"deadline,omitempty"`
	// Rejoined: the operator joined the parked machine again. It stays after a boot.
	Rejoined bool `json:"rejoined,omitempty"`
}

// start is a node that begins to serve while a hook may wait for it.
type start struct {
	ID     string  `json:"id"`
	Since  instant `json:"since"`
	Server bool    `json:"server,omitempty"` // start the server first
	Proved instant `json:"proved,omitempty"`
	Failed bool    `json:"failed,omitempty"`
}

type note struct {
	warns bool
	text  string
	attrs []any
}

func (n note) String() string {
	text := n.text
	for attr := range slices.Chunk(n.attrs, 2) {
		key := strings.ReplaceAll(fmt.Sprint(attr[0]), "_", " ")
		if strings.Contains(n.text, key) { // "hook completed: drain"
			text += fmt.Sprint(": ", attr[1])
		} else {
			text += fmt.Sprint(", ", key, " ", attr[1])
		}
	}
	return text
}

// note leaves out attributes without a value.
func (s *state) note(text string, attrs ...any) {
	n := note{text: text}
	for attr := range slices.Chunk(attrs, 2) {
		if attr[1] != nil && attr[1] != "" {
			n.attrs = append(n.attrs, attr...)
		}
	}
	s.notes = append(s.notes, n)
}

func (s *state) warn(text string, attrs ...any) {
	s.note(text, attrs...)
	s.notes[len(s.notes)-1].warns = true
}

func (s *state) setTrouble(about, text string) {
	if text == "" {
		delete(s.trouble, about)
		return
	}
	s.trouble[about] = text
}

func (s state) clone() state {
	s.Notices, s.Overruled, s.Hooks = slices.Clone(s.Notices), slices.Clone(s.Overruled), slices.Clone(s.Hooks)
	s.Used, s.notes, s.history = slices.Clone(s.Used), nil, nil
	if s.trouble = maps.Clone(s.trouble); s.trouble == nil {
		s.trouble = map[string]string{}
	}
	if s.Start != nil {
		start := *s.Start
		s.Start = &start
	}
	return s
}

func (s *state) empty() bool {
	return s.Phase == StepNone && len(s.Notices) == 0 && len(s.Overruled) == 0 && s.Start == nil && s.Want == s.Have && !s.Forgotten
}

// leaving reports whether a drain is in progress or over.
func (s *state) leaving() bool { return s.Phase != StepNone && s.Phase != stepResuming }

func (s *state) reversible(goal goal) bool {
	if s.Phase == StepDone {
		return goal <= goalReboot
	}
	return !slices.Contains([]Step{StepStopping, stepStopFailed, StepDeregistering, StepCompleting}, s.Phase)
}

func (s *state) has(kinds ...Kind) *notice {
	for i := range s.Notices {
		if n := &s.Notices[i]; n.inForce() && slices.Contains(kinds, n.Kind) {
			return n
		}
	}
	return nil
}

func (s *state) notice(id string) *notice {
	for i := range s.Notices {
		if s.Notices[i].ID == id {
			return &s.Notices[i]
		}
	}
	return nil
}

func (s situation) due() (due []notice) {
	for _, n := range s.Notices {
		if n.inForce() && s.isDue(n) {
			due = append(due, n)
		}
	}
	return due
}

func (s situation) isDue(n notice) bool {
	at := s.dueAt(n)
	return at <= s.now || n.Begun && at <= s.now.Add(putOffTime)
}

// putOffTime: a draining node does not serve again if its notice is postponed by less.
const putOffTime = time.Hour

// goal is not lowered by withdrawals after the stop of the server.
func (s situation) goal() goal {
	goal := goalNone
	if !s.reversible(s.Goal) {
		goal = s.Goal
	}
	for _, n := range s.due() {
		goal = max(goal, goals[n.Kind])
	}
	return goal
}

// cause returns the notice to display.
func (s situation) cause() (cause notice) {
	list := s.due()
	if len(list) == 0 {
		list = s.Notices
	}
	return heaviest(list)
}

func heaviest(list []notice) (best notice) {
	for _, n := range list {
		if goals[n.Kind] > goals[best.Kind] {
			best = n
		}
	}
	return best
}

// boundNotices drops the notices with the latest deadlines, but no operator's request and no shutdown.
func (s *state) boundNotices() {
	rank := func(n notice) instant {
		if n.Kind == Ask || n.Kind == Shutdown {
			return 0
		}
		return cmp.Or(n.Deadline, math.MaxInt64)
	}
	if len(s.Notices) > maxNotices {
		slices.SortStableFunc(s.Notices, func(a, b notice) int { return cmp.Compare(rank(a), rank(b)) })
		s.Notices = s.Notices[:maxNotices]
		s.dropUnnamedHooks()
		s.setTrouble(troubleNotices, fmt.Sprintf("more than %d notices are in force; those whose deadlines come last are ignored", maxNotices))
	}
}

// hookKinds are the notices that may have a hook that they do not name.
func hookKinds() []Kind { return []Kind{Terminate, Reimage, Park} }

func (s *state) asks() bool { return s.has(hookKinds()...) != nil }

func (s *state) dropHooks(launching bool) {
	s.Hooks = slices.DeleteFunc(s.Hooks, func(a hook) bool { return a.Hook.Launching == launching })
}

// dropUnnamedHooks deletes the hooks of withdrawn notices.
func (s *state) dropUnnamedHooks() {
	s.Hooks = slices.DeleteFunc(s.Hooks, func(a hook) bool {
		return !a.Hook.Launching && !s.asks() && (a.Notice == "" || s.notice(a.Notice) == nil)
	})
}

func (n notice) departure(repair bool) *Departure {
	d := &Departure{Reason: cmp.Or(n.Reason, string(n.Kind)), LeftBy: cluster.LeftByDrain, RepairStreams: repair}
	if n.Kind == Reimage {
		d.LeftBy = cluster.LeftByReimage
	}
	return d
}

func (n notice) event(kind string, details map[string]string) cluster.Event {
	return cluster.Event{Kind: kind, Who: cmp.Or(n.Who, n.Source), Why: n.Reason, Details: details}
}

func (s situation) role() string { return cmp.Or(s.Role, s.c.Role) }

// left returns the number of sessions to wait for: an edge waits only for viewers. Unknown is not zero.
func (s situation) left(sessions cluster.Sessions) (n int, known bool) {
	if s.role() == "edge" {
		if sessions.Viewers == nil {
			return 0, false
		}
		return *sessions.Viewers, true
	}
	n, known = sessions.Total()
	if known && *sessions.Publishers == 0 && sessions.PublishersBy == cluster.CountedByConnections && s.has(Shutdown) == nil {
		return 0, false // see errNoPublishers
	}
	return n, known
}

// errNoPublishers: SRT and pulled streams do not use the RTMP port, so zero connections do not prove zero publishers. For a
// shutdown they are enough.
const errNoPublishers = "nothing is connected to the RTMP port, but streams that come another way are not known without MongoDB or the server's statistics"

func groupNotice(id string) bool { return strings.HasSuffix(topicOf(id), cloud.GroupTopic("")) }
