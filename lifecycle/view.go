// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// State is where the node stands for whoever asks this machine.
type State string

// The states.
const (
	StateActive   State = "active"
	StateDraining State = "draining"
	StateLeft     State = "left"
	StateParked   State = "parked"   // left, and to come back
	StateResuming State = "resuming" // coming back
)

// Note is one line of what happened.
type Note struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// View is what can be told of the node's going, for people and programs.
type View struct {
	State State `json:"state"`
	// Ready is false as soon as nobody new is to be sent here.
	Ready bool `json:"ready"`
	Step  Step `json:"step,omitempty"`
	// Kind, Reason and Who are those of the weightiest notice.
	Kind     Kind      `json:"kind,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Who      string    `json:"who,omitempty"`
	Begun    time.Time `json:"begun,omitzero"`
	Deadline time.Time `json:"deadline,omitzero"`
	// DeadlineBy is whose word the deadline is; Timeline all that end something.
	DeadlineBy string   `json:"deadline_by,omitempty"`
	Timeline   []Moment `json:"timeline,omitempty"`
	Notices    []Notice `json:"notices,omitempty"`
	// NextDrain is when a drain begins that is announced.
	NextDrain time.Time `json:"next_drain,omitzero"`
	// Dismissed are the ids of the notices that a person overruled.
	Dismissed []string `json:"dismissed,omitempty"`

	// Sessions are those of the last count; nil before the first one.
	Sessions *cluster.Sessions `json:"sessions,omitempty"`
	Counted  time.Time         `json:"counted,omitzero"`
	// Progress is one line for a person.
	Progress string `json:"progress,omitempty"`
	// StopFailed: Ant Media Server did not end in its time; its stop is tried again, and
	// the registry keeps the node as draining.
	StopFailed bool `json:"stop_failed,omitempty"`
	// CancelledBy is the person or program that cancelled the last drain.
	CancelledBy string `json:"cancelled_by,omitempty"`
	// Cut is how many sessions the stop of AMS cut; nil where nobody could count.
	Cut *int `json:"cut,omitempty"`

	// Registry is the state that our row is to have, RegistryTold whether it has.
	Registry     cluster.State `json:"registry,omitempty"`
	RegistryTold bool          `json:"registry_told"`
	Hooks        []HookView    `json:"hooks,omitempty"`
	// Start is how the start is going that a cloud waits for: "", "starting",
	// "proved", "failed".
	Start string `json:"start,omitempty"`
	// LaunchHooks: none of these launch hooks is this agent's, and the setting to name one.
	// It is no trouble, for all of them may be other programs'.
	LaunchHooks string `json:"launch_hooks,omitempty"`
	// NeverJoined: it goes without ever having joined, so only the cloud is told.
	NeverJoined bool `json:"never_joined,omitempty"`
	// Over: the machine goes down, and nothing more is done before that.
	Over bool `json:"over,omitempty"`
	// Trouble is what does not go well now, by what it is about.
	Trouble map[string]string `json:"trouble,omitempty"`
	Notes   []Note            `json:"notes,omitempty"`
}

// HookView is one hook and what was done about it.
type HookView struct {
	Hook
	Beats  int       `json:"beats"`
	Beaten time.Time `json:"beaten,omitzero"`
	// Ends is when the cloud waits no longer, Lapses when it does so unless it
	// hears of us; zero is not known.
	Ends   time.Time `json:"ends,omitzero"`
	Lapses time.Time `json:"lapses,omitzero"`
	// Denied is the permission that is missing.
	Denied string `json:"denied,omitempty"`
	End    End    `json:"end,omitempty"`
}

// Finished tells that a drain has come to its end as far as this node goes:
// whatever the cloud still has to be told, nobody needs to wait for it.
func (v View) Finished() bool {
	switch v.State {
	case StateLeft, StateParked, StateDraining: // drained, and the machine is about to be restarted
		return v.Over || v.Step == StepDone
	case StateActive, StateResuming:
	}
	return true
}

// OnlyCloud reports whether all is done but to tell the cloud, which cannot be told at
// the moment. It is tried on, however long that takes.
func (v View) OnlyCloud() bool {
	gone := v.State == StateLeft || v.State == StateParked || v.NeverJoined
	return gone && v.Step == StepCompleting && (v.Trouble[string(opDiscover)] != "" || v.Trouble[string(opContinue)] != "")
}

// View returns what is known now. It never waits.
func (m *Manager) View() View { return *m.view.Load() }

// Subscribe sends the view at once and after each change, until ctx ends; then
// it closes the channel. Who reads slowly misses what lies between.
func (m *Manager) Subscribe(ctx context.Context) <-chan View {
	views := make(chan View)
	go func() {
		defer close(views)
		for {
			// In this order: the view is at least as new as the channel. Not under the lock, which may wait for a disk.
			changed := m.wish.Load().changed
			v := m.view.Load()
			select {
			case <-ctx.Done():
				return
			case views <- *v:
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	return views
}

func (r *record) state(g goal) State {
	if r.Start != nil && r.Start.Server && !r.Start.Proved && r.Step == StepNone {
		return StateResuming
	}
	switch {
	case r.Step == StepNone:
		return StateActive
	case g == goalPause || r.Step != StepDone && (r.Step != StepCompleting || r.HookFirst):
		return StateDraining
	case g == goalPark:
		return StateParked
	}
	return StateLeft
}

// viewOf draws the view. The lock is held.
func (m *Manager) viewOf(now time.Time) View {
	r := m.r.onWall(now)
	v := View{
		State: r.state(m.o.goal(r)), Step: r.Step, Begun: r.Begun, Deadline: r.Deadline, Notices: r.Notices, Dismissed: r.Dismissed,
		StopFailed: r.StopFailed, Registry: r.Say, RegistryTold: r.Say == r.Said, Over: m.over, Counted: m.counted.Round(0),
		Trouble: maps.Clone(m.trouble), Notes: slices.Clone(m.notes), NeverJoined: r.HookFirst,
		LaunchHooks: m.launchHooks, CancelledBy: m.cancelledBy,
	}
	v.Ready = v.State == StateActive
	if m.sessions != nil {
		s := *m.sessions
		v.Sessions = &s
	}
	if r.Tomb != nil {
		v.Cut = r.Tomb.Cut
	}
	for i := range r.Hooks {
		a := &r.Hooks[i]
		hv := HookView{Hook: a.Hook, Beats: a.Beats, Beaten: a.Beaten, Denied: a.Denied, End: a.End}
		if a.End == "" {
			hv.Ends, hv.Lapses = a.limit(), a.lapse()
			if hv.Denied == "" {
				hv.Denied = m.tryOf(a, opContinue).denied
			}
		}
		v.Hooks = append(v.Hooks, hv)
	}
	switch s := r.Start; {
	case s == nil:
	case s.Proved:
		v.Start = "proved"
	case s.Failed:
		v.Start = "failed"
	default:
		v.Start = "starting"
	}
	if r.Step == StepNone {
		if len(r.Notices) > 0 {
			v.NextDrain = m.nextDue(now).Round(0)
		}
		return v
	}
	c := m.o.cause(r)
	v.Kind, v.Reason, v.Who = c.Kind, c.Reason, c.Who
	if r.Step != StepDone {
		v.Timeline = m.o.timeline(r)
	}
	if len(v.Timeline) > 0 {
		v.DeadlineBy = v.Timeline[0].By
	}
	v.Progress = v.Line(now)
	return v
}

// Line is how a drain is going, as of now: "2 publishers, 31 viewers left, 11m of the hook's budget".
func (v View) Line(now time.Time) string {
	switch v.Step {
	case StepAnnouncing:
		return "telling the registry that this node drains"
	case StepDraining:
		text := "counting the sessions"
		if v.Sessions != nil {
			text = v.Sessions.Left()
		}
		if left := v.timeLeft(now); left != "" {
			text += ", " + left
		}
		return text
	case StepStopping:
		if v.StopFailed {
			return "Ant Media Server does not end; stopping it again"
		}
		return "stopping Ant Media Server"
	case StepDeregistering:
		return "telling the registry that this node has left"
	case StepCompleting:
		return "telling the cloud that it may go on"
	case StepDone:
		switch v.State {
		case StateParked:
			return "parked"
		case StateDraining:
			return "drained, waiting for the restart of the machine"
		case StateActive, StateLeft, StateResuming:
		}
		return "left"
	case StepNone:
	}
	return ""
}

// timeLeft names the time that is running, and how much of it is left; "" where none runs.
func (v View) timeLeft(now time.Time) string {
	left := v.Deadline.Sub(now)
	switch {
	case v.Deadline.IsZero():
		return ""
	case left <= 0:
		return "the deadline is reached"
	case strings.HasPrefix(v.DeadlineBy, "hook "):
		return shortTime(left) + " of the hook's budget"
	case v.DeadlineBy != "":
		return shortTime(left) + " to the deadline (" + v.DeadlineBy + ")"
	}
	return shortTime(left) + " to the deadline"
}

// shortTime is a time in whole minutes, below one in whole seconds: 11m, 1h5m, 40s.
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

// tell logs how a drain is going: at changes, and while nothing changes every
// half minute.
func (m *Manager) tell(ctx context.Context) {
	var told time.Time
	last := ""
	for {
		changed := m.wish.Load().changed
		v := m.View()
		what := ""
		if v.Step == StepDraining && v.Sessions != nil {
			what = v.Sessions.Left()
		}
		wait := time.Hour
		if what != "" {
			every := progressEvery
			if what != last {
				every = quietTime
			}
			if wait = every - time.Since(told); wait <= 0 {
				m.log.Info("draining", "progress", v.Progress)
				told, last = time.Now(), what
				wait = progressEvery
			}
		}
		if !sleep(ctx, wait, changed) {
			return
		}
	}
}
