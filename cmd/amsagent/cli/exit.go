// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes are an interface: a number never gets another meaning.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPreflight   = 3
	exitUnknown     = 4
	exitNotMember   = 5
	exitDegraded    = 6
	exitInterrupted = 130
)

type exitCode struct {
	code    int
	meaning string
}

// exitCodes is the one table: the exit status in every command's help is printed from it.
func exitCodes() []exitCode {
	return []exitCode{
		{exitOK, "done, or already so"},
		{exitFailed, "failed; the message says which state is left"},
		{exitUsage, "usage or configuration is wrong; nothing was changed"},
		{exitPreflight, "a preflight check failed; nothing was changed"},
		{exitUnknown, "time ran out; the outcome is not known yet"},
		{exitNotMember, "this machine is not a cluster node"},
		{exitDegraded, "degraded; only from doctor and status --strict"},
		{exitInterrupted, "interrupted by a signal"},
	}
}

const (
	annotationExits  = "amsagent/exits"
	annotationNoLoad = "amsagent/no-settings"
	annotationReads  = "amsagent/reads-only"
	// annotationGoodConfig: a wrong config.yaml is an error, because the command decides what a machine becomes.
	annotationGoodConfig = "amsagent/good-config"
	// annotationKeeps: the command keeps its flags, and an empty value drops a kept one.
	annotationKeeps = "amsagent/keeps"
)

func annotate(cmd *cobra.Command, key, value string) {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	cmd.Annotations[key] = value
}

// exits sets the codes with which a command can end; its help lists them.
func exits(cmd *cobra.Command, codes ...int) {
	annotate(cmd, annotationExits, strings.Trim(fmt.Sprint(codes), "[]"))
}

// noSettings keeps a command from config.yaml and the variables of the settings: `version` must work if they are wrong.
func noSettings(cmd *cobra.Command) { annotate(cmd, annotationNoLoad, "true") }

// readsOnly marks a command that never changes this machine: its errors do not say so, and after a signal it has no result.
func readsOnly(cmd *cobra.Command) { annotate(cmd, annotationReads, "true") }

func onlyReads(cmd *cobra.Command) bool { return cmd.Annotations[annotationReads] != "" }

// exitStatus prints the rows of the table that cmd names; cobra's own commands name none, and end with 0, 1 or 2.
func exitStatus(cmd *cobra.Command) string {
	only := strings.Fields(cmp.Or(cmd.Annotations[annotationExits], "0 1 2"))
	var b strings.Builder
	for _, row := range exitCodes() {
		if slices.Contains(only, strconv.Itoa(row.code)) {
			fmt.Fprintf(&b, "  %-4d %s\n", row.code, row.meaning)
		}
	}
	return b.String()
}

// quietError ends a command with a code of its own; the result has the reason.
type quietError struct{ code int }

func (e *quietError) Error() string { return fmt.Sprintf("exit status %d", e.code) }
