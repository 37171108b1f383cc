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

type unit struct {
	*Systemd
	is State
}

// enabled counts units without an [Install] section, which others start.
func (u unit) enabled() bool {
	return slices.Contains([]string{"enabled", "static", "generated", "transient", "alias"}, u.is.UnitFile)
}

func (u unit) up() bool { return u.is.Activity != ActivityInactive && u.is.Activity != ActivityFailed }

// State returns their state, or ErrNoUnit if none is installed.
func (u *Units) State(ctx context.Context) (s UnitsState, err error) {
	err = u.with(ctx, systemdCallLimit, "asking systemd about the agent's units", func(_ context.Context, _ bus, all []unit) error {
		s = UnitsState{Enabled: true, Active: true}
		for _, i := range all {
			s.Enabled = s.Enabled && i.enabled()
			s.Active = s.Active && i.is.Running()
			s.Any = s.Any || i.is.UnitFile == "enabled" || i.up()
		}
		return nil
	})
	return s, err
}

// with passes the installed units.
func (u *Units) with(ctx context.Context, limit time.Duration, what string, do func(context.Context, bus, []unit) error) error {
	return u.dial.with(ctx, limit, what, func(ctx context.Context, b bus) error {
		var all []unit
		for _, name := range u.names {
			st, err := look(ctx, b, name)
			switch {
			case errors.Is(busError(err), ErrNoUnit):
			case err != nil:
				return fmt.Errorf("%s: %w", name, err)
			default:
				all = append(all, unit{&Systemd{unit: name, dial: u.dial}, st})
			}
		}
		if len(all) == 0 {
			return fmt.Errorf("%w: %s", ErrNoUnit, u.names[len(u.names)-1])
		}
		return do(ctx, b, all)
	})
}

// Enable makes the units start at boot, starts them, and waits for the last one. A start not over when ctx ends continues
// and returns a pending [JobError].
func (u *Units) Enable(ctx context.Context) error {
	return u.with(ctx, systemdJobLimit, "starting the agent's units", func(ctx context.Context, b bus, all []unit) error {
		var enable []string
		for _, i := range all {
			if err := i.is.Startable(); err != nil {
				return fmt.Errorf("%s: %w", i.Name(), err)
			}
			if !i.enabled() {
				enable = append(enable, i.Name())
			}
		}
		if len(enable) > 0 {
			// Persistently, without replacing the links of other tools.
			if _, _, err := b.EnableUnitFilesContext(ctx, enable, false, false); err != nil {
				return err
			}
			if err := b.ReloadContext(ctx); err != nil {
				return err
			}
		}
		var errs []error
		for k, i := range all {
			switch {
			case i.is.Running():
			case k == len(all)-1:
				errs = append(errs, i.Start(ctx))
			default:
				// A slow first unit must not delay the others.
				_ = b.ResetFailedUnitContext(ctx, i.Name())
				_, err := b.StartUnitContext(ctx, i.Name(), jobMode, make(chan string, 1))
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// Disable stops the units in reverse order and disables them at boot. Masked ones are only stopped.
func (u *Units) Disable(ctx context.Context) error {
	return u.with(ctx, systemdJobLimit, "stopping the agent's units", func(ctx context.Context, b bus, all []unit) error {
		slices.Reverse(all)
		var errs []error
		var disable []string
		for _, i := range all {
			if i.is.UnitFile == "enabled" || i.is.UnitFile == "enabled-runtime" {
				disable = append(disable, i.Name())
			}
		}
		// The machine may crash in between.
		if len(disable) > 0 {
			_, err := b.DisableUnitFilesContext(ctx, disable, false)
			errs = append(errs, err, b.ReloadContext(ctx))
		}
		for _, i := range all {
			if i.up() {
				errs = append(errs, i.Stop(ctx))
			}
		}
		return errors.Join(errs...)
	})
}
