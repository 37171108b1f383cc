// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	pages "github.com/amsagent/amsagent/docs/errors"
)

// helpWidth fits the narrowest terminal in use, the serial console of a cloud.
const helpWidth = 80

// helpText is the help of a command. Every one ends with EXIT STATUS.
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
		fmt.Fprintf(&b, "\n%s\n", strings.Trim(cmd.Long, "\n"))
	}
	section("USAGE", "  "+cmd.UseLine())
	section("EXAMPLES", cmd.Example)
	for _, group := range cmd.Groups() {
		section(strings.ToUpper(group.Title), commandList(cmd, group.ID))
	}
	section("FLAGS", flagText(cmd.LocalNonPersistentFlags()))
	global := cmd.InheritedFlags()
	if !cmd.HasParent() {
		global = cmd.PersistentFlags()
	}
	section("GLOBAL FLAGS", flagText(global))
	if !cmd.HasParent() {
		section("TOPICS", topicList())
	}
	section("EXIT STATUS", exitStatus(cmd))
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func flagText(fs *pflag.FlagSet) string { return fs.FlagUsagesWrapped(helpWidth) }

func commandList(cmd *cobra.Command, group string) string {
	var b strings.Builder
	for _, c := range cmd.Commands() {
		if c.GroupID == group && c.IsAvailableCommand() {
			fmt.Fprintf(&b, "  %-12s %s\n", c.Name(), c.Short)
		}
	}
	return b.String()
}

// topic is a help page that belongs to no single command.
type topic struct {
	name  string
	short string
	text  func() string
}

func topics() []topic {
	return []topic{
		{"exit-codes", "what each exit code means", func() string {
			return "Exit codes are the same in all commands and never change their meaning. Treat\n" +
				"an unknown one as failure.\n\n" + exitStatus(nil) +
				"\nWhere this machine is not a cluster node, leave, converge and deregister have\n" +
				"nothing to do and exit 0: done twice is done.\n"
		}},
		{"errors", "the id of every error, its exit code and meaning", errorsTopic},
		{"environment", "every variable that is read", environmentTopic},
		{"config", "every setting, where it may stand, and config.yaml", nil},
	}
}

// errorsTopic lists the ids; `help ID` prints one.
func errorsTopic() string {
	var b strings.Builder
	b.WriteString("The id of an error stands in brackets after it, and in the field id with -o json.\n" +
		"An id never changes its meaning. The code is the usual one; the message of a\n" +
		"command says when it is another. More about one: amsagent doctor --explain ID.\n\n")
	for _, c := range namedErrors() {
		b.WriteString(errorLine(c))
	}
	b.WriteString("\nWhat checks, status and warnings name:\n\n")
	for _, id := range findingIDs() {
		b.WriteString(findingLine(id))
	}
	return b.String()
}

// namedErrors are the errors of commands: those of the table, and the two that no row of it is about.
func namedErrors() []errorClass {
	return append(
		errorTable(),
		errorClass{id: idPreflight, exit: exitPreflight, meaning: "several checks failed; each cause begins with its own id"},
		errorClass{id: idFailed, exit: exitFailed, meaning: "anything else; the message has all that is known"},
	)
}

// findingIDs are the ids that have a page and are no errors of a command.
func findingIDs() []string {
	all := namedErrors()
	return slices.DeleteFunc(pages.IDs(), func(id string) bool {
		return slices.ContainsFunc(all, func(c errorClass) bool { return c.id == id })
	})
}

func findingLine(id string) string { return fmt.Sprintf("  %-31s %s\n", id, pages.Title(id)) }

func errorLine(c errorClass) string { return fmt.Sprintf("  %-26s %-4d %s\n", c.id, c.exit, c.meaning) }

func topicList() string {
	var b strings.Builder
	for _, t := range topics() {
		fmt.Fprintf(&b, "  amsagent help %-12s %s\n", t.name, t.short)
	}
	return b.String()
}

func environmentTopic() string {
	var b strings.Builder
	b.WriteString("Every setting has a variable. A flag wins over it, and it wins over config.yaml.\n" +
		"One that is set but empty counts as not set.\n\n")
	for _, row := range settingsTable() {
		fmt.Fprintf(&b, "  %s\n", row.env())
		b.WriteString(wrap(row.help + wordsAndDefault(row)))
	}
	b.WriteString("\nAddresses of the clouds' services, as http://HOST:PORT. They are variables only: set\n" +
		"them for the daemon by `systemctl edit amsagent amsagent-node`.\n\n")
	for _, e := range endpoints() {
		fmt.Fprintf(&b, "  %s\n%s", e.env, wrap(e.text()))
	}
	b.WriteString("\nFrom others:\n\n")
	for _, v := range [][2]string{
		{"NO_COLOR", "no color, whatever its value"},
		{"CREDENTIALS_DIRECTORY", "systemd's credentials; a file mongo or amsagent.mongo in it is the MongoDB address, after AMSAGENT_MONGO and before config.yaml"},
		{"HTTPS_PROXY, NO_PROXY", "or in small letters: the proxy for the clouds' APIs; the metadata services are asked without one"},
		{"SUDO_USER, USER, LOGNAME", "who asked for a drain of another node, for the record"},
		{"AWS_EC2_METADATA_DISABLED", "true: the metadata service of AWS is not asked"},
		{"INVOCATION_ID, JOURNAL_STREAM", "set by systemd: the log has no time of its own, and priorities where it goes to the journal"},
	} {
		fmt.Fprintf(&b, "  %s\n%s", v[0], wrap(v[1]))
	}
	return b.String()
}

func wordsAndDefault(row setting) string {
	var s string
	if row.words != nil {
		s += " (" + strings.Join(row.words, ", ") + ")"
	}
	if row.def != "" {
		s += "; default " + row.def
	}
	return s
}

// wrap breaks a text into indented lines.
func wrap(text string) string {
	const indent, n = "      ", 6
	var b strings.Builder
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && n+len([]rune(line))+1+len([]rune(word)) > helpWidth {
			b.WriteString(indent + line + "\n")
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	if line != "" {
		b.WriteString(indent + line + "\n")
	}
	return b.String()
}

func newHelpCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:                   "help [COMMAND | TOPIC]",
		Short:                 "help about a command or a topic",
		Long:                  "Topics are exit-codes, errors, environment and config. An error id is one too.",
		Example:               "  amsagent help metadata\n  amsagent help exit-codes",
		DisableFlagsInUseLine: true,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return helpNames(cmd.Root()), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runHelp(cmd.Root(), args, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage)
	readsOnly(cmd)
	noSettings(cmd)
	return cmd
}

func helpNames(root *cobra.Command) []string {
	var names []string
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	for _, t := range topics() {
		if !slices.Contains(names, t.name) {
			names = append(names, t.name)
		}
	}
	return names
}

func runHelp(root *cobra.Command, args []string, g *globals) error {
	if len(args) == 0 {
		return g.write([]byte(helpText(root)))
	}
	if cmd, rest, err := root.Find(args); err == nil && len(rest) == 0 && len(args) > 1 && cmd.IsAvailableCommand() {
		return g.write([]byte(helpText(cmd))) // a command of a command
	}
	if len(args) > 1 {
		return usageError([]string{"see: amsagent help --help"}, "help is about one command or topic")
	}
	for _, t := range topics() {
		if t.name == args[0] && t.text != nil {
			return g.write([]byte(t.text()))
		}
	}
	id := strings.ToUpper(args[0])
	for _, c := range namedErrors() {
		if c.id == id {
			return g.write([]byte(errorLine(c)))
		}
	}
	if pages.Title(id) != "" {
		return g.write([]byte(findingLine(id)))
	}
	for _, c := range root.Commands() {
		if c.Name() == args[0] {
			return g.write([]byte(helpText(c)))
		}
	}
	names := helpNames(root)
	hint := "`amsagent help` lists the commands and topics"
	if near := suggest(args[0], names); near != "" {
		hint = fmt.Sprintf("did you mean `amsagent help %s`?", near)
	}
	return usageError([]string{hint}, "no command or topic %q", args[0])
}
