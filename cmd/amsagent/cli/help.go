// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	pages "github.com/amsagent/amsagent/docs/errors"
)

// helpWidth fits the serial console of a cloud, the narrowest terminal in use.
const helpWidth = 80

// helpText is the help of a command. It does not use cobra's templates: text/template keeps every method in the program, 3.5 MB.
func helpText(cmd *cobra.Command) string {
	cmd.InitDefaultHelpFlag() // cobra does so only for the command that runs
	var b strings.Builder
	section := func(title, text string) {
		if text = strings.Trim(text, "\n"); text != "" {
			fmt.Fprintf(&b, "\n%s\n%s\n", title, text)
		}
	}
	fmt.Fprintf(&b, "%s: %s\n", cmd.CommandPath(), cmd.Short)
	if cmd.Long != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.ReplaceAll(strings.Trim(cmd.Long, "\n"), "\t", "  "))
	}
	section("USAGE", "  "+cmd.UseLine())
	section("EXAMPLES", cmd.Example)
	for _, group := range cmd.Groups() {
		section(strings.ToUpper(group.Title), commandList(cmd, group.ID))
	}
	section("COMMANDS", commandList(cmd, ""))
	section("FLAGS", cmd.LocalNonPersistentFlags().FlagUsagesWrapped(helpWidth))
	global := cmd.InheritedFlags()
	if !cmd.HasParent() {
		global = cmd.PersistentFlags()
	}
	section("GLOBAL FLAGS", global.FlagUsagesWrapped(helpWidth))
	section("EXIT STATUS", exitStatus(cmd))
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func commandList(cmd *cobra.Command, group string) string {
	var b strings.Builder
	for _, c := range cmd.Commands() {
		if c.GroupID == group && c.IsAvailableCommand() {
			fmt.Fprintf(&b, "  %-12s %s\n", c.Name(), c.Short)
		}
	}
	return b.String()
}

// wrap breaks a text into indented lines.
func wrap(text string) string {
	var lines []string
	for word := range strings.FieldsSeq(text) {
		last := len(lines) - 1
		if last >= 0 && utf8.RuneCountInString(lines[last]+" "+word) <= helpWidth {
			lines[last] += " " + word
		} else {
			lines = append(lines, "      "+word)
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// addCobraCommands adds help and completion, which are cobra's own, and fits them to the other commands.
func addCobraCommands(root *cobra.Command) {
	root.SetHelpCommandGroupID(groupAdvanced)
	root.InitDefaultHelpCmd()
	root.SetCompletionCommandGroupID(groupAdvanced)
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Short, cmd.Long = "print the help of a command", ""
			cmd.Args = func(_ *cobra.Command, args []string) error { return checkHelp(root, args) }
		case "completion":
			cmd.Short = "print the completion script of a shell"
			cmd.Args = cobra.ArbitraryArgs
			cmd.RunE = func(cmd *cobra.Command, _ []string) error {
				return usageError([]string{"write: " + cmd.CommandPath() + " bash"}, "completion needs a shell: bash, zsh, fish or powershell")
			}
			for _, shell := range cmd.Commands() {
				shell.Short = "print the completion script of " + shell.Name()
				shell.Long = strings.Replace(shell.Long, "already, you", "already,\nyou", 1) // one line is too wide
				shell.Args = noArgs
				readsOnly(shell)
				noSettings(shell)
			}
		default:
			continue
		}
		readsOnly(cmd)
		noSettings(cmd)
	}
}

// checkHelp refuses what is no command.
func checkHelp(root *cobra.Command, args []string) error {
	_, rest, err := root.Find(args)
	if err == nil && len(rest) == 0 {
		return nil
	}
	word := strings.Join(args, " ")
	hint := "`amsagent help` lists the commands"
	if id := strings.ToUpper(word); pages.Title(id) != "" {
		hint = "the page of an id: amsagent doctor --explain " + id
	}
	return usageError([]string{hint}, "no command %q", word)
}

// markdown is a help text for a man page. Indented lines stay as they are.
func markdown(text string) string {
	var b strings.Builder
	was := false
	for line := range strings.Lines(strings.Trim(text, "\n") + "\n") {
		is := strings.HasPrefix(line, " ") || was && line == "\n"
		if is != was {
			b.WriteString("\n")
		}
		if was = is; is {
			line = "    " + line
		}
		b.WriteString(line)
	}
	return b.String()
}
