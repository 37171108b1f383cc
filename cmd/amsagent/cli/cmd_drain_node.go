// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/seconds"
)

// How another node's drain is followed.
const (
	remoteLook = time.Second // from look to look
	// takeTime bounds the wait until the node's agent accepts the request, which it looks for every 15 s; beginTime, the wait
	// for its record after that.
	takeTime, beginTime = 45 * time.Second, 20 * time.Second
	withdrawTime        = 5 * time.Second
	remoteSilent        = 30 * time.Second // of the node's agent, until it is reported
	// remoteDead is the agent's silence that ends the following: patience and the stop of a server, without heartbeats.
	remoteDead = 5 * time.Minute
	// serverSilent is when other nodes give up on a server.
	serverSilent = 20 * time.Second
)

func runDrainNode(ctx context.Context, opts drainOptions, name string, g *globals) error {
	if err := opts.check(); err != nil {
		return err
	}
	return g.inCluster(ctx, "amsagent drain", g.out.Log(), func(c *cluster.Client) error { return drainNode(ctx, g, opts, name, c) })
}

// drainNode asks a node to drain, and follows it by its record.
func drainNode(ctx context.Context, g *globals, opts drainOptions, name string, c *cluster.Client) error {
	msg := "cannot drain " + name
	refuse := func(cause error, hints ...string) error {
		return &userError{Msg: msg, Cause: cause, Hints: hints, State: stateUntouched}
	}
	l, err := c.Look(ctx)
	if err != nil {
		return refuse(err)
	}
	var o cluster.Observer
	n, err := drainableNode(o.Observe(l), name)
	if err != nil {
		return refuse(err, "`amsagent nodes` shows which there are")
	}
	if n.State == cluster.StateLeft {
		return remoteResult(g, n)
	}
	host, _ := os.Hostname()
	r := &remoteDrain{
		reporter: newReporter(g), c: c, node: n,
		mongo: source{name: "the node's record", lost: "the node's record has not been read", limit: time.Minute, then: drainContinues},
		agent: source{name: "the node's agent", lost: "the node's agent has been silent", limit: remoteDead, then: "the drain continues when the node's agent is back"},
	}
	r.request, err = c.AskDrain(ctx, n, cluster.DrainRequest{
		Deadline: seconds.Duration(opts.deadline), Now: opts.now, RepairStreams: opts.repair, Reason: strings.TrimSpace(opts.reason),
		Who: askedBy(g.env, "drain") + " on " + cmp.Or(host, "another machine"),
	})
	switch {
	case errors.Is(err, cluster.ErrNotAskable), cluster.KindOf(err).Refusal():
		return refuse(err)
	case err != nil:
		// MongoDB may have the request all the same.
		return r.withdraw(ctx, userError{Msg: msg, Cause: err, State: "the request may have arrived: the node may drain"}, msg)
	}
	g.out.Progress("asked; waiting up to " + output.Rounded(takeTime) + " for the node's agent")
	ctx, cancel := upTo(ctx, opts.timeout)
	defer cancel()
	r.asked = time.Now()
	switch err := follow(ctx, remoteLook, r.lookAccepted); {
	case as[*userError](err):
		return err
	case err != nil:
		return r.withdraw(ctx, userError{Msg: stoppedFollowing, Cause: err, State: drainContinues}, doesNotDrain)
	case opts.detach:
		return remoteResult(g, r.node)
	}
	g.signals.expect() // from here on a signal ends the following alone
	err = follow(ctx, remoteLook, r.lookLeft)
	if err == nil {
		return remoteResult(g, r.node)
	}
	u, ended := errors.AsType[*userError](err)
	if !ended {
		u = stopped(err, r.progress())
		u.State = drainContinues
	}
	if u.Hints == nil {
		u.Hints = []string{"amsagent nodes --watch"}
	}
	return u
}

const doesNotDrain = "this node does not drain"

// drainableNode finds a node by id, address or host name, or returns why it cannot be asked. Of several, those that have not
// left count, else the one that left last.
func drainableNode(members []cluster.Member, name string) (cluster.Node, error) {
	var found []cluster.Member
	var left *cluster.Node
	for _, m := range members {
		if m.Node != nil && m.Node.ID == name {
			found = []cluster.Member{m}
			break
		}
		switch {
		case name == "", !cluster.SameAddress(m.Address(), name) && (m.Node == nil || m.Node.Hostname != name):
		case m.State() != cluster.StateLeft:
			found = append(found, m)
		case left == nil || m.Node.StateSince.After(left.StateSince):
			left = m.Node
		}
	}
	switch {
	case len(found) == 0 && left != nil:
		return *left, nil
	case len(found) == 0:
		return cluster.Node{}, errors.New("there is no such node: NODE is an id, an address or a host name")
	case len(found) > 1:
		var ids []string
		for _, m := range found {
			ids = append(ids, m.ID())
		}
		return cluster.Node{}, fmt.Errorf("that are several nodes: %s", strings.Join(ids, ", "))
	}
	m := found[0]
	switch {
	case m.Node == nil:
		return cluster.Node{}, errors.New("no agent of that machine has registered: drain it there")
	case m.Node.State == cluster.StateLeft:
	case m.Node.State == cluster.StateFailed:
		return cluster.Node{}, fmt.Errorf("its state is %s: there is nothing to drain", m.Node.State)
	case !m.Node.Heartbeats():
		return cluster.Node{}, errors.New("its agent has not sent a heartbeat yet, and would not accept the request")
	case !m.Agent.Fresh:
		return cluster.Node{}, fmt.Errorf("its agent has been silent for %s, and would not accept the request", output.Rounded(m.Agent.Age))
	}
	return *m.Node, nil
}

// remoteDrain is a drain of another node.
type remoteDrain struct {
	reporter
	c            *cluster.Client
	request      string
	asked        time.Time
	mongo, agent source
	node         cluster.Node // as it was read last
	missing      time.Time    // since when there is no record
	back         time.Time    // since when there is one again
	vanished     time.Time    // since when the record has neither the request nor its effect
}

// read reads the record again. A node that lives writes a missing one with its next heartbeat. A [*userError] is final.
func (r *remoteDrain) read(ctx context.Context) error {
	n, err := r.c.Node(ctx, r.node.ID)
	switch gone := errors.Is(err, cluster.ErrNoNode); {
	case gone && r.missing.IsZero():
		r.missing = time.Now()
	case err == nil && !r.missing.IsZero():
		r.missing, r.back = time.Time{}, time.Now()
	}
	limit := min(3*cmp.Or(time.Duration(r.node.Interval), cluster.DefaultInterval)+serverSilent, remoteDead)
	switch {
	case errors.Is(err, cluster.ErrNoNode) && time.Since(r.missing) >= limit:
		return &userError{
			Msg: "it is not known whether it left", Cause: errors.New("its record has been missing for " + output.Rounded(limit)), Exit: exitUnknown,
			State: "the node may serve", Hints: []string{"amsagent nodes --watch"},
		}
	case err != nil:
		return err
	case !n.SameInstance(r.node) && n.State != cluster.StateLeft: // its agent keeps no operator's drain across that
		return &userError{
			Msg: "that node has not left", Cause: fmt.Errorf("the machine was started again, which ends the drain; its state is %s", n.State),
			State: "the node serves, or will soon", Hints: []string{"amsagent drain " + n.ID},
		}
	}
	r.node = n
	return nil
}

// lookAccepted looks whether the node drains.
func (r *remoteDrain) lookAccepted(ctx context.Context) (bool, error) {
	err := r.read(ctx)
	waited := time.Since(r.asked)
	waits := r.node.DrainRequest != nil && r.node.DrainRequest.ID == r.request
	refusal := r.node.DrainRefused
	switch {
	case as[*userError](err):
		return false, err
	case waits && waited >= takeTime, err != nil && waited >= takeTime+beginTime:
		return false, fmt.Errorf("its agent did not accept the request within %s", output.Rounded(takeTime))
	case err == nil && refusal != nil && refusal.ID == r.request:
		return false, &userError{
			Msg: doesNotDrain, ID: idRemoteDrain, State: "nothing was changed",
			Cause: errors.New("its agent refuses requests of other machines (" + refusal.Reason + ": false)"),
			Hints: []string{"run amsagent drain on that machine"},
		}
	case err != nil || waits:
	case r.node.State == cluster.StateDraining, r.node.State == cluster.StateLeft:
		return true, nil
	case r.vanished.IsZero():
		r.vanished = time.Now()
	case time.Since(r.vanished) >= beginTime:
		return false, &userError{
			Msg: doesNotDrain, Cause: errors.New("the request is no longer in its record, and its state is " + string(r.node.State)),
			Hints: []string{"amsagent events " + r.node.ID}, State: "the request is not in force any more",
		}
	}
	return false, nil //nolint:nilerr // the next look may succeed
}

// withdraw withdraws the request. u is the error if it was not there any more, msg its text otherwise; why ctx has ended is
// its cause.
func (r *remoteDrain) withdraw(ctx context.Context, u userError, msg string) error {
	if ctx.Err() != nil {
		u.Cause = context.Cause(ctx)
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	withdrawn, err := r.c.TakeDrainRequest(bound, r.node.ID, r.request, "withdrawn "+r.request)
	if err == nil && withdrawn {
		u.Msg, u.State = msg, "the request was withdrawn; nothing was changed"
		return &u
	}
	if err != nil {
		u.Msg, u.State = msg, "the request could not be withdrawn: the node may drain"
	}
	u.Exit, u.Hints = exitUnknown, []string{"amsagent nodes"}
	return &u
}

// lookLeft looks whether the node has left.
func (r *remoteDrain) lookLeft(ctx context.Context) (bool, error) {
	err := r.read(ctx)
	missing := errors.Is(err, cluster.ErrNoNode)
	switch {
	case as[*userError](err):
		return false, err
	case err != nil && !missing:
		return false, r.reportAway(ctx, &r.mongo, err)
	}
	r.reportBack(&r.mongo)
	switch draining := r.node.State == cluster.StateDraining; {
	case missing:
		return false, nil
	case r.node.State == cluster.StateLeft:
		return true, nil
	case draining && r.node.StopFailed:
		return false, &userError{
			Msg: "that node cannot leave", Cause: errNotStopped,
			State: "its server still runs; its daemon stops it again until it ends, and completes the cloud's hook meanwhile",
		}
	case !draining && time.Since(r.back) < beginTime: // it registers, and then drains
		return false, nil
	case !draining:
		return false, &userError{Msg: "the drain was cancelled", Cause: errors.New("by an undrain on that node"), State: "the node is " + string(r.node.State)}
	}
	if server, err := r.c.ServerTime(ctx); err == nil {
		if age, known := r.node.Age(server); known && age > remoteSilent {
			r.agent.since = time.Now().Add(-age)
			return false, r.reportAway(ctx, &r.agent, errors.New("no heartbeat"))
		}
		r.reportBack(&r.agent)
	}
	r.show(sessionsIn(r.node.Sessions), false, r.progress())
	return false, nil
}

// progress is one line about the node.
func (r *remoteDrain) progress() string {
	return board.NodeText(&r.node) + " drains: " + sessionsIn(r.node.Sessions).Left()
}

func remoteResult(g *globals, n cluster.Node) error {
	data := drainData{Result: string(n.State), Node: &n}
	return g.result("drain", data, func(w *output.Text) {
		word, what := w.Color.Green(string(n.State)), "the node is out of the cluster"
		switch {
		case n.State == cluster.StateDraining:
			word, what = w.Color.Yellow(string(n.State)), "`amsagent nodes --watch` shows the progress"
		case n.Cut != nil && *n.Cut > 0:
			word = w.Color.Yellow(string(n.State))
			what += "; " + output.Count(*n.Cut, "session") + " cut"
		}
		w.Line("%s: %s", word, what)
		next := ""
		if n.State == cluster.StateLeft {
			next = "on that machine amsagent join, or a reboot, brings it back; amsagent leave makes it standalone"
		}
		w.Fields("node", board.NodeText(&n), "address", n.IP, "reason", n.Reason, "next", next)
	})
}
