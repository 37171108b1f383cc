// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
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
	cmd.Flags().BoolVar(&opts.onShutdown, "on-shutdown", false, "do nothing unless systemd shuts the machine down")
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
	res, err := deregister(ctx, opts, g, m)
	if err != nil {
		return &userError{Msg: "cannot deregister", Cause: err, State: "the cluster's lists still have this node"}
	}
	return g.result("deregister", res, func(w *output.Text) { deregisterText(w, res) })
}

func deregister(ctx context.Context, opts deregisterOptions, g *globals, m *bootstrap.Machine) (deregisterResult, error) {
	res := deregisterResult{Removed: []string{}}
	req := bootstrap.DeregisterRequest{Reason: "machine stopped"}
	if opts.onShutdown {
		switch down, err := goesDown(ctx, nodeUnit); {
		case err != nil:
			return res, fmt.Errorf("asking whether the machine shuts down: %w", err)
		case !down:
			res.Why = "the machine does not shut down"
			return res, nil
		}
		req.MongoWait, req.GoesDown = shutdownMongoWait, true
	}
	src, err := g.mongo()
	if err != nil && !errors.Is(err, errNoMongo) {
		return res, err
	}
	req.Mongo = src.Target
	files := &conf.Store{Root: g.settings.Root, Dir: bootstrap.StateDir}
	boot, _ := lifecycle.BootClock(g.settings.Root)()
	last, err := lifecycle.LoadDeparture(files, boot)
	if err != nil {
		g.out.Log().Warn("the result of the drain cannot be read", "error", err)
	}
	if last != nil {
		req.Reason, req.LeftBy, req.Cut, req.RepairStreams = last.Reason, last.LeftBy, last.Cut, last.RepairStreams
	}
	done, err := m.Deregister(ctx, req)
	if opts.onShutdown && !errors.Is(err, bootstrap.ErrServing) {
		finishStop(ctx, g, m, files, src.Target) // last, also if MongoDB was away
	}
	switch {
	case errors.Is(err, bootstrap.ErrNotMember):
		res.Why = err.Error()
	case err != nil:
		return res, err
	default:
		res.Done = true
		res.Removed = append(res.Removed, done.Documents...)
	}
	return res, nil
}

// finishStop completes the hook of a drain that the machine's stop cut short.
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

const (
	// shutdownMongoWait, and a second for the end of the connection, is the delay of a shutdown if MongoDB is away.
	shutdownMongoWait = 2 * time.Second
	// finishTime bounds finishStop.
	finishTime = 8 * time.Second
)

func deregisterText(w *output.Text, res deregisterResult) {
	if !res.Done {
		w.Line("%s: %s", w.Color.Bold("nothing to do"), res.Why)
		return
	}
	w.Line("%s: %s of Ant Media Server removed from the cluster's list", w.Color.Green("deregistered"), output.Count(len(res.Removed), "document"))
}
