// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// aRegistry is a cluster whose nodes do what a test says.
type aRegistry struct {
	looks []cluster.Node
	node  cluster.Node // of the node that is asked
	asked *cluster.DrainRequest
	began time.Time
	// does changes the row, by how long ago it was asked.
	does func(r *aRegistry, since time.Duration)
	err  error
	// lost is the error of asking; arrived means that the request is in the record all the same, away is what MongoDB answers
	// after that.
	lost    error
	arrived bool
	away    error
}

func (r *aRegistry) Look(context.Context) (cluster.Look, error) {
	return cluster.Look{Nodes: r.looks, ServerTime: time.Now(), At: time.Now()}, r.err
}

func (r *aRegistry) ServerTime(context.Context) (time.Time, error) { return time.Now(), r.err }

func (r *aRegistry) Node(ctx context.Context, _ string) (cluster.Node, error) {
	if r.does != nil {
		r.does(r, time.Since(r.began))
	}
	return r.node, errors.Join(r.err, ctx.Err())
}

func (r *aRegistry) AskDrain(_ context.Context, n cluster.Node, q cluster.DrainRequest) (string, error) {
	r.node, r.began = n, time.Now()
	q.ID = "r1"
	r.asked = &q
	if r.lost == nil || r.arrived {
		r.node.DrainRequest = &q
	}
	r.err = r.away
	return q.ID, r.lost
}

func (r *aRegistry) TakeDrainRequest(ctx context.Context, _, id, _ string) (bool, error) {
	if err := errors.Join(r.err, ctx.Err()); err != nil {
		return false, err
	}
	is := r.node.DrainRequest != nil && r.node.DrainRequest.ID == id
	r.node.DrainRequest = nil
	return is, nil
}

var errNoAnswer = errors.New("no answer within 5 s")

// takes is a node that accepts the request after 10 s, and leaves after a minute.
func takes(r *aRegistry, since time.Duration) {
	n := 3
	switch {
	case since >= time.Minute:
		cut := 0
		r.node.State, r.node.Sessions, r.node.Cut = cluster.StateLeft, nil, &cut
	case since >= 10*time.Second:
		r.node.DrainRequest, r.node.State, r.node.UpdatedAt = nil, cluster.StateDraining, time.Now()
		r.node.Sessions = &cluster.Sessions{Publishers: new(int), Viewers: &n}
	}
}

// after does something from a time on, takesThen beside takes.
func after(at time.Duration, do func(*aRegistry)) func(*aRegistry, time.Duration) {
	return func(r *aRegistry, since time.Duration) {
		if since >= at {
			do(r)
		}
	}
}

func takesThen(at time.Duration, do func(*aRegistry)) func(*aRegistry, time.Duration) {
	return func(r *aRegistry, since time.Duration) {
		takes(r, since)
		after(at, do)(r, since)
	}
}

func TestDrainNode(t *testing.T) {
	// Only of a node that has left.
	const next = "next     on that machine amsagent join, or a reboot, brings it back; amsagent leave makes it standalone\n"
	for name, tt := range map[string]struct {
		state  cluster.State // "" is active
		opts   drainOptions
		does   func(r *aRegistry, since time.Duration)
		signal time.Duration
		code   int
		said   []string // on either stream
		r      aRegistry
	}{
		"asked, and no answer": {r: aRegistry{lost: errNoAnswer, arrived: true}, code: exitFailed, said: []string{
			"cannot drain 10.0.1.5", "cause: no answer within 5 s", "the request was withdrawn; nothing was changed",
		}},
		"perhaps asked": {r: aRegistry{lost: errNoAnswer}, code: exitUnknown, said: []string{
			"cannot drain 10.0.1.5", "cause: no answer within 5 s", "the request may have arrived: the node may drain",
		}},
		"perhaps asked, and MongoDB goes": {r: aRegistry{lost: errNoAnswer, arrived: true, away: errors.New("no primary")}, code: exitUnknown, said: []string{
			"cannot drain 10.0.1.5", "cause: no answer within 5 s", "the request could not be withdrawn: the node may drain",
		}},
		"not allowed":     {r: aRegistry{lost: &cluster.Error{Kind: cluster.KindForbidden, Op: "asking"}}, code: exitFailed, said: []string{"cannot drain 10.0.1.5", "nothing was changed"}},
		"not to be asked": {r: aRegistry{lost: cluster.ErrNotAskable}, code: exitFailed, said: []string{"cannot drain 10.0.1.5", "nothing was changed"}},
		"it leaves": {does: takes, code: exitOK, said: []string{
			"asked; waiting up to 45 s for the node's agent", "i-1 drains: 0 publishers, 3 viewers left", "left: the node is out of the cluster", "node     i-1",
		}},
		"it has left": {state: cluster.StateLeft, code: exitOK, said: []string{"left: the node is out of the cluster", "node     i-1"}},
		"it failed":   {state: cluster.StateFailed, code: exitFailed, said: []string{"its state is failed: there is nothing to drain"}},
		"detached":    {opts: drainOptions{followOptions: followOptions{detach: true}}, does: takes, code: exitOK, said: []string{"draining: `amsagent nodes --watch` shows the progress"}},
		"too long":    {opts: drainOptions{followOptions: followOptions{timeout: 20 * time.Second}}, does: takes, code: exitUnknown, said: []string{"it is not over after 20 s", "amsagent: the drain continues"}},
		"too long until it is accepted": {
			opts: drainOptions{followOptions: followOptions{timeout: 5 * time.Second}}, does: func(*aRegistry, time.Duration) {}, code: exitUnknown,
			said: []string{"[AGENT-TIMEOUT]", "cause: not done within 5s (--timeout)", "the request was withdrawn; nothing was changed"},
		},
		"no agent accepts it": {does: func(*aRegistry, time.Duration) {}, code: exitFailed, said: []string{
			"its agent did not accept the request within 45 s", "the request was withdrawn; nothing was changed",
		}},
		"interrupted before": {does: takes, signal: 5 * time.Second, code: exitInterrupted, said: []string{"signal: terminated", "the request was withdrawn"}},
		"interrupted after":  {does: takes, signal: 30 * time.Second, code: exitInterrupted, said: []string{"stopped following; nothing else was stopped", "amsagent: the drain continues"}},
		"refused":            {does: after(10*time.Second, func(r *aRegistry) { r.node.DrainRequest = nil }), code: exitFailed, said: []string{"its record, and its state is active", "amsagent events i-1"}},
		"refused by a setting": {does: after(10*time.Second, func(r *aRegistry) {
			r.node.DrainRequest, r.node.DrainRefused = nil, &cluster.DrainRefusal{ID: "r1", Reason: cluster.RefusedRemoteDrain}
		}), code: exitFailed, said: []string{"[AGENT-REMOTE-DRAIN]", "nothing was changed"}},
		"an earlier one was refused": {does: func(r *aRegistry, since time.Duration) {
			r.node.DrainRefused = &cluster.DrainRefusal{ID: "r0", Reason: cluster.RefusedRemoteDrain}
			takes(r, since)
		}, code: exitOK, said: []string{"left: the node is out of the cluster"}},
		"cancelled":                           {does: takesThen(30*time.Second, func(r *aRegistry) { r.node.State = cluster.StateActive }), code: exitFailed, said: []string{"by an undrain on that node", "the node is active"}},
		"its server does not end":             {does: takesThen(30*time.Second, func(r *aRegistry) { r.node.StopFailed = true }), code: exitFailed, said: []string{"that node cannot leave", "its daemon stops it again until it ends"}},
		"the record is gone":                  {does: takesThen(30*time.Second, func(r *aRegistry) { r.err = cluster.ErrNoNode }), code: exitUnknown, said: []string{"it is not known whether it left", "its record has been missing for 35 s"}},
		"the record is gone before it drains": {does: takesThen(5*time.Second, func(r *aRegistry) { r.err = cluster.ErrNoNode }), code: exitUnknown, said: []string{"it is not known whether it left", "its record has been missing for 35 s"}},
		"its agent writes the record again": {does: func(r *aRegistry, since time.Duration) {
			if takes(r, since); since >= time.Minute {
				r.node.Reason = "it ended itself"
			}
			if r.err = nil; since >= 20*time.Second && since < 50*time.Second {
				r.err = cluster.ErrNoNode
			}
		}, code: exitOK, said: []string{"left: the node is out of the cluster", "it ended itself"}},
		"its agent registers again, and drains": {does: func(r *aRegistry, since time.Duration) {
			takes(r, since)
			switch r.err = nil; {
			case since >= 20*time.Second && since < 28*time.Second:
				r.err = cluster.ErrNoNode
			case since >= 28*time.Second && since < 30*time.Second:
				r.err = errors.New("no primary")
			case since >= 30*time.Second && since < 40*time.Second:
				r.node.State = cluster.StateActive
			}
		}, code: exitOK, said: []string{"left: the node is out of the cluster"}},
		"the machine is started again":                  {does: takesThen(30*time.Second, func(r *aRegistry) { r.node.BootID, r.node.State = "another", cluster.StateActive }), code: exitFailed, said: []string{"that node has not left", "the machine was started again, which ends the drain; its state is active", "amsagent drain i-1"}},
		"the machine is started again before it drains": {does: after(5*time.Second, func(r *aRegistry) { r.node.BootID, r.node.DrainRequest = "another", nil }), code: exitFailed, said: []string{"that node has not left", "its state is active"}},
		"it leaves and is started again":                {does: takesThen(30*time.Second, func(r *aRegistry) { r.node.BootID, r.node.State = "another", cluster.StateLeft }), code: exitOK, said: []string{"left: the node is out of the cluster"}},
		"MongoDB goes":                                  {does: takesThen(20*time.Second, func(r *aRegistry) { r.err = errors.New("no primary") }), code: exitUnknown, said: []string{"lost sight of it", "the node's record has not been read for 1 min: no primary", "amsagent: the drain continues\n", "nodes --watch"}},
		"MongoDB goes twice": {does: func(r *aRegistry, since time.Duration) {
			takes(r, since)
			if r.err = nil; since >= 20*time.Second && since < 82*time.Second && since.Truncate(time.Second) != 46*time.Second {
				r.err = errors.New("no primary")
			}
		}, code: exitOK, said: []string{"the node's record is back after 26 s", "left: "}},
		"its agent goes": {does: func(r *aRegistry, since time.Duration) {
			was := r.node.UpdatedAt
			if takes(r, since); since >= 15*time.Second && since < time.Minute {
				r.node.UpdatedAt = was
			}
		}, code: exitOK, said: []string{"source=\"the node's agent\" silence=", "left: "}},
		"its server stops for long": {does: func(r *aRegistry, since time.Duration) {
			if since < 15*time.Second || since > 4*time.Minute {
				takes(r, since)
			}
		}, code: exitOK, said: []string{"source=\"the node's agent\" silence=", "left: "}},
		// The signal ends the test where the command does not.
		"its machine dies": {does: func(r *aRegistry, since time.Duration) {
			if since < 15*time.Second {
				takes(r, since)
			}
		}, signal: time.Hour, code: exitUnknown, said: []string{"silent for 4 min 31 s", "lost sight of it", "the node's agent has been silent for 5 min: no heartbeat", "the drain continues when the node's agent is back"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				now := time.Now()
				r := &aRegistry{does: tt.does, lost: tt.r.lost, arrived: tt.r.arrived, away: tt.r.away, looks: []cluster.Node{{
					ID: "i-1", IP: "10.0.1.5", BootID: "b", State: cmp.Or(tt.state, cluster.StateActive), Interval: seconds.Duration(5 * time.Second), Heartbeat: cluster.Heartbeat{Seq: 7}, UpdatedAt: now,
				}}}
				e := &testEnv{vars: map[string]string{"USER": "ann"}}
				g := plainGlobals(e)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if tt.signal > 0 {
					time.AfterFunc(tt.signal, func() { cancel(&interruptedError{syscall.SIGTERM}) })
				}
				code := exitOK
				if err := drainNode(ctx, g, tt.opts, "10.0.1.5", r); err != nil {
					code = report(ctx, g, err)
				}
				said := e.stdout.String() + e.stderr.String()
				if took := time.Since(now); tt.opts.timeout > 0 && took > tt.opts.timeout+time.Second {
					t.Errorf("took %s with a timeout of %s", took, tt.opts.timeout)
				}
				must.Equal(t, "exit with\n"+said, code, tt.code)
				must.Contain(t, "output", said, tt.said...)
				must.Equal(t, "what is next is in\n"+said, strings.Contains(said, next), strings.Contains(said, "left: "))
				if tt.state == "" && (r.asked == nil || !strings.HasPrefix(r.asked.Who, "ann, amsagent drain on ")) || tt.state != "" && r.asked != nil {
					t.Errorf("asked %+v", r.asked)
				}
			})
		})
	}
}

func TestDrainableNode(t *testing.T) {
	fresh := cluster.Signal{Known: true, Fresh: true}
	at := time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)
	members := []cluster.Member{
		{Node: &cluster.Node{ID: "i-1", IP: "10.0.1.5", Hostname: "one", State: cluster.StateActive, Heartbeat: cluster.Heartbeat{Seq: 1}}, Agent: fresh},
		{Node: &cluster.Node{ID: "i-2", IP: "10.0.1.6", Hostname: "twin", State: cluster.StateActive, Heartbeat: cluster.Heartbeat{Seq: 1}}, Agent: cluster.Signal{Known: true, Age: seconds.Duration(3 * time.Minute)}},
		{Node: &cluster.Node{ID: "i-3", IP: "10.0.1.7", Hostname: "twin", State: cluster.StateDraining, Heartbeat: cluster.Heartbeat{Seq: 1}}, Agent: fresh},
		{Node: &cluster.Node{ID: "i-5", State: cluster.StateJoining}, Agent: fresh},
		{Node: &cluster.Node{ID: "i-4", IP: "10.0.1.5", State: cluster.StateLeft}, Agent: fresh},
		{Node: &cluster.Node{ID: "i-7", IP: "10.0.1.9", Hostname: "old", State: cluster.StateLeft, StateSince: at.Add(time.Hour)}},
		{Node: &cluster.Node{ID: "i-6", IP: "10.0.1.9", Hostname: "old", State: cluster.StateLeft, StateSince: at}},
		{AMS: []cluster.AMSNode{{ID: "x", IP: "10.0.1.8"}}},
	}
	for name, want := range map[string]string{
		"i-1": "i-1", "10.0.1.5": "i-1", "::ffff:10.0.1.5": "i-1", "one": "i-1", "i-3": "i-3",
		"i-2": "silent for 3 min", "twin": "several nodes: i-2, i-3", "i-4": "i-4", "10.0.1.9": "i-7", "old": "i-7", "i-6": "i-6", "i-5": "has not sent a heartbeat yet", "10.0.1.8": "no agent", "i-8": "no such node", "": "no such node",
	} {
		n, err := drainableNode(members, name)
		if got := n.ID; err == nil && got != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
}
