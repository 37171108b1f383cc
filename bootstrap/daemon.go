// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"time"

	"github.com/amsagent/amsagent/ams"
)

// Daemon is the agent's own daemon, as the service manager has it.
type Daemon interface {
	// State tells how it is; [ams.ErrNoUnit] where it is not installed.
	State(ctx context.Context) (ams.UnitsState, error)
	// Enable makes it run now and after every boot, Disable not now and after none.
	Enable(ctx context.Context) error
	Disable(ctx context.Context) error
}

// DaemonOutcome is what a join or a leave did about the daemon, or would do.
type DaemonOutcome string

// The outcomes. "" is a command that has nothing to do with any daemon.
const (
	DaemonEnabled      DaemonOutcome = "enabled"
	DaemonDisabled     DaemonOutcome = "disabled"
	DaemonUnchanged    DaemonOutcome = "unchanged"     // it was so already
	DaemonNotInstalled DaemonOutcome = "not-installed" // a binary without its units
	DaemonFailed       DaemonOutcome = "failed"        // a warning says why
)

// IDDaemon is the id of a finding: the daemon could not be started or stopped.
const IDDaemon = "AMS-DAEMON"

// Bounds of what is asked about the daemon. It says that it is up before it begins
// to work, and ends at once; after that what was asked for comes without us.
const (
	daemonLook = 5 * time.Second
	daemonTime = 15 * time.Second
)

// daemonState is how the daemon is; known is false where there is nothing more to
// do, and how says why.
func (m *Machine) daemonState(ctx context.Context) (_ ams.UnitsState, how DaemonOutcome, known bool, _ error) {
	if m.Daemon == nil {
		return ams.UnitsState{}, "", false, nil
	}
	ctx, cancel := after(ctx, daemonLook)
	defer cancel()
	s, err := m.Daemon.State(ctx)
	switch {
	case errors.Is(err, ams.ErrNoUnit):
		return s, DaemonNotInstalled, false, nil
	case err != nil:
		return s, DaemonFailed, false, err
	}
	return s, "", true, nil
}

// startDaemon lets the daemon follow a node that joined. The join is done: that the
// daemon could not be started is a warning, and the node is one. The machine must
// not be locked: what is started locks it.
func (m *Machine) startDaemon(ctx context.Context, res *JoinResult, dry bool) {
	ctx, cancel := after(ctx, daemonTime) // a node without its daemon would be half a join, too
	defer cancel()
	s, how, known, err := m.daemonState(ctx)
	switch {
	case how == DaemonNotInstalled && !dry:
		m.say("no daemon is installed: the cluster sees Ant Media Server's own word only")
	case known && s.Enabled && s.Active:
		how = DaemonUnchanged
	case known && dry:
		how = DaemonEnabled
	case known:
		how, err = DaemonEnabled, m.enableDaemon(ctx)
	}
	if res.Daemon = how; err == nil || dry {
		return
	}
	var job *ams.JobError
	if errors.As(err, &job) && job.Pending() && errors.Is(err, context.DeadlineExceeded) {
		m.say("the daemon is being started: %v", err)
		return
	}
	res.Daemon = DaemonFailed
	res.Warnings = append(res.Warnings, Finding{
		ID: IDDaemon, Text: "this machine joined, but its daemon could not be started: " + err.Error(),
		Hint: daemonHint(err, "systemctl enable --now amsagent-node amsagent"), Err: err,
	})
}

func (m *Machine) enableDaemon(ctx context.Context) error {
	ctx, cancel := after(ctx, daemonTime)
	defer cancel()
	return m.Daemon.Enable(ctx)
}

// stopDaemon keeps the daemon from registering again what leaves: before the row
// changes. Where it cannot be stopped, the leave goes on: by the state file the
// daemon sees it, too.
func (l *leaver) stopDaemon(ctx context.Context) {
	s, how, known, err := l.daemonState(ctx)
	switch {
	case known && !s.Any:
		how = DaemonUnchanged
	case known && l.req.DryRun:
		how = DaemonDisabled
	case known:
		l.say("stopping the daemon")
		l.daemonStopped = true
		bound, cancel := after(ctx, daemonTime)
		defer cancel()
		how, err = DaemonDisabled, l.Daemon.Disable(bound)
	}
	if l.result.Daemon = how; err == nil || l.req.DryRun {
		return
	}
	l.result.Daemon = DaemonFailed
	l.warn(IDDaemon, daemonHint(err, "systemctl disable --now amsagent amsagent-node"), "the daemon could not be stopped: %v", err)
}

func daemonHint(err error, again string) string {
	if errors.Is(err, ams.ErrUnitMasked) {
		return "somebody masked it; 'systemctl unmask amsagent-node amsagent' gives it back"
	}
	return "journalctl -u amsagent -n 50 tells why; then " + again
}
