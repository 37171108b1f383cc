// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"context"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakeams"
)

// kinds returns the kinds of the node's events, in order.
func (a *agent) kinds() (kinds []string) {
	a.t.Helper()
	events, err := a.client.Events(a.t.Context(), cluster.EventQuery{Nodes: []string{nodeID}, Limit: 100})
	must.OK(a.t, err)
	for _, e := range events {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// hasHistory waits for these kinds.
func (a *agent) hasHistory(want ...string) {
	a.t.Helper()
	must.Until(a.t, "the events have all kinds", func() bool { return len(a.kinds()) >= len(want) })
	must.NoDiff(a.t, "events", a.kinds(), want)
}

// TestFailedJoinIsHistory: a failed join is an event, and leaves no record of a machine that had none. One that was killed is an
// event of the next.
func TestFailedJoinIsHistory(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	_, err := a.machine.Leave(t.Context(), bootstrap.LeaveRequest{Mongo: a.client.Target(), Now: true})
	must.OK(t, err)
	forget := func() {
		must.OK(t, a.door.Database("amsagent").Drop(t.Context()))
	}
	join := func(ctx context.Context, onFailure bootstrap.OnFailure) error {
		_, err := a.machine.Join(ctx, bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify, OnFailure: onFailure})
		return err
	}
	// fails ends a join once it restarted the server, which stays silent.
	fails := func(onFailure bootstrap.OnFailure) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		starts, result := a.svc.count(), make(chan error, 1)
		go func() { result <- join(ctx, onFailure) }()
		must.Until(t, "the join restarted the server", func() bool { return a.svc.count() > starts })
		cancel()
		if err := <-result; err == nil {
			t.Error("a join of a silent server")
		}
	}
	broken := func(yes bool) {
		a.svc.mu.Lock()
		defer a.svc.mu.Unlock()
		a.svc.mute = yes
		a.svc.server.SetBehaviour(func(b *fakeams.Behaviour) { b.Silent = yes })
	}
	records := func() int { return a.door.count(a.door.nodes(), bson.M{"_id": nodeID}) }

	// It had left before: the record shows the failure.
	broken(true)
	if fails(""); a.state() != cluster.StateFailed {
		t.Errorf("the record is %s", a.state())
	}
	a.hasHistory("join", "leave", "join-failed")

	forget()
	if fails(""); records() != 0 {
		t.Errorf("%d records", records())
	}
	a.hasHistory("join-failed")

	// One whose result is kept has ended, and was not interrupted.
	fails(bootstrap.Keep)
	broken(false)
	must.OK(t, join(t.Context(), ""))
	a.hasHistory("join-failed", "join-failed", "join")

	_, err = a.machine.Leave(t.Context(), bootstrap.LeaveRequest{Mongo: a.client.Target(), Now: true})
	must.OK(t, err)
	forget()
	killed := cluster.Node{ID: nodeID, IP: own, BootID: "boot-1", Role: "edge", State: cluster.StateJoining, Reason: cluster.ReasonJoin}
	_, err = a.client.Register(t.Context(), killed, cluster.RegisterOptions{})
	must.OK(t, err)
	must.OK(t, join(t.Context(), ""))
	a.hasHistory("join-interrupted", "join")
}
