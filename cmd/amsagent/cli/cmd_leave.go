// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

type leaveOptions struct {
	now, dryRun, offline bool
}

func newLeaveCommand(g *globals) *cobra.Command {
	var opts leaveOptions
	cmd := &cobra.Command{
		Use:   "leave [flags]",
		Short: "take this machine out of the cluster and restore its files",
		Long: "A file that did not change since the join is restored byte for byte. In a file\n" +
			"that changed, for example because the server saved its settings at a start,\n" +
			"the keys that join had set are restored and the rest is kept; a key that was\n" +
			"edited gets its standalone value. The result lists these files. Ant Media\n" +
			"Server is restarted standalone, its document is removed from the cluster's\n" +
			"list, and this node's record is set to left.\n\n" +
			"First /readyz turns 503, so that no new sessions come. Then the daemon is\n" +
			"stopped and disabled: it would register the node again.\n\n" +
			"It also makes a node standalone that the vendor's script switched. If MongoDB\n" +
			"is away, the machine still leaves; run leave again when it is back.",
		Example: "  amsagent leave\n" +
			"  amsagent leave --dry-run\n" +
			"  amsagent leave --now --timeout 2m",
		RunE: func(cmd *cobra.Command, _ []string) error { return runLeave(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitInterrupted)
	fs := cmd.Flags()
	fs.BoolVar(&opts.now, "now", false, "leave although streams or viewers are on this node: they are cut")
	fs.BoolVar(&opts.dryRun, "dry-run", false, "print the plan with its diffs and touch nothing")
	fs.BoolVar(&opts.offline, "offline", false, "restore the files and touch nothing else: no MongoDB, no service, no cloud")
	g.addSettings(cmd, machineSettings()...)
	unlisted(cmd, settings.KeyAMSRelease, settings.KeyProvider)
	return cmd
}

func runLeave(ctx context.Context, opts leaveOptions, g *globals) error {
	if !opts.dryRun {
		if err := mustBeRoot(g, "leave"); err != nil {
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
	m.Hold, m.Sessions = holdReadiness(g, "leave"), g.daemon().Sessions
	req := bootstrap.LeaveRequest{Now: opts.now, Offline: opts.offline, DryRun: opts.dryRun, Address: g.settings.Address}
	if !opts.offline {
		req.Identify = g.whoami
		src, err := g.mongoOrTag(ctx)
		if err != nil && !errors.Is(err, errNoMongo) {
			return cannot("leave", err)
		}
		req.Mongo = src.Target
	}
	res, err := m.Leave(ctx, req)
	if res == nil {
		res = &bootstrap.LeaveResult{}
	}
	err = g.conclude("leave", opts.dryRun, res.Outcome, res.Warnings, err)
	if err != nil && res.Outcome != bootstrap.OutcomePlanned {
		return err
	}
	// A dry run shows its plan also if the leave would be refused.
	res.Refused = err != nil
	rerr := g.result("leave", res, func(w *output.Text) { leaveText(w, res, opts.dryRun, m.Service.Name()) })
	return cmp.Or(rerr, err)
}

// restoredText describes how the files were restored.
func restoredText(res *bootstrap.LeaveResult) string {
	files := map[bootstrap.Restored][]string{}
	for _, f := range res.Files {
		if f.Changed {
			files[f.Restored] = append(files[f.Restored], output.Printable(f.Path))
		}
	}
	var parts []string
	if n := bootstrap.CountChanged(res.Files) - len(files[bootstrap.RestoredKeys]) - len(files[bootstrap.RestoredStandalone]); n > 0 {
		how := "restored"
		if res.Exact {
			how += " byte for byte"
		}
		parts = append(parts, fmt.Sprintf("%s %s as join found them", output.Count(n, "file"), how))
	}
	for _, other := range []struct {
		how  bootstrap.Restored
		text string
	}{
		{bootstrap.RestoredKeys, "saved since the join, by the server or by an operator: the keys that join had set were restored, the rest is kept"},
		{bootstrap.RestoredStandalone, "made standalone"},
	} {
		if paths := files[other.how]; len(paths) > 0 {
			parts = append(parts, fmt.Sprintf("%s %s: %s", output.Count(len(paths), "file"), other.text, strings.Join(paths, ", ")))
		}
	}
	return strings.Join(parts, "; ")
}

func leaveText(w *output.Text, res *bootstrap.LeaveResult, dryRun bool, service string) {
	switch res.Outcome {
	case bootstrap.OutcomeUnchanged:
		w.Line("%s: %s", w.Color.Green("nothing to do"), bootstrap.ErrNotMember)
		w.Fields("daemon", daemonText(res.Daemon, dryRun))
		return
	case bootstrap.OutcomePlanned:
		planLine(w, "leave", "restore", res.Files, res.RestartNeeded, res.Refused, service)
		w.Fields("daemon", daemonText(res.Daemon, dryRun), "sessions", liveText(res.Live))
		writeFiles(w, res.Files)
		return
	case bootstrap.OutcomeLeft, bootstrap.OutcomeJoined, bootstrap.OutcomeEdited:
	}
	w.Line("%s: this machine is standalone", w.Color.Green("left"))
	removed, server := "", ""
	if len(res.Deregistered) > 0 {
		removed = fmt.Sprintf("%s of Ant Media Server removed from the cluster's list", output.Count(len(res.Deregistered), "document"))
	}
	if res.Stopped {
		server = "Ant Media Server does not run; start it: " + ams.StartCommand(service)
	}
	w.Fields("files", restoredText(res), "cluster", removed, "server", server, "daemon", daemonText(res.Daemon, dryRun))
}
