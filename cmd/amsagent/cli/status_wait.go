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
	"github.com/amsagent/amsagent/internal/sleep"
)

// waitPoll is the time between two looks of status --wait. A look reads a few files and three documents.
const waitPoll = time.Second

func (o *statusOptions) check() error {
	if o.wait == "" || cluster.State(o.wait).Valid() {
		return nil
	}
	return usageError(nil, "--wait: %q is not one of %s", o.wait, strings.Join(states(), ", "))
}

// waitStatus looks until the node is in a state. werr is why it is not, with the last look; err that none was possible.
func waitStatus(ctx context.Context, want cluster.State, g *globals, look func(context.Context) (*bootstrap.Status, error)) (last *bootstrap.Status, werr, err error) {
	begin := time.Now()
	missing, said := "", time.Time{}
	for {
		s, err := look(ctx)
		if cut := ctx.Err() != nil; !cut || last == nil {
			if err != nil {
				return nil, nil, err
			}
			// What our own end cut short says nothing.
			last = s
			var never bool
			was := missing
			if missing, never = missingFor(want, s); missing == "" {
				return s, nil, nil
			}
			if never {
				return s, &userError{
					Msg: fmt.Sprintf("this node does not become %s any more", want), Cause: errors.New(missing), Exit: exitFailed,
				}, nil
			}
			if now := time.Now(); !cut && (missing != was || now.Sub(said) >= progressLog) {
				said = now
				g.out.Progress(fmt.Sprintf("waiting for %s: %s", want, missing))
			}
		}
		if sleep.For(ctx, waitPoll) {
			continue
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return last, &userError{
				Msg:   fmt.Sprintf("this node is not %s after %s", want, output.Rounded(time.Since(begin))),
				Cause: errors.New(missing), ID: idTimeout, Exit: exitUnknown,
				Hints: []string{"it may still come: look with `amsagent status`, or wait longer with --timeout"},
			}, nil
		}
		return last, ctx.Err(), nil
	}
}

// missingFor tells what keeps the node from being in a state, "" where it is, and whether it cannot come to it any more.
func missingFor(want cluster.State, s *bootstrap.Status) (missing string, never bool) {
	r := s.Row
	switch {
	case !r.Looked:
		return "the cluster could not be asked: " + r.Err, false
	case r.Registry == nil && want == cluster.StateLeft && !s.Member:
		return "", false // its tombstone is gone already
	case r.Registry == nil:
		return "the registry has no row of this node", false
	}
	is := r.Registry.State
	said := "the row says " + string(is)
	if r.Registry.Reason != "" {
		said += ": " + r.Registry.Reason
	}
	if is != want {
		// Who has failed or left may join again; that it is about to, only a join that is under way tells.
		joining := s.Phase == bootstrap.PhaseJoining
		return said, !joining && !slices.Contains(ahead(is), want)
	}
	if want != cluster.StateActive {
		return "", false
	}
	switch {
	case r.EarlierBoot:
		return "the agent has not registered since this machine booted", false
	case r.Registry.Seq <= 0:
		// A registration tells the interval, too; only a beat counts.
		return "the agent has not beaten yet", false
	case !r.Agent.Fresh:
		return "the agent's last beat was " + output.Roughly(r.Agent.Age) + " ago", false
	case !r.Server.Known:
		return "Ant Media Server has no document as " + r.Address, false
	case !r.Server.Fresh:
		return "Ant Media Server wrote its document " + output.Roughly(r.Server.Age) + " ago", false
	}
	if sv := r.Registry.Serving; sv != nil && !sv.Up {
		return "the row says that viewers are not served: " + sv.Why, false
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
	const (
		active, draining, left = cluster.StateActive, cluster.StateDraining, cluster.StateLeft
	)
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
