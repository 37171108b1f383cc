// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/sleep"
)

// serverChange is a change of the server's files: stop, write, start.
type serverChange struct {
	// managed: the agent controls the server. Otherwise the files are only written.
	managed bool
	// ran: the server runs again after a failure. start: it runs after the change.
	ran, start bool
	// former and address are a service command's: after a failure, and after the change.
	former, address netip.Addr
	// save writes the state with its field Start, before the stop and after the start.
	save func(start bool) error
	// write is called while the server is down. back, if not nil, precedes its start after a failure: the caller can go back
	// from each step.
	write, back func() error
	// stopTime is the service manager's.
	stopTime time.Duration
}

// Steps of a change, for errors.
const (
	stepState = "writing " + statePath
	stepStop  = "stopping Ant Media Server"
	stepWrite = "writing the configuration"
	stepStart = "starting Ant Media Server"
)

// errDown reports a server that ran and could not be started again. [State.Start] stays.
var errDown = errors.New("the server could not be started again")

// change is the only way to write the server's files: they change while it is down. A server that does not stop, or a
// write that changes nothing, is an error, and the server runs on with its former files.
func (m *Machine) change(ctx context.Context, c serverChange) (step string, _ error) {
	if err := c.save(c.ran); err != nil {
		return stepState, err
	}
	if c.managed {
		// An unknown state is no proof that it is down.
		if st, err := m.Service.State(ctx); err != nil || !st.Dead() {
			c.stopTime = st.StopTimeout
			m.say("stopping %s", m.Service.Name())
			if err := m.end(ctx); err != nil {
				return stepStop, errors.Join(err, m.startAgain(ctx, c))
			}
		}
	}
	if err := c.write(); err != nil {
		if onlyEndMissing(err) {
			c.former, c.back = c.address, nil
			return stepWrite, errors.Join(err, m.startAgain(ctx, c))
		}
		if !isHalfChanged(err) {
			err = errors.Join(err, m.startAgain(ctx, c))
		}
		return stepWrite, err
	}
	if !c.managed || !c.start {
		return "", nil
	}
	m.say("starting %s", m.Service.Name())
	m.setAddress(c.address)
	if c.back == nil { // nothing later would start it
		own, done := outlasting(ctx, rollbackTime)
		defer done()
		ctx = own
	}
	if err := m.Service.Start(ctx); err != nil {
		return stepStart, err
	}
	m.started(c)
	return "", nil
}

// started may fail to write: the next command or daemon sees that the server runs.
func (m *Machine) started(c serverChange) {
	if err := c.save(false); err != nil {
		m.log().Warn("the state file could not be written", "error", err)
	}
}

// reload ignores the end of ctx: the server's next start needs the new files.
func (m *Machine) reload(ctx context.Context) {
	ctx, cancel := after(ctx, rollbackTime)
	defer cancel()
	if err := m.Service.Reload(ctx); err != nil {
		m.log().Warn("the service manager could not read its files again", "error", err)
	}
}

// awaitStop waits for the end of a stop that outlasted ctx. Until then the drop-in must stay: it has the stop's time.
func (m *Machine) awaitStop(ctx context.Context, most time.Duration) {
	ctx, cancel := after(ctx, rollbackTime+most)
	defer cancel()
	for {
		st, err := m.Service.State(ctx)
		if err != nil || st.Activity != ams.ActivityDeactivating || !sleep.For(ctx, alivePoll) {
			return
		}
	}
}

// startAgain also waits for a stop that outlasted ctx.
func (m *Machine) startAgain(ctx context.Context, c serverChange) error {
	if !c.managed || !c.ran {
		return nil
	}
	m.awaitStop(ctx, c.stopTime)
	ctx, cancel := after(ctx, rollbackTime)
	defer cancel()
	var err error
	if c.back != nil {
		err = c.back()
	}
	m.setAddress(c.former)
	if serr := m.Service.Start(ctx); serr != nil {
		return errors.Join(err, fmt.Errorf("%w: %w", errDown, serr))
	}
	m.started(c)
	return err
}

func (m *Machine) setAddress(a netip.Addr) {
	if m.SetAddress != nil {
		m.SetAddress(a)
	}
}

// isHalfChanged reports a commit that changed files and did not end. Between two files, only the next recovery may start the
// server.
func isHalfChanged(err error) bool {
	u, ok := errors.AsType[*conf.UnfinishedError](err)
	return ok && len(u.New)+len(u.Edited) > 0
}

// onlyEndMissing reports a commit that changed all files and did not end.
func onlyEndMissing(err error) bool {
	u, ok := errors.AsType[*conf.UnfinishedError](err)
	return ok && len(u.New) > 0 && len(u.Old)+len(u.Edited) == 0
}

// mayOweStart reports whether an interrupted join or leave of this boot may have stopped the server. After a reboot, its
// own unit starts it.
func (m *Machine) mayOweStart(s *State) bool {
	return s != nil && s.Start && s.Phase != PhaseJoined && s.Boot != "" && s.Boot == m.bootID()
}

// owesStart is false after a later start: if the server is down, an operator stopped it again.
func (m *Machine) owesStart(s *State, st ams.State) bool {
	return m.mayOweStart(s) && !st.Started.After(s.Since)
}

// startOwed starts a server that an interrupted join or leave stopped. It returns nil if there was nothing to start.
// The caller holds the lock, and has recovered the files.
func (m *Machine) startOwed(ctx context.Context, store *conf.Store) (*Finding, error) {
	s, err := loadState(store)
	if err != nil || !m.mayOweStart(s) || store.Interrupted() {
		return nil, nil //nolint:nilerr // the command reports a damaged file
	}
	st, err := m.Service.State(ctx)
	if err != nil {
		return nil, err
	}
	up := st.Running() || st.Starting()
	if !up && !st.Dead() {
		return nil, nil // it is stopping, or its state is unknown
	}
	if err := m.begin(ctx, untouched); err != nil {
		return nil, err
	}
	starts := !up && m.owesStart(s, st)
	if starts {
		m.say("starting %s, which an interrupted command stopped", m.Service.Name())
		m.reload(ctx) // the command may have written the drop-in
		m.setAddress(previousAddress(s))
		if err := m.Service.Start(ctx); err != nil {
			return nil, err
		}
	}
	// A server that started since has read the files.
	s.Start, s.RestartPending = false, s.RestartPending && !starts
	if err := saveState(store, *s); err != nil || !starts {
		return nil, err
	}
	return new(warningOf(idInterrupted, "", "Ant Media Server was stopped by an interrupted command, and was started again; the machine is still %s", s.Phase)), nil
}

// startAfterRefusal is for a command that ends before it changes anything.
func (m *Machine) startAfterRefusal(ctx context.Context, store *conf.Store) {
	ctx, cancel := after(ctx, rollbackTime)
	defer cancel()
	if _, err := m.startOwed(ctx, store); err != nil {
		m.log().Warn("a server that an interrupted command stopped could not be started", "error", err)
	}
}

// exposed returns the server's files whose permissions alone must change, because they hold a password.
func exposed(plan *conf.Plan) (out []conf.PlannedFile) {
	for _, f := range plan.Changed() {
		if !agentsOwn(f.Before.Path) && f.After != nil && bytes.Equal(f.After, f.Before.Bytes) && f.Before.Mode&^f.Mode != 0 {
			out = append(out, f)
		}
	}
	return out
}

// protect removes those permissions in place, which does not disturb a running server.
func protect(store *conf.Store, exposed []conf.PlannedFile) (paths []string, _ error) {
	var errs []error
	for _, f := range exposed {
		fd, info, _, err := store.Files().Open(f.Before.Path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if info.UID == f.Before.UID && info.Mode == f.Before.Mode {
			err = fd.Chmod(f.Before.Mode & f.Mode)
			paths = append(paths, f.Before.Path)
		}
		errs = append(errs, err, fd.Close())
	}
	return paths, errors.Join(errs...)
}
