// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
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
	g   *globals
	row settings.Setting
}

func (f *settingFlag) String() string { return f.row.Def }

func (f *settingFlag) Type() string { return f.row.Arg }

func (f *settingFlag) Set(v string) error {
	f.g.given[f.row.Key] = settings.Flag{Text: v, Name: "--" + f.row.Flag}
	return nil
}

func addSettingFlag(g *globals, cmd *cobra.Command, fs *pflag.FlagSet, row settings.Setting) {
	help := row.Help
	if row.Words != nil {
		help += " (" + strings.Join(row.Words, ", ") + ")"
	}
	fs.VarP(&settingFlag{g, row}, row.Flag, row.Short, help)
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
	hints := nearHint(cmd, cmd.CommandPath()+" ", cmd.SuggestionsFor(args[0]))
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
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		return usageError(nearHint(cmd, "", nil), "%s", err.Error())
	}
	name := missing.GetSpecifiedName()
	var flags []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
	// Not pflag's text: a password may follow a letter.
	dash := "--"
	if missing.GetSpecifiedShortnames() != "" {
		dash = "-"
	}
	return usageError(nearHint(cmd, "--", settings.NearWords(name, flags...)), "unknown flag %s%s of %s", dash, name, cmd.CommandPath())
}

// nearHint names the first near word, or the help of a command.
func nearHint(cmd *cobra.Command, before string, near []string) []string {
	if len(near) > 0 {
		return []string{fmt.Sprintf("did you mean `%s%s`?", before, near[0])}
	}
	return []string{fmt.Sprintf("see: %s --help", cmd.CommandPath())}
}

// dropEmpty removes the flags with an empty value from those of a command that keeps its flags, and returns their keys.
func dropEmpty(cmd *cobra.Command, given map[string]settings.Flag) (dropped []string) {
	for _, row := range settings.Kept() {
		flag, ok := given[row.Key]
		if ok && flag.Text == "" && cmd.Annotations[annotationKeeps] != "" {
			delete(given, row.Key)
			dropped = append(dropped, row.Key)
		}
	}
	return dropped
}
