// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

type sealOptions struct {
	dryRun, yes  bool
	keep, remove []string
}

func newSealCommand(g *globals) *cobra.Command {
	var opts sealOptions
	cmd := &cobra.Command{
		Use:   "seal [flags]",
		Short: "make this disk ready to be cloned: the last step of an image",
		Long: "Removes what identifies this machine or was made for it alone, so that each\n" +
			"clone makes its own. The items, in the order of removal:\n\n" +
			"  identity    ids of the server, and the marks of its first start\n" +
			"  markers     by which an application concludes that it crashed\n" +
			"  databases   the server's own databases: users and streams\n" +
			"  jwt         server.jwtServerSecretKey, the key to the server's REST API\n" +
			"  name        server.name, if it is this machine's name or address\n" +
			"  mongo       user and password of MongoDB that a switch of mode left\n" +
			"  hosts       the line with this machine's name in /etc/hosts\n" +
			"  logs        logs of the server and of the vendor's scripts\n" +
			"  tls         certificates and private keys; stay unless --remove tls\n" +
			"  licence     server.licence_key; stays unless --remove licence\n" +
			"  machine-id  /etc/machine-id is made empty; systemd makes a new one\n" +
			"  agent       the agent's state, and what a leave kept (*.amsagent-saved)\n\n" +
			"Without --yes it only lists them.\n\n" +
			"Ant Media Server must be stopped: users and streams of this machine are in its\n" +
			"databases, and they are removed. A node of a cluster is refused: leave first.\n" +
			"It may run again after any outcome; the second run finds nothing.\n\n" +
			"SSH's keys and cloud-init's state are not removed: `cloud-init clean` and the\n" +
			"tools that make images do that.",
		Example: "  amsagent seal\n" +
			"  systemctl stop antmedia && amsagent seal --yes\n" +
			"  amsagent seal --yes --keep logs,jwt --remove tls\n" +
			"  amsagent seal --yes --root /mnt/image",
		RunE: func(cmd *cobra.Command, _ []string) error { return runSeal(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitInterrupted)
	annotate(cmd, annotationGoodConfig, "true")
	fs := cmd.Flags()
	fs.BoolVar(&opts.dryRun, "dry-run", false, "list what would be removed, touch nothing and exit 0")
	fs.BoolVar(&opts.yes, "yes", false, "remove it; without --yes the list is shown, nothing is touched, and the exit code is 2")
	fs.StringSliceVar(&opts.keep, "keep", nil, "`ITEM`s that stay in the image (may be repeated)")
	fs.StringSliceVar(&opts.remove, "remove", nil, "`ITEM`s that usually stay and must be removed: tls, licence")
	completes(cmd, "keep", func() []string { return wordsOf(bootstrap.SealItems()) })
	completes(cmd, "remove", func() []string {
		return wordsOf([]bootstrap.SealItem{bootstrap.SealTLS, bootstrap.SealLicence})
	})
	g.addSettings(cmd, settings.KeyAMSDir, settings.KeyAMSRelease, settings.KeyService, settings.KeyServiceCommand, settings.KeyTimeout)
	return cmd
}

func runSeal(ctx context.Context, opts sealOptions, g *globals) error {
	if err := mustBeRoot(g, "seal"); err != nil {
		return err
	}
	req := bootstrap.SealRequest{DryRun: opts.dryRun || !opts.yes}
	for _, list := range []struct {
		flag  string
		words []string
		into  *[]bootstrap.SealItem
	}{{"--keep", opts.keep, &req.Keep}, {"--remove", opts.remove, &req.Remove}} {
		for _, word := range list.words {
			item := bootstrap.SealItem(strings.TrimSpace(word))
			if !slices.Contains(bootstrap.SealItems(), item) {
				return usageError([]string{"amsagent seal --help lists the items"}, "%s: %q is no item", list.flag, word)
			}
			*list.into = append(*list.into, item)
		}
	}
	ctx, cancel := g.timed(ctx)
	defer cancel()
	m, err := g.bootstrapMachine(false)
	if err != nil {
		return err
	}
	handleDaemon(m, false)
	res, err := m.Seal(ctx, req)
	g.findings(res.Warnings)
	if err = cannot("seal", err); err != nil {
		// Removed items do not come back if a later one fails.
		for _, f := range res.Found {
			if f.Err != "" {
				g.out.Progress(fmt.Sprintf("%s: %s: %s", f.Path, f.What, f.Err))
			}
		}
		return err
	}
	if err := g.result("seal", res, func(w *output.Text) { sealText(w, res) }); err != nil {
		return err
	}
	if res.Outcome == bootstrap.OutcomePlanned && !opts.dryRun {
		// Not 0: a recipe without --yes would make unsealed images.
		return &userError{
			Msg: "sealing needs --yes: what it removes does not come back", ID: idUsage, Exit: exitUsage, State: stateUntouched,
			Hints: []string{"read the list, then: amsagent seal --yes"},
		}
	}
	return nil
}

func sealText(w *output.Text, res *bootstrap.SealResult) {
	kept := 0
	for _, f := range res.Found {
		if f.Kept {
			kept++
		}
	}
	gone := len(res.Found) - kept
	switch {
	case res.Outcome == bootstrap.OutcomePlanned:
		w.Line("%s; nothing was touched", w.Color.Bold("sealing would remove "+output.Count(gone, "thing")))
	case res.Outcome == bootstrap.OutcomeSealed:
		w.Line("%s: %s removed; make the image before Ant Media Server is started again", w.Color.Green("sealed"), output.Count(gone, "thing"))
	case kept > 0:
		w.Line("%s: what names this machine is gone, but for what is kept", w.Color.Green("nothing to do"))
	default:
		w.Line("%s: nothing here names this machine", w.Color.Green("nothing to do"))
	}
	for _, f := range res.Found {
		w.Line("  %-11s %s: %s", f.Item, output.Printable(f.Path), output.OneLine(f.What))
	}
	if kept > 0 {
		w.Line("  (%s in the image; --remove takes them out)", output.Count(kept, "thing")+" left")
	}
}
