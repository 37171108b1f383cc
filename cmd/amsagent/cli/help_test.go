// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/must"
)

// everyCommand calls f for each command a person can see, the root first.
func everyCommand(t *testing.T, f func(t *testing.T, args []string, cmd *cobra.Command)) {
	t.Helper()
	var walk func(path []string, cmd *cobra.Command)
	walk = func(path []string, cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		t.Run(cmd.CommandPath(), func(t *testing.T) { f(t, path, cmd) })
		for _, c := range cmd.Commands() {
			walk(append(slices.Clone(path), c.Name()), c)
		}
	}
	walk(nil, Commands())
}

// A flag defined twice panics when the help is made, so this catches that too.
func TestHelpOfEveryCommand(t *testing.T) {
	everyCommand(t, func(t *testing.T, args []string, cmd *cobra.Command) {
		code, stdout, stderr := run(t, nil, append(args, "--help")...)
		if code != 0 || stderr != "" {
			t.Fatalf("exit %d, stderr:\n%s", code, stderr)
		}
		must.Golden(t, *update, filepath.Join("help", strings.ReplaceAll(cmd.CommandPath(), " ", "_")+".txt"), stdout)

		for i, line := range strings.Split(stdout, "\n") {
			if n := len([]rune(line)); n > 80 {
				t.Errorf("line %d: %d characters", i+1, n)
			}
			if strings.ContainsAny(line, "\u2014\t\x1b") || strings.Contains(line, "TODO") || strings.TrimRight(line, " ") != line {
				t.Errorf("line %d: %q", i+1, line)
			}
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if arg, _ := pflag.UnquoteUsage(f); strings.ContainsFunc(arg, func(r rune) bool { return r > unicode.MaxASCII }) {
				t.Errorf("--%s %s: pflag counts bytes, and its column is too short", f.Name, arg)
			}
		})

		i := strings.LastIndex(stdout, "\nEXIT STATUS\n")
		if i < 0 || !regexp.MustCompile(`\nEXIT STATUS\n(  \d+ +\S.*\n)+$`).MatchString(stdout[i:]) {
			t.Errorf("does not end with EXIT STATUS and its codes:\n%s", stdout)
		}
		if cmd.Annotations["amsagent/exits"] == "" { // cobra's own
			return
		}
		if !strings.Contains(stdout, "\nEXAMPLES\n") || !strings.Contains(cmd.Example, "amsagent "+strings.Join(args, " ")) {
			t.Error("has no example of its own")
		}
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || unicode.IsUpper([]rune(cmd.Short)[0]) || strings.Contains(cmd.Short, "\n") {
			t.Errorf("short text %q: one line, lower case, no full stop", cmd.Short)
		}
		for _, code := range strings.Fields(cmd.Annotations["amsagent/exits"]) {
			if !strings.Contains(stdout[i:], "\n  "+code+" ") {
				t.Errorf("exit code %s is in no table", code)
			}
		}
		if cmd.HasParent() && cmd.GroupID == "" {
			t.Error("is in no group")
		}
		_, byHelp, _ := run(t, nil, append([]string{"help"}, args...)...)
		must.NoDiff(t, fmt.Sprintf("`help %s`", strings.Join(args, " ")), byHelp, stdout)
	})
}

// The flags are an interface: scripts and user-data use them. A removed or changed line breaks some of them.
func TestFlagsAreFrozen(t *testing.T) {
	var b strings.Builder
	everyCommand(t, func(_ *testing.T, _ []string, cmd *cobra.Command) {
		line := func(kind string) func(*pflag.Flag) {
			return func(f *pflag.Flag) {
				short := ""
				if f.Shorthand != "" {
					short = " -" + f.Shorthand
				}
				fmt.Fprintf(&b, "%s%s --%s%s %s default=%q\n", cmd.CommandPath(), kind, f.Name, short, f.Value.Type(), f.DefValue)
			}
		}
		cmd.LocalNonPersistentFlags().VisitAll(line(""))
		if !cmd.HasParent() {
			cmd.PersistentFlags().VisitAll(line(" (global)"))
		}
	})
	must.Golden(t, *update, "flags.txt", b.String())
}

// The variables and the keys are an interface too.
func TestSettingsAreFrozen(t *testing.T) {
	var b strings.Builder
	keys := map[string]bool{}
	for _, row := range settings.Table() {
		if keys[row.Key] {
			t.Errorf("%s is there twice", row.Key)
		}
		keys[row.Key] = true
		if row.Help == "" || row.Arg == "" || row.Words != nil && row.Check != nil {
			t.Errorf("%s: needs help, a word for its value, and not both words and a check", row.Key)
		}
		if row.Def != "" {
			if canon, err := row.Canonical(row.Def); err != nil || canon != row.Def {
				t.Errorf("%s: default %q: %q, %v", row.Key, row.Def, canon, err)
			}
		}
		if row.Flag != "" && row.Flag != strings.ReplaceAll(row.Key, "_", "-") {
			t.Errorf("%s: the flag is --%s", row.Key, row.Flag)
		}
		fmt.Fprintf(&b, "%s %s flag=%q file=%t tag=%q words=%v default=%q\n", row.Key, row.Env(), row.Flag, !row.NoFile, row.Tag, row.Words, row.Def)
	}
	must.Golden(t, *update, "settings.txt", b.String())
}

// docs/commands.md repeats the exit codes; it must not give another number.
func TestExitCodesEqualDocs(t *testing.T) {
	b, err := os.ReadFile("../../../docs/commands.md")
	must.OK(t, err)
	var got []string
	for _, r := range regexp.MustCompile("(?m)^\\| *`?(\\d+)`? *\\| ").FindAllStringSubmatch(string(b), -1) {
		got = append(got, r[1])
	}
	const codes = "0 1 2 3 4 5 6 130" // scripts read them
	must.Equal(t, "codes in docs/commands.md", strings.Join(got, " "), codes)
	help, err := os.ReadFile("testdata/help/amsagent.txt")
	must.OK(t, err)
	_, status, _ := strings.Cut(string(help), "\nEXIT STATUS\n")
	got = regexp.MustCompile(`(?m)^  \d+`).FindAllString(status, -1)
	must.Equal(t, "codes of the program", strings.ReplaceAll(strings.Join(got, ""), "  ", " "), " "+codes)
}

// The help of a later command does not list the flags that a join keeps. They work, because a hint may name them.
func TestUnlistedFlags(t *testing.T) {
	for _, command := range []string{"status", "leave", "converge", "deregister"} {
		_, stdout, _ := run(t, nil, command, "--help")
		for _, flag := range []string{"--provider", "--ams-release"} {
			if strings.Contains(stdout, flag) {
				t.Errorf("the help of %s lists %s", command, flag)
			}
			if code, _, stderr := run(t, nil, command, flag, "no such value"); code != codeUsage || !strings.Contains(stderr, "error: "+flag+`: "no such value" is not `) {
				t.Errorf("%s %s: exit %d\n%s", command, flag, code, stderr)
			}
		}
	}
}
