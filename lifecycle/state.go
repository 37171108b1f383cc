// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
)

// RecordPath is where a drain is kept, below the root.
const RecordPath = "/var/lib/amsagent/drain.json"

// Files keeps the record of a drain. [conf.Store] does.
type Files interface {
	Read(path string) (conf.File, error)
	WriteFile(path string, data []byte, mode, dirMode fs.FileMode) error
	RemoveFile(path string) error
}

var _ Files = (*conf.Store)(nil)

// Step is how far a drain is.
type Step string

// The steps, in their order. Each may be begun again.
const (
	StepNone          Step = ""
	StepAnnouncing    Step = "announcing"    // readiness is off, the registry is being told
	StepDraining      Step = "draining"      // sessions are observed
	StepStopping      Step = "stopping"      // AMS is being stopped: from here on there is no way back
	StepDeregistering Step = "deregistering" // AMS has ended, the registry is being told
	StepCompleting    Step = "completing"    // the cloud is being told
	StepDone          Step = "done"
)

func (s Step) valid() bool {
	return slices.Contains([]Step{
		StepNone, StepAnnouncing, StepDraining, StepStopping, StepDeregistering, StepCompleting, StepDone,
	}, s)
}

// observing is where an undrain takes nothing back that was done.
func (s Step) observing() bool { return s == StepAnnouncing || s == StepDraining }

// goal is what a drain is for: the weightiest of the notices in force.
type goal int

const (
	goalNone  goal = iota
	goalPause      // the machine goes down and comes back: drain, no more
	goalPark       // it stays, and serves no longer
	goalLeave      // it goes
)

func goalOf(k Kind) goal {
	switch k {
	case Terminate, Interrupt, Ask:
		return goalLeave
	case Park:
		return goalPark
	case Reboot, Shutdown:
		return goalPause
	case Resume, Launch, Withdrawn:
	}
	return goalNone
}

// record is what survives a kill. It holds no secret.
type record struct {
	Version int `json:"version"` // of this format: 1
	// Saved, Boot and Uptime say when this was written, by the wall and by the
	// kernel's own clock. See [record.wake].
	Saved time.Time `json:"saved"`
	Boot  string    `json:"boot,omitempty"`
	// Hardware is the machine that wrote this, see [Hardware]: a copy of its disk takes up
	// nothing of it.
	Hardware string        `json:"hardware,omitempty"`
	Uptime   time.Duration `json:"uptime_ns,omitempty"`

	Step  Step      `json:"step,omitempty"`
	Begun time.Time `json:"begun,omitzero"`
	// Role and Wait are what was configured then: a restart with other settings,
	// or before the role is known again, moves no deadline. Wait is 0 until it is
	// final.
	Role string        `json:"role,omitempty"`
	Wait time.Duration `json:"wait_ns,omitempty"`
	// Deadline is what the notices come to; it is written for people, and worked
	// out anew from what it comes from.
	Deadline time.Time `json:"deadline,omitzero"`
	// Notices are those in force. One that is not due yet is among them.
	Notices []Notice `json:"notices,omitempty"`
	// Dismissed are the ids of those that a person overruled.
	Dismissed []string `json:"dismissed,omitempty"`
	// Standing are those of them that say nothing of a parking or an end: that the
	// machine is in service takes none of them back. One that was withdrawn since may be among them.
	Standing []string `json:"standing,omitempty"`
	// Rejoined are the ids of those that had parked this machine before a person joined
	// it again. They are overruled over a boot, too, until the cloud has it serve.
	Rejoined []string `json:"rejoined,omitempty"`
	Hooks    []waiter `json:"hooks,omitempty"`
	// NoHook and NoLaunchHook: the cloud says that there is none.
	NoHook       bool `json:"no_hook,omitempty"`
	NoLaunchHook bool `json:"no_launch_hook,omitempty"`
	// HookFirst: this machine never joined, so nobody waits for it.
	HookFirst bool `json:"hook_first,omitempty"`
	// Say is the state that the registry has to hold, Said what it holds for all we
	// know. Where they differ, something is owed.
	Say    cluster.State `json:"say,omitempty"`
	Said   cluster.State `json:"said,omitempty"`
	Repair bool          `json:"repair_streams,omitempty"`
	// Tomb is counted right before AMS is stopped.
	Tomb *Tombstone `json:"tombstone,omitempty"`
	// StopFailed: AMS did not end in the time for its stop. That is tried on, the row
	// stays as it is, and the cloud is not kept waiting.
	StopFailed bool `json:"stop_failed,omitempty"`
	// Stopped is when AMS had ended, and JoinedAs when this machine had joined by then. Who
	// joins it after that wants it to serve again, and the drain is forgotten at its end: by
	// another moment of the join, not a later one, for clocks are set.
	Stopped  time.Time `json:"stopped,omitzero"`
	JoinedAs time.Time `json:"joined_as,omitzero"`
	// Forgotten: see [Manager.Forgotten].
	Forgotten bool `json:"forgotten,omitempty"`
	// Start is under way: of a machine that was parked, or the first one.
	Start *start `json:"start,omitempty"`
}

// start is a node that begins to serve while a hook may wait for it.
type start struct {
	Notice Notice `json:"notice"`
	// Server is to be started first.
	Server bool `json:"server,omitempty"`
	Proved bool `json:"proved,omitempty"`
	Failed bool `json:"failed,omitempty"`
}

// waiter is one hook and what was done about it.
type waiter struct {
	Hook Hook `json:"hook"`
	// Since is from when its timeout counts.
	Since  time.Time `json:"since"`
	Beaten time.Time `json:"beaten,omitzero"`
	Beats  int       `json:"beats,omitempty"`
	// Failing: the last heartbeat did not get through. Denied is the permission that
	// is missing.
	Failing bool   `json:"failing,omitempty"`
	Denied  string `json:"denied,omitempty"`
	// End says what came of it: "" as long as it waits.
	End     End       `json:"end,omitempty"`
	EndedAt time.Time `json:"ended_at,omitzero"`
}

// End is what came of a hook.
type End string

// The ends.
const (
	EndCompleted End = "completed"
	EndGone      End = "gone" // the cloud did not wait for our word
	EndLeft      End = "left to its timeout"
)

const recordVersion = 1

func (a *waiter) same(h Hook) bool { return same(a.Hook, h) }

// same reports whether both are one hook of the cloud's, whatever is known of it. An event may name it by its id alone.
func same(h, o Hook) bool {
	return h.Provider == o.Provider && h.Launching == o.Launching && (h.Group == o.Group || h.ID != "") && cmp.Or(h.ID, h.Name) == cmp.Or(o.ID, o.Name)
}

func equal(h, o Hook) bool {
	return same(h, o) && h.Group == o.Group && h.Name == o.Name && h.Token == o.Token &&
		h.Timeout == o.Timeout && h.Limit.Equal(o.Limit) && h.Fixed == o.Fixed && slices.Equal(h.Others, o.Others)
}

// clone copies what later changes may touch.
func (r *record) clone() *record {
	c := *r
	c.Notices, c.Dismissed, c.Hooks = slices.Clone(r.Notices), slices.Clone(r.Dismissed), slices.Clone(r.Hooks)
	c.Standing, c.Rejoined = slices.Clone(r.Standing), slices.Clone(r.Rejoined)
	for i, n := range c.Notices {
		c.Notices[i] = copyNotice(n)
	}
	if r.Tomb != nil {
		tomb := *r.Tomb
		c.Tomb = &tomb
	}
	if r.Start != nil {
		s := *r.Start
		s.Notice = copyNotice(s.Notice)
		c.Start = &s
	}
	return &c
}

func copyNotice(n Notice) Notice {
	if n.Hook != nil {
		h := *n.Hook
		n.Hook = &h
	}
	return n
}

// each visits every moment of the record but Saved.
func (r *record) each(visit func(*time.Time)) {
	some := func(t *time.Time) {
		if !t.IsZero() {
			visit(t)
		}
	}
	notice := func(n *Notice) {
		some(&n.Received)
		some(&n.Deadline)
		if n.Hook != nil {
			some(&n.Hook.Limit)
		}
	}
	some(&r.Begun)
	some(&r.Deadline)
	some(&r.Stopped)
	for i := range r.Notices {
		notice(&r.Notices[i])
	}
	for i := range r.Hooks {
		a := &r.Hooks[i]
		some(&a.Since)
		some(&a.Beaten)
		some(&a.EndedAt)
		some(&a.Hook.Limit)
	}
	if r.Start != nil {
		notice(&r.Start.Notice)
	}
}

// onWall gives the moments by the wall clock as it stands now. In memory they
// carry the monotonic clock: setting the wall clock moves no deadline.
func (r *record) onWall(now time.Time) *record {
	c := r.clone()
	c.each(func(t *time.Time) {
		wall := now.Round(0).Add(t.Sub(now))
		if plain := t.Round(0); wall.Sub(plain).Abs() < time.Second {
			wall = plain // a clock that is disciplined, not set: the same moment is told in the same words
		}
		*t = wall
	})
	return c
}

// empty tells that nothing is worth keeping.
func (r *record) empty() bool {
	return r.Step == StepNone && len(r.Notices) == 0 && len(r.Dismissed) == 0 && len(r.Rejoined) == 0 && r.Start == nil && r.Say == r.Said && !r.Forgotten
}

// goalOfAll is what notices come to together. Whoever knows when they are due asks
// [Options.goal].
func goalOfAll(notices []Notice) goal {
	g := goalNone
	for _, n := range notices {
		g = max(g, goalOf(n.Kind))
	}
	return g
}

// has finds the first notice in force of a kind.
func (r *record) has(kinds ...Kind) *Notice {
	for i := range r.Notices {
		if slices.Contains(kinds, r.Notices[i].Kind) {
			return &r.Notices[i]
		}
	}
	return nil
}

// weightiest is the notice that people are told, and of several the first.
func weightiest(notices []Notice) Notice {
	var best Notice
	for _, n := range notices {
		if goalOf(n.Kind) > goalOf(best.Kind) {
			best = n
		}
	}
	return best
}

func (r *record) drop(match func(Notice) bool) {
	r.Notices = slices.DeleteFunc(r.Notices, match)
}

// hooked tells that the cloud may have a hook that waits for the end of this
// machine: one that has to be asked for, or that came with a notice.
func (r *record) hooked() bool {
	return r.asks() || slices.ContainsFunc(r.Notices, func(n Notice) bool { return n.Hook != nil && !n.Hook.Launching })
}

// asks tells that the cloud may have a hook of which no notice tells.
func (r *record) asks() bool { return r.has(Terminate, Park) != nil }

// open finds the hook that is open, for the end or the start of the machine.
func (r *record) open(launching bool) *waiter {
	for i := range r.Hooks {
		if a := &r.Hooks[i]; a.Hook.Launching == launching && a.End == "" {
			return a
		}
	}
	return nil
}

// learn notes a hook, or what is new about one that is known.
func (r *record) learn(h Hook, since time.Time) (changed bool) {
	if !hookBounded(h) {
		return false
	}
	for i := range r.Hooks {
		a := &r.Hooks[i]
		if !a.same(h) {
			continue
		}
		was := a.Hook
		// A second action of the same hook is another one: a machine that was
		// parked comes to its end once more.
		if a.End != "" && h.Token != "" && a.Hook.Token != "" && h.Token != a.Hook.Token {
			r.Hooks[i] = waiter{Hook: h, Since: since}
			return true
		}
		// An event may have named it by its id alone.
		a.Hook.Group = cmp.Or(a.Hook.Group, h.Group)
		if a.Hook.Name == a.Hook.ID {
			a.Hook.Name = h.Name
		}
		if a.Hook.Token == "" {
			a.Hook.Token = h.Token
		}
		if a.Hook.Timeout == 0 {
			a.Hook.Timeout = h.Timeout
		}
		if a.Hook.Limit.IsZero() || !h.Limit.IsZero() && a.Hook.Limit.Sub(h.Limit) > time.Second {
			a.Hook.Limit = h.Limit
		}
		if len(h.Others) > 0 {
			a.Hook.Others = h.Others
		}
		if r.hookText() > maxHookText {
			a.Hook = was
		}
		return !equal(a.Hook, was)
	}
	if !r.roomFor(h) {
		return false
	}
	r.Hooks = append(r.Hooks, waiter{Hook: h, Since: since})
	return true
}

// load reads what a former life of the daemon was about; nil where that was
// nothing.
func load(files Files) (*record, error) {
	f, err := files.Read(RecordPath)
	if err != nil || !f.Exists() {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(f.Bytes, r); err != nil {
		return nil, &conf.DamagedError{Path: RecordPath, Err: err}
	}
	switch {
	case r.Version == 0:
		return nil, &conf.DamagedError{Path: RecordPath, Err: errors.New("it does not say its format")}
	case r.Version != recordVersion:
		return nil, &conf.VersionError{Path: RecordPath, Version: r.Version}
	case !r.Step.valid():
		return nil, &conf.DamagedError{Path: RecordPath, Err: fmt.Errorf("%q is no step", string(r.Step))}
	case r.Step != StepNone && (len(r.Notices) == 0 || r.Begun.IsZero()):
		return nil, &conf.DamagedError{Path: RecordPath, Err: errors.New("a drain without a reason")}
	case r.Step != StepNone && goalOfAll(r.Notices) == goalNone:
		return nil, &conf.DamagedError{Path: RecordPath, Err: errors.New("a drain without a goal")}
	}
	for _, n := range r.Notices {
		if n.ID == "" || goalOf(n.Kind) == goalNone {
			return nil, &conf.DamagedError{Path: RecordPath, Err: fmt.Errorf("a notice %q of kind %q", n.ID, string(n.Kind))}
		}
	}
	for _, s := range []cluster.State{r.Say, r.Said} {
		if s != "" && !s.Valid() {
			return nil, &conf.DamagedError{Path: RecordPath, Err: fmt.Errorf("%q is no state", string(s))}
		}
	}
	return r, nil
}

// wake brings a record that was read to the clocks of this moment. The kernel
// tells how long ago it was written, whatever was done to the wall clock since;
// where it cannot, a wall clock that stands before the writing was set back.
func (r *record) wake(now time.Time, boot string, up time.Duration) (sameBoot bool) {
	wallNow := now.Round(0)
	var shift time.Duration
	sameBoot = r.Boot == "" || boot == "" || r.Boot == boot
	switch {
	case r.Saved.IsZero():
	case r.Boot != "" && r.Boot == boot && up >= r.Uptime:
		if s := wallNow.Sub(r.Saved.Add(up - r.Uptime)); s.Abs() >= time.Second {
			shift = s
		}
	case wallNow.Before(r.Saved):
		shift = wallNow.Sub(r.Saved)
	}
	r.each(func(t *time.Time) { *t = anchor(t.Add(shift), now) })
	return sameBoot
}

// anchor gives a moment of the wall clock the monotonic one.
func anchor(t, now time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return now.Add(t.Round(0).Sub(now.Round(0)))
}

// save writes the record, or removes it where there is nothing to keep.
func (r *record) save(files Files, now time.Time, boot string, up time.Duration) error {
	if r.empty() {
		return files.RemoveFile(RecordPath)
	}
	c := r.onWall(now)
	c.Version, c.Saved, c.Boot, c.Uptime = recordVersion, now.Round(0), boot, up
	var data bytes.Buffer
	text := json.NewEncoder(&data)
	text.SetEscapeHTML(false) // six bytes for one would not fit maxRecord
	text.SetIndent("", "  ")
	if err := text.Encode(c); err != nil {
		return err
	}
	if data.Len() > maxRecord {
		return fmt.Errorf("the record has %d bytes, more than %d", data.Len(), maxRecord)
	}
	return files.WriteFile(RecordPath, data.Bytes(), 0o600, 0o700)
}
