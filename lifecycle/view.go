// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"maps"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// State is the state of the node for programs on this machine.
type State string

// The states.
const (
	StateActive   State = "active"
	StateDraining State = "draining"
	StateLeft     State = "left"
	StateParked   State = "parked" // will return
	StateResuming State = "resuming"
)

// Step is the progress of a drain. [transitions] has the order.
type Step string

// The steps.
const (
	StepNone          Step = ""              // serving
	StepAnnouncing    Step = "announcing"    // the record becomes draining
	StepDraining      Step = "draining"      // sessions are counted
	StepStopping      Step = "stopping"      // cannot be cancelled
	StepDeregistering Step = "deregistering" // the record becomes left
	StepCompleting    Step = "completing"    // of hooks
	StepDone          Step = "done"          // left, parked, or drained before a reboot

	// [state.viewStep] has what the view shows for these.
	stepDown       = Step("down")        // drained, and the machine shuts down: systemd stops the server
	stepStopFailed = Step("stop-failed") // not ended in time: hooks are completed, the stop is retried
	stepResuming   = Step("resuming")    // a parked machine starts its server again
)

// Moment is one end of the wait for sessions.
type Moment struct {
	At time.Time `json:"at"`
	// Ends is when the machine ends or the cloud stops waiting; zero if neither.
	Ends time.Time `json:"ends,omitzero"`
	By   string    `json:"by"`
	// Decides: this moment sets the deadline.
	Decides bool `json:"decides,omitempty"`
}

// Note is one log line of a drain.
type Note struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// View describes the drain of this node.
type View struct {
	State State `json:"state"`
	// Ready is false once new sessions must not come here.
	Ready bool `json:"ready"`
	Step  Step `json:"step,omitempty"`
	// Until is when the step ends at the latest, if it has a limit of its own.
	Until time.Time `json:"until,omitzero"`
	// Kind, Reason and Who are those of the notice with the highest goal; kinds are also "request" (an operator's) and "shutdown".
	Kind     Kind      `json:"kind,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Who      string    `json:"asked_by,omitempty"`
	Begun    time.Time `json:"begun,omitzero"`
	Deadline time.Time `json:"deadline,omitzero"`
	// DeadlineBy is the source of the deadline, Timeline everything that ends the wait for sessions.
	DeadlineBy string   `json:"deadline_by,omitempty"`
	Timeline   []Moment `json:"timeline,omitempty"`
	Notices    []Notice `json:"notices,omitempty"`
	// NextDrain is when an announced drain begins.
	NextDrain time.Time `json:"next_drain,omitzero"`
	// Dismissed are the ids of overruled notices.
	Dismissed []string `json:"overruled,omitempty"`

	// Balancers still sent new sessions here when the counting began, or send them now.
	Balancers []string `json:"balancers,omitempty"`
	// Sessions is nil before the first count.
	Sessions *cluster.Sessions `json:"sessions,omitempty"`
	Counted  time.Time         `json:"counted,omitzero"`
	// Progress is a line for people.
	Progress string `json:"progress,omitempty"`
	// StopFailed: Ant Media Server did not end in time. The stop is retried, and the registry keeps the node as draining.
	StopFailed bool `json:"stop_failed,omitempty"`
	// CancelledBy cancelled the last drain.
	CancelledBy string `json:"cancelled_by,omitempty"`
	// Cut is how many sessions the stop cut; nil if not countable.
	Cut *int `json:"cut,omitempty"`

	// Registry is the desired state of the node record; RegistryTold reports whether the record has it.
	Registry     cluster.State `json:"registry,omitempty"`
	RegistryTold bool          `json:"registry_written"`
	Hooks        []HookView    `json:"hooks,omitempty"`
	// Start is "", "starting", "proved" or "failed", for a start that a hook may wait for.
	Start string `json:"start,omitempty"`
	// LaunchHooks names the launch hooks if none is this agent's, and the setting to claim one. All may belong to other
	// programs, so this is not trouble.
	LaunchHooks string `json:"launch_hooks,omitempty"`
	// NeverJoined: the machine leaves before its join, so the agent only completes the cloud's hook.
	NeverJoined bool `json:"never_joined,omitempty"`
	// Over: the machine shuts down, and the agent has no more work.
	Over bool `json:"shutdown_done,omitempty"`
	// UnknownSignals counts the cloud's signals that this version does not know.
	UnknownSignals int `json:"unknown_signals,omitempty"`
	// Trouble has the current failures by step.
	Trouble map[string]string `json:"trouble,omitempty"`
	Notes   []Note            `json:"notes,omitempty"`

	// For the node record.
	reason    string
	departure Departure
	forgotten bool // see state.Forgotten
	used      hookKeys
	changed   chan struct{} // closed at the next view
}

// HookView is a hook and the agent's calls for it.
type HookView struct {
	Hook
	Beats  int       `json:"extensions"`
	Beaten time.Time `json:"extended,omitzero"`
	// Ends is when the cloud stops waiting; zero if unknown.
	Ends time.Time `json:"ends,omitzero"`
	// Denied is the missing permission.
	Denied string `json:"denied,omitempty"`
	End    End    `json:"end,omitempty"`
}

// Finished reports whether the drain has ended on this node. Calls to the cloud may be pending.
func (v View) Finished() bool {
	return v.State == StateActive || v.State == StateResuming || v.Over || v.Step == StepDone
}

// OnlyCloud reports whether only the completion of the cloud's hook is left, and fails now. It is retried without limit.
func (v View) OnlyCloud() bool {
	gone := v.State == StateLeft || v.State == StateParked || v.NeverJoined
	return gone && v.Step == StepCompleting && (v.Trouble[troubleDiscover] != "" || v.Trouble[troubleComplete] != "")
}

// View never blocks.
func (r *Runner) View() View { return *r.view.Load() }

// Subscribe sends the view at once and after each change, and closes the channel when ctx ends. A slow reader misses views.
func (r *Runner) Subscribe(ctx context.Context) <-chan View {
	views := make(chan View)
	go func() {
		defer close(views)
		for ctx.Err() == nil {
			v := r.View()
			select {
			case <-ctx.Done():
			case views <- v:
			}
			select {
			case <-ctx.Done():
			case <-v.changed:
			}
		}
	}()
	return views
}

func (s *state) viewStep() Step {
	if shown, ok := map[Step]Step{stepDown: StepDone, stepStopFailed: StepStopping, stepResuming: StepNone}[s.Phase]; ok {
		return shown
	}
	return s.Phase
}

func (s *state) viewState(goal goal) State {
	switch {
	case s.Phase == stepResuming:
		return StateResuming
	case s.Phase == StepNone:
		return StateActive
	case goal == goalReboot, s.Phase != StepDone && (s.Phase != StepCompleting || s.NeverJoined):
		return StateDraining
	case goal == goalPark:
		return StateParked
	}
	return StateLeft
}

// view omits the notes.
func (s situation) view() View {
	wall := s.c.Wall.time
	v := View{
		State: s.viewState(s.goal()), Step: s.viewStep(), Begun: wall(s.Began), StopFailed: s.Phase == stepStopFailed,
		Registry: s.Want, RegistryTold: s.Want == s.Have, Over: s.isOver(), Counted: wall(s.countedAt), Sessions: s.sessions,
		Trouble: maps.Clone(s.trouble), NeverJoined: s.NeverJoined,
		LaunchHooks: s.LaunchHooks.others, CancelledBy: s.cancelledBy, Start: s.Start.view(), Balancers: s.balancers,
		UnknownSignals: len(s.unknown), reason: s.recordReason(), forgotten: s.Forgotten, used: s.Used,
	}
	v.Ready = v.State == StateActive
	if s.EndHooks.others != "" {
		v.Trouble[troubleHooks] = s.EndHooks.others
	}
	for _, n := range s.Notices {
		shown := n.Notice
		shown.Received, shown.Deadline = wall(n.Received), wall(n.Deadline)
		v.Notices = append(v.Notices, shown)
	}
	for _, o := range s.Overruled {
		v.Dismissed = append(v.Dismissed, o.ID)
	}
	if s.Departure != nil {
		v.Cut, v.departure = s.Departure.Cut, *s.Departure
	}
	for i := range s.Hooks {
		v.Hooks = append(v.Hooks, s.hookView(&s.Hooks[i]))
	}
	if !s.leaving() {
		v.NextDrain = s.nextDrain()
		return v
	}
	cause := s.cause()
	v.Kind, v.Reason, v.Who = cause.Kind, cause.Reason, cause.Who
	v.Deadline, v.Until = wall(cmp.Or(s.Deadline, s.deadline())), wall(s.stepEnds())
	if s.Phase != StepDone {
		for i, m := range s.timeline() {
			v.Timeline = append(v.Timeline, Moment{At: wall(m.at), Ends: wall(m.ends), By: m.by, Decides: i == 0})
		}
	}
	if len(v.Timeline) > 0 {
		v.DeadlineBy = v.Timeline[0].By
	}
	v.Progress = v.Line(time.Now())
	return v
}

func (s situation) hookView(a *hook) HookView {
	wall := s.c.Wall.time
	h := HookView{Hook: a.Hook, Beats: a.Extends, Beaten: wall(a.Extended), Denied: cmp.Or(a.Denied, a.completionDenied), End: a.End}
	h.Limit = wall(a.Limit)
	if a.End == "" {
		h.Ends = wall(a.limit())
	}
	return h
}

func (s situation) nextDrain() time.Time {
	var first instant
	for _, n := range s.Notices {
		if at := max(s.dueAt(n), s.now); first == 0 || at < first {
			first = at
		}
	}
	return s.c.Wall.time(first)
}

func (st *start) view() string {
	switch {
	case st == nil:
		return ""
	case st.Proved != 0:
		return "proved"
	case st.Failed:
		return "failed"
	}
	return "starting"
}

// Line returns the progress: "2 publishers, 31 viewers left, 11m of the hook's budget".
func (v View) Line(now time.Time) string {
	switch {
	case v.Step == StepAnnouncing && len(v.Balancers) > 0:
		return "waiting for load balancers: " + strings.Join(v.Balancers, ", ") + v.latest()
	case v.Step == StepDraining && v.Sessions != nil:
		return v.Sessions.Left() + v.timeLeft(now)
	case v.Step == StepDraining:
		return "counting the sessions" + v.timeLeft(now)
	case v.StopFailed:
		return "Ant Media Server does not end; stopping it again"
	case v.Step == StepDone && v.State == StateParked:
		return "parked"
	case v.Step == StepDone && v.State == StateDraining:
		return "drained, waiting for the restart of the machine"
	}
	return stepTexts[v.Step] + v.latest()
}

// latest returns ", until 15:04:05 at the latest" for a step with a limit of its own, or "".
func (v View) latest() string {
	if v.Until.IsZero() {
		return ""
	}
	return ", until " + v.Until.Local().Format(time.TimeOnly) + " at the latest"
}

var stepTexts = map[Step]string{
	StepAnnouncing:    "telling the registry that this node drains",
	StepStopping:      "stopping Ant Media Server",
	StepDeregistering: "telling the registry that this node has left",
	StepCompleting:    "telling the cloud that it may go on",
	StepDone:          "left",
}

// timeLeft returns ", " with the time left and what limits it; "" without a limit.
func (v View) timeLeft(now time.Time) string {
	left := v.Deadline.Sub(now)
	switch {
	case v.Deadline.IsZero():
		return ""
	case left <= 0:
		return ", the deadline is reached"
	case strings.HasPrefix(v.DeadlineBy, "hook "):
		return ", " + shortTime(left) + " of the hook's budget"
	case v.DeadlineBy != "":
		return ", " + shortTime(left) + " to the deadline (" + v.DeadlineBy + ")"
	}
	return ", " + shortTime(left) + " to the deadline"
}

// shortTime formats whole minutes, or below one minute whole seconds: 11m, 1h5m, 40s.
func shortTime(d time.Duration) string {
	if d < time.Minute {
		return d.Truncate(time.Second).String()
	}
	text := strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	if hours, ok := strings.CutSuffix(text, "h0m"); ok {
		return hours + "h"
	}
	return text
}
