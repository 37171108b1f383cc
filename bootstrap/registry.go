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
	"github.com/amsagent/amsagent/internal/seconds"
)

// register writes the node record. over: a drain of this node has ended. j.former is the record that it replaces first.
func (j *joiner) register(ctx context.Context, state cluster.State, reason string, over bool) error {
	f := j.facts
	group := j.req.Group
	if group == "" {
		group = f.inst.Group
	}
	n := j.nodeOf(f, j.req.Role, group)
	n.State, n.Reason = state, reason
	n.Interval = seconds.Duration(j.req.Interval)
	_, err := f.client.Register(ctx, n, cluster.RegisterOptions{Replace: j.req.Replace, DrainOver: over, Found: func(was cluster.Node, now time.Time) {
		if !j.registered {
			j.former, j.history = was, cluster.History(was, n, now)
		}
	}})
	if err != nil || j.registered {
		return err
	}
	j.registered = true
	for _, e := range j.history {
		j.event(ctx, e)
	}
	return nil
}

// enter must not leave the state joining after a failure or the end of ctx. A write that was cut off may still
// happen, so it waits before it reverts.
func (j *joiner) enter(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	own, cancel := outlasting(ctx, mongoFirst)
	defer cancel()
	err := j.register(own, cluster.StateJoining, cluster.ReasonJoin, false)
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

// failedRow may fail. A node that was in the cluster before stays in it. A machine without a record before has none after.
func (j *joiner) failedRow(ctx context.Context, reason string) {
	if j.wasJoined() {
		return
	}
	if s := j.former; s.State != "" && (s.State != cluster.StateJoining || s.Reason == cluster.ReasonRun) {
		j.setRow(ctx, cluster.StateFailed, reason)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	n, err := j.facts.client.Node(ctx, j.self().ID)
	if err == nil && n.State == cluster.StateJoining && n.SameInstance(j.self()) {
		_, err = j.facts.client.RemoveNode(ctx, n)
	}
	if err != nil && !errors.Is(err, cluster.ErrNoNode) {
		j.log().Warn("the record of a failed join could not be removed", "error", err)
	}
}

func (j *joiner) self() cluster.Node {
	return j.Machine.self(j.facts.inst.ID, j.facts.address.Addr.String())
}

// setRow may fail.
func (j *joiner) setRow(ctx context.Context, state cluster.State, reason string) {
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	err := j.facts.client.SetOwnState(ctx, j.self(), state, reason, cluster.Details{})
	var refused *cluster.TransitionError
	var other *cluster.OtherMachineError
	if err != nil && !errors.Is(err, cluster.ErrNoNode) && !errors.As(err, &refused) && !errors.As(err, &other) {
		j.log().Warn("writing the state to the registry failed", "state", string(state), "error", err)
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
