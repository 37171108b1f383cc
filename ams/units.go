// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Units are services that run, and start at boot, all or none: those of the agent
// itself. A unit whose file is not installed is passed over.
type Units struct {
	names []string
	dial  dialer
}

// NewUnits gives the units of these names, in the order in which they start.
// Nothing is asked of systemd before the first call.
func NewUnits(names ...string) *Units { return &Units{names: names, dial: dialSystemd} }

// UnitsState is how [Units] are.
type UnitsState struct {
	// Enabled and Active tell that every installed unit starts at boot, and that
	// every one runs.
	Enabled, Active bool
	// Any tells that at least one starts at boot or runs.
	Any bool
}

// installed is one unit whose file is there, and how it is.
type installed struct {
	name  string
	state State
}

// enabled reports whether it starts at boot, as far as that is for a person to
// say: one without an [Install] section has its place by another unit.
func (i installed) enabled() bool {
	switch i.state.UnitFile {
	case "enabled", "static", "generated", "transient", "alias":
		return true
	}
	return false
}

// up reports whether there is something to stop.
func (i installed) up() bool {
	return i.state.Activity != ActivityInactive && i.state.Activity != ActivityFailed
}

// State tells how the units are; ErrNoUnit if none is installed.
func (u *Units) State(ctx context.Context) (UnitsState, error) {
	s := UnitsState{Enabled: true, Active: true}
	err := u.dial.with(ctx, systemdCallLimit, "asking systemd about the agent's units", func(ctx context.Context, b bus) error {
		all, err := u.look(ctx, b)
		for _, i := range all {
			s.Enabled = s.Enabled && i.enabled()
			s.Active = s.Active && i.state.Running()
			s.Any = s.Any || i.state.UnitFile == "enabled" || i.up()
		}
		return err
	})
	if err != nil {
		return UnitsState{}, err
	}
	return s, nil
}

func (u *Units) look(ctx context.Context, b bus) ([]installed, error) {
	var all []installed
	for _, name := range u.names {
		st, err := look(ctx, b, name)
		switch {
		case errors.Is(busError(err), ErrNoUnit):
		case err != nil:
			return nil, fmt.Errorf("%s: %w", name, err)
		default:
			all = append(all, installed{name, st})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoUnit, u.names[len(u.names)-1])
	}
	return all, nil
}

// Enable makes the units start at every boot, and starts those that do not run; the
// last one is waited for. Where all that is so already, nothing is written and
// nothing is started. A start that is not over when ctx ends goes on without us: a
// [JobError] that is pending.
func (u *Units) Enable(ctx context.Context) error {
	return u.dial.with(ctx, systemdJobLimit, "starting the agent's units", func(ctx context.Context, b bus) error {
		all, err := u.look(ctx, b)
		if err != nil {
			return err
		}
		var enable []string
		for _, i := range all {
			if err := i.state.Startable(); err != nil {
				return fmt.Errorf("%s: %w", i.name, err)
			}
			if !i.enabled() {
				enable = append(enable, i.name)
			}
		}
		if len(enable) > 0 {
			// Persistently, and over no link of somebody else.
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
			case i.state.Running():
			case k == len(all)-1:
				errs = append(errs, u.unit(i.name).Start(ctx))
			default:
				// All are asked for before one is waited for: a first one that takes long must not keep the others from being
				// started at all.
				_ = b.ResetFailedUnitContext(ctx, i.name)
				errs = append(errs, job(ctx, b, "start", i.name, make(chan string, 1)))
			}
		}
		return errors.Join(errs...)
	})
}

// Disable stops the units, in the opposite order, and makes them start at no boot. One that is masked is only stopped: a person said
// already that it must not start.
func (u *Units) Disable(ctx context.Context) error {
	return u.dial.with(ctx, systemdJobLimit, "stopping the agent's units", func(ctx context.Context, b bus) error {
		all, err := u.look(ctx, b)
		if err != nil {
			return err
		}
		slices.Reverse(all)
		var errs []error
		var disable []string
		for _, i := range all {
			if i.state.UnitFile == "enabled" || i.state.UnitFile == "enabled-runtime" {
				disable = append(disable, i.name)
			}
		}
		// First: a machine that goes down in between must not come up with them.
		if len(disable) > 0 {
			_, err := b.DisableUnitFilesContext(ctx, disable, false)
			errs = append(errs, err, b.ReloadContext(ctx))
		}
		for _, i := range all {
			if i.up() {
				errs = append(errs, u.unit(i.name).Stop(ctx))
			}
		}
		return errors.Join(errs...)
	})
}

func (u *Units) unit(name string) *Systemd { return &Systemd{unit: name, dial: u.dial} }
