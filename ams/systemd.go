// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
)

const (
	// systemdRunning exists only if systemd is process 1: sd_booted(3).
	systemdRunning = "/run/systemd/system"
	systemBus      = "/run/dbus/system_bus_socket"
)

// A job may take as long as the unit's own timeouts.
const (
	systemdCallLimit = 10 * time.Second
	systemdJobLimit  = 15 * time.Minute
	// systemdAlivePoll: the signal that ends a job never arrives on a lost connection.
	systemdAlivePoll = time.Second
)

var errLostSystemd = errors.New("the connection to systemd was lost")

type bus interface {
	GetAllPropertiesContext(ctx context.Context, unit string) (map[string]any, error)
	StartUnitContext(ctx context.Context, unit, mode string, done chan<- string) (int, error)
	StopUnitContext(ctx context.Context, unit, mode string, done chan<- string) (int, error)
	ResetFailedUnitContext(ctx context.Context, unit string) error
	EnableUnitFilesContext(ctx context.Context, units []string, runtime, force bool) (bool, []dbus.EnableUnitFileChange, error)
	DisableUnitFilesContext(ctx context.Context, units []string, runtime bool) ([]dbus.DisableUnitFileChange, error)
	ReloadContext(ctx context.Context) error
	Connected() bool
	Close()
}

// SystemdRuns reports whether systemd is process 1.
func SystemdRuns() bool {
	_, err := os.Stat(systemdRunning)
	return err == nil
}

// dialSystemd prefers the system bus, which survives an upgrade of systemd during a job. Without a bus root connects to systemd
// itself, which may not answer if it is busy: it can miss a call that comes at once after the login.
func dialSystemd(ctx context.Context) (bus, error) {
	if !SystemdRuns() {
		return nil, fmt.Errorf("%w: this machine does not run it", ErrNoSystemd)
	}
	// The library connects without watching the context.
	var conn *dbus.Conn
	dialled := make(chan error, 1)
	go func() {
		var err error
		conn, err = dbus.NewWithContext(ctx)
		dialled <- err
	}()
	var err error
	select {
	case err = <-dialled:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("%w: connecting: %w", ErrNoSystemd, err)
		if _, missing := os.Stat(systemBus); errors.Is(missing, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", errNoBus, err)
		}
		return nil, err
	}
	return conn, nil
}

// dialer connects for each operation; the context bounds the connection.
type dialer func(ctx context.Context) (bus, error)

func (dial dialer) with(ctx context.Context, limit time.Duration, what string, ask func(context.Context, bus) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	b, err := dial(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer b.Close()
	err = ask(ctx, b)
	if _, job := errors.AsType[*JobError](err); job || err == nil {
		return err
	}
	// The connection ends with the context; its error then hides the context's.
	return fmt.Errorf("%s: %w", what, cmp.Or(ctx.Err(), busError(err)))
}

var busErrors = map[string]error{
	"org.freedesktop.systemd1.NoSuchUnit":                         ErrNoUnit,
	"org.freedesktop.systemd1.UnitMasked":                         ErrUnitMasked,
	"org.freedesktop.DBus.Error.AccessDenied":                     fs.ErrPermission,
	"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": fs.ErrPermission,
	"org.freedesktop.DBus.Error.ServiceUnknown":                   ErrNoSystemd,
	"org.freedesktop.DBus.Error.NoReply":                          ErrNoSystemd,
}

func busError(err error) error {
	if e, ok := errors.AsType[godbus.Error](err); ok && busErrors[e.Name] != nil {
		return fmt.Errorf("%w: %w", busErrors[e.Name], err)
	}
	return err
}

// Systemd is a service run by a systemd unit.
type Systemd struct {
	unit string
	dial dialer
}

// NewSystemd takes a unit such as "antmedia". It does not connect.
func NewSystemd(unit string) *Systemd {
	unit = cmp.Or(unit, DefaultUnit)
	if filepath.Ext(unit) != ".service" {
		unit += ".service"
	}
	return &Systemd{unit: unit, dial: dialSystemd}
}

// Name returns the unit's name.
func (s *Systemd) Name() string { return s.unit }

// State returns the unit's state, ErrNoUnit, or ErrNoSystemd if systemd does not respond.
func (s *Systemd) State(ctx context.Context) (State, error) {
	st := State{Activity: ActivityUnknown}
	err := s.dial.with(ctx, systemdCallLimit, "asking systemd about "+s.unit, func(ctx context.Context, b bus) error {
		p, err := b.GetAllPropertiesContext(ctx, s.unit)
		if err != nil {
			return err
		}
		is := unitState(p)
		if is.Load == "not-found" && !is.Running() {
			return ErrNoUnit
		}
		st = is
		return nil
	})
	return st, err
}

// Start waits for the process, not for its health: see [WaitStable].
func (s *Systemd) Start(ctx context.Context) error { return s.do(ctx, "start", bus.StartUnitContext) }

// Stop waits for the unit's end; systemd kills it after TimeoutStopSec.
func (s *Systemd) Stop(ctx context.Context) error { return s.do(ctx, "stop", bus.StopUnitContext) }

// Reload makes systemd reread its unit files.
func (s *Systemd) Reload(ctx context.Context) error {
	// A reload runs every generator of the machine.
	return s.dial.with(ctx, 6*systemdCallLimit, "making systemd read its units again", func(ctx context.Context, b bus) error {
		return b.ReloadContext(ctx)
	})
}

// SystemStopping reports whether the machine shuts down, by shutdown.target: before systemd 246, SystemState stays
// "starting" if a boot never finished.
func (s *Systemd) SystemStopping(ctx context.Context) (bool, error) {
	active, waits, err := s.target(ctx, "shutdown.target")
	return active || waits, err
}

// SystemStarting reports whether the boot has not reached sysinit.target, for which the start of every service waits.
func (s *Systemd) SystemStarting(ctx context.Context) (bool, error) {
	active, waits, err := s.target(ctx, "sysinit.target")
	return waits && !active, err
}

func (s *Systemd) target(ctx context.Context, name string) (active, waits bool, err error) {
	err = s.dial.with(ctx, systemdCallLimit, "asking systemd about "+name, func(ctx context.Context, b bus) error {
		target, err := b.GetAllPropertiesContext(ctx, name)
		job := property[[]any](target, "Job") // number or 0, and object
		active, waits = text(target, "ActiveState") == string(ActivityActive), len(job) > 0 && job[0] != uint32(0)
		return err
	})
	return active, waits, err
}

// jobMode drops a contradicting waiting job, as systemctl does.
const jobMode = "replace"

type job func(b bus, ctx context.Context, unit, mode string, done chan<- string) (int, error)

func (s *Systemd) do(ctx context.Context, verb string, queue job) error {
	return s.dial.with(ctx, systemdJobLimit, verb+" of "+s.unit, func(ctx context.Context, b bus) error {
		if verb != "stop" {
			// Repeated crashes use up systemd's start limit. If this fails, the job reports why.
			_ = b.ResetFailedUnitContext(ctx, s.unit)
		}
		done := make(chan string, 1)
		if _, err := queue(b, ctx, s.unit, jobMode, done); err != nil && ctx.Err() == nil && b.Connected() {
			return err
		}
		// systemd may have accepted the request before the connection was lost.
		result, err := jobResult(ctx, b, done)
		if result == "done" {
			return nil
		}
		// By a new connection: this one ends with the caller's context.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		st, _ := s.State(ctx)
		return &JobError{Service: s.unit, Verb: verb, Result: result, State: st, Err: err}
	})
}

func jobResult(ctx context.Context, b bus, done <-chan string) (string, error) {
	for {
		select {
		case result := <-done:
			return result, nil
		case <-ctx.Done():
			return resultPending, ctx.Err()
		case <-time.After(systemdAlivePoll):
			if !b.Connected() {
				return resultPending, errLostSystemd
			}
		}
	}
}

// Older systemd lacks some properties.
func unitState(p map[string]any) State {
	st := State{
		Activity:    cmp.Or(Activity(text(p, "ActiveState")), ActivityUnknown),
		Sub:         text(p, "SubState"),
		Load:        text(p, "LoadState"),
		UnitFile:    text(p, "UnitFileState"),
		Result:      text(p, "Result"),
		Fragment:    text(p, "FragmentPath"),
		Since:       clock(p, "ActiveEnterTimestamp"),
		Started:     clock(p, "ExecMainStartTimestamp"),
		Exit:        exitText(property[int32](p, "ExecMainCode"), property[int32](p, "ExecMainStatus")),
		MainPID:     int(property[uint32](p, "MainPID")),
		Restarts:    int(property[uint32](p, "NRestarts")),
		Invocation:  fmt.Sprintf("%x", property[[]byte](p, "InvocationID")),
		NeedReload:  property[bool](p, "NeedDaemonReload"),
		DropIns:     property[[]string](p, "DropInPaths"),
		StopTimeout: span(p, "TimeoutStopUSec"),
	}
	// "-" makes a missing folder no error.
	if dir := strings.TrimPrefix(text(p, "WorkingDirectory"), "-"); filepath.IsAbs(dir) {
		st.WorkingDirectory = filepath.Clean(dir)
	}
	for _, text := range property[[]string](p, "Environment") {
		if v, ok := strings.CutPrefix(text, HostAddressVariable+"="); ok {
			st.HostAddress = v
		}
	}
	st.IPv4Only = strings.Contains(fmt.Sprint(p["ExecStart"]), PreferIPv4)
	if address, file := fileAddress(p); file != "" {
		st.HostAddress, st.HostAddressFile = address, file
	}
	return st
}

var addressAssignment = regexp.MustCompile(`(?m)^[ \t]*` + HostAddressVariable + `=["']?([^"'\s]*)`)

// fileAddress returns the address from an EnvironmentFile=, which overrides every drop-in. It skips patterns and unreadable
// files: join verifies the result.
func fileAddress(p map[string]any) (address, file string) {
	for _, entry := range property[[][]any](p, "EnvironmentFiles") {
		if len(entry) == 0 {
			continue
		}
		path, _ := entry[0].(string)
		b, _, _ := files.Root{}.Read(path, maxSystemFile)
		for _, m := range addressAssignment.FindAllSubmatch(b, -1) {
			address, file = string(m[1]), path
		}
	}
	return address, file
}

// exitText takes si_code and si_status.
func exitText(code, status int32) string {
	const exited, killed, dumped = 1, 2, 3 // CLD_*
	switch {
	case code == exited && status != 0:
		return fmt.Sprintf("exit status %d", status)
	case code == killed, code == dumped:
		return cmp.Or(unix.SignalName(unix.Signal(status)), fmt.Sprintf("signal %d", status))
	}
	return ""
}

func property[T any](p map[string]any, key string) T {
	v, _ := p[key].(T)
	return v
}

func text(p map[string]any, key string) string { return property[string](p, key) }

// clock reads microseconds since 1970, 0 = never.
func clock(p map[string]any, key string) time.Time {
	us := property[uint64](p, key)
	if us == 0 || us > math.MaxInt64 {
		return time.Time{}
	}
	return time.UnixMicro(int64(us))
}

// span reads microseconds; infinity is 0.
func span(p map[string]any, key string) time.Duration {
	us := property[uint64](p, key)
	if us > math.MaxInt64/1000 {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// Units are the agent's services. Those not installed are ignored.
type Units struct {
	names []string
	dial  dialer
}

// NewUnits takes the names in start order. It does not connect.
func NewUnits(names ...string) *Units { return &Units{names: names, dial: dialSystemd} }

// UnitsState is the state of [Units].
type UnitsState struct {
	// Enabled and Active: all installed units start at boot, and run.
	Enabled, Active bool
	// Any: at least one starts at boot or runs.
	Any bool
}

// State returns ErrNoUnit if none is installed.
func (u *Units) State(ctx context.Context) (s UnitsState, _ error) {
	_, states, err := u.installed(ctx)
	if err != nil {
		return s, err
	}
	s.Enabled, s.Active = true, true
	for _, is := range states {
		// Others start units without an [Install] section.
		s.Enabled = s.Enabled && slices.Contains([]string{"enabled", "static", "generated", "transient", "alias"}, is.UnitFile)
		s.Active = s.Active && is.Running()
		s.Any = s.Any || is.UnitFile == "enabled" || is.Activity != ActivityInactive && is.Activity != ActivityFailed
	}
	return s, nil
}

func (u *Units) installed(ctx context.Context) (names []string, states []State, err error) {
	for _, name := range u.names {
		st, err := u.unit(name).State(ctx)
		switch {
		case errors.Is(err, ErrNoUnit):
		case err != nil:
			return nil, nil, err
		default:
			names, states = append(names, name), append(states, st)
		}
	}
	if len(names) == 0 {
		err = fmt.Errorf("%w: %s", ErrNoUnit, u.names[len(u.names)-1])
	}
	return names, states, err
}

func (u *Units) unit(name string) *Systemd { return &Systemd{name, u.dial} }

// Enable makes the units start at boot, starts them, and waits for the last. A start that outlasts ctx continues and
// returns a pending [JobError].
func (u *Units) Enable(ctx context.Context) error {
	names, states, err := u.installed(ctx)
	if err != nil {
		return err
	}
	for i, is := range states {
		if err := is.Startable(); err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
	}
	last := len(names) - 1
	var errs []error
	err = u.dial.with(ctx, systemdJobLimit, "starting the agent's units", func(ctx context.Context, b bus) error {
		// Persistently, without replacing the links of other tools.
		if _, _, err := b.EnableUnitFilesContext(ctx, names, false, false); err != nil {
			return err
		}
		if err := b.ReloadContext(ctx); err != nil {
			return err
		}
		for _, name := range names[:last] {
			// A slow first unit must not delay the others.
			_ = b.ResetFailedUnitContext(ctx, name)
			if _, err := b.StartUnitContext(ctx, name, jobMode, make(chan string, 1)); err != nil {
				errs = append(errs, fmt.Errorf("start of %s: %w", name, busError(err)))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(append(errs, u.unit(names[last]).Start(ctx))...)
}

// Disable first disables the units at boot, as the machine may crash in between, then stops them in reverse order.
func (u *Units) Disable(ctx context.Context) error {
	names, states, err := u.installed(ctx)
	if err != nil {
		return err
	}
	errs := []error{u.dial.with(ctx, systemdJobLimit, "stopping the agent's units", func(ctx context.Context, b bus) error {
		_, err := b.DisableUnitFilesContext(ctx, names, false)
		return errors.Join(err, b.ReloadContext(ctx))
	})}
	for i, name := range slices.Backward(names) {
		if !states[i].Dead() {
			errs = append(errs, u.unit(name).Stop(ctx))
		}
	}
	return errors.Join(errs...)
}
