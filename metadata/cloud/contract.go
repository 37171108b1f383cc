// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cloud holds what the metadata providers share. Callers use package metadata, which aliases the types.
//
// It never reads the environment, and sends metadata requests neither through a proxy nor after a redirect.
package cloud

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/seconds"
)

// Kind is the kind of a notice.
type Kind string

// The kinds of notices.
const (
	// Terminate: the group terminates the machine; a hook may wait.
	Terminate Kind = "terminate"
	// Interrupt: the machine ends at the given time; nothing prevents it.
	Interrupt Kind = "interrupt"
	// Reboot: the machine restarts at the given time.
	Reboot Kind = "reboot"
	// Park: the machine leaves service and may return (warm pool, standby, detached).
	Park Kind = "park"
	// Reimage: the machine gets a new root volume and keeps its id; a hook may wait.
	Reimage Kind = "reimage"
	// Resume: a parked machine returns to service.
	Resume Kind = "resume"
	// Launch: a hook waits until this machine serves.
	Launch Kind = "launch"
	// Unknown signals are ignored.
	Unknown Kind = "unknown"
)

// Notice is an announcement of the cloud that is in force.
type Notice struct {
	// ID begins with the topic and is stable.
	ID   string
	Kind Kind
	// Who names the service or program behind the notice.
	Reason, Who string
	// At is when the cloud acts; zero if unknown.
	At time.Time
	// Counted marks an estimated At. It never replaces the time that an earlier process saw.
	Counted bool
	// Past events precede this process: they keep a known notice alive but are not new.
	Past bool
	// Hook came with the notice, or is nil.
	Hook *Hook
}

// Report sets all notices in force for a topic, but not for an unreadable answer. Calls may be concurrent and repeat
// notices.
type Report func(topic string, current []Notice)

// GroupTopic returns the topic of a scaling group. Without a notice there, the machine is in service.
func GroupTopic(provider string) string { return provider + "-lifecycle" }

// GroupNotice returns the ID of a group notice, also for a hook's event.
func GroupNotice(provider string, kind Kind) string { return GroupTopic(provider) + "/" + string(kind) }

// OfGroup returns a group notice.
func OfGroup(provider string, kind Kind, reason string) Notice {
	return Notice{ID: GroupNotice(provider, kind), Kind: kind, Who: "Auto Scaling", Reason: reason}
}

// Watcher watches until ctx ends, through all failures of the cloud.
type Watcher interface {
	Watch(ctx context.Context, report Report)
}

// Hook is a lifecycle hook that waits for completion.
type Hook struct {
	Provider string `json:"provider"`
	Group    string `json:"group"`
	Name     string `json:"name"`
	// ID is the hook's id in the cloud, or "".
	ID string `json:"id,omitempty"`
	// Token identifies this action, or is "".
	Token string `json:"token,omitempty"`
	// Others are the ids or names of machines that the completion also releases. They must leave first.
	Others []string `json:"others,omitempty"`
	// Fixed reports that no heartbeat makes the cloud wait longer than Limit.
	Fixed     bool `json:"fixed,omitempty"`
	Launching bool `json:"launching,omitempty"` // the hook of a launch
	// Timeout is the heartbeat timeout, Limit the end of the wait; zero if unknown.
	Timeout seconds.Duration `json:"timeout_seconds,omitempty"`
	Limit   time.Time        `json:"limit,omitzero"`
	// Abandons reports that a timeout abandons the transition, for example after a crash.
	Abandons bool `json:"-"`
	// Parking machines return to service later.
	Parking bool `json:"-"`
}

// Hooks are the lifecycle hooks of this machine's group.
type Hooks interface {
	// Pending returns the hooks of a transition, also those of other programs: all of the group, or those that wait. None
	// is no error.
	// [ErrNotWaiting] means that a hook will wait soon.
	Pending(ctx context.Context, launching bool) ([]Hook, error)
	// Extend restarts the heartbeat timeout and returns it.
	Extend(ctx context.Context, h Hook) (time.Duration, error)
	// Complete sends CONTINUE: ABANDON would keep a terminating machine, or skip others' hooks.
	Complete(ctx context.Context, h Hook) error
}

// Errors of [Hooks]. All others are retried.
var (
	// ErrNotWaiting: the hook does not wait, perhaps not yet.
	ErrNotWaiting = errors.New("the hook does not wait for this machine")
	// ErrGone: the wait is over for good, or the machine, group or hook is gone.
	ErrGone = errors.New("the hook is over")
	// ErrMoved: the machine is in another group; list its hooks.
	ErrMoved = errors.New("the hook is not of this machine's group")
)

// DeniedError reports a missing permission of the machine's role.
type DeniedError struct {
	Permission string `json:"permission"` // "autoscaling:CompleteLifecycleAction"
	// Policy is the smallest sufficient policy, as JSON.
	Policy string `json:"policy,omitempty"`
	// Reason is the cloud's message.
	Reason   string `json:"reason,omitempty"`
	NoRole   bool   `json:"no_role,omitempty"`
	Provider string `json:"-"`
	Group    string `json:"-"`
}

// Error implements error.
func (e *DeniedError) Error() string {
	text := "permission " + e.Permission + " is missing"
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// Check is the result of Provider.Check.
type Check struct {
	// Without is why this cloud has no hook for the agent, or "".
	Without string
	// Untold is what the cloud hides from machines. Ask is the command that reads it.
	Untold, Ask string
	Group       string
	// Others are the names of other programs' hooks.
	Ours   []Hook
	Others []string
	// Unproved permissions show only when a hook waits.
	Unproved string
}

// Values of Unproved.
const (
	UnprovedBoth     = "whether this machine may keep it waiting and complete it shows only when it waits"
	UnprovedComplete = "this machine may keep it waiting; whether it may complete it shows only then"
)

// Check selects this agent's hooks and tests the first with beat, a heartbeat for no real action: [ErrNotWaiting] proves the
// permission. It tests no completion, which would be irreversible during a real termination.
func (f Filter) Check(group string, all []Hook, beat func(Hook) error) (Check, error) {
	ours, others := f.Select(all, nil)
	c := Check{Group: group, Ours: ours, Unproved: UnprovedBoth}
	for _, o := range others {
		c.Others = append(c.Others, o.Name)
	}
	if len(ours) == 0 {
		return c, nil
	}
	err := beat(ours[0])
	if errors.Is(err, ErrNotWaiting) {
		c.Unproved = UnprovedComplete
	}
	if _, denied := errors.AsType[*DeniedError](err); denied {
		return c, err
	}
	return c, nil // covered by Unproved
}

// Filter selects this agent's hooks by names or path.Match patterns, in which / is an ordinary character. Without patterns
// it selects a transition's only hook, or of several those whose name contains "amsagent" and those that the agent has used:
// other programs complete theirs.
type Filter []string

// codeDeploy prefixes AWS CodeDeploy's launch hooks. Completing one would start service before the deployment.
const codeDeploy = "CodeDeploy-managed-"

// Find returns this agent's hooks, and [OthersHooksError] if there are others. Literal names need no permission to list hooks.
func (f Filter) Find(ctx context.Context, h Hooks, launching bool, used func(Hook) bool) ([]Hook, error) {
	all, err := h.Pending(ctx, launching)
	if denied, ok := errors.AsType[*DeniedError](err); ok && denied.Group != "" && f.literal() {
		for _, name := range f {
			if h := (Hook{Provider: denied.Provider, Group: denied.Group, Name: name, Launching: launching}); f.Match(h) {
				all = append(all, h)
			}
		}
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	ours, others := f.Select(all, used)
	if len(others) == 0 {
		return ours, nil
	}
	e := &OthersHooksError{Group: others[0].Group, Named: len(f) > 0}
	for _, o := range others {
		e.Hooks = append(e.Hooks, o.Name)
		if o.endsBefore(e.Ends, len(ours) == 0) {
			e.Ends = &o
		}
	}
	return ours, e
}

// endsBefore reports whether h ends the machine, and not o: the first hook that is abandoned does, else the last one, if alone.
func (h *Hook) endsBefore(o *Hook, alone bool) bool {
	if h.Timeout <= 0 || !h.Abandons && !alone {
		return false
	}
	return o == nil || h.Abandons && !o.Abandons || h.Abandons == o.Abandons && (h.Timeout < o.Timeout) == h.Abandons
}

// Select separates this agent's hooks from others'. used reports those that the agent has used, or is nil.
func (f Filter) Select(all []Hook, used func(Hook) bool) (ours, others []Hook) {
	for _, h := range all {
		if f.Match(h) || len(f) == 0 && !ofCodeDeploy(h) && (len(all) == 1 || used != nil && used(h)) {
			ours = append(ours, h)
		} else {
			others = append(others, h)
		}
	}
	return ours, others
}

func (f Filter) literal() bool {
	return len(f) > 0 && !slices.ContainsFunc(f, func(name string) bool { return strings.ContainsAny(name, `*?[\`) })
}

// Match matches a hook by name or id, but never CodeDeploy's: those names end in a group's name.
func (f Filter) Match(h Hook) bool {
	return !ofCodeDeploy(h) && (f.match(h.Name) || h.ID != "" && f.match(h.ID))
}

func ofCodeDeploy(h Hook) bool { return strings.HasPrefix(h.Name, codeDeploy) }

func (f Filter) match(name string) bool {
	if len(f) == 0 {
		return strings.Contains(strings.ToLower(name), "amsagent")
	}
	return slices.ContainsFunc(f, func(pattern string) bool {
		ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(name, "/", "\x00"))
		return ok && err == nil
	})
}

// OthersHooksError reports hooks of other programs.
type OthersHooksError struct {
	Group string
	Hooks []string
	// Named reports that hook names are configured.
	Named bool
	// Ends is the hook whose timeout ends the machine in spite of this agent's; nil if unknown.
	Ends *Hook
}

func (e *OthersHooksError) Error() string {
	return fmt.Sprintf("hooks of group %s are other programs', so this agent does not complete them: %s; the setting hooks names its own",
		e.Group, strings.Join(e.Hooks, ", "))
}
