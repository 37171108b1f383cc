// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// register writes our row with everything that is known of this machine. over is as in
// [Stay].
func (j *joiner) register(ctx context.Context, state cluster.State, reason string, over bool) error {
	f := j.facts
	group := j.req.Group
	if group == "" {
		group = f.inst.Group
	}
	n := j.nodeOf(f, j.req.Role, group)
	n.State, n.Reason = state, reason
	n.IntervalMS = cluster.MillisOf(j.req.Interval)
	r, err := f.client.Register(ctx, n, cluster.RegisterOptions{Replace: j.req.Replace})
	if err != nil {
		return err
	}
	if err := Stay(ctx, f.client, n, &r, over); err != nil {
		return err
	}
	if r.Rejoined && state == cluster.StateJoining && r.Before.State == cluster.StateActive {
		j.log().Info("replaced the row of an earlier life of this machine", "node", n.ID, "address", r.Before.IP)
	}
	return nil
}

// Stay takes back that the row of n drains, by what became of its registration, where a
// leave that was not finished said so; over tells that a drain of ours ended before the
// registry was told. What others made of the row is left alone.
func Stay(ctx context.Context, client *cluster.Client, n cluster.Node, r *cluster.Registration, over bool) error {
	if n.State != cluster.StateActive || r.Node.State != cluster.StateDraining || !over && r.Node.LeftBy != cluster.LeftByLeave {
		return nil
	}
	if err := client.SetOwnState(ctx, n, n.State, n.Reason, cluster.Details{}); err != nil {
		return err
	}
	r.Node.State, r.Node.StateSince = n.State, time.Now()
	return nil
}

// enter writes the row of a node that joins. Where it cannot, or nobody waits for it any
// more, no row says joining: a write that was cut off may be done a moment later, so it
// is given some time, and taken back after that.
func (j *joiner) enter(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	own, cancel := outlasting(ctx, mongoFirst)
	defer cancel()
	err := j.register(own, cluster.StateJoining, "join", false)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		bound, stop := after(ctx, mongoFirst)
		defer stop()
		j.failedRow(bound, "writing the registry: "+err.Error())
	}
	return err
}

// failedRow makes the row say that the join came to nothing, as well as it can: the
// outcome of the command does not depend on it. A node that was in the cluster before
// still is, and a row that is not there, or not of this join, says nothing wrong.
func (j *joiner) failedRow(ctx context.Context, reason string) {
	if j.wasJoined() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	const state = cluster.StateFailed
	err := j.facts.client.SetOwnState(ctx, j.self(j.facts.inst.ID, j.facts.address.Addr.String()), state, reason, cluster.Details{})
	var refused *cluster.TransitionError
	var other *cluster.OtherMachineError
	if err != nil && !errors.Is(err, cluster.ErrNoNode) && !errors.As(err, &refused) && !errors.As(err, &other) {
		j.log().Warn("the registry could not be told", "state", string(state), "error", err)
	}
}

// event notes what happened for those who look later. Losing one is no failure.
func (j *joiner) event(ctx context.Context, e cluster.Event) {
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	if err := j.facts.client.AddEvent(ctx, e); err != nil {
		j.log().Warn("the event could not be noted", "kind", e.Kind, "error", err)
	}
}

// previousAddress is what AMS was told before this join.
func previousAddress(s *State) netip.Addr {
	if s == nil {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s.Address)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

func joinPaths(paths []string) string { return strings.Join(paths, ", ") }
