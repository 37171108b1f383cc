// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/amsagent/amsagent/internal/sleep"
)

// learnLaunch adds the launch hook that a notice names, if it names one.
func (s *state) learnLaunch(n Notice, since instant, c *config) {
	if n.Hook == nil {
		return
	}
	h := *n.Hook
	h.Launching = true
	s.learn(h, c.Wall.instant(h.Limit), "", since)
}

// launch starts to check that this machine serves: a launch hook may wait for that.
func (s *state) launch(n Notice, now instant, c *config) error {
	if s.Start != nil && s.Start.ID == n.ID || s.Phase == phaseResuming {
		s.learnLaunch(n, now, c)
		return nil
	}
	switch goal := s.goal(now, c); {
	case s.leaving() && goal == goalLeave:
		return errors.New("ignored: a termination takes precedence")
	case s.leaving():
		return errors.New("ignored: the machine leaves service")
	case !c.Proves || !c.Hooks:
		return nil
	}
	s.learnLaunch(n, now, c)
	s.Start = &start{ID: n.ID, Since: now}
	s.note("looking for a launch hook", "notice", n.ID)
	return nil
}

// updateStart ends a start that took too long or has no pending hook.
func (s *state) updateStart(now instant, c *config) {
	st := s.Start
	if st == nil || s.leaving() {
		return
	}
	if st.Proved == 0 && !st.Failed && st.Since.Add(proveTime).reached(now) {
		st.Failed = true
		s.note("node not seen in the cluster in time; its hook is left to its timeout unless the node serves before that", "limit", proveTime)
	}
	if s.Phase == phaseServing && st.Proved != 0 && s.isStartDone(now, c) {
		s.Start, s.NoLaunchHook = nil, false
		s.dropHooks(true)
	}
}

// isStartDone reports whether no launch hook is pending. As long as a hook can wait, the operator may grant a missing
// permission, and an API may answer again.
func (s *state) isStartDone(now instant, c *config) bool {
	if !c.Hooks || !c.Proves || s.Start.Proved.Add(longestTimeout).reached(now) {
		return true
	}
	return !s.wantsHooks(true, now, c) && !s.waits(true)
}

// startProved is the result of an attempt to start the server and to see the node in the cluster.
type startProved struct{ err error }

func (e startProved) apply(s *state, now instant, _ *config) error {
	switch {
	case s.Start == nil || s.leaving():
	case e.err != nil:
		s.setTrouble(troubleStart, "this machine does not serve yet: "+e.err.Error())
	default:
		s.setTrouble(troubleStart, "")
		s.Start.Proved, s.Start.Failed = now, false
		s.note("node seen in the cluster")
	}
	return nil
}

// prove starts the server of a parked machine, and waits until the node is seen in the cluster.
func (r *Runner) prove(ctx context.Context, server bool) {
	for retry := time.Second; ; retry = min(2*retry, 15*time.Second) {
		err := r.startOnce(ctx, server)
		if ctx.Err() != nil {
			return
		}
		if _ = r.observe(startProved{err}); err == nil || !sleep.For(ctx, r.jitter(retry)) {
			return
		}
	}
}

func (r *Runner) startOnce(ctx context.Context, server bool) error {
	if server {
		bound, cancel := context.WithTimeout(ctx, r.stopTime())
		err := r.o.Node.StartServer(bound)
		cancel()
		if err != nil {
			return fmt.Errorf("starting Ant Media Server: %w", err)
		}
	}
	if r.o.Prove == nil {
		return nil
	}
	bound, cancel := context.WithTimeout(ctx, proveTime)
	defer cancel()
	return r.o.Prove(bound)
}
