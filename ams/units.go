// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Units are the agent's services. Those not installed are ignored.
type Units struct {
	names []string
	dial  dialer
}

// NewUnits returns units in start order. It does not connect to systemd.
func NewUnits(names ...string) *Units { return &Units{names: names, dial: dialSystemd} }

// UnitsState is the state of [Units].
type UnitsState struct {
	// Enabled and Active report whether all installed units start at boot, and run.
	Enabled, Active bool
	// Any reports whether at least one starts at boot or runs.
	Any bool
}

// State returns their state, or ErrNoUnit if none is installed.
func (u *Units) State(ctx context.Context) (s UnitsState, err error) {
	err = u.with(ctx, systemdCallLimit, "asking systemd about the agent's units", func(_ context.Context, _ bus, _ []string, states []State) error {
		s = UnitsState{Enabled: true, Active: true}
		for _, is := range states {
			// Units without an [Install] section are started by others.
			s.Enabled = s.Enabled && slices.Contains([]string{"enabled", "static", "generated", "transient", "alias"}, is.UnitFile)
			s.Active = s.Active && is.Running()
			s.Any = s.Any || is.UnitFile == "enabled" || is.Activity != ActivityInactive && is.Activity != ActivityFailed
		}
		return nil
	})
	return s, err
}

// with passes the installed units.
func (u *Units) with(ctx context.Context, limit time.Duration, what string, do func(context.Context, bus, []string, []State) error) error {
	return u.dial.with(ctx, limit, what, func(ctx context.Context, b bus) error {
		var names []string
		var states []State
		for _, name := range u.names {
			st, err := look(ctx, b, name)
			switch {
			case errors.Is(busError(err), ErrNoUnit):
			case err != nil:
				return fmt.Errorf("%s: %w", name, err)
			default:
				names, states = append(names, name), append(states, st)
			}
		}
		if len(names) == 0 {
			return fmt.Errorf("%w: %s", ErrNoUnit, u.names[len(u.names)-1])
		}
		return do(ctx, b, names, states)
	})
}

// Enable makes the units start at boot, starts them, and waits for the last one. A start not over when ctx ends continues
// and returns a pending [JobError].
func (u *Units) Enable(ctx context.Context) error {
	return u.with(ctx, systemdJobLimit, "starting the agent's units", func(ctx context.Context, b bus, names []string, states []State) error {
		for k, is := range states {
			if err := is.Startable(); err != nil {
				return fmt.Errorf("%s: %w", names[k], err)
			}
		}
		// Persistently, without replacing the links of other tools.
		if _, _, err := b.EnableUnitFilesContext(ctx, names, false, false); err != nil {
			return err
		}
		if err := b.ReloadContext(ctx); err != nil {
			return err
		}
		var errs []error
		last := len(names) - 1
		for _, name := range names[:last] {
			// A slow first unit must not delay the others.
			_ = b.ResetFailedUnitContext(ctx, name)
			_, err := b.StartUnitContext(ctx, name, jobMode, make(chan string, 1))
			errs = append(errs, err)
		}
		return errors.Join(append(errs, (&Systemd{names[last], u.dial}).Start(ctx))...)
	})
}

// Disable disables the units at boot first, because the machine may crash in between, and stops them in reverse order.
func (u *Units) Disable(ctx context.Context) error {
	return u.with(ctx, systemdJobLimit, "stopping the agent's units", func(ctx context.Context, b bus, names []string, states []State) error {
		_, err := b.DisableUnitFilesContext(ctx, names, false)
		errs := []error{err, b.ReloadContext(ctx)}
		for i, name := range slices.Backward(names) {
			if !states[i].Dead() {
				errs = append(errs, (&Systemd{name, u.dial}).Stop(ctx))
			}
		}
		return errors.Join(errs...)
	})
}
