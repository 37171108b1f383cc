// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Kind says what the cloud does with this machine.
type Kind string

// The kinds.
const (
	// Terminate: the machine is taken out of its group and ends. A hook may wait for our completion.
	Terminate Kind = "terminate"
	// Interrupt: the machine ends at the time; nothing prevents it.
	Interrupt Kind = "interrupt"
	// Reboot: the machine is started again at the time and comes back.
	Reboot Kind = "reboot"
	// Park: the machine leaves service and stays as it is, to come back later (warm pool, standby, detached).
	Park Kind = "park"
	// Reimage: the root volume is replaced; the machine comes back with its id and without anything that this one knows. A hook may
	// wait for our completion.
	Reimage Kind = "reimage"
	// Resume: a parked machine returns to service.
	Resume Kind = "resume"
	// Launch: a hook waits until this machine serves.
	Launch Kind = "launch"
	// Unknown: the cloud signals something that this version does not know; nothing is done about it.
	Unknown Kind = "unknown"
)

// Notice is one thing that the cloud has announced for this machine and that is in force.
type Notice struct {
	// ID begins with the topic and is the same at each look.
	ID   string
	Kind Kind
	// Reason is for people, Who the service or program behind it.
	Reason, Who string
	// At is when the cloud acts; zero is not known.
	At time.Time
	// Counted reports that the cloud names no time, and At is counted from when this process saw the notice. It does not replace
	// the time of a notice that an earlier process saw.
	Counted bool
	// Past reports that it had happened before this process began, and the cloud still lists it: it keeps a notice that is
	// known, and is no new one.
	Past bool
	// Hook waits for our completion and came with the notice; nil where none did.
	Hook *Hook
}

// Report says everything that is in force for one topic now; no notices say that nothing is. An answer that cannot be read is
// not reported. It may be called by several goroutines, and again and again with the same notices.
type Report func(topic string, current []Notice)

// GroupTopic is the topic of what the scaling group wants with this machine. Without a notice there the group
// has the machine in service.
func GroupTopic(provider string) string { return provider + "-lifecycle" }

// GroupNotice is the ID of such a notice. An event of a hook has the same, whichever of the two comes first.
func GroupNotice(provider string, kind Kind) string { return GroupTopic(provider) + "/" + string(kind) }

// Watcher watches for notices until ctx ends. It survives whatever the cloud's services do.
type Watcher interface {
	Watch(ctx context.Context, report Report)
}

// Hook is something of the cloud's that waits until we say that it may go on.
type Hook struct {
	Provider string `json:"provider"`
	Group    string `json:"group"`
	Name     string `json:"name"`
	// ID is the cloud's own of the hook, if it has one besides the name.
	ID string `json:"id,omitempty"`
	// Token is the cloud's for this one action, if it gave one.
	Token string `json:"token,omitempty"`
	// Others are the other machines that the same completion lets go, by id or by name: it is sent when they have left, too.
	Others []string `json:"others,omitempty"`
	// Fixed reports that nothing makes the cloud wait longer than Limit.
	Fixed bool `json:"fixed,omitempty"`
	// Launching: the hook of a start, not of an end.
	Launching bool `json:"launching,omitempty"`
	// Timeout is how long the cloud waits from one heartbeat to the next; 0 is not known. Limit is when it waits no longer;
	// zero is not known.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	Limit   time.Time     `json:"limit,omitzero"`
	// Abandons reports that the transition is abandoned if the hook is left to its timeout, for example by a machine that crashed.
	Abandons bool `json:"-"`
	// Parking reports that the machine is on its way out of service to come back.
	Parking bool `json:"-"`
}

// Hooks are the lifecycle hooks of this machine's group.
type Hooks interface {
	// Pending returns the hooks of a transition, those of other programs among them: of the group, or only those that wait. None is no error. [ErrNotWaiting] is that one will wait soon.
	Pending(ctx context.Context, launching bool) ([]Hook, error)
	// Extend makes a hook wait again, and returns for how long.
	Extend(ctx context.Context, h Hook) (time.Duration, error)
	// Complete ends the wait: the transition goes on. The result is always CONTINUE: ABANDON would keep a machine that
	// must end, or skip the hooks of others.
	Complete(ctx context.Context, h Hook) error
}

// What a call of [Hooks] answers, where its caller decides by it. Everything else is tried again.
var (
	// ErrNotWaiting: the hook does not wait, not yet perhaps.
	ErrNotWaiting = errors.New("the hook does not wait for this machine")
	// ErrGone: it waits no longer and will not again; or the machine, its group or the hook is gone.
	ErrGone = errors.New("the hook is over")
	// ErrMoved: the machine is in another group; ask for the hooks of that one.
	ErrMoved = errors.New("the hook is not of this machine's group")
)

// DeniedError says which permission this machine's role lacks.
type DeniedError struct {
	Permission string `json:"permission"` // "autoscaling:CompleteLifecycleAction"
	// Policy is the smallest policy with which everything works, as JSON for the role.
	Policy string `json:"policy,omitempty"`
	// Reason is what the cloud says. NoRole reports that the machine has no role at all.
	Reason string `json:"reason,omitempty"`
	NoRole bool   `json:"no_role,omitempty"`
	// Provider and Group are those of the group that was asked about, if it is known.
	Provider string `json:"-"`
	Group    string `json:"-"`
}

// Error names the permission.
func (e *DeniedError) Error() string {
	text := "permission " + e.Permission + " is missing"
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// Check is what a look at the hooks of this machine's termination found.
type Check struct {
	// Without says why this cloud has no hook that concerns us; "" if it may have one.
	Without string
	// Untold is what this cloud does not show on the machine, Ask the command that asks it from outside.
	Untold, Ask string
	// Group is "" for a machine that is in none.
	Group string
	// Ours are the hooks that are ours, Others the names of those of other programs.
	Ours   []Hook
	Others []string
	// Unproved says which right shows only when a hook waits.
	Unproved string
}

// What Unproved says.
const (
	UnprovedBoth     = "whether this machine may keep it waiting and complete it shows only when it waits"
	UnprovedComplete = "this machine may keep it waiting; whether it may complete it shows only then"
)

// Check divides the hooks of a termination, and finds out by beat whether this machine may keep the first of ours waiting. beat sends
// a heartbeat for an action that never was, which is refused either for want of the action, [ErrNotWaiting], or for want of the
// right. To complete is not tried: if a termination began at that very moment, that could not be undone.
func (f Filter) Check(group string, all []Hook, beat func(Hook) error) (Check, error) {
	ours, others := f.Select(all)
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
	return c, nil // that no more is known is said
}

// Filter says which hooks of a group are ours: names, or patterns as of path.Match, in which a / is a character like any other.
// Without any it is the only hook of a transition, and of several those whose name contains "amsagent": other programs have
// hooks of their own, and complete them when they are ready.
type Filter []string

// codeDeploy begins the names that AWS CodeDeploy gives to the launch hooks that it makes in a group. To complete one would
// let the machine serve before its deployment.
const codeDeploy = "CodeDeploy-managed-"

// Find returns the hooks of a transition that are ours. It is an [OthersHooksError] if there are hooks and none is ours.
// Names need no right to list the hooks of the group.
func (f Filter) Find(ctx context.Context, h Hooks, launching bool) ([]Hook, error) {
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
	ours, others := f.Select(all)
	if len(ours) > 0 || len(others) == 0 {
		return ours, nil
	}
	e := &OthersHooksError{Group: others[0].Group, Named: len(f) > 0}
	for _, o := range others {
		e.Hooks = append(e.Hooks, o.Name)
	}
	return nil, e
}

// Select divides the hooks of one transition into ours and those of other programs.
func (f Filter) Select(all []Hook) (ours, others []Hook) {
	for _, h := range all {
		if f.Match(h) || len(f) == 0 && len(all) == 1 && !ofCodeDeploy(h) {
			ours = append(ours, h)
		} else {
			others = append(others, h)
		}
	}
	return ours, others
}

// literal reports whether there are names, and no pattern among them.
func (f Filter) literal() bool {
	return len(f) > 0 && !slices.ContainsFunc(f, func(name string) bool { return strings.ContainsAny(name, `*?[\`) })
}

// Match reports whether a hook is ours by its name or its id. CodeDeploy's is never ours: its name ends in that of a group.
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

// OthersHooksError is that hooks wait for this machine, and none of them is ours.
type OthersHooksError struct {
	Group string
	Hooks []string
	// Named reports that the setting hooks says which are, so the operator knows.
	Named bool
}

func (e *OthersHooksError) Error() string {
	return fmt.Sprintf("none of the hooks of group %s is this agent's, so none is completed: %s; the setting hooks names those that are",
		e.Group, strings.Join(e.Hooks, ", "))
}
