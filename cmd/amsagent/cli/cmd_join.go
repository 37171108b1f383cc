// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

type joinOptions struct {
	dryRun  bool
	offline bool
	now     bool
	replace bool
	force   bool
	tags    time.Duration
}

func newJoinCommand(g *globals) *cobra.Command {
	var opts joinOptions
	cmd := &cobra.Command{
		Use:   "join --mongo ADDRESS [flags]",
		Short: "make this machine a node of the cluster, and verify it",
		Long: "Makes every check before the first change, and lists all that fail. The files\n" +
			"change as one: all of them, or none. Ant Media Server is restarted only if\n" +
			"something changed, and not while streams or viewers are known to be on it,\n" +
			"unless --now is given. Success means that the server's own fresh document is\n" +
			"in clusterdb.clusternode under this machine's address, and that its\n" +
			"applications serve; otherwise all files are restored.\n\n" +
			"If the daemon is installed, it is started then and runs after every boot.\n\n" +
			"These settings, given here by flag or variable, are kept for the daemon and\n" +
			"for later commands:\n\n" +
			keptKeys() + "\n" +
			"A later join that does not name one of them keeps it; an empty value drops it,\n" +
			"as in --address \"\". `amsagent config` shows them as given to join.\n\n" +
			"A second run writes nothing and restarts nothing. The next run finishes one\n" +
			"that was killed. `amsagent leave` restores what join found.",
		Example: "  amsagent join --mongo 10.0.2.4\n" +
			"  amsagent join --mongo file:/run/secrets/mongo --role edge --group edges\n" +
			"  amsagent join --mongo 10.0.2.4 --dry-run",
		RunE: func(cmd *cobra.Command, _ []string) error { return runJoin(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitInterrupted)
	annotate(cmd, annotationGoodConfig, "true")
	fs := cmd.Flags()
	fs.BoolVar(&opts.dryRun, "dry-run", false, "print the plan with its diffs and touch nothing")
	fs.BoolVar(&opts.offline, "offline", false, "edit the files and touch nothing else: no MongoDB, no service, no cloud")
	fs.BoolVar(&opts.now, "now", false, "restart Ant Media Server although streams or viewers are on it: they are cut")
	fs.DurationVar(&opts.tags, "wait-for-tags", 0, "wait this `DURATION` for MongoDB and the role to be known: a scaling group tags a machine after its start; exit 4 if the time is over")
	fs.BoolVar(&opts.force, "force-address", false, "take the address although no interface of this machine has it, as behind NAT; it is kept with the address")
	fs.BoolVar(&opts.replace, "replace", false, "take over the registry's record of this machine's id although another machine uses it")
	g.addSettings(cmd, append(machineSettings(), settings.KeyRole, settings.KeyGroup, settings.KeyDrainDeadline, settings.KeyHooks, settings.KeyRemoteIPValve, settings.KeyOnFailure)...)
	annotate(cmd, annotationKeeps, "true")
	return cmd
}

func runJoin(ctx context.Context, opts joinOptions, g *globals) error {
	switch {
	case opts.tags < 0:
		return usageError(nil, "--wait-for-tags: %s is negative", opts.tags)
	case opts.tags > 0 && opts.offline:
		return usageError(nil, "--wait-for-tags asks the cloud, and --offline asks nothing")
	case opts.tags > 0:
		if err := waitForTags(ctx, g, opts.tags); err != nil {
			return err
		}
	}
	ctx, cancel := g.timed(ctx)
	defer cancel()
	m, err := g.bootstrapMachine(opts.offline)
	if err != nil {
		return err
	}
	handleDaemon(m, opts.offline)
	if m.Root == "" {
		m.Alone = func(ctx context.Context) bool { return isAlone(ctx, g.daemon()) }
	}
	m.Hold, m.Sessions = holdReadiness(g, "join"), g.daemon().Sessions
	if g.notOwn != nil {
		g.out.Log().Warn("the server's unit does not call this program before each start, as others than root may change it", "calls", cmp.Or(m.Program, "none"), "error", g.notOwn)
	}
	var src mongoSource
	var identify bootstrap.Identifier
	if opts.offline {
		src, err = g.mongo()
	} else {
		identify = m.AskNow(ctx, g.whoami) // first: the tags may have MongoDB's address
		src, err = g.mongoAfter(identify(ctx))
	}
	if err != nil {
		return cannot("join", err)
	}
	req := g.settings.JoinRequest()
	req.Mongo, req.Identify, req.Forget = src.Target, identify, g.settings.Sources.Dropped
	req.Now, req.Offline, req.DryRun, req.Replace = opts.now, opts.offline, opts.dryRun, opts.replace
	req.ForceAddress = req.ForceAddress || opts.force
	if !opts.offline {
		req.Given, req.Config = g.settings.ToKeep(opts.force), g.settings.GoodConfig()
	}

	res, err := m.Join(ctx, req)
	if res == nil {
		res = &bootstrap.JoinResult{}
	}
	if !opts.offline {
		seen := g.lastSeen()
		res.Notes = slices.Concat(seen.Notes, g.settings.Overruled(req.Given.Settings))
		if note := roleNote(res.Role, seen.Instance); note != "" {
			res.Notes = append(res.Notes, note)
		}
	}
	err = g.conclude("join", opts.dryRun, res.Outcome, res.Warnings, err)
	if err != nil && res.Outcome != bootstrap.OutcomePlanned {
		return err
	}
	// A dry run shows its plan also if the join would be refused.
	res.Refused = err != nil
	rerr := g.result("join", res, func(w *output.Text) { joinText(w, res, m.Service.Name(), src.Target) })
	return cmp.Or(rerr, err)
}

// planLine is the first line of a dry run.
func planLine(w *output.Text, command, do string, files []bootstrap.FileResult, restart, refused bool, service string) {
	n := bootstrap.CountChanged(files)
	plan := "has nothing to " + do
	switch {
	case restart:
		plan = fmt.Sprintf("would %s %s, with a restart of %s", do, output.Count(n, "file"), service)
	case n > 0:
		plan = fmt.Sprintf("would %s %s, with no restart", do, output.Count(n, "file"))
	}
	if refused {
		command += " is refused; else it"
	}
	w.Line("%s; nothing was touched", w.Color.Bold("a "+command+" "+plan))
}

// liveText names the sessions that would be cut; "" if none are known.
func liveText(l *bootstrap.Live) string {
	if l == nil {
		return ""
	}
	return fmt.Sprintf("%s and %s would be cut: without --now this is refused", output.Count(l.Publishers, "stream"), output.Count(l.Viewers, "viewer"))
}

func joinText(w *output.Text, res *bootstrap.JoinResult, service string, mongo cluster.Target) {
	n := bootstrap.CountChanged(res.Files)
	node := output.Printable(cmp.Or(res.Role, "node")) + " " + board.NodeText(&cluster.Node{ID: res.Instance.ID, Hostname: res.Instance.Hostname})
	isIn := func(word string) string {
		return fmt.Sprintf("%s: %s is in the cluster as %s", w.Color.Green(word), node, res.Address.Addr)
	}
	switch res.Outcome {
	case bootstrap.OutcomePlanned:
		planLine(w, "join", "write", res.Files, res.RestartNeeded, res.Refused, service)
	case bootstrap.OutcomeEdited:
		w.Line("%s; nothing else was touched", w.Color.Green(output.Count(n, "file")+" edited"))
	case bootstrap.OutcomeUnchanged:
		if res.Evidence == nil {
			w.Line("%s", w.Color.Green("nothing to do: the files are those of a cluster node already"))
			break
		}
		w.Line("%s", isIn("nothing to do"))
	case bootstrap.OutcomeUpdated:
		w.Line("%s; %s", isIn("updated"), output.Printable(strings.Join(res.Changes, ", ")))
	case bootstrap.OutcomeJoined, bootstrap.OutcomeLeft:
		w.Line("%s", isIn("joined"))
	}
	evidence, address := "", ""
	if ev := res.Evidence; ev != nil {
		evidence = fmt.Sprintf("Ant Media Server's own document %s, written %s", ev.ID, output.Ago(ev.Seen, ev.Updated))
		if ev.After > 0 {
			evidence += fmt.Sprintf(", seen %s after its start", output.Rounded(ev.After))
		}
	}
	if res.Address.Addr.IsValid() {
		address = res.Address.Addr.String() + ", " + res.Address.Reason
	}
	w.Fields(
		"evidence", evidence,
		"address", address,
		"group", res.Group,
		"server", "Ant Media Server "+res.Release,
		"mongodb", mongo.Redacted(),
		"daemon", daemonText(res.Daemon, res.Outcome == bootstrap.OutcomePlanned),
		"sessions", liveText(res.Live),
		"next", map[bootstrap.Outcome]string{
			bootstrap.OutcomeJoined: afterJoin(res.Warnings),
			bootstrap.OutcomeEdited: "the server joins when it starts; amsagent status shows that",
		}[res.Outcome],
	)
	for _, note := range res.Notes {
		w.Line("note: %s", output.OneLine(note))
	}
	if res.Outcome == bootstrap.OutcomePlanned {
		writeFiles(w, res.Files)
		return
	}
	var rows [][]string
	for _, f := range res.Files {
		if f.Changed {
			rows = append(rows, []string{"wrote", f.Path})
		}
	}
	w.Table(rows)
}

// afterJoin mentions a drain only if an agent runs.
func afterJoin(warnings []bootstrap.Finding) string {
	next := "amsagent nodes lists the cluster"
	if slices.ContainsFunc(warnings, func(f bootstrap.Finding) bool { return f.ID == bootstrap.IDDaemon }) {
		return next
	}
	return next + "; amsagent drain takes this node out of it without cutting a stream"
}

// daemonText is what a join or a leave does to the daemon; "" for nothing.
func daemonText(o bootstrap.DaemonOutcome, dryRun bool) string {
	text := map[bootstrap.DaemonOutcome]string{
		bootstrap.DaemonEnabled:  "started, and enabled for every boot",
		bootstrap.DaemonDisabled: "stopped, and disabled",
	}[o]
	if text != "" && dryRun {
		return "would be " + text
	}
	return text
}

// isAlone reports whether no daemon runs on this machine.
func isAlone(ctx context.Context, c *daemon.Client) bool {
	c.Patience = 0
	_, err := c.Status(ctx)
	return errors.Is(err, daemon.ErrDown)
}
