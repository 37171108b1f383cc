// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newCompletionCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "completion SHELL",
		Short: "print the completion script of a shell",
		Long: "SHELL is bash, zsh or fish. The packages install the scripts; this is for a binary\n" +
			"that came without a package.",
		Example: "  amsagent completion bash > /etc/bash_completion.d/amsagent\n" +
			"  amsagent completion zsh > /usr/share/zsh/site-functions/_amsagent\n" +
			"  amsagent completion fish > /etc/fish/completions/amsagent.fish",
		GroupID:               groupAdvanced,
		DisableFlagsInUseLine: true,
		ValidArgs:             shells(),
		RunE:                  func(cmd *cobra.Command, args []string) error { return runCompletion(cmd.Root(), args, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage)
	readsOnly(cmd)
	noSettings(cmd)
	return cmd
}

func shells() []string { return []string{"bash", "zsh", "fish"} }

func runCompletion(root *cobra.Command, args []string, g *globals) error {
	list := strings.Join(shells(), ", ")
	if len(args) != 1 {
		return usageError([]string{"write: amsagent completion bash"}, "completion needs one shell: %s", list)
	}
	var b bytes.Buffer
	var err error
	switch args[0] {
	case "bash":
		err = root.GenBashCompletionV2(&b, true)
	case "zsh":
		err = root.GenZshCompletion(&b)
	case "fish":
		err = root.GenFishCompletion(&b, true)
	default:
		hints := []string{"there are scripts for " + list}
		if near := suggest(args[0], shells()); near != "" {
			hints = []string{fmt.Sprintf("did you mean %s?", near)}
		}
		return usageError(hints, "no completion for the shell %q", args[0])
	}
	if err != nil {
		return fmt.Errorf("writing the completion script: %w", err)
	}
	return g.write(b.Bytes())
}
