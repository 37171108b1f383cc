// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
)

// waitPoll is the time between two looks of status --wait. A look reads a few files and three documents.
const waitPoll = time.Second

func (o *statusOptions) check() error {
	if o.wait == "" || cluster.State(o.wait).Valid() {
		return nil
	}
	return usageError(nil, "--wait: %q is not one of %s", o.wait, strings.Join(states(), ", "))
}

// waitStatus looks until the node is in a state, or once. It returns the last look, and why the node is not in that state.
func waitStatus(ctx context.Context, want cluster.State, g *globals, look func(context.Context) (*bootstrap.Status, error)) (last *bootstrap.Status, err error) {
	r := newReporter(g)
	var missing string
	err = follow(ctx, waitPoll, func(ctx context.Context) (bool, error) {
		s, err := look(ctx)
		if ctx.Err() != nil && last != nil {
			return false, nil // cut short
		}
		if last = s; err != nil {
			return false, err
		}
		was, never := missing, false
		switch missing, never = missingFor(want, s); {
		case missing == "":
			return true, nil
		case never:
			return false, &userError{Msg: fmt.Sprintf("this node does not become %s any more", want), Cause: errors.New(missing), Exit: exitFailed}
		case ctx.Err() == nil:
			r.show(cluster.Sessions{}, missing != was, fmt.Sprintf("waiting for %s: %s", want, missing))
		}
		return false, nil
	})
	if over, ok := errors.AsType[*timeOverError](err); ok {
		err = &userError{
			Msg:   fmt.Sprintf("this node is not %s after %s", want, output.Rounded(over.after)),
			Cause: errors.New(missing), ID: idTimeout, Exit: exitUnknown,
			Hints: []string{"it may still come: look with `amsagent status`, or wait longer with --timeout"},
		}
	}
	return last, err
}

// missingFor is what keeps the node from being in a state, or "", and whether it cannot come to it any more.
func missingFor(want cluster.State, s *bootstrap.Status) (missing string, never bool) {
	r := s.Row
	switch {
	case want == "":
		return "", false
	case !r.Looked:
		return "the cluster could not be asked: " + r.Err, false
	case r.Registry == nil && want == cluster.StateLeft && !s.Member:
		return "", false // its departure record is removed already
	case r.Registry == nil:
		return "the registry has no record of this node", false
	}
	is := r.Registry.State
	if is != want {
		missing = "its state is " + string(is)
		if r.Registry.Reason != "" {
			missing += ": " + r.Registry.Reason
		}
		// A node that has failed or left may join again.
		return missing, s.Phase != bootstrap.PhaseJoining && !slices.Contains(ahead(is), want)
	}
	if want != cluster.StateActive {
		return "", false
	}
	switch {
	case r.EarlierBoot:
		return "the agent has not registered since this machine booted", false
	case r.Registry.Seq <= 0:
		return "the agent has not sent a heartbeat yet", false // a registration has the interval, too
	case !r.Agent.Fresh:
		return "the agent's last heartbeat was " + output.Roughly(r.Agent.Age) + " ago", false
	case !r.Server.Known:
		return "Ant Media Server has no document as " + r.Address, false
	case !r.Server.Fresh:
		return "Ant Media Server wrote its document " + output.Roughly(r.Server.Age) + " ago", false
	}
	if sv := r.Registry.Serving; sv != nil && !sv.Up {
		return "viewers are not served: " + sv.Why, false
	}
	for _, d := range s.Disagree {
		switch d.ID {
		case "AMS-DRIFT", "STATUS-FOREIGN", "STATUS-LIVENESS":
			continue // these keep no node from serving
		}
		return d.ID + ": " + d.Text, false
	}
	return "", false
}

// ahead are the states that a node can come to in this life.
func ahead(s cluster.State) []cluster.State {
	const active, draining, left = cluster.StateActive, cluster.StateDraining, cluster.StateLeft
	switch s {
	case cluster.StateJoining:
		return []cluster.State{active, draining, left, cluster.StateFailed}
	case active, draining:
		return []cluster.State{active, draining, left}
	case cluster.StateFailed:
		return []cluster.State{left}
	case left:
		// A machine that left and comes back is what a boot waits for.
		return []cluster.State{cluster.StateJoining, active, draining, cluster.StateFailed}
	}
	return cluster.States()
}
