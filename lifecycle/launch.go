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

// launch checks that this machine serves: a launch hook may wait for that.
func (s situation) launch(n Notice) error {
	if s.Start != nil && s.Start.ID == n.ID || s.Phase == stepResuming {
		s.learn(n.Hook, true, "", s.now)
		return nil
	}
	switch goal := s.goal(); {
	case s.leaving() && goal == goalLeave:
		return errors.New("ignored: a termination takes precedence")
	case s.leaving():
		return errors.New("ignored: the machine leaves service")
	case !s.c.Hooks:
		return nil
	}
	s.learn(n.Hook, true, "", s.now)
	s.Start = &start{ID: n.ID, Since: s.now}
	s.note("looking for a launch hook", "notice", n.ID)
	return nil
}

func (s situation) updateStart() {
	st := s.Start
	if st == nil || s.leaving() {
		return
	}
	if st.Proved == 0 && !st.Failed && st.Since.Add(proveTime).reached(s.now) {
		st.Failed = true
		s.note("node not seen in the cluster in time; its hook is left to its timeout unless the node serves before that", "limit", proveTime)
	}
	if s.Phase == StepNone && st.Proved != 0 && isStartDone(s) {
		s.Start, s.LaunchHooks.None = nil, false
		s.dropHooks(true)
	}
}

// isStartDone reports whether no launch hook is pending. While a hook can wait, a missing permission may be granted, or an
// API may recover.
func isStartDone(s situation) bool {
	if !s.c.Hooks || s.Start.Proved.Add(longestTimeout).reached(s.now) {
		return true
	}
	return !s.wantsHooks(true) && !s.Hooks.anyWaits(true)
}

func (s situation) startProved(err error) {
	switch {
	case s.Start == nil || s.leaving():
	case err != nil:
		s.setTrouble(troubleStart, "this machine does not serve yet: "+err.Error())
	default:
		s.setTrouble(troubleStart, "")
		s.Start.Proved, s.Start.Failed = s.now, false
		s.note("node seen in the cluster")
	}
}

// prove starts a parked machine's server if asked, and waits until the cluster sees the node.
func (r *Runner) prove(ctx context.Context, server bool) {
	for retry := time.Second; ; retry = min(2*retry, 15*time.Second) {
		err := r.startOnce(ctx, server)
		if r.accept(ctx, func(s situation) { s.startProved(err) }); err == nil || !sleep.For(ctx, jitter(retry)) {
			return
		}
	}
}

func (r *Runner) startOnce(ctx context.Context, server bool) error {
	if server {
		bound, cancel := context.WithTimeout(ctx, r.o.stopTime())
		err := r.o.Node.StartServer(bound)
		cancel()
		if err != nil {
			return fmt.Errorf("starting Ant Media Server: %w", err)
		}
	}
	bound, cancel := context.WithTimeout(ctx, proveTime)
	defer cancel()
	return r.o.Prove(bound)
}
