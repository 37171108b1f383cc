// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/amsagent/amsagent/cluster"
)

// register writes the node record. over: a drain of this node has ended.
func (j *joiner) register(ctx context.Context, state cluster.State, reason string, over bool) error {
	f := j.facts
	group := j.req.Group
	if group == "" {
		group = f.inst.Group
	}
	n := j.nodeOf(f, j.req.Role, group)
	n.State, n.Reason = state, reason
	n.Interval = j.req.Interval
	_, err := f.client.Register(ctx, n, cluster.RegisterOptions{Replace: j.req.Replace, DrainOver: over})
	return err
}

// enter must not leave the state joining after a failure or the end of ctx. A write that was cut off may still
// happen, so it waits before it reverts.
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

// failedRow may fail. A node that was in the cluster before stays in it.
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

// event may fail.
func (j *joiner) event(ctx context.Context, e cluster.Event) {
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	if err := j.facts.client.AddEvent(ctx, e); err != nil {
		j.log().Warn("the event could not be noted", "kind", e.Kind, "error", err)
	}
}

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
