// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/sleep"
)

type nodesOptions struct {
	board.Query
	watch    bool
	interval time.Duration
}

func newNodesCommand(g *globals) *cobra.Command {
	var opts nodesOptions
	cmd := &cobra.Command{
		Use:                        "nodes [flags]",
		SuggestionsMinimumDistance: 2, // for prune
		Short:                      "show each node of the cluster: its state, health, load, sessions",
		Long: "Health combines two signals of a node: the heartbeats that its agent writes\n" +
			"into the registry, and the list that Ant Media Servers (AMS) write themselves.\n\n" +
			"  healthy      both signals are fresh\n" +
			"  not-serving  both are fresh, the node is active, and its agent sees an\n" +
			"               application that viewers cannot use: node.serving in -o json\n" +
			"  ams-stale    the agent is fresh, AMS is silent for more than 20 s\n" +
			"  agent-stale  AMS is fresh, the agent is silent for two heartbeats and 1 s\n" +
			"  no-agent     AMS is fresh, and has no agent\n" +
			"  gone         both are silent, AMS for at least 11 s\n" +
			"  unknown      all nodes are silent: MongoDB may have been away\n" +
			"  left         the node left by itself, and is expected to be silent\n\n" +
			"If the rows do not fit the terminal of --watch, nodes that need attention come\n" +
			"first.\n\n" +
			"Health is independent of the state (joining, active, draining, left, failed),\n" +
			"which the node itself wrote last.\n\n" +
			"SCORE is how near a node is to refusing streams, in percent: the highest of\n" +
			"CPU and memory against the limits in its settings, and of each GPU. If a\n" +
			"control group limits the server's memory or CPU, that figure and SCORE are\n" +
			"unknown. A balancer may use 100 - SCORE as its weight.\n\n" +
			"- is not known, never zero. ~ is an estimate: an age by an unchecked clock, or\n" +
			"viewers counted by their connections.\n\n" +
			"It needs MongoDB only: no root, no AMS, no node.",
		Example: "  amsagent nodes\n" +
			"  amsagent nodes --watch --role origin --sort -cpu\n" +
			"  amsagent nodes --mongo 10.0.2.4 --state active,draining -o json",
		RunE: func(cmd *cobra.Command, _ []string) error { return runNodes(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitInterrupted)
	readsOnly(cmd)
	fs := cmd.Flags()
	fs.StringSliceVar(&opts.Roles, "role", nil, "only nodes of these `ROLES`: a comma list, or several times")
	fs.StringSliceVar(&opts.Groups, "group", nil, "only nodes of these scaling `GROUPS`")
	fs.StringSliceVar(&opts.States, "state", nil, "only nodes in these `STATES` (joining, active, draining, left, failed)")
	fs.StringVar(&opts.Sort, "sort", "address", "order by `KEY` ("+strings.Join(board.SortKeys(), ", ")+"); -KEY reverses the order; unknown values come last (default address)")
	fs.Lookup("sort").DefValue = "" // pflag would print it in quotes
	fs.BoolVar(&opts.All, "all", false, "show nodes that have left, too")
	fs.BoolVar(&opts.watch, "watch", false, "repeat: print again on a terminal, elsewhere print a line for each change")
	fs.DurationVar(&opts.interval, "interval", 0, "with --watch: `DURATION` from one look to the next (default: half of the shortest heartbeat interval, 500ms to 1s)")
	completes(cmd, "state", states)
	completes(cmd, "sort", board.SortKeys)
	g.addSettings(cmd, settings.KeyMongo)
	cmd.AddGroup(&cobra.Group{ID: groupEveryday, Title: "Commands"})
	addCommands(cmd, groupEveryday, newNodesPruneCommand(g))
	return cmd
}

func (o *nodesOptions) check() error {
	for _, s := range o.States {
		if !cluster.State(s).Valid() {
			return usageError(nil, "--state: %q is not one of %s", s, strings.Join(states(), ", "))
		}
	}
	if key := strings.TrimPrefix(o.Sort, "-"); !slices.Contains(board.SortKeys(), key) {
		return usageError([]string{"for another order sort the members of -o json"}, "--sort: %q is not one of %s", o.Sort, strings.Join(board.SortKeys(), ", "))
	}
	const least, most = 100 * time.Millisecond, time.Hour
	if o.interval != 0 && (o.interval < least || o.interval > most) {
		return usageError(nil, "--interval: %s is outside %s to %s", o.interval, settings.ShortDuration(least), settings.ShortDuration(most))
	}
	if o.interval != 0 && !o.watch {
		return usageError([]string{"add --watch"}, "--interval is for --watch")
	}
	return nil
}

func runNodes(ctx context.Context, opts nodesOptions, g *globals) error {
	if err := opts.check(); err != nil {
		return err
	}
	do := showNodes
	if opts.watch {
		do = watchNodes
	}
	log := slog.New(slog.DiscardHandler) // the result has failures and bad records
	return g.inCluster(ctx, "amsagent nodes", log, func(c *cluster.Client) error { return do(ctx, opts, g, c) })
}

func showNodes(ctx context.Context, opts nodesOptions, g *globals, c *cluster.Client) error {
	l, err := c.Look(ctx)
	if err != nil {
		return cannot("look at the cluster", err)
	}
	var o cluster.Observer
	data := board.New(opts.Query, l, o.Observe(l))
	return g.result("nodes", data, func(w *output.Text) { board.WriteNodes(w, data, tableStyleOf(g)) })
}

// inCluster is for commands that need the cluster's MongoDB and nothing of this machine.
func (g *globals) inCluster(ctx context.Context, app string, log *slog.Logger, do func(*cluster.Client) error) error {
	const verb = "look at the cluster"
	src, err := g.mongoOrTag(ctx)
	if err != nil {
		return cannot(verb, err)
	}
	c, err := cluster.Connect(ctx, src.Target, cluster.Options{AppName: app, Timeout: mongoTimeout, Log: log})
	if err != nil {
		return cannot(verb, err)
	}
	defer func() { _ = c.Close(ctx) }()
	return do(c)
}

// tableStyleOf is what stdout can show.
func tableStyleOf(g *globals) board.Style {
	t := board.Style{Color: g.out.Palette(g.env.Stdout)}
	if g.env.IsTerminal(g.env.Stdout) {
		t.Width, t.Height = g.env.Size(g.env.Stdout)
	}
	return t
}

// Bounds of the poll of --watch without --interval.
const (
	pollLeast = 500 * time.Millisecond
	pollMost  = time.Second
)

// watcher is one `nodes --watch`.
type watcher struct {
	opts nodesOptions
	g    *globals
	o    cluster.Observer
	// terminal prints the table again with each look; elsewhere each change is a line.
	terminal bool

	data   board.Nodes
	seen   time.Time     // when data was read; zero before that
	every  time.Duration // between two looks
	failed error         // of the last look
	known  map[string]board.Node
}

func watchNodes(ctx context.Context, opts nodesOptions, g *globals, c *cluster.Client) error {
	w := &watcher{opts: opts, g: g, terminal: g.env.IsTerminal(g.env.Stdout) && !g.out.IsJSON()}
	g.signals.expect()
	for {
		look, cancel := context.WithTimeout(ctx, mongoTimeout)
		l, err := c.Look(look)
		cancel()
		if ctx.Err() != nil {
			return &quietError{exitInterrupted} // a signal is the usual end
		}
		if err := w.take(l, err); err != nil {
			return err
		}
		sleep.For(ctx, w.every)
	}
}

// take shows what a look found, or that it failed.
func (w *watcher) take(l cluster.Look, failed error) error {
	before := w.failed
	w.failed = failed
	switch {
	case failed != nil && w.seen.IsZero():
		return cannot("look at the cluster", failed)
	case failed != nil:
		w.o.Failed()
		if !w.terminal && (before == nil || cluster.KindOf(before) != cluster.KindOf(failed)) {
			w.g.out.Log().Warn("MongoDB is away", "last_look", output.Ago(time.Now(), w.seen), "error", failed)
		}
	default:
		if before != nil && !w.terminal {
			w.g.out.Log().Info("MongoDB is back", "after", output.Rounded(time.Since(w.seen)))
		}
		w.data, w.seen = board.New(w.opts.Query, l, w.o.Observe(l)), l.At
		w.every = cmp.Or(w.opts.interval, pollFor(w.data.Members))
	}
	switch {
	case w.terminal:
		return w.show()
	case failed == nil:
		return w.changes()
	}
	return nil
}

// pollFor looks twice as often as the fastest agent beats.
func pollFor(members []board.Node) time.Duration {
	poll := pollMost
	for _, v := range members {
		if v.Node != nil && v.Agent.Fresh && v.Node.Interval > 0 {
			poll = min(poll, time.Duration(v.Node.Interval)/2)
		}
	}
	return max(poll, pollLeast)
}

// show prints the table on an empty terminal.
func (w *watcher) show() error {
	t := tableStyleOf(w.g)
	text := &output.Text{Color: t.Color, Now: w.g.env.Now()}
	if w.failed == nil {
		text.Line("%s", t.Color.Dim(fmt.Sprintf("%s, every %s; Ctrl-C ends", w.g.env.Now().Format(time.TimeOnly+" MST"), output.Rounded(w.every))))
	} else {
		what := "MongoDB is away"
		var ce *cluster.Error
		if errors.As(w.failed, &ce) {
			what = ce.Summary()
		}
		text.Line("%s", t.Color.Red(output.Printable(what)+"; this is from "+output.Roughly(time.Since(w.seen))+" ago"))
	}
	// Six lines are no rows: the time, the summary, a blank one, the header, the count of what is cut, the cursor's.
	if t.Height > 0 && len(w.data.Members) > t.Height-6 {
		slices.SortStableFunc(w.data.Members, func(a, b board.Node) int { return cmp.Compare(a.Rank(), b.Rank()) })
	}
	board.WriteNodes(text, w.data, t)
	lines := strings.Split(strings.TrimRight(w.g.out.Redact(text.String()), "\n"), "\n")
	if room := t.Height - 1; room > 1 && len(lines) > room {
		lines = append(lines[:room-1], t.Color.Dim(fmt.Sprintf("... %d more lines", len(lines)-room+1)))
	}
	return w.g.out.Redraw(strings.Join(lines, "\n") + "\n")
}

// nodeChange is one line of --watch with -o json.
type nodeChange struct {
	SchemaVersion int       `json:"schema_version"`
	Kind          string    `json:"kind"`
	At            time.Time `json:"at"`
	// Change is "first" for what the first look finds, then "new", "changed" or "removed".
	Change string `json:"change"`
	// Health and State before; only with "changed".
	HealthBefore cluster.Health `json:"health_before,omitempty"`
	StateBefore  cluster.State  `json:"state_before,omitempty"`
	Node         board.Node     `json:"member"`
}

// changes prints one line for each node whose health or state changed; the first time for all.
func (w *watcher) changes() error {
	first := w.known == nil
	if first && !w.g.out.IsJSON() {
		if err := w.print(board.Headline(w.data, output.Palette{})); err != nil {
			return err
		}
	}
	known := make(map[string]board.Node, len(w.data.Members))
	for _, v := range w.data.Members {
		key := v.ID() + " " + v.Address()
		known[key] = v
		before, was := w.known[key]
		change := ""
		switch {
		case first:
			change = "first"
		case !was:
			change = "new"
		case before.Health != v.Health || before.State() != v.State():
			change = "changed"
		default:
			continue
		}
		if err := w.printChange(change, before, v); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(w.known)) {
		if _, still := known[key]; !still {
			if err := w.printChange("removed", w.known[key], w.known[key]); err != nil {
				return err
			}
		}
	}
	w.known = known
	return nil
}

func (w *watcher) printChange(change string, before, v board.Node) error {
	if w.g.out.IsJSON() {
		c := nodeChange{SchemaVersion: output.SchemaVersion, Kind: "node", At: w.g.env.Now(), Change: change, Node: v}
		if change == "changed" {
			c.HealthBefore, c.StateBefore = before.Health, before.State()
		}
		b, err := output.JSONLine(c)
		if err != nil {
			return fmt.Errorf("encoding the result: %w", err)
		}
		return w.g.out.Print(w.g.out.RedactJSON(b))
	}
	words := []string{board.NodeText(v.Node), output.Dash(v.Address())}
	state, health := output.Dash(string(v.State())), string(v.Health)
	switch change {
	case "changed":
		if before.State() != v.State() {
			words = append(words, output.Dash(string(before.State()))+" -> "+state)
		}
		if before.Health != v.Health {
			words = append(words, string(before.Health)+" -> "+health)
		}
	case "removed":
		words = append(words, health+" -> removed")
	case "new":
		words = append(words, state, health, "(new)")
	default:
		words = append(words, state, health)
	}
	if why := v.WhyNotServing(); why != "" {
		words = append(words, "("+why+")")
	}
	return w.print(output.Printable(strings.Join(words, " ")))
}

func (w *watcher) print(line string) error {
	return w.g.out.Print([]byte(w.g.out.Redact(w.g.env.Now().Format(time.TimeOnly)+" "+line) + "\n"))
}
