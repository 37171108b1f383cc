// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

type eventsOptions struct {
	since time.Duration
	limit int
}

// mostEvents bounds --limit: a history is read into memory.
const mostEvents = 10_000

func newEventsCommand(g *globals) *cobra.Command {
	var opts eventsOptions
	cmd := &cobra.Command{
		Use:   "events [NODE] [flags]",
		Short: "show the history of the cluster: joins, drains, leaves",
		Long: "The registry keeps for 90 days what happened to which node, by which command\n" +
			"or event, and why. NODE is an id, an address or a host name. Times are those\n" +
			"of MongoDB's server, in UTC; the latest is last.\n\n" +
			"It needs MongoDB only: no root, no AMS, no node.",
		Example: "  amsagent events\n" +
			"  amsagent events 10.0.1.5 --since 24h\n" +
			"  amsagent events i-0123456789abcdef0 -n 10 -o json",
		Args: oneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runEvents(cmd.Context(), opts, args, g)
		},
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitInterrupted)
	readsOnly(cmd)
	fs := cmd.Flags()
	fs.DurationVar(&opts.since, "since", 0, "only what happened in the last `DURATION`, such as 24h (default: all that is kept, 90 days)")
	fs.IntVarP(&opts.limit, "limit", "n", 50, "at most `N`, the latest")
	g.addSettings(cmd, settings.KeyMongo)
	return cmd
}

func oneNode(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError(nil, "%s takes one node: %q is another one", cmd.CommandPath(), args[1])
	}
	return nil
}

func runEvents(ctx context.Context, opts eventsOptions, args []string, g *globals) error {
	switch {
	case opts.since < 0:
		return usageError(nil, "--since: %s is in the future", settings.ShortDuration(opts.since))
	case opts.limit < 1 || opts.limit > mostEvents:
		return usageError(nil, "--limit: %d is outside 1 to %d", opts.limit, mostEvents)
	}
	return g.inCluster(ctx, "amsagent events", g.out.Log(), func(c *cluster.Client) error { return events(ctx, opts, args, g, c) })
}

func events(ctx context.Context, opts eventsOptions, args []string, g *globals, c *cluster.Client) error {
	q := cluster.EventQuery{Limit: opts.limit}
	if opts.since > 0 {
		now, err := c.ServerTime(ctx)
		if err != nil {
			return cannot("read the history", err)
		}
		q.Since = now.Add(-opts.since)
	}
	var rows []cluster.Node
	var err error
	if len(args) > 0 || !g.out.IsJSON() { // JSON has ids alone
		if rows, err = c.Nodes(ctx); err != nil {
			return cannot("read the history", err)
		}
	}
	if len(args) > 0 {
		q.Nodes = nodesNamed(rows, args[0])
	}
	data := board.Events{Nodes: q.Nodes}
	if data.Events, err = c.Events(ctx, q); err != nil {
		return cannot("read the history", err)
	}
	return g.result("events", data, func(w *output.Text) { board.WriteEvents(w, data, rows) })
}

// nodesNamed returns the ids of nodes by id, address or host name. A removed node's id may still have events.
func nodesNamed(rows []cluster.Node, name string) []string {
	ids := []string{name}
	for _, n := range rows {
		if n.ID != name && (n.IP != "" && cluster.SameAddress(n.IP, name) || n.Hostname != "" && n.Hostname == name) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}
