// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

// beforeStartTime bounds what is done before the server starts. The server waits for it.
const beforeStartTime = 5 * time.Second

type convergeOptions struct {
	beforeStart bool
}

func newConvergeCommand(g *globals) *cobra.Command {
	var opts convergeOptions
	cmd := &cobra.Command{
		Use:   "converge [flags]",
		Short: "repair the files of a joined machine",
		Long: "Repairs the files of a node that has another address now, whose disk is a copy\n" +
			"of another node's, or whose files an upgrade restored. While the server runs,\n" +
			"it only reports what differs in the server's files: `amsagent drain && amsagent\n" +
			"join` repairs them. It does not use MongoDB. It stops nothing, and starts only a\n" +
			"server that an interrupted join or leave stopped. It ignores a machine that\n" +
			"never joined, and one that the operator made standalone.\n\n" +
			"At boot systemd runs it as amsagent-node.service, and before each start of the\n" +
			"server with --before-start from a drop-in of the server's unit. If\n" +
			"--service-command starts the server, run `amsagent converge --before-start`\n" +
			"before that. It then ignores the environment, which is the unit's: the server's\n" +
			"user may be able to change it.",
		Example: "  amsagent converge",
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if opts.beforeStart {
				g.env.forget()
			}
			return g.load(cmd)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.beforeStart {
				return runBeforeStart(cmd.Context(), g)
			}
			return runConverge(cmd.Context(), g)
		},
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitInterrupted)
	cmd.Flags().BoolVar(&opts.beforeStart, "before-start", false, "for the server's unit, just before the server starts: takes 5 seconds at most, asks no metadata, never fails, and writes a line into the unit's journal if it changed or found something")
	g.addSettings(cmd, machineSettings()...)
	unlisted(cmd, settings.KeyAMSRelease, settings.KeyProvider)
	return cmd
}

func runConverge(ctx context.Context, g *globals) error {
	if err := mustBeRoot(g, "converge"); err != nil {
		return err
	}
	ctx, cancel := g.timed(ctx)
	defer cancel()
	m, err := g.bootstrapMachine(false)
	if err != nil {
		return err
	}
	identify := g.whoami
	if s, err := m.StateFile(); err == nil && s != nil && s.Phase == bootstrap.PhaseJoined {
		identify = m.AskNow(ctx, identify) // first: the instance's tags may say another role
	}
	req, err := convergeRequest(g, identify)
	if err != nil {
		return err
	}
	c, err := m.Converge(ctx, req)
	if err != nil {
		return cannot("converge", err)
	}
	return g.result("converge", c, func(w *output.Text) { convergeText(w, c) })
}

func convergeRequest(g *globals, identify bootstrap.Identifier) (bootstrap.ConvergeRequest, error) {
	src, err := g.joinedMongo()
	if err != nil && !errors.Is(err, errNoMongo) {
		return bootstrap.ConvergeRequest{}, cannot("converge", err)
	}
	j := g.settings.JoinRequest()
	return bootstrap.ConvergeRequest{
		Mongo: src.Target, Role: j.Role, Group: j.Group, Address: j.Address, ForceAddress: j.ForceAddress, AddressKept: j.AddressKept,
		Valve: j.Valve, Interval: g.settings.BeatInterval, Identify: identify,
	}, nil
}

// runBeforeStart never fails: the server must start.
func runBeforeStart(ctx context.Context, g *globals) error {
	ctx, cancel := context.WithTimeout(ctx, beforeStartTime)
	defer cancel()
	type outcome struct {
		c   *bootstrap.Convergence
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		c, err := beforeStart(ctx, g)
		done <- outcome{c, err}
	}()
	o := outcome{c: &bootstrap.Convergence{}}
	select {
	case o = <-done:
	case <-ctx.Done():
		o.err = fmt.Errorf("not done within %s", beforeStartTime) // a file system may hang
	}
	line := beforeStartLine(o.c, o.err)
	if line == "" {
		return nil
	}
	line = g.out.Redact("amsagent: " + output.Printable(line))
	if g.settings.Root == "" && g.env.getenv("INVOCATION_ID") != "" && g.env.Journal(ams.DefaultUnit, line) == nil {
		return nil // the unit's output may go elsewhere
	}
	_, err := fmt.Fprintln(g.env.Stderr, line)
	return err
}

func beforeStart(ctx context.Context, g *globals) (*bootstrap.Convergence, error) {
	m, err := g.bootstrapMachine(false)
	if err != nil {
		return nil, err
	}
	m.Progress = nil
	m.Log = slog.New(slog.DiscardHandler)
	req, err := convergeRequest(g, g.whoami)
	if err != nil {
		return nil, err
	}
	req.Mode = bootstrap.ConvergeBeforeStart
	return m.Converge(ctx, req)
}

// madeStandalone describes a machine that is ignored.
const madeStandalone = "made standalone by hand; 'amsagent join' makes it a node again, 'amsagent leave' ends its membership"

// beforeStartLine is the line for the server's journal; "" without one.
func beforeStartLine(c *bootstrap.Convergence, err error) string {
	if failed, ok := errors.AsType[*bootstrap.FailedError](err); ok {
		err = fmt.Errorf("%s: %w", failed.Step, failed.Err)
	}
	switch {
	case err != nil:
		return "the server starts with the files as they are: " + output.OneLine(err.Error())
	case c.Standalone:
		return "the agent changes nothing: this machine was " + madeStandalone
	}
	var parts []string
	for _, f := range c.Repairs {
		parts = append(parts, f.String())
	}
	for _, f := range c.Warnings {
		if f.ID == bootstrap.IDTorn { // why it was written again
			parts = append(parts, f.String())
		}
	}
	return strings.Join(parts, "; ")
}

func convergeText(w *output.Text, c *bootstrap.Convergence) {
	switch {
	case c.Phase == "":
		w.Line("%s: %s", w.Color.Bold("nothing to do"), bootstrap.ErrNotMember)
	case c.Phase != bootstrap.PhaseJoined && len(c.Repairs) > 0:
		w.Line("%s: %s was not finished; the join or leave that was begun must run again", w.Color.Yellow("repaired"), c.Phase)
	case c.Phase != bootstrap.PhaseJoined:
		w.Line("%s: %s was not finished; the join or leave that was begun must run again", w.Color.Yellow("ignored"), c.Phase)
	case c.Standalone:
		w.Line("%s: %s was %s", w.Color.Yellow("ignored"), board.NodeText(&c.Node), madeStandalone)
	case len(c.Differences) > 0:
		w.Line("%s: %s; its files do not change while Ant Media Server runs", w.Color.Yellow("not as it joined"), board.NodeText(&c.Node))
	case len(c.Repairs) == 0:
		w.Line("%s: %s is as it joined", w.Color.Green("nothing to do"), board.NodeText(&c.Node))
	default:
		w.Line("%s: %s", w.Color.Yellow("repaired"), board.NodeText(&c.Node))
	}
	for _, f := range slices.Concat(c.Repairs, c.Warnings) {
		w.Line("  %s %s", w.Color.Yellow(f.ID+":"), output.Printable(f.Text))
	}
	for _, d := range c.Differences {
		w.Line("  %s %s", w.Color.Yellow(bootstrap.IDDrift+":"), output.Printable(d.String()))
	}
	if c.RestartNeeded {
		w.Line("Ant Media Server runs with other settings until it is restarted: %s", bootstrap.RestartHint)
	}
}
