// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/conf"
)

// Bounds for a systemd that does not answer. A job itself may take as long as
// the unit's own timeouts allow, which the caller's context bounds; jobLimit is
// for a caller without one.
const (
	systemdCallLimit = 10 * time.Second
	systemdJobLimit  = 15 * time.Minute
	// systemdAlivePoll: a lost connection would be waited on for ever, because
	// the end of the job is told by a signal that then never comes.
	systemdAlivePoll = time.Second
)

var errLostSystemd = errors.New("the connection to systemd was lost")

// bus is the little of systemd that we use. The real one is in systemd_dbus.go.
type bus interface {
	// properties of a unit and its type, all in one map; a unit that does not
	// exist has LoadState "not-found".
	properties(ctx context.Context, unit string) (map[string]any, error)
	// job enqueues "start", "stop" or "restart"; its result comes on done,
	// which has room for it.
	job(ctx context.Context, verb, unit string, done chan<- string) error
	resetFailed(ctx context.Context, unit string) error
	// enable and disable make and remove the links by which units start at boot.
	// What they changed counts after a reload.
	enable(ctx context.Context, units []string) error
	disable(ctx context.Context, units []string) error
	reload(ctx context.Context) error
	// system is the state of the whole machine: running, degraded, stopping...
	system(ctx context.Context) (string, error)
	alive() bool
	close()
}

// Systemd is a service that is a systemd unit.
type Systemd struct {
	unit string
	// dial connects for one operation; the context bounds the connection's life.
	dial func(ctx context.Context) (bus, error)
}

// NewSystemd gives the service of a unit, as "antmedia.service" or "antmedia".
// Nothing is asked of systemd before the first call.
func NewSystemd(unit string) *Systemd {
	if unit == "" {
		unit = DefaultUnit
	}
	if filepath.Ext(unit) != ".service" {
		unit += ".service"
	}
	return &Systemd{unit: unit, dial: dialSystemd}
}

// Name is the unit's name.
func (s *Systemd) Name() string { return s.unit }

// State asks systemd about the unit. ErrNoUnit where there is none,
// ErrNoSystemd where nobody answers.
func (s *Systemd) State(ctx context.Context) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, systemdCallLimit)
	defer cancel()
	unknown := State{Activity: ActivityUnknown}
	b, err := s.dial(ctx)
	if err != nil {
		return unknown, fmt.Errorf("asking systemd about %s: %w", s.unit, err)
	}
	defer b.close()
	st, err := s.look(ctx, b)
	if err != nil {
		return unknown, fmt.Errorf("asking systemd about %s: %w", s.unit, cmp.Or(ctx.Err(), err))
	}
	return st, nil
}

func (s *Systemd) look(ctx context.Context, b bus) (State, error) {
	p, err := b.properties(ctx, s.unit)
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

// Start starts the unit and waits for the end of the job. That is when the
// process was made, not when the server is well: see [WaitStable].
func (s *Systemd) Start(ctx context.Context) error { return s.do(ctx, "start") }

// Stop stops the unit and waits until it has stopped, killed where it took
// longer than its TimeoutStopSec. A unit that is not running is stopped already.
func (s *Systemd) Stop(ctx context.Context) error { return s.do(ctx, "stop") }

// Restart stops the unit where it runs and starts it.
func (s *Systemd) Restart(ctx context.Context) error { return s.do(ctx, "restart") }

// Reload makes systemd read its unit files again, drop-ins included. It touches
// no running service.
func (s *Systemd) Reload(ctx context.Context) error {
	// A reload runs every generator of the machine: seconds on a busy one.
	ctx, cancel := context.WithTimeout(ctx, 6*systemdCallLimit)
	defer cancel()
	b, err := s.dial(ctx)
	if err != nil {
		return fmt.Errorf("making systemd read its units again: %w", err)
	}
	defer b.close()
	if err := b.reload(ctx); err != nil {
		// The connection ends with the context, and tells only of that.
		return fmt.Errorf("making systemd read its units again: %w", cmp.Or(ctx.Err(), err))
	}
	return nil
}

// SystemStopping reports whether the machine is going down, and not only this
// unit.
func (s *Systemd) SystemStopping(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, systemdCallLimit)
	defer cancel()
	b, err := s.dial(ctx)
	if err != nil {
		return false, fmt.Errorf("asking systemd whether the machine goes down: %w", err)
	}
	defer b.close()
	down, err := goingDown(ctx, b)
	if err != nil {
		return false, fmt.Errorf("asking systemd whether the machine goes down: %w", cmp.Or(ctx.Err(), err))
	}
	return down, nil
}

// goingDown also asks about the job of shutdown.target: where a boot was never finished, as
// by user data that does not end, systemd before 246 calls itself "starting" to the end.
func goingDown(ctx context.Context, b bus) (bool, error) {
	state, err := b.system(ctx)
	if err != nil || state != "starting" && state != "initializing" {
		return state == "stopping", err
	}
	p, err := b.properties(ctx, "shutdown.target")
	if err != nil {
		return false, err
	}
	job, _ := p["Job"].([]any) // its number, 0 for none, and its object
	return len(job) > 0 && job[0] != uint32(0) || text(p, "ActiveState") == string(ActivityActive), nil
}

func (s *Systemd) do(ctx context.Context, verb string) error {
	ctx, cancel := context.WithTimeout(ctx, systemdJobLimit)
	defer cancel()
	b, err := s.dial(ctx)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", verb, s.unit, err)
	}
	defer b.close()
	if verb != "stop" {
		// A server that crashed a few times in a row has used up systemd's start
		// limit; being told to start it is the person's word that it may try
		// again. Where this fails the job itself says why.
		_ = b.resetFailed(ctx, s.unit)
	}
	done := make(chan string, 1)
	if err := b.job(ctx, verb, s.unit, done); err != nil {
		switch {
		case ctx.Err() != nil:
			return s.jobError(ctx, verb, resultPending, ctx.Err())
		case !b.alive():
			// systemd may have taken the request before it went away.
			return s.jobError(ctx, verb, resultPending, errLostSystemd)
		}
		return fmt.Errorf("%s of %s: %w", verb, s.unit, err)
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
			if !b.alive() {
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
