// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Activity is what a service is doing, in systemd's words.
type Activity string

// The activities. ActivityUnknown is not zero of anything: nobody told us.
const (
	ActivityUnknown      Activity = "unknown"
	ActivityActive       Activity = "active"
	ActivityReloading    Activity = "reloading"
	ActivityInactive     Activity = "inactive"
	ActivityFailed       Activity = "failed"
	ActivityActivating   Activity = "activating"
	ActivityDeactivating Activity = "deactivating"
)

// State is one look at a service. A field that the kind of service cannot know
// has its zero value.
type State struct {
	Activity Activity `json:"activity"`
	Sub      string   `json:"sub,omitempty"`       // SubState: running, auto-restart, dead, …
	Load     string   `json:"load,omitempty"`      // LoadState: loaded, masked, …
	UnitFile string   `json:"unit_file,omitempty"` // UnitFileState: enabled, disabled, …
	Result   string   `json:"result,omitempty"`    // how the last run ended: success, exit-code, signal, timeout, …
	Exit     string   `json:"exit,omitempty"`      // exit status or signal of the last main process

	MainPID    int       `json:"main_pid,omitempty"`
	Since      time.Time `json:"since,omitzero"`       // when it last became active
	Started    time.Time `json:"started,omitzero"`     // when the main process was started
	Restarts   int       `json:"restarts,omitempty"`   // automatic restarts since somebody last started it
	Invocation string    `json:"invocation,omitempty"` // changes with every start

	// NeedReload: files of the unit changed since systemd read them. False proves
	// nothing: systemd overlooks a new drop-in in a new folder. After writing one,
	// reload without asking, and look for it in DropIns.
	NeedReload bool     `json:"need_reload,omitempty"`
	Fragment   string   `json:"fragment,omitempty"`
	DropIns    []string `json:"drop_ins,omitempty"`
	// HostAddress is AMS_HOST_ADDRESS as the next start will have it, from all
	// drop-ins and files together. The rest of the environment is not ours to show.
	HostAddress string `json:"host_address,omitempty"`
	// HostAddressFile is the EnvironmentFile= that sets it, "" where none does.
	HostAddressFile string        `json:"host_address_file,omitempty"`
	StopTimeout     time.Duration `json:"stop_timeout_ns,omitempty"` // in effect; 0 = unknown or endless

	// Homes are the folders that the unit names.
	Homes []Home `json:"homes,omitempty"`

	Detail string `json:"detail,omitempty"` // what a command printed
}

// Known says whether anything is known about the service.
func (s State) Known() bool { return s.Activity != ActivityUnknown && s.Activity != "" }

// Running says whether the service is up, as far as its manager knows.
func (s State) Running() bool {
	return s.Activity == ActivityActive || s.Activity == ActivityReloading
}

// Dead says whether the service's manager knows that the server does not run, and
// that nothing is about to start or stop it.
func (s State) Dead() bool {
	return (s.Activity == ActivityInactive || s.Activity == ActivityFailed) && s.MainPID == 0
}

// Stopped says whether the server is dead by somebody's will, and not by a failure.
func (s State) Stopped() bool { return s.Dead() && s.Activity == ActivityInactive }

// Starting says whether the service is being started, and not after it died.
func (s State) Starting() bool { return s.Activity == ActivityActivating && !s.Crashing() }

// Crashing says whether the service died and waits for its automatic restart.
func (s State) Crashing() bool {
	return s.Activity == ActivityActivating && strings.HasPrefix(s.Sub, "auto-restart")
}

// Startable says why the service's manager could not start it: ErrUnitMasked,
// ErrNoUnit or ErrUnitBroken; nil where nothing is known against it. The server
// may run all the same, started before; who restarts it then does harm.
func (s State) Startable() error {
	switch s.Load {
	case "", "loaded", "merged", "stub":
		return nil
	case "masked":
		return ErrUnitMasked
	case "not-found":
		return ErrNoUnit
	}
	return fmt.Errorf("%w: %s", ErrUnitBroken, s.Load)
}

// String is the state in a few words: "failed (exit-code, exit status 1)".
func (s State) String() string {
	if !s.Known() {
		return string(ActivityUnknown)
	}
	var notes []string
	if s.Sub != "" && s.Sub != string(s.Activity) {
		notes = append(notes, s.Sub)
	}
	if s.Result != "" && s.Result != "success" {
		notes = append(notes, s.Result)
	}
	if s.Exit != "" && !s.Running() {
		notes = append(notes, s.Exit)
	}
	if s.Restarts > 0 {
		times := "times"
		if s.Restarts == 1 {
			times = "time"
		}
		notes = append(notes, fmt.Sprintf("restarted %d %s by itself", s.Restarts, times))
	}
	if len(notes) == 0 {
		return string(s.Activity)
	}
	return string(s.Activity) + " (" + strings.Join(notes, ", ") + ")"
}

// JobError says that a service did not do what it was told, or not in time.
type JobError struct {
	Service string // the unit, or the command
	Verb    string // start, stop, restart
	// Result is how systemd's job ended: failed, canceled, timeout, dependency,
	// skipped, …; "pending" where our own time ran out first and the outcome is
	// not known.
	Result string
	State  State // after it, where it could be read
	Output string
	Err    error // of a command, or of our own context
}

// Pending says whether the outcome is still open.
func (e *JobError) Pending() bool { return e.Result == resultPending }

const (
	resultDone    = "done"
	resultPending = "pending"
)

func (e *JobError) Error() string {
	var b strings.Builder
	if e.Pending() {
		fmt.Fprintf(&b, "%s of %s is not finished yet", e.Verb, e.Service)
	} else {
		fmt.Fprintf(&b, "%s of %s: %s", e.Verb, e.Service, e.Result)
	}
	if e.State.Known() {
		fmt.Fprintf(&b, ", the service is %s", e.State)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Output != "" {
		fmt.Fprintf(&b, ": it said %q", e.Output)
	}
	return b.String()
}

func (e *JobError) Unwrap() error { return e.Err }

func (e *JobError) hint() string {
	switch {
	case e.Pending():
		return "it may still come: look with 'amsagent status', or give more time with --timeout"
	case e.Result == "canceled":
		return "somebody else started or stopped the service at the same time; try again"
	case strings.HasSuffix(e.Service, ".service"):
		return "read what it said: journalctl -u " + e.Service + " -n 50"
	}
	return "run it by hand to see what it says: " + e.Service + " " + e.Verb
}

// UnstableError says that a service was started and did not stay up.
type UnstableError struct {
	Service string
	After   time.Duration // since we began to watch
	Before  State         // when it was last seen up; zero where it never was
	State   State
}

func (e *UnstableError) Error() string {
	if e.Before.MainPID != 0 && e.State.Running() && e.Before.MainPID != e.State.MainPID {
		return fmt.Sprintf("%s did not stay up: process %d ended within %s and %d took its place",
			e.Service, e.Before.MainPID, e.After.Round(100*time.Millisecond), e.State.MainPID)
	}
	return fmt.Sprintf("%s did not stay up: %s after %s", e.Service, e.State, e.After.Round(100*time.Millisecond))
}

// Is makes errors.Is(err, ErrUnstable) true.
func (e *UnstableError) Is(target error) bool { return target == ErrUnstable }

// LogHint says where to read why a service of this name ended: a unit, or a [Command],
// which has no journal.
func LogHint(name string) string {
	if strings.HasSuffix(name, ".service") {
		return "read why it ended: journalctl -u " + name + " -n 50"
	}
	return "read the server's own log to see why it ended"
}

// StartCommand is what a person types to start a service of this name: a unit, or a [Command].
func StartCommand(name string) string {
	if strings.HasSuffix(name, ".service") {
		return "systemctl start " + name
	}
	return name + " start"
}

// stater is what WaitStable needs of a service.
type stater interface {
	Name() string
	State(ctx context.Context) (State, error)
}

// stablePoll is how often WaitStable looks. A main process that is replaced
// between two looks is noticed by its id, so this need not be short.
const stablePoll = 500 * time.Millisecond

// A look at a service may fail while systemd re-executes itself; so many in a
// row are a fault.
const stableFaults = 4

// WaitStable watches a service that was just started and returns when it was up,
// with one and the same main process, for the whole of hold. A start job is done
// when the process was made: a server that dies three seconds later was started
// all the same, and systemd's automatic restart makes it look alive at every
// other look.
//
// It fails with an *UnstableError as soon as the service is not up, with
// ErrNotManaged where the kind of service knows no state, and with the context's
// error when that ends first.
func WaitStable(ctx context.Context, s stater, hold time.Duration) (State, error) {
	begin := time.Now()
	tick := time.NewTicker(stablePoll)
	defer tick.Stop()
	var first State
	var upSince time.Time
	faults := 0
	for {
		now, err := s.State(ctx)
		switch {
		case ctx.Err() != nil:
			return now, errors.Join(fmt.Errorf("watching %s: %w", s.Name(), ctx.Err()), err)
		case err != nil:
			if faults++; faults >= stableFaults {
				return now, fmt.Errorf("watching %s: %w", s.Name(), err)
			}
		case !now.Known():
			return now, fmt.Errorf("watching %s: %w", s.Name(), ErrNotManaged)
		case now.Running():
			faults = 0
			if upSince.IsZero() {
				first, upSince = now, time.Now()
			}
			if now.MainPID != first.MainPID || now.Invocation != first.Invocation || now.Restarts > first.Restarts {
				return now, &UnstableError{Service: s.Name(), After: time.Since(begin), Before: first, State: now}
			}
			if time.Since(upSince) >= hold {
				return now, nil
			}
		case now.Activity == ActivityActivating && !now.Crashing() && upSince.IsZero():
			// Still on its way up, for the first time.
			faults = 0
		default:
			return now, &UnstableError{Service: s.Name(), After: time.Since(begin), Before: first, State: now}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// None is the service that is left alone: the tree belongs to an image that is
// being built, or a person starts the server. It never touches anything.
type None struct{}

// Name is "none".
func (None) Name() string { return "none" }

// State is unknown.
func (None) State(context.Context) (State, error) { return State{Activity: ActivityUnknown}, nil }

// Start fails with ErrNotManaged: a caller that gets here forgot to ask.
func (None) Start(context.Context) error { return fmt.Errorf("start: %w", ErrNotManaged) }

// Stop fails with ErrNotManaged.
func (None) Stop(context.Context) error { return fmt.Errorf("stop: %w", ErrNotManaged) }

// Restart fails with ErrNotManaged.
func (None) Restart(context.Context) error { return fmt.Errorf("restart: %w", ErrNotManaged) }

// Reload has nothing to tell anybody and succeeds.
func (None) Reload(context.Context) error { return nil }
