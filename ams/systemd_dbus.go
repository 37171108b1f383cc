// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// This is the only file that speaks D-Bus.

// systemdRunning exists exactly where systemd is process 1: what sd_booted(3)
// looks at. Without this question a machine without systemd would give a riddle
// about a socket.
const systemdRunning = "/run/systemd/system"

// SystemdRuns reports whether systemd is process 1 of this machine.
func SystemdRuns() bool {
	_, err := os.Stat(systemdRunning)
	return err == nil
}

// systemdBus is the bus over a connection of go-systemd.
type systemdBus struct{ conn *dbus.Conn }

// dialSystemd connects through the system bus; root, where there is no bus, to
// systemd itself. The bus comes first because it outlives systemd executing itself
// again, as an upgrade of systemd makes it do, perhaps while our job runs.
func dialSystemd(ctx context.Context) (bus, error) {
	if !SystemdRuns() {
		return nil, fmt.Errorf("%w: this machine does not run it", ErrNoSystemd)
	}
	type dialled struct {
		conn *dbus.Conn
		err  error
	}
	// The library connects without watching the context; a bus that accepts and
	// says nothing must not hold us.
	ch := make(chan dialled, 1)
	go func() {
		conn, err := dbus.NewWithContext(ctx)
		ch <- dialled{conn, err}
	}()
	select {
	case d := <-ch:
		if d.err != nil {
			return nil, noSystemd(d.err)
		}
		return systemdBus{d.conn}, nil
	case <-ctx.Done():
		go func() {
			if d := <-ch; d.conn != nil {
				d.conn.Close()
			}
		}()
		return nil, noSystemd(ctx.Err())
	}
}

func noSystemd(err error) error { return fmt.Errorf("%w: connecting: %w", ErrNoSystemd, err) }

func (b systemdBus) properties(ctx context.Context, unit string) (map[string]any, error) {
	p, err := b.conn.GetAllPropertiesContext(ctx, unit)
	return p, busError(err)
}

func (b systemdBus) job(ctx context.Context, verb, unit string, done chan<- string) error {
	// replace: a job that contradicts ours and waits is dropped, as systemctl
	// does; ours may be dropped in the same way, which is the result "canceled".
	const mode = "replace"
	var err error
	switch verb {
	case "start":
		_, err = b.conn.StartUnitContext(ctx, unit, mode, done)
	case "stop":
		_, err = b.conn.StopUnitContext(ctx, unit, mode, done)
	case "restart":
		_, err = b.conn.RestartUnitContext(ctx, unit, mode, done)
	default:
		err = fmt.Errorf("unknown verb %q", verb)
	}
	return busError(err)
}

func (b systemdBus) resetFailed(ctx context.Context, unit string) error {
	return busError(b.conn.ResetFailedUnitContext(ctx, unit))
}

func (b systemdBus) enable(ctx context.Context, units []string) error {
	// Persistently, and over no link of somebody else.
	_, _, err := b.conn.EnableUnitFilesContext(ctx, units, false, false)
	return busError(err)
}

func (b systemdBus) disable(ctx context.Context, units []string) error {
	_, err := b.conn.DisableUnitFilesContext(ctx, units, false)
	return busError(err)
}

func (b systemdBus) reload(ctx context.Context) error { return busError(b.conn.ReloadContext(ctx)) }

func (b systemdBus) system(ctx context.Context) (string, error) {
	p, err := b.conn.SystemStateContext(ctx)
	if err != nil {
		return "", busError(err)
	}
	state, ok := p.Value.Value().(string)
	if !ok {
		return "", fmt.Errorf("systemd's SystemState is no text: %s", p.Value)
	}
	return state, nil
}

func (b systemdBus) alive() bool { return b.conn.Connected() }
func (b systemdBus) close()      { b.conn.Close() }

// busError gives systemd's error names the meaning that callers branch on.
func busError(err error) error {
	var e godbus.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Name {
	case "org.freedesktop.systemd1.NoSuchUnit":
		return fmt.Errorf("%w: %w", ErrNoUnit, err)
	case "org.freedesktop.systemd1.UnitMasked":
		return fmt.Errorf("%w: %w", ErrUnitMasked, err)
	case "org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
		"org.freedesktop.DBus.Error.AuthFailed":
		return fmt.Errorf("%w: %w", fs.ErrPermission, err)
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NoReply",
		"org.freedesktop.DBus.Error.Disconnected", "org.freedesktop.DBus.Error.NoServer":
		return fmt.Errorf("%w: %w", ErrNoSystemd, err)
	}
	return err
}
