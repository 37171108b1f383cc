// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"time"

	"github.com/amsagent/amsagent/ams"
)

// Daemon controls the agent's daemon through the service manager.
type Daemon interface {
	// State returns [ams.ErrNoUnit] if the daemon is not installed.
	State(ctx context.Context) (ams.UnitsState, error)
	// Enable and Disable act now and for every boot.
	Enable(ctx context.Context) error
	Disable(ctx context.Context) error
}

// DaemonOutcome is the effect of a join or a leave on the daemon.
type DaemonOutcome string

// The outcomes. "" means that no daemon is concerned.
const (
	DaemonEnabled      DaemonOutcome = "enabled"
	DaemonDisabled     DaemonOutcome = "disabled"
	daemonUnchanged    DaemonOutcome = "unchanged"
	daemonNotInstalled DaemonOutcome = "not-installed" // a binary without units
	daemonFailed       DaemonOutcome = "failed"
)

// IDDaemon reports that the daemon could not be started or stopped.
const IDDaemon = "AGENT-DAEMON-UNITS"

// The daemon stops at once, and reports ready before it works. A job that takes longer completes alone.
const (
	daemonLook = 5 * time.Second
	daemonTime = 15 * time.Second
)

// daemonState returns the outcome in how if known is false.
func (m *Machine) daemonState(ctx context.Context) (_ ams.UnitsState, how DaemonOutcome, known bool, _ error) {
	if m.Daemon == nil {
		return ams.UnitsState{}, "", false, nil
	}
	ctx, cancel := after(ctx, daemonLook)
	defer cancel()
	s, err := m.Daemon.State(ctx)
	switch {
	case errors.Is(err, ams.ErrNoUnit):
		return s, daemonNotInstalled, false, nil
	case err != nil:
		return s, daemonFailed, false, err
	}
	return s, "", true, nil
}

// startDaemon needs the machine unlocked: the daemon takes the lock. A failure is only a warning, because the node
// has joined.
func (m *Machine) startDaemon(ctx context.Context, res *JoinResult, dry bool) {
	ctx, cancel := after(ctx, daemonTime) // ctx must not leave a node without its daemon
	defer cancel()
	s, how, known, err := m.daemonState(ctx)
	switch {
	case known && s.Enabled && s.Active:
		how = daemonUnchanged
	case known && dry:
		how = DaemonEnabled
	case known:
		how, err = DaemonEnabled, m.enableDaemon(ctx)
	}
	if res.Daemon = how; how == daemonNotInstalled || how == "" && !dry {
		m.warnAlone(ctx, res)
	}
	if err == nil || dry {
		return
	}
	var job *ams.JobError
	if errors.As(err, &job) && job.Pending() && errors.Is(err, context.DeadlineExceeded) {
		m.say("the daemon is being started: %v", err)
		return
	}
	res.Daemon = daemonFailed
	res.Warnings = append(res.Warnings, warningOf(IDDaemon, daemonHint(err, "systemctl enable --now amsagent-node amsagent"),
		"this machine joined, but its daemon could not be started: %v", err))
}

// warnAlone warns of a node without an agent. A daemon that something else starts answers.
func (m *Machine) warnAlone(ctx context.Context, res *JoinResult) {
	if m.Alone == nil || !m.Alone(ctx) {
		return
	}
	res.Warnings = append(res.Warnings, warningOf(IDDaemon, "install the package of amsagent and join again; without systemd, start `amsagent run`",
		"no agent runs on this machine: nothing drains this node or sends its heartbeats"))
}

func (m *Machine) enableDaemon(ctx context.Context) error {
	ctx, cancel := after(ctx, daemonTime)
	defer cancel()
	return m.Daemon.Enable(ctx)
}

// stopDaemon runs before the node record changes: the daemon would register again. After a failure the leave
// continues: the daemon also follows the state file.
func (l *leaver) stopDaemon(ctx context.Context) {
	s, how, known, err := l.daemonState(ctx)
	switch {
	case known && !s.Any:
		how = daemonUnchanged
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
	l.result.Daemon = daemonFailed
	l.warn(IDDaemon, daemonHint(err, "systemctl disable --now amsagent amsagent-node"), "the daemon could not be stopped: %v", err)
}

func daemonHint(err error, again string) string {
	if errors.Is(err, ams.ErrUnitMasked) {
		return "it was masked; allow it again: systemctl unmask amsagent-node amsagent"
	}
	return "see journalctl -u amsagent -n 50; then " + again
}
