// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/sleep"
)

// Activity is a service's activity in systemd's terms.
type Activity string

// ActivityUnknown means that no source reported one.
const (
	ActivityUnknown      Activity = "unknown"
	ActivityActive       Activity = "active"
	activityReloading    Activity = "reloading"
	ActivityInactive     Activity = "inactive"
	ActivityFailed       Activity = "failed"
	ActivityActivating   Activity = "activating"
	ActivityDeactivating Activity = "deactivating"
)

// State is a snapshot of a service.
type State struct {
	Activity Activity `json:"activity"`
	Sub      string   `json:"sub,omitempty"`       // running, auto-restart, dead, …
	Load     string   `json:"load,omitempty"`      // loaded, masked, …
	UnitFile string   `json:"unit_file,omitempty"` // enabled, disabled, …
	Result   string   `json:"result,omitempty"`    // of the last run: success, exit-code, signal, timeout, …
	Exit     string   `json:"exit,omitempty"`      // exit status or signal of the last main process

	MainPID    int       `json:"main_pid,omitempty"`
	Since      time.Time `json:"since,omitzero"`       // last became active
	Started    time.Time `json:"started,omitzero"`     // of the main process
	Restarts   int       `json:"restarts,omitempty"`   // automatic ones since the last start
	Invocation string    `json:"invocation,omitempty"` // changes with every start

	// NeedReload: files of the unit changed since systemd read them. It misses a drop-in in a new folder: after writing one,
	// reload and check DropIns.
	NeedReload bool     `json:"need_reload,omitempty"`
	Fragment   string   `json:"fragment,omitempty"`
	DropIns    []string `json:"drop_ins,omitempty"`
	// HostAddress is AMS_HOST_ADDRESS at the next start. Other variables may be secret.
	HostAddress string `json:"host_address,omitempty"`
	// HostAddressFile is the EnvironmentFile= that sets it, or "".
	HostAddressFile string        `json:"host_address_file,omitempty"`
	StopTimeout     time.Duration `json:"-"` // 0 = unknown or infinite

	WorkingDirectory string `json:"working_directory,omitempty"` // of the unit
	IPv4Only         bool   `json:"-"`                           // the unit has [PreferIPv4]

	Detail string `json:"detail,omitempty"` // output of a command
}

// Known reports whether the activity is known.
func (s State) Known() bool { return s.Activity != ActivityUnknown && s.Activity != "" }

// Running reports whether the service is up, according to its manager.
func (s State) Running() bool {
	return s.Activity == ActivityActive || s.Activity == activityReloading
}

// Dead reports whether the server neither runs, starts nor stops.
func (s State) Dead() bool {
	return (s.Activity == ActivityInactive || s.Activity == ActivityFailed) && s.MainPID == 0
}

// Stopped reports whether the server was stopped and did not fail.
func (s State) Stopped() bool { return s.Dead() && s.Activity == ActivityInactive }

// Starting reports whether the service starts, not after a crash.
func (s State) Starting() bool { return s.Activity == ActivityActivating && !s.Crashing() }

// Crashing reports whether the service waits for its automatic restart.
func (s State) Crashing() bool {
	return s.Activity == ActivityActivating && strings.HasPrefix(s.Sub, "auto-restart")
}

// Startable returns ErrUnitMasked, ErrNoUnit, ErrUnitBroken or nil. The server may still run; it could not be started again.
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

// JobError is a service's failed or unfinished job.
type JobError struct {
	Service string // the unit or the command
	Verb    string // start, stop
	// Result is systemd's: failed, canceled, timeout, dependency, skipped, …; "pending" if the agent's time ran out.
	Result string
	State  State // if readable
	Output string
	Err    error // of a command or the context
}

// Pending reports whether the outcome is unknown.
func (e *JobError) Pending() bool { return e.Result == resultPending }

const resultPending = "pending"

func (e *JobError) Error() string {
	text := fmt.Sprintf("%s of %s: %s", e.Verb, e.Service, e.Result)
	if e.Pending() {
		text = fmt.Sprintf("%s of %s is not finished yet", e.Verb, e.Service)
	}
	if e.State.Known() {
		text += ", the service is " + e.State.String()
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	if e.Output != "" {
		text += fmt.Sprintf(": it said %q", e.Output)
	}
	return text
}

func (e *JobError) Unwrap() error { return e.Err }

// UnstableError reports that a service did not stay up.
type UnstableError struct {
	Service string
	After   time.Duration
	State   State
}

func (e *UnstableError) Error() string {
	return fmt.Sprintf("%s did not stay up: %s after %s", e.Service, e.State, e.After.Round(100*time.Millisecond))
}

// LogHint returns how to find why a service ended.
func LogHint(name string) string {
	if strings.HasSuffix(name, ".service") {
		return "read why: journalctl -u " + name + " -n 50"
	}
	return "read the server's own log, or run it by hand to see why: " + StartCommand(name)
}

// StartCommand returns a service's start command.
func StartCommand(name string) string {
	if strings.HasSuffix(name, ".service") {
		return "systemctl start " + name
	}
	return name + " start"
}

type stater interface {
	Name() string
	State(ctx context.Context) (State, error)
}

// stablePoll may be long: a replaced main process has another id.
const stablePoll = 500 * time.Millisecond

// stableFaults in a row count: single checks fail while systemd re-executes itself.
const stableFaults = 4

// WaitStable waits until a service was up for hold with one main process: automatic restarts make a crashing server look
// alive. It returns an *UnstableError, the context's error, or ErrNotManaged.
func WaitStable(ctx context.Context, s stater, hold time.Duration) (State, error) {
	begin := time.Now()
	var first State
	var upSince time.Time
	faults := 0
	for ; ; sleep.For(ctx, stablePoll) {
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
			faults = 0
		default:
			return now, &UnstableError{Service: s.Name(), After: time.Since(begin), State: now}
		}
	}
}

// None is an unmanaged service, such as an image's.
type None struct{}

// Name returns "none".
func (None) Name() string { return "none" }

// State is unknown.
func (None) State(context.Context) (State, error) { return State{Activity: ActivityUnknown}, nil }

// Start returns ErrNotManaged.
func (None) Start(context.Context) error { return fmt.Errorf("start: %w", ErrNotManaged) }

// Stop returns ErrNotManaged.
func (None) Stop(context.Context) error { return fmt.Errorf("stop: %w", ErrNotManaged) }

// Reload does nothing.
func (None) Reload(context.Context) error { return nil }
