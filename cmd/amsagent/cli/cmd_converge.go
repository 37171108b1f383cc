// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/metadata"
)

func newConvergeCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "converge [flags]",
		Short: "bring the files of a machine that joined back to what it joined as",
		Long: "For the start of the machine, before Ant Media Server starts: systemd runs it as\n" +
			"amsagent-node.service. It mends the files of a node that has another address now,\n" +
			"whose disk is a copy of another node's, or whose files an upgrade restored. It asks\n" +
			"MongoDB nothing, and starts and stops nothing. A machine that never joined is left\n" +
			"alone.",
		Example:               "  amsagent converge",
		GroupID:               groupAdvanced,
		Args:                  noArgs,
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return runConverge(cmd.Context(), g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitInterrupted)
	g.addSettings(cmd, machineSettings()...)
	return cmd
}

func runConverge(ctx context.Context, g *globals) error {
	m, err := g.bootstrapMachine(false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, g.settings.Timeout)
	defer cancel()
	req := bootstrap.ConvergeRequest{
		Valve: bootstrap.Valve(g.settings.RemoteIPValve), Interval: g.settings.BeatInterval,
		Identify: func(ctx context.Context) (metadata.Instance, error) {
			i, err := g.instance(ctx)
			return i.Instance, err
		},
	}
	src, err := g.mongo()
	if err != nil && !errors.Is(err, errNoMongo) {
		return &userError{Msg: "cannot converge", Cause: err}
	}
	req.Mongo, req.Role, req.Group, req.Address = src.Target, g.settings.Role, g.settings.Group, g.explicitAddress()
	c, err := m.Converge(ctx, req)
	if err != nil {
		return g.failure("converge", err)
	}
	return g.result("converge", c, func(w *textWriter) { convergeText(w, c) })
}

func convergeText(w *textWriter, c *bootstrap.Convergence) {
	switch {
	case c.Phase == "":
		w.line("%s: this machine never joined", w.color.bold("nothing to do"))
	case c.Phase != bootstrap.PhaseJoined:
		w.line("%s: a %s was begun and not finished; run the same command again", w.color.yellow("left alone"), phaseVerb(c.Phase))
	case len(c.Repairs) == 0:
		w.line("%s: %s is as it joined", w.color.green("nothing to do"), printable(c.Node.ID))
	default:
		w.line("%s: %s", w.color.yellow("repaired"), printable(c.Node.ID))
	}
	for _, f := range c.Repairs {
		w.line("  %s %s", w.color.yellow(f.ID+":"), printable(f.Text))
	}
	for _, f := range c.Warnings {
		w.line("  %s %s", w.color.yellow(f.ID+":"), printable(f.Text))
	}
	if c.RestartNeeded {
		w.line("Ant Media Server runs with what the files said before; the daemon restarts it when nobody is on it")
	}
}

func phaseVerb(p bootstrap.Phase) string {
	if p == bootstrap.PhaseLeaving {
		return "leave"
	}
	return "join"
}
