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

// Activity is the activity of a service, in systemd's terms.
type Activity string

// The activities. ActivityUnknown means that no source reported one.
const (
	ActivityUnknown      Activity = "unknown"
	ActivityActive       Activity = "active"
	activityReloading    Activity = "reloading"
	ActivityInactive     Activity = "inactive"
	ActivityFailed       Activity = "failed"
	ActivityActivating   Activity = "activating"
	ActivityDeactivating Activity = "deactivating"
)

// State is a snapshot of a service. Fields that the kind of service does not have are zero.
type State struct {
	Activity Activity `json:"activity"`
	Sub      string   `json:"sub,omitempty"`       // SubState: running, auto-restart, dead, …
	Load     string   `json:"load,omitempty"`      // LoadState: loaded, masked, …
	UnitFile string   `json:"unit_file,omitempty"` // UnitFileState: enabled, disabled, …
	Result   string   `json:"result,omitempty"`    // result of the last run: success, exit-code, signal, timeout, …
	Exit     string   `json:"exit,omitempty"`      // exit status or signal of the last main process

	MainPID    int       `json:"main_pid,omitempty"`
	Since      time.Time `json:"since,omitzero"`       // when it last became active
	Started    time.Time `json:"started,omitzero"`     // when the main process was started
	Restarts   int       `json:"restarts,omitempty"`   // automatic restarts since the last explicit start
	Invocation string    `json:"invocation,omitempty"` // changes with every start

	// NeedReload: files of the unit changed since systemd read them. False proves nothing: systemd misses a new drop-in
	// in a new folder. After writing one, reload and check DropIns.
	NeedReload bool     `json:"need_reload,omitempty"`
	Fragment   string   `json:"fragment,omitempty"`
	DropIns    []string `json:"drop_ins,omitempty"`
	// HostAddress is AMS_HOST_ADDRESS at the next start, from all drop-ins and files. The rest of the environment may be
	// secret.
	HostAddress string `json:"host_address,omitempty"`
	// HostAddressFile is the EnvironmentFile= that sets it, or "".
	HostAddressFile string        `json:"host_address_file,omitempty"`
	StopTimeout     time.Duration `json:"stop_timeout_ns,omitempty"` // in effect; 0 = unknown or infinite

	WorkingDirectory string `json:"working_directory,omitempty"` // of the unit

	Detail string `json:"detail,omitempty"` // output of a command
}

// Known reports whether the activity is known.
func (s State) Known() bool { return s.Activity != ActivityUnknown && s.Activity != "" }

// Running reports whether the service is up, according to its manager.
func (s State) Running() bool {
	return s.Activity == ActivityActive || s.Activity == activityReloading
}

// Dead reports whether the service manager knows that the server does not run, and neither starts nor stops it.
func (s State) Dead() bool {
	return (s.Activity == ActivityInactive || s.Activity == ActivityFailed) && s.MainPID == 0
}

// Stopped reports whether the server was stopped and did not fail.
func (s State) Stopped() bool { return s.Dead() && s.Activity == ActivityInactive }

// Starting reports whether the service starts, and not after a crash.
func (s State) Starting() bool { return s.Activity == ActivityActivating && !s.Crashing() }

// Crashing reports whether the service died and waits for its automatic restart.
func (s State) Crashing() bool {
	return s.Activity == ActivityActivating && strings.HasPrefix(s.Sub, "auto-restart")
}

// Startable returns the reason why the service manager could not start it: ErrUnitMasked, ErrNoUnit or ErrUnitBroken;
// nil for no known reason. The server may still run; a restart would then end it.
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

// String returns a summary: "failed (exit-code, exit status 1)".
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
	if s.Restarts == 1 {
		notes = append(notes, "restarted 1 time by itself")
	} else if s.Restarts > 1 {
		notes = append(notes, fmt.Sprintf("restarted %d times by itself", s.Restarts))
	}
	if len(notes) == 0 {
		return string(s.Activity)
	}
	return string(s.Activity) + " (" + strings.Join(notes, ", ") + ")"
}

// JobError reports that a service did not do a job, or not in time.
type JobError struct {
	Service string // the unit, or the command
	Verb    string // start, stop, restart
	// Result is the result of systemd's job: failed, canceled, timeout, dependency, skipped, …; "pending" if the agent's
	// time ran out first and the outcome is not known.
	Result string
	State  State // after it, if readable
	Output string
	Err    error // of a command, or of the context
}

// Pending reports whether the outcome is still open.
func (e *JobError) Pending() bool { return e.Result == resultPending }

const resultPending = "pending"

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

// UnstableError reports that a service started and did not stay up.
type UnstableError struct {
	Service string
	After   time.Duration // since the watch began
	State   State
}

func (e *UnstableError) Error() string {
	return fmt.Sprintf("%s did not stay up: %s after %s", e.Service, e.State, e.After.Round(100*time.Millisecond))
}

// LogHint returns where to read why a service ended or did not start. name is a unit, or a [Command], which has no
// journal.
func LogHint(name string) string {
	if strings.HasSuffix(name, ".service") {
		return "read why: journalctl -u " + name + " -n 50"
	}
	return "read the server's own log, or run it by hand to see why: " + StartCommand(name)
}

// StartCommand returns the operator's command to start a unit or a [Command].
func StartCommand(name string) string {
	if strings.HasSuffix(name, ".service") {
		return "systemctl start " + name
	}
	return name + " start"
}

// stater is what WaitStable needs.
type stater interface {
	Name() string
	State(ctx context.Context) (State, error)
}

// stablePoll is the interval of WaitStable's checks. A main process replaced in between is noticed by its id, so this
// need not be short.
const stablePoll = 500 * time.Millisecond

// stableFaults is the number of consecutive failed checks that are a fault: single ones fail while systemd re-executes
// itself.
const stableFaults = 4

// WaitStable watches a service that was just started and returns when it was up, with the same main process, for the
// whole of hold. A start job is done when the process exists: a server that dies three seconds later was started
// successfully, and automatic restarts make it look alive at every other check.
//
// It fails with an *UnstableError as soon as the service is not up, with ErrNotManaged if the kind of service has no
// state, and with the context's error.
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
				return now, &UnstableError{Service: s.Name(), After: time.Since(begin), State: now}
			}
			if time.Since(upSince) >= hold {
				return now, nil
			}
		case now.Activity == ActivityActivating && !now.Crashing() && upSince.IsZero():
			// Still starting, for the first time.
			faults = 0
		default:
			return now, &UnstableError{Service: s.Name(), After: time.Since(begin), State: now}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// None is the service that the agent does not manage: the tree belongs to an image, or the operator starts the server.
type None struct{}

// Name returns "none".
func (None) Name() string { return "none" }

// State is unknown.
func (None) State(context.Context) (State, error) { return State{Activity: ActivityUnknown}, nil }

// Start fails with ErrNotManaged.
func (None) Start(context.Context) error { return fmt.Errorf("start: %w", ErrNotManaged) }

// Stop fails with ErrNotManaged.
func (None) Stop(context.Context) error { return fmt.Errorf("stop: %w", ErrNotManaged) }

// Restart fails with ErrNotManaged.
func (None) Restart(context.Context) error { return fmt.Errorf("restart: %w", ErrNotManaged) }

// Reload does nothing and succeeds.
func (None) Reload(context.Context) error { return nil }
