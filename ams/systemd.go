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
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
)

// systemdRunning exists only if systemd is process 1: sd_booted(3).
const systemdRunning = "/run/systemd/system"

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
	RestartUnitContext(ctx context.Context, unit, mode string, done chan<- string) (int, error)
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

// dialSystemd prefers the system bus, which survives an upgrade of systemd during a job.
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
		return nil, fmt.Errorf("%w: connecting: %w", ErrNoSystemd, err)
	}
	return conn, nil
}

// dialer makes a connection for each operation; the context bounds its lifetime.
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

// NewSystemd returns the service of a unit such as "antmedia". It does not connect.
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
	err := s.dial.with(ctx, systemdCallLimit, "asking systemd about "+s.unit, func(ctx context.Context, b bus) (err error) {
		st, err = look(ctx, b, s.unit)
		return err
	})
	return st, err
}

func look(ctx context.Context, b bus, unit string) (State, error) {
	p, err := b.GetAllPropertiesContext(ctx, unit)
	if err != nil {
		return State{Activity: ActivityUnknown}, err
	}
	st := unitState(p)
	if st.Load == "not-found" && !st.Running() {
		return State{Activity: ActivityUnknown}, ErrNoUnit
	}
	return st, nil
}

// Start waits until the process exists, not until it is healthy: see [WaitStable].
func (s *Systemd) Start(ctx context.Context) error { return s.do(ctx, "start", bus.StartUnitContext) }

// Stop waits for the unit's end; systemd kills it after TimeoutStopSec.
func (s *Systemd) Stop(ctx context.Context) error { return s.do(ctx, "stop", bus.StopUnitContext) }

// Restart stops the unit if it runs and starts it.
func (s *Systemd) Restart(ctx context.Context) error {
	return s.do(ctx, "restart", bus.RestartUnitContext)
}

// Reload makes systemd read its unit files again.
func (s *Systemd) Reload(ctx context.Context) error {
	// A reload runs every generator of the machine.
	return s.dial.with(ctx, 6*systemdCallLimit, "making systemd read its units again", func(ctx context.Context, b bus) error {
		return b.ReloadContext(ctx)
	})
}

// SystemStopping reports whether the machine shuts down. It goes by shutdown.target, as systemd's own SystemState does,
// but the latter is "starting" to the end before systemd 246 if a boot never finished.
func (s *Systemd) SystemStopping(ctx context.Context) (down bool, err error) {
	err = s.dial.with(ctx, systemdCallLimit, "asking systemd whether the machine shuts down", func(ctx context.Context, b bus) error {
		target, err := b.GetAllPropertiesContext(ctx, "shutdown.target")
		job := property[[]any](target, "Job") // number or 0, and object
		down = len(job) > 0 && job[0] != uint32(0) || text(target, "ActiveState") == string(ActivityActive)
		return err
	})
	return down, err
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
		tick := time.NewTicker(systemdAlivePoll)
		defer tick.Stop()
		for {
			select {
			case result := <-done:
				if result == "done" {
					return nil
				}
				return s.jobError(ctx, verb, result, nil)
			case <-ctx.Done():
				return s.jobError(ctx, verb, resultPending, ctx.Err())
			case <-tick.C:
				if !b.Connected() {
					return s.jobError(ctx, verb, resultPending, errLostSystemd)
				}
			}
		}
	})
}

// jobError uses a new connection: the old one ends with the caller's context.
func (s *Systemd) jobError(ctx context.Context, verb, result string, cause error) error {
	e := &JobError{Service: s.unit, Verb: verb, Result: result, Err: cause}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if st, err := s.State(ctx); err == nil {
		e.State = st
	}
	return e
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
