// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// nodeUnit is the unit whose stop deregisters.
const nodeUnit = "amsagent-node.service"

type deregisterOptions struct{ onShutdown bool }

func newDeregisterCommand(g *globals) *cobra.Command {
	var opts deregisterOptions
	cmd := &cobra.Command{
		Use:   "deregister [flags]",
		Short: "remove a stopped node from the cluster's lists",
		Long: "The last step of a machine that shuts down: it removes Ant Media Server's own\n" +
			"document, and sets this node's record to left. systemd runs it after Ant Media\n" +
			"Server has stopped, as the end of amsagent-node.service. The files stay those\n" +
			"of a node: the machine joins again by itself when it comes back. To leave for\n" +
			"good: amsagent leave.",
		Example: "  amsagent deregister --on-shutdown",
		RunE:    func(cmd *cobra.Command, _ []string) error { return runDeregister(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitInterrupted)
	cmd.Flags().BoolVar(&opts.onShutdown, "on-shutdown", false, "do nothing unless systemd says that the machine is going down")
	g.addSettings(cmd, machineSettings()...)
	unlisted(cmd, settings.KeyAMSRelease, settings.KeyProvider)
	return cmd
}

type deregisterResult struct {
	Done    bool     `json:"done"`
	Why     string   `json:"reason,omitempty"`
	Removed []string `json:"removed"`
}

func runDeregister(ctx context.Context, opts deregisterOptions, g *globals) error {
	if err := mustBeRoot(g, "deregister"); err != nil {
		return err
	}
	ctx, cancel := g.timed(ctx)
	defer cancel()
	m, err := g.bootstrapMachine(false)
	if err != nil {
		return err
	}
	res := &deregisterResult{Removed: []string{}}
	if opts.onShutdown {
		down, err := goesDown(ctx, nodeUnit)
		if err != nil {
			return &userError{Msg: "cannot tell whether this machine goes down", Cause: err, State: stillListed}
		}
		if !down {
			res.Why = "the machine is not going down"
			return g.result("deregister", res, func(w *output.Text) { deregisterText(w, res) })
		}
	}
	src, err := g.mongo()
	if err != nil && !errors.Is(err, errNoMongo) {
		return &userError{Msg: "cannot deregister", Cause: err, State: stillListed}
	}
	req := bootstrap.DeregisterRequest{Mongo: src.Target, Reason: "machine stopped"}
	files := &conf.Store{Root: g.settings.Root, Dir: bootstrap.StateDir}
	if opts.onShutdown {
		req.MongoWait, req.GoesDown = shutdownMongoWait, true
	}
	boot, _ := lifecycle.BootClock(g.settings.Root)()
	last, err := lifecycle.LoadDeparture(files, boot)
	if err != nil {
		g.out.Log().Warn("what the drain came to cannot be read", "error", err)
	}
	if last != nil {
		req.Reason, req.LeftBy, req.Cut, req.RepairStreams = last.Reason, last.LeftBy, last.Cut, last.RepairStreams
	}
	done, err := m.Deregister(ctx, req)
	if opts.onShutdown && !errors.Is(err, bootstrap.ErrServing) {
		finishStop(ctx, g, m, files, src.Target) // last, and whether MongoDB heard of it or not
	}
	switch {
	case errors.Is(err, bootstrap.ErrNotMember):
		res.Why = bootstrap.ErrNotMember.Error()
	case err != nil:
		return &userError{Msg: "cannot deregister", Cause: err, State: stillListed}
	default:
		res.Done = true
		res.Removed = append(res.Removed, done.Documents...)
	}
	return g.result("deregister", res, func(w *output.Text) { deregisterText(w, res) })
}

// finishStop completes the hook that a drain was for which the machine did not wait for.
func finishStop(ctx context.Context, g *globals, m *bootstrap.Machine, files lifecycle.Files, mongo cluster.Target) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTime)
	defer cancel()
	a := &daemonAdapter{g: g, machine: m}
	p, err := a.openCloud()
	if err == nil {
		hooks, _ := p.(cloud.Hooks) // nil without hooks
		err = lifecycle.CompletePending(ctx, files, hooks, a.hookNames(), lastPeers{m, mongo}, g.out.Log())
	}
	if err != nil {
		g.out.Log().Warn("the hook is left to its timeout", "error", err)
	}
}

// lastPeers asks the cluster once which other machines still serve. One look finds none gone: for a dead machine, the hook
// waits until its timeout.
type lastPeers struct {
	m     *bootstrap.Machine
	mongo cluster.Target
}

// Serving implements lifecycle.Peers.
func (p lastPeers) Serving(ctx context.Context, machines []string) ([]string, error) {
	c, err := p.m.Connect(ctx, p.mongo)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close(ctx) }()
	var peers cluster.Peers
	return peers.Serving(ctx, c, machines)
}

// shutdownMongoWait, with a second for the end of the connection, is what a MongoDB that is away costs a shutdown.
const shutdownMongoWait = 2 * time.Second

// finishTime bounds that, beside the time that MongoDB gets.
const finishTime = 8 * time.Second

const stillListed = "the cluster's lists still have this node"

func deregisterText(w *output.Text, res *deregisterResult) {
	if !res.Done {
		w.Line("%s: %s", w.Color.Bold("nothing to do"), res.Why)
		return
	}
	w.Line("%s: %s of Ant Media Server removed from the cluster's list", w.Color.Green("deregistered"), output.Count(len(res.Removed), "document"))
}
