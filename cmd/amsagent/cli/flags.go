// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

const (
	groupEveryday = "everyday"
	groupAdvanced = "advanced"
)

// addCommands adds commands to a group of the help. Only a few take an argument.
func addCommands(parent *cobra.Command, group string, commands ...*cobra.Command) {
	for _, cmd := range commands {
		cmd.GroupID, cmd.DisableFlagsInUseLine = group, true
		if cmd.Args == nil {
			cmd.Args = noArgs
		}
		parent.AddCommand(cmd)
	}
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

func addSettingFlag(g *globals, cmd *cobra.Command, fs *pflag.FlagSet, row settings.Setting) {
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
			addSettingFlag(g, cmd, cmd.Flags(), row)
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

// flagError is the usage error for an error of pflag.
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
	// Not pflag's text: a password may follow a letter.
	dash := "--"
	if missing.GetSpecifiedShortnames() != "" {
		dash = "-"
	}
	return usageError(hints, "unknown flag %s%s of %s", dash, name, cmd.CommandPath())
}

// dropEmpty takes the flags with an empty value out of those of a command that keeps its flags, and returns their keys.
func dropEmpty(cmd *cobra.Command, given map[string]settings.Flag) (rest map[string]settings.Flag, dropped []string) {
	if _, ok := cmd.Annotations[annotationKeeps]; !ok {
		return given, nil
	}
	rest = maps.Clone(given)
	for _, row := range settings.Kept() {
		if flag, ok := rest[row.Key]; ok && flag.Text == "" {
			delete(rest, row.Key)
			dropped = append(dropped, row.Key)
		}
	}
	return rest, dropped
}
