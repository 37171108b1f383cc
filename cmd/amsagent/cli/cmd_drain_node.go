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
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
)

// registrar is the cluster as far as a drain of another node needs it.
type registrar interface {
	looker
	ServerTime(ctx context.Context) (time.Time, error)
	Node(ctx context.Context, id string) (cluster.Node, error)
	AskDrain(ctx context.Context, n cluster.Node, r cluster.DrainRequest) (id string, err error)
	TakeDrainRequest(ctx context.Context, node, id, taker string) (taken bool, err error)
}

// How another node's drain is followed.
const (
	remoteLook = time.Second // from look to look
	// takeTime bounds the wait until the node's agent takes the request, which it looks for every 15 s; beginTime, the wait for
	// its record after that.
	takeTime, beginTime = 45 * time.Second, 20 * time.Second
	withdrawTime        = 5 * time.Second
	remoteSilent        = 30 * time.Second // of the node's agent, until it is told
	// remoteDead is the agent's silence that ends the following: patience and the stop of a server, without heartbeats.
	remoteDead = 5 * time.Minute
	// serverSilent is when other nodes give up on a server.
	serverSilent = 20 * time.Second
)

func runDrainNode(ctx context.Context, opts drainOptions, name string, g *globals) error {
	if err := opts.check(opts.deadlineGiven); err != nil {
		return err
	}
	return g.inCluster(ctx, "amsagent drain", g.out.Log(), func(c *cluster.Client) error { return drainNode(ctx, g, opts, name, c) })
}

// drainNode asks a node to drain, and follows it by its row.
func drainNode(ctx context.Context, g *globals, opts drainOptions, name string, c registrar) error {
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
	r := &remoteDrain{reporter: newReporter(g), c: c, row: n}
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
	g.out.Progress("asked; the node's agent takes it up within " + output.Rounded(takeTime))
	if opts.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, opts.timeout, &userError{
			Msg: "it is not over after " + output.Rounded(opts.timeout), ID: idTimeout, Exit: exitUnknown,
		})
		defer cancel()
	}
	if err := r.taken(ctx); err != nil {
		return err
	}
	if opts.detach {
		return remoteResult(g, r.row)
	}
	g.signals.expect() // from here on a signal ends the following alone
	return r.follow(ctx)
}

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
		return cluster.Node{}, fmt.Errorf("its row says %s: there is nothing to drain", m.Node.State)
	case !m.Node.Heartbeats():
		return cluster.Node{}, errors.New("its agent has not beaten yet: nobody would take the request up")
	case !m.Agent.Fresh:
		return cluster.Node{}, fmt.Errorf("its agent has been silent for %s: nobody would take the request up", output.Rounded(m.Agent.Age))
	}
	return *m.Node, nil
}

// remoteDrain is a drain of another node.
type remoteDrain struct {
	reporter
	c       registrar
	request string
	row     cluster.Node // as it was read last
	missing time.Time    // since when there is no row
	back    time.Time    // since when there is one again
}

// errStarted means that the row is of a later start of the machine. Its agent keeps no
// drain that a person asked for across that.
var errStarted = errors.New("the machine was started again, which ends the drain")

// read reads the row again. A node that lives writes a missing one with its next heartbeat; if it does not, the error is final.
func (r *remoteDrain) read(ctx context.Context) error {
	n, err := r.c.Node(ctx, r.row.ID)
	switch gone := errors.Is(err, cluster.ErrNoNode); {
	case gone && r.missing.IsZero():
		r.missing = time.Now()
	case err == nil && !r.missing.IsZero():
		r.missing, r.back = time.Time{}, time.Now()
	}
	limit := min(3*cmp.Or(time.Duration(r.row.Interval), cluster.DefaultInterval)+serverSilent, remoteDead)
	switch {
	case errors.Is(err, cluster.ErrNoNode) && time.Since(r.missing) >= limit:
		return &userError{
			Msg: "it is not known whether it left", Cause: errors.New("its record has been missing for " + output.Rounded(limit)), Exit: exitUnknown,
			State: "the node may serve", Hints: []string{"amsagent nodes --watch"},
		}
	case err != nil:
		return err
	case !n.SameInstance(r.row) && n.State != cluster.StateLeft:
		return fmt.Errorf("%w; its row says %s", errStarted, n.State)
	}
	r.row = n
	return nil
}

// started is the end of a drain that the node's machine did not outlast.
func (r *remoteDrain) started(err error) error {
	return &userError{
		Msg: "that node has not left", Cause: err, Exit: exitFailed, State: "the node serves, or will soon",
		Hints: []string{"amsagent drain " + r.row.ID},
	}
}

// taken waits until the node drains. A request that nobody takes up is withdrawn.
func (r *remoteDrain) taken(ctx context.Context) error {
	asked, gone := time.Now(), time.Time{}
	for {
		err := r.read(ctx)
		now := time.Now()
		waits := r.row.DrainRequest != nil && r.row.DrainRequest.ID == r.request
		var end *userError
		switch {
		case errors.Is(err, errStarted):
			return r.started(err)
		case errors.As(err, &end):
			return end
		case ctx.Err() != nil, waits && now.Sub(asked) >= takeTime, err != nil && now.Sub(asked) >= takeTime+beginTime:
			return r.withdraw(ctx, userError{
				Msg: "stopped following; nothing else was stopped", State: "the drain goes on",
				Cause: fmt.Errorf("its agent did not take the request up within %s", output.Rounded(takeTime)),
			}, "this node does not drain")
		case err == nil && r.row.DrainRefused != nil && r.row.DrainRefused.ID == r.request:
			return &userError{
				Msg: "this node does not drain", ID: idRemoteDrain, State: "nothing was changed",
				Cause: errors.New("its agent refuses requests of other machines (" + r.row.DrainRefused.Reason + ": false)"),
				Hints: []string{"run amsagent drain on that machine"},
			}
		case err != nil || waits:
		case r.row.State == cluster.StateDraining, r.row.State == cluster.StateLeft:
			return nil
		case gone.IsZero():
			gone = now
		case now.Sub(gone) >= beginTime:
			return &userError{
				Msg: "this node does not drain", Cause: errors.New("the request is no longer in its row, which says " + string(r.row.State)),
				Hints: []string{"amsagent events " + r.row.ID}, State: "the request is not in force any more",
			}
		}
		sleep.For(ctx, remoteLook)
	}
}

// withdraw takes the request back. u is the error where the request was not there any more,
// msg what it says otherwise; why ctx has ended is its cause.
func (r *remoteDrain) withdraw(ctx context.Context, u userError, msg string) error {
	if ctx.Err() != nil {
		u.Cause = context.Cause(ctx)
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	withdrawn, err := r.c.TakeDrainRequest(bound, r.row.ID, r.request, "withdrawn "+r.request)
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

// follow says how far the node is until it has left.
func (r *remoteDrain) follow(ctx context.Context) error {
	read, silent := time.Now(), false
	for {
		var end *userError // of the following alone
		switch err := r.read(ctx); {
		case errors.Is(err, errStarted):
			return r.started(err)
		case errors.As(err, &end):
		case ctx.Err() != nil && errors.As(context.Cause(ctx), &end):
			end.Cause = errors.New(r.progress())
		case ctx.Err() != nil:
			end = &userError{Msg: "stopped following; nothing else was stopped", Cause: context.Cause(ctx)}
		case err != nil && !errors.Is(err, cluster.ErrNoNode) && time.Since(read) >= r.patience:
			end = &userError{Msg: "lost sight of it", Cause: err, Exit: exitUnknown}
		case err != nil:
		case r.row.State == cluster.StateLeft:
			return remoteResult(r.g, r.row)
		case r.row.State == cluster.StateDraining && r.row.StopFailed:
			return &userError{
				Msg: "that node cannot leave", Cause: errNotStopped, Exit: exitFailed,
				State: "its server still runs; its daemon stops it again until it ends, and completes the cloud's hook meanwhile",
			}
		case r.row.State != cluster.StateDraining && time.Since(r.back) < beginTime: // it registers, and then says that it drains
			read = time.Now()
		case r.row.State != cluster.StateDraining:
			return &userError{Msg: "the drain was cancelled", Cause: errors.New("by an undrain on that node"), State: "the node is " + string(r.row.State)}
		default:
			read = time.Now()
			r.show(r.sessions(), false, r.progress())
			if server, err := r.c.ServerTime(ctx); err == nil {
				age, known := r.row.Age(server)
				if known && age > remoteDead {
					end = &userError{
						Msg: "lost sight of it", Cause: errors.New("its agent has been silent for " + output.Rounded(age)), Exit: exitUnknown,
						State: "the drain goes on if its agent comes back",
					}
				}
				if is := known && age > remoteSilent; is != silent {
					silent = is
					if is {
						r.g.out.Log().Warn("the node's agent is silent; it goes on when it is back", "silent", output.Rounded(age))
					}
				}
			}
		}
		if end != nil {
			end.State, end.Hints = cmp.Or(end.State, "the drain goes on"), []string{"amsagent nodes --watch"}
			return end
		}
		sleep.For(ctx, remoteLook)
	}
}

func (r *remoteDrain) sessions() cluster.Sessions {
	if r.row.Sessions == nil {
		return cluster.Sessions{}
	}
	return *r.row.Sessions
}

// progress is one line about the node.
func (r *remoteDrain) progress() string {
	return nodeText(&r.row) + " drains: " + r.sessions().Left()
}

func remoteResult(g *globals, n cluster.Node) error {
	data := drainData{Result: string(n.State), Node: &n}
	return g.result("drain", data, func(w *output.Text) {
		word, what := w.Color.Green(string(n.State)), "the node is out of the cluster"
		switch {
		case n.State == cluster.StateDraining:
			word, what = w.Color.Yellow(string(n.State)), "`amsagent nodes --watch` shows it go"
		case n.Cut != nil && *n.Cut > 0:
			word = w.Color.Yellow(string(n.State))
			what += "; " + output.Count(*n.Cut, "session") + " cut"
		}
		w.Line("%s: %s", word, what)
		next := ""
		if n.State == cluster.StateLeft {
			next = "on that machine amsagent join, or a reboot, brings it back; amsagent leave makes it standalone"
		}
		w.Fields("node", nodeText(&n), "address", n.IP, "reason", n.Reason, "next", next)
	})
}
