// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/redact"
)

// Main runs one command line and returns its exit code. It is the only place that turns an error into a code.
func Main(args []string, env Env) int {
	g := newGlobals(env)
	// Asked before anything is parsed, so that an error in the arguments also comes in the form asked for.
	g.setForm(formAsked(args, g.env.getenv), "auto", slog.LevelInfo)

	ctx, stop := g.interruptible(context.Background())
	defer stop()
	g.ctx = ctx

	root := newRootCommand(g)
	root.SetArgs(append([]string{}, args...)) // never nil: cobra would take the process's own
	cmd, err := root.ExecuteContextC(ctx)
	g.readsOnly.Store(onlyReads(cmd)) // also where its flags were wrong, before load
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
	return g.report(ctx, err)
}

// globals is what every command gets: the environment, the effective settings, and how to say things.
type globals struct {
	env      Env
	settings *settings.Settings
	// ctx ends with the first signal. The settings are read in places that have no other.
	ctx context.Context
	// given are the settings' flags as they stood on the command line.
	given map[string]settings.Flag
	// notOwn is why the server's unit does not call this program.
	notOwn error
	// helpErr is what went wrong in printing a help text, which cobra has no way to return.
	helpErr error

	// readsOnly is set where the command never changes this machine. The goroutine that watches signals reads it, too.
	readsOnly atomic.Bool

	mu      sync.Mutex // guards what the goroutine that watches signals reads too
	output  string
	color   string
	logger  *slog.Logger
	secrets []redact.Secret
	// piped is what came on standard input as the MongoDB address; nil where nobody has read it.
	piped *piped
	// reload is told of hangups; nil where they mean "stop".
	reload chan struct{}
	// seen is the machine as it was read last.
	seen *machine
	// said is what was said once, and would be again each time that the settings are used.
	said map[string]bool
	// calm says that a signal is the only end of this command, and nothing to tell anybody.
	calm bool
}

func newGlobals(env Env) *globals {
	return &globals{env: env, ctx: context.Background(), given: map[string]settings.Flag{}, settings: &settings.Settings{Values: map[string]settings.Value{}}}
}

// once reports whether something is said for the first time since the settings were read.
func (g *globals) once(what string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.said[what] {
		return false
	}
	if g.said == nil {
		g.said = map[string]bool{}
	}
	g.said[what] = true
	return true
}

// setForm fixes how everything from here on is printed.
func (g *globals) setForm(output, color string, level slog.Level) {
	g.mu.Lock()
	g.output, g.color = output, color
	g.mu.Unlock()
	l := slog.New(g.newHandler(level))
	g.mu.Lock()
	g.logger = l
	g.mu.Unlock()
}

// hangup reports whether a hangup means "read your settings again", as it does to a daemon.
func (g *globals) hangup() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reload == nil {
		return false
	}
	select {
	case g.reload <- struct{}{}:
	default: // one that waits is enough
	}
	return true
}

// stopLevel is how loud a signal is told: for a daemon it is the usual end.
func (g *globals) stopLevel() slog.Level {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.calm:
		return slog.LevelDebug
	case g.reload != nil:
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// setCalm says that a signal is how this command ends.
func (g *globals) setCalm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calm = true
}

func (g *globals) isJSON() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.output == "json"
}

// log is the logger to hand to libraries.
func (g *globals) log() *slog.Logger {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.logger
}

// formAsked finds -o in arguments that may not parse.
func formAsked(args []string, getenv func(string) string) string {
	form := getenv(settings.EnvPrefix + "OUTPUT")
	for i, a := range args {
		if a == "--" {
			break
		}
		switch {
		case a == "-o" || a == "--output":
			if i+1 < len(args) {
				form = args[i+1]
			}
		case strings.HasPrefix(a, "--output="):
			form = strings.TrimPrefix(a, "--output=")
		case strings.HasPrefix(a, "-o"):
			form = strings.TrimPrefix(strings.TrimPrefix(a, "-o"), "=")
		}
	}
	if form == "json" {
		return "json"
	}
	return "text"
}

const (
	groupEveryday = "everyday"
	groupAdvanced = "advanced"
)

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
				return runVersion(cmd.Context(), g)
			}
			// A script whose verb got lost must not take this for success.
			if _, err := g.env.Stderr.Write([]byte(helpText(cmd))); err != nil {
				return &outputError{err}
			}
			return usageError([]string{"start with: amsagent join --mongo ADDRESS"}, "no command given")
		},
	}
	exits(root, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitNotMember, exitDegraded, exitInterrupted)
	noSettings(root)
	root.SetOut(resultWriter{g})
	root.SetErr(g.env.Stderr)
	root.SetIn(g.env.Stdin)
	root.AddGroup(&cobra.Group{ID: groupEveryday, Title: "Everyday"}, &cobra.Group{ID: groupAdvanced, Title: "Advanced"})
	addCommands(root, groupEveryday, newJoinCommand(g), newLeaveCommand(g), newStatusCommand(g), newDoctorCommand(g), newNodesCommand(g),
		newEventsCommand(g), newDrainCommand(g), newUndrainCommand(g), newMetadataCommand(g))
	addCommands(root, groupAdvanced, newSealCommand(g), newBalanceCommand(g), newRunCommand(g), newEventCommand(g), newConvergeCommand(g),
		newDeregisterCommand(g), newConfigCommand(g), newSupportCommand(g), newVersionCommand(g))
	addCobraCommands(root)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { g.helpErr = g.write([]byte(helpText(cmd))) })
	root.SetFlagErrorFunc(flagError)

	f := root.Flags()
	f.BoolVar(&version, "version", false, "print the version and stop")
	for _, row := range settings.Table() {
		if row.Global {
			g.addSettingFlag(root, root.PersistentFlags(), row)
		}
	}
	return root
}

// addCommands gives commands what all of them have: only a few take an argument.
func addCommands(parent *cobra.Command, group string, commands ...*cobra.Command) {
	for _, cmd := range commands {
		cmd.GroupID, cmd.DisableFlagsInUseLine = group, true
		if cmd.Args == nil {
			cmd.Args = noArgs
		}
		parent.AddCommand(cmd)
	}
}

func (g *globals) load(cmd *cobra.Command) error {
	g.mu.Lock()
	g.said = nil
	g.mu.Unlock()
	g.readsOnly.Store(onlyReads(cmd))
	flags, dropped := g.dropEmpty(cmd)
	src := settings.Sources{Flags: flags, Dropped: dropped, LookupEnv: g.env.LookupEnv, Environ: g.env.Environ}
	// What the shells' scripts call must work where config.yaml does not.
	completes := cmd.Name() == cobra.ShellCompRequestCmd || cmd.Name() == cobra.ShellCompNoDescRequestCmd
	if _, ok := cmd.Annotations[annotationNoLoad]; ok || completes {
		src.Only = func(row settings.Setting) bool { return row.Global }
		s, err := settings.Resolve(src)
		g.apply(s)
		if settings.Any(err, func(e *settings.Error) bool { return e.Layer == settings.FromFlag }) {
			return err
		}
		return nil
	}
	s, err := settings.Read(src, cmd.Annotations[annotationGoodConfig] != "")
	if err != nil {
		return err
	}
	g.apply(s)
	if s.Sources.Wrong != nil {
		for _, e := range settings.Flatten(s.Sources.Wrong) {
			g.log().Warn("config.yaml is wrong", "error", e, "instead", s.Sources.Instead)
		}
	}
	if s.Sources.Damaged != "" {
		g.log().Warn(s.Sources.Damaged) //nolint:sloglint // made of the file's name
	}
	for _, w := range s.Warnings {
		g.log().Warn(w) //nolint:sloglint // made of the settings' names
	}
	return nil
}

func (g *globals) apply(s *settings.Settings) {
	g.settings = s
	g.setForm(s.Output, s.Color, s.LogLevel)
}

// settingFlag is the flag of a setting. It keeps the text; settings.Resolve checks it.
type settingFlag struct {
	g    *globals
	key  string
	name string
	arg  string
	def  string
}

func (f *settingFlag) String() string { return f.def }

func (f *settingFlag) Type() string { return f.arg }

func (f *settingFlag) Set(v string) error {
	f.g.given[f.key] = settings.Flag{Text: v, Name: "--" + f.name}
	return nil
}

func (g *globals) addSettingFlag(cmd *cobra.Command, fs *pflag.FlagSet, row settings.Setting) {
	help := row.Help
	if row.Words != nil {
		help += " (" + strings.Join(row.Words, ", ") + ")"
	}
	fs.VarP(&settingFlag{g: g, key: row.Key, name: row.Flag, arg: row.Arg, def: row.Def}, row.Flag, row.Short, help)
	if row.Words != nil {
		completes(cmd, row.Flag, func() []string { return row.Words })
	}
}

// completes lets the shell complete a flag, which is defined already, by a closed list of values.
func completes(cmd *cobra.Command, flag string, values func() []string) {
	// Fails only for a flag that is not defined.
	_ = cmd.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values(), cobra.ShellCompDirectiveNoFileComp
	})
}

func states() []string { return wordsOf(cluster.States()) }

func wordsOf[T ~string](list []T) []string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = string(w)
	}
	return words
}

// addSettings gives a command the flags of some settings.
func (g *globals) addSettings(cmd *cobra.Command, keys ...string) {
	for _, key := range keys {
		if row, ok := settings.ByKey(key); ok {
			g.addSettingFlag(cmd, cmd.Flags(), row)
		}
	}
}

// unlisted hides flags of kept settings in a command's help. They work, because hints name them.
func unlisted(cmd *cobra.Command, keys ...string) {
	for _, key := range keys {
		if row, ok := settings.ByKey(key); ok {
			_ = cmd.Flags().MarkHidden(row.Flag) // fails only for a flag that is not defined
		}
	}
}

// noArgs refuses positional arguments. Of an unknown command it names one that is near.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hints := []string{fmt.Sprintf("see: %s --help", cmd.CommandPath())}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hints = []string{fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), near[0])}
	}
	if cmd.HasParent() {
		return usageError(hints, "%s takes no argument: %q", cmd.CommandPath(), args[0])
	}
	return usageError(hints, "unknown command %q", args[0])
}

// flagError makes a usage error of what pflag reports.
func flagError(cmd *cobra.Command, err error) error {
	if args := cmd.Flags().Args(); !cmd.HasParent() && len(args) > 0 {
		return noArgs(cmd, args) // an unknown command, whose flags are unknown as well
	}
	hints := []string{fmt.Sprintf("see: %s --help", cmd.CommandPath())}
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		return usageError(hints, "%s", err.Error())
	}
	name := missing.GetSpecifiedName()
	var flags []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
	if near := settings.NearWords(name, flags...); len(near) > 0 {
		hints = []string{fmt.Sprintf("did you mean `--%s`?", near[0])}
	}
	// Not pflag's text: what follows a letter may be a password.
	dash := "--"
	if missing.GetSpecifiedShortnames() != "" {
		dash = "-"
	}
	return usageError(hints, "unknown flag %s%s of %s", dash, name, cmd.CommandPath())
}
