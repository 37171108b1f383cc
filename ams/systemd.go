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

	"github.com/amsagent/amsagent/conf"
)

// systemdRunning exists exactly where systemd is process 1: sd_booted(3).
const systemdRunning = "/run/systemd/system"

// Bounds for a systemd that does not answer. A job may take as long as the unit's own timeouts allow, which the caller's context
// bounds; systemdJobLimit is for a caller without one.
const (
	systemdCallLimit = 10 * time.Second
	systemdJobLimit  = 15 * time.Minute
	// systemdAlivePoll: the end of a job is a signal, which never comes on a connection that was lost.
	systemdAlivePoll = time.Second
)

var errLostSystemd = errors.New("the connection to systemd was lost")

// bus is what is used of [dbus.Conn]; tests have their own.
type bus interface {
	GetAllPropertiesContext(ctx context.Context, unit string) (map[string]any, error)
	StartUnitContext(ctx context.Context, unit, mode string, done chan<- string) (int, error)
	StopUnitContext(ctx context.Context, unit, mode string, done chan<- string) (int, error)
	RestartUnitContext(ctx context.Context, unit, mode string, done chan<- string) (int, error)
	ResetFailedUnitContext(ctx context.Context, unit string) error
	EnableUnitFilesContext(ctx context.Context, units []string, runtime, force bool) (bool, []dbus.EnableUnitFileChange, error)
	DisableUnitFilesContext(ctx context.Context, units []string, runtime bool) ([]dbus.DisableUnitFileChange, error)
	ReloadContext(ctx context.Context) error
	SystemStateContext(ctx context.Context) (*dbus.Property, error)
	Connected() bool
	Close()
}

// SystemdRuns reports whether systemd is process 1 of this machine.
func SystemdRuns() bool {
	_, err := os.Stat(systemdRunning)
	return err == nil
}

// dialSystemd connects through the system bus; root, if there is no bus, to systemd itself. The bus comes first because it
// outlives an upgrade of systemd, perhaps while our job runs.
func dialSystemd(ctx context.Context) (bus, error) {
	if !SystemdRuns() {
		return nil, fmt.Errorf("%w: this machine does not run it", ErrNoSystemd)
	}
	type dialled struct {
		conn *dbus.Conn
		err  error
	}
	// The library connects without watching the context.
	ch := make(chan dialled, 1)
	go func() {
		conn, err := dbus.NewWithContext(ctx)
		ch <- dialled{conn, err}
	}()
	err := ctx.Err()
	select {
	case d := <-ch:
		if d.err == nil {
			return d.conn, nil
		}
		err = d.err
	case <-ctx.Done():
		err = ctx.Err()
		go func() {
			if d := <-ch; d.conn != nil {
				d.conn.Close()
			}
		}()
	}
	return nil, fmt.Errorf("%w: connecting: %w", ErrNoSystemd, err)
}

// dialer makes connections, one for each operation; the context bounds the connection's life.
type dialer func(ctx context.Context) (bus, error)

// with asks systemd something on a connection of its own.
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
	// The connection ends with the context, and then tells only of that.
	return fmt.Errorf("%s: %w", what, cmp.Or(ctx.Err(), busError(err)))
}

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

// Systemd is a service that is a systemd unit.
type Systemd struct {
	unit string
	dial dialer
}

// NewSystemd gives the service of a unit, as "antmedia.service" or "antmedia". Nothing is asked of systemd before the first call.
func NewSystemd(unit string) *Systemd {
	unit = cmp.Or(unit, DefaultUnit)
	if filepath.Ext(unit) != ".service" {
		unit += ".service"
	}
	return &Systemd{unit: unit, dial: dialSystemd}
}

// Name is the unit's name.
func (s *Systemd) Name() string { return s.unit }

// State asks systemd about the unit. ErrNoUnit if there is none, ErrNoSystemd if nobody answers.
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
		// A unit whose file was removed while it runs is still there.
		return State{Activity: ActivityUnknown}, ErrNoUnit
	}
	return st, nil
}

// Start starts the unit and waits for the end of the job. That is when the process was made, not when the server is well: see
// [WaitStable].
func (s *Systemd) Start(ctx context.Context) error { return s.do(ctx, "start") }

// Stop stops the unit and waits until it has stopped, killed if it took longer than its TimeoutStopSec. A unit that is not running
// is stopped already.
func (s *Systemd) Stop(ctx context.Context) error { return s.do(ctx, "stop") }

// Restart stops the unit if it runs and starts it.
func (s *Systemd) Restart(ctx context.Context) error { return s.do(ctx, "restart") }

// Reload makes systemd read its unit files again, drop-ins included. It touches no running service.
func (s *Systemd) Reload(ctx context.Context) error {
	// A reload runs every generator of the machine: seconds on a busy one.
	return s.dial.with(ctx, 6*systemdCallLimit, "making systemd read its units again", func(ctx context.Context, b bus) error {
		return b.ReloadContext(ctx)
	})
}

// SystemStopping reports whether the machine is going down, and not only this unit.
func (s *Systemd) SystemStopping(ctx context.Context) (down bool, err error) {
	err = s.dial.with(ctx, systemdCallLimit, "asking systemd whether the machine goes down", func(ctx context.Context, b bus) error {
		p, err := b.SystemStateContext(ctx)
		if err != nil {
			return err
		}
		switch p.Value.Value() {
		case "stopping":
			down = true
		case "starting", "initializing":
			// When a boot was never finished, as by user data that does not end, systemd before 246 says this to the end.
			target, err := b.GetAllPropertiesContext(ctx, "shutdown.target")
			job, _ := target["Job"].([]any) // its number, 0 for none, and its object
			down = len(job) > 0 && job[0] != uint32(0) || text(target, "ActiveState") == string(ActivityActive)
			return err
		}
		return nil
	})
	return down, err
}

// job asks for a job; its result comes on done. "replace": a job that contradicts ours and waits is dropped, as systemctl does; ours
// may be dropped in the same way, which is the result "canceled".
func job(ctx context.Context, b bus, verb, unit string, done chan<- string) (err error) {
	const mode = "replace"
	switch verb {
	case "start":
		_, err = b.StartUnitContext(ctx, unit, mode, done)
	case "stop":
		_, err = b.StopUnitContext(ctx, unit, mode, done)
	case "restart":
		_, err = b.RestartUnitContext(ctx, unit, mode, done)
	}
	return err
}

func (s *Systemd) do(ctx context.Context, verb string) error {
	ctx, cancel := context.WithTimeout(ctx, systemdJobLimit)
	defer cancel()
	b, err := s.dial(ctx)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", verb, s.unit, err)
	}
	defer b.Close()
	if verb != "stop" {
		// A server that crashed a few times in a row has used up systemd's start limit. If this fails, the job itself says why.
		_ = b.ResetFailedUnitContext(ctx, s.unit)
	}
	done := make(chan string, 1)
	if err := job(ctx, b, verb, s.unit, done); err != nil {
		switch {
		case ctx.Err() != nil:
			return s.jobError(ctx, verb, resultPending, ctx.Err())
		case !b.Connected():
			// systemd may have taken the request before it went away.
			return s.jobError(ctx, verb, resultPending, errLostSystemd)
		}
		return fmt.Errorf("%s of %s: %w", verb, s.unit, busError(err))
	}
	tick := time.NewTicker(systemdAlivePoll)
	defer tick.Stop()
	for {
		select {
		case result := <-done:
			if result == resultDone {
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
}

// jobError adds how the unit is now, on a fresh connection: the old one ends
// with the caller's context.
func (s *Systemd) jobError(ctx context.Context, verb, result string, cause error) error {
	e := &JobError{Service: s.unit, Verb: verb, Result: result, Err: cause}
	// A person waits for the message: two seconds are enough for a local question.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if st, err := s.State(ctx); err == nil {
		e.State = st
	}
	return e
}

// unitState makes a State of systemd's properties. An absent or strange one
// leaves its field empty: older systemd lacks some.
func unitState(p map[string]any) State {
	st := State{
		Activity:    Activity(text(p, "ActiveState")),
		Sub:         text(p, "SubState"),
		Load:        text(p, "LoadState"),
		UnitFile:    text(p, "UnitFileState"),
		Result:      text(p, "Result"),
		Fragment:    text(p, "FragmentPath"),
		Since:       clock(p, "ActiveEnterTimestamp"),
		Started:     clock(p, "ExecMainStartTimestamp"),
		MainPID:     int(number(p, "MainPID")),
		Restarts:    int(number(p, "NRestarts")),
		StopTimeout: span(p, "TimeoutStopUSec"),
	}
	if st.Activity == "" {
		st.Activity = ActivityUnknown
	}
	st.NeedReload, _ = p["NeedDaemonReload"].(bool)
	st.DropIns, _ = p["DropInPaths"].([]string)
	if id, _ := p["InvocationID"].([]byte); len(id) > 0 {
		st.Invocation = fmt.Sprintf("%x", id)
	}
	st.HostAddress = unitVariable(p, HostAddressVariable)
	if address, file := fileAddress(p); file != "" {
		st.HostAddress, st.HostAddressFile = address, file
	}
	st.Homes = unitHomes(p)
	st.Exit = exitText(number(p, "ExecMainCode"), number(p, "ExecMainStatus"))
	return st
}

// unitVariable is what Environment= gives a name: of several assignments the last one counts.
func unitVariable(p map[string]any, name string) string {
	own, _ := p["Environment"].([]string)
	for _, text := range slices.Backward(own) {
		if v, ok := strings.CutPrefix(text, name+"="); ok {
			return v
		}
	}
	return ""
}

// addressAssignment is a line of an EnvironmentFile= that sets the server's address.
var addressAssignment = regexp.MustCompile(`(?m)^[ \t]*` + HostAddressVariable + `=["']?([^"'\s]*)`)

// fileAddress is the address that the files of EnvironmentFile= set, which override every drop-in, and the file; "" is none.
// A pattern, and a file that cannot be read, is passed over: the proof of join finds what it does.
func fileAddress(p map[string]any) (address, file string) {
	entries, _ := p["EnvironmentFiles"].([][]any)
	for _, entry := range entries {
		if len(entry) == 0 {
			continue
		}
		path, _ := entry[0].(string)
		b, _, err := readBelow("", path, conf.MaxSettings)
		if err != nil {
			continue
		}
		for _, m := range addressAssignment.FindAllSubmatch(b, -1) {
			address, file = string(m[1]), path
		}
	}
	return address, file
}

// exitText says how the main process ended, from the si_code and si_status that
// systemd keeps; "" where it has not ended or ended well.
func exitText(code, status int64) string {
	const exited, killed, dumped = 1, 2, 3 // CLD_EXITED, CLD_KILLED, CLD_DUMPED
	switch {
	case code == exited && status != 0:
		return fmt.Sprintf("exit status %d", status)
	case code == killed, code == dumped:
		if name := unix.SignalName(unix.Signal(status)); name != "" {
			return name
		}
		return fmt.Sprintf("signal %d", status)
	}
	return ""
}

func text(p map[string]any, key string) string {
	s, _ := p[key].(string)
	return s
}

func number(p map[string]any, key string) int64 {
	switch n := p[key].(type) {
	case uint32:
		return int64(n)
	case int32:
		return int64(n)
	}
	return 0
}

// clock reads a timestamp: microseconds of the real-time clock, 0 = never.
func clock(p map[string]any, key string) time.Time {
	us, _ := p[key].(uint64)
	if us == 0 || us > math.MaxInt64 {
		return time.Time{}
	}
	return time.UnixMicro(int64(us))
}

// span reads a duration in microseconds; endless is 0.
func span(p map[string]any, key string) time.Duration {
	us, _ := p[key].(uint64)
	if us > math.MaxInt64/1000 {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}
