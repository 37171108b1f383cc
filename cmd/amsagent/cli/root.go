// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

// Main runs one command line and returns its exit code. It is the only place that turns an error into a code.
func Main(args []string, env Env) int {
	g := newGlobals(env)
	// First, so that an error in the arguments has the form that they ask for.
	g.out.SetForm(formAsked(args, g.env.getenv), "auto", slog.LevelInfo)

	ctx, stop := interruptible(context.Background(), g)
	defer stop()
	g.ctx = ctx

	root := newRootCommand(g)
	root.SetArgs(append([]string{}, args...)) // never nil: cobra would take the process's own
	cmd, err := root.ExecuteContextC(ctx)
	g.readsOnly.Store(onlyReads(cmd)) // with wrong flags nothing is loaded
	if err == nil {
		err = g.helpErr
	}
	var quiet *quietError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &quiet):
		return quiet.code
	}
	return report(ctx, g, err)
}

// formAsked finds -o in arguments that may be wrong.
func formAsked(args []string, getenv func(string) string) string {
	form := getenv(settings.EnvPrefix + "OUTPUT")
	for i, arg := range args {
		name, text, given := strings.Cut(arg, "=")
		switch {
		case arg == "--":
			return form
		case given && (name == "-o" || name == "--output"):
			form = text
		case (name == "-o" || name == "--output") && i+1 < len(args):
			form = args[i+1]
		case strings.HasPrefix(arg, "-o") && arg != "-o":
			form = strings.TrimPrefix(arg, "-o")
		}
	}
	return form
}

// newRootCommand puts the commands together.
func newRootCommand(g *globals) *cobra.Command {
	var version bool
	root := &cobra.Command{
		Use:   "amsagent COMMAND",
		Short: "make a machine join, serve in and leave an Ant Media Server cluster",
		Long: "Amsagent makes a machine that runs Ant Media Server join its cluster on boot. It\n" +
			"reports the machine's health, and drains the machine before it leaves, so no\n" +
			"stream is cut. The only other service that it needs is the cluster's MongoDB.",
		Example: "  # the whole of a machine's user-data\n" +
			"  amsagent join --mongo 10.0.2.4",
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		Args:                  noArgs,
		// Commands, not settings or flags, are suggested.
		SuggestionsMinimumDistance: 2,
		PersistentPreRunE:          func(cmd *cobra.Command, _ []string) error { return g.load(cmd) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				return runVersion(g)
			}
			// For a script that lost its verb, this must not be a success.
			if _, err := g.env.Stderr.Write([]byte(helpText(cmd))); err != nil {
				return &output.Error{Err: err}
			}
			return usageError([]string{"start with: amsagent join --mongo ADDRESS"}, "no command given")
		},
	}
	exits(root, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitNotMember, exitDegraded, exitInterrupted)
	noSettings(root)
	root.SetOut(g.out)
	root.SetErr(g.env.Stderr)
	root.SetIn(g.env.Stdin)
	root.AddGroup(&cobra.Group{ID: groupEveryday, Title: "Everyday"}, &cobra.Group{ID: groupAdvanced, Title: "Advanced"})
	addCommands(root, groupEveryday, newJoinCommand(g), newLeaveCommand(g), newStatusCommand(g), newDoctorCommand(g), newNodesCommand(g),
		newEventsCommand(g), newDrainCommand(g), newUndrainCommand(g), newMetadataCommand(g))
	addCommands(root, groupAdvanced, newSealCommand(g), newBalanceCommand(g), newWebCommand(g), newRunCommand(g), newEventCommand(g), newConvergeCommand(g),
		newDeregisterCommand(g), newConfigCommand(g), newSupportCommand(g), newVersionCommand(g))
	addCobraCommands(root)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { g.helpErr = g.out.Print([]byte(helpText(cmd))) })
	root.SetFlagErrorFunc(flagError)

	root.Flags().BoolVar(&version, "version", false, "print the version and stop")
	for _, row := range settings.Table() {
		if row.Global {
			addSettingFlag(g, root, root.PersistentFlags(), row)
		}
	}
	return root
}

// Commands is the command line for man pages, which cobra makes: each description is Markdown, and ends with the exit status.
func Commands() *cobra.Command {
	root := newRootCommand(newGlobals(Env{}))
	root.DisableAutoGenTag = true
	var describe func(*cobra.Command)
	describe = func(cmd *cobra.Command) {
		cmd.Long = markdown(cmp.Or(cmd.Long, cmd.Short)) + "\n# EXIT STATUS\n" + markdown(exitStatus(cmd))
		for _, c := range cmd.Commands() {
			describe(c)
		}
	}
	describe(root)
	return root
}
