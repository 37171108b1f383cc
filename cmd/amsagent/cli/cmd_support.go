// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/seconds"
)

func newSupportCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "support [flags]",
		Short: "print a report for those who help, without secrets",
		Long: "One text to read before you send it: the output of the commands that only\n" +
			"read, what the service manager knows of this agent and the server, the journal\n" +
			"of the agent's units, and a few facts about the machine. Nothing is changed,\n" +
			"and nothing is sent.\n\n" +
			"Passwords, tokens and keys are masked. Names, addresses, ids and paths are\n" +
			"shown. It does not have the server's own log, its files, nor what viewers and\n" +
			"publishers do.\n\n" +
			"If a part is not available, its reason is in its place. Root gets most.",
		Example: "  amsagent support > support.txt\n" +
			"  amsagent support -o json | gzip > support.json.gz",
		RunE: func(cmd *cobra.Command, _ []string) error { return runSupport(cmd.Context(), g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitInterrupted)
	readsOnly(cmd)
	noSettings(cmd) // if they are wrong, each of its commands reports it
	return cmd
}

// supportData is what `support` prints.
type supportData struct {
	Time  time.Time     `json:"time"`
	Parts []supportPart `json:"parts"`
}

// supportPart is the output of one command.
type supportPart struct {
	// Command is its command line.
	Command string `json:"command"`
	// Exit is its exit status; 127 without such a program, -1 if it did not end in time.
	Exit int              `json:"exit"`
	Took seconds.Duration `json:"duration_seconds"`
	Text string           `json:"text"`
}

const (
	// supportTime bounds a program. The agent's own commands have shorter bounds.
	supportTime = time.Minute
	// supportRoom bounds the output of one command: its end is kept.
	supportRoom = 1 << 20
)

// supportCommands are the agent's own commands and programs of the system.
func supportCommands() [][]string {
	return [][]string{
		{"amsagent", "version"},
		{"amsagent", "config"},
		{"amsagent", "status", "--timeout", "20s"},
		{"amsagent", "doctor"},
		{"amsagent", "metadata"},
		{"amsagent", "nodes", "--all"},
		{"amsagent", "events", "--limit", "200"},
		{"uname", "-a"},
		{"cat", "/etc/os-release"},
		{"uptime"},
		{"free", "-m"},
		{"df", "-h"},
		{"ip", "-brief", "address"},
		{"ls", "-lan", "/etc/amsagent", "/var/lib/amsagent", "/run/amsagent"},
		{
			"systemctl", "show", "--no-pager",
			"--property=Id,LoadState,UnitFileState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,ActiveEnterTimestamp,MemoryCurrent,FragmentPath,DropInPaths",
			"amsagent", "amsagent-node", "antmedia",
		},
		{"journalctl", "--no-pager", "--output=short-iso", "--lines=1000", "--unit=amsagent", "--unit=amsagent-node"},
	}
}

func runSupport(ctx context.Context, g *globals) error {
	data := supportData{Time: g.env.Now().UTC()}
	for _, argv := range supportCommands() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := supportPart{Command: strings.Join(argv, " ")}
		g.out.Log().Info("asking", "command", p.Command)
		begin := g.env.Now()
		var text []byte
		if argv[0] == "amsagent" {
			p.Exit, text = runOwn(ctx, g, argv[1:])
		} else {
			p.Exit, text = runOfSystem(ctx, g.settings.Root, argv)
		}
		p.Took, p.Text = seconds.Duration(g.env.Now().Sub(begin)), g.out.Redact(plain.Text(lastOf(text, supportRoom)))
		data.Parts = append(data.Parts, p)
	}
	return g.result("support", data, func(w *output.Text) {
		w.Line("amsagent support, %s", data.Time.Format(time.RFC3339))
		for _, p := range data.Parts {
			w.Heading(fmt.Sprintf("=== %s (exit %d, %s)", p.Command, p.Exit, output.Rounded(p.Took)))
			w.Raw(p.Text)
			if !strings.HasSuffix(p.Text, "\n") {
				w.Blank()
			}
		}
	})
}

// runOwn runs another command of this program with the same global flags.
func runOwn(ctx context.Context, g *globals, args []string) (exit int, output []byte) {
	own, err := g.env.Executable()
	if err != nil {
		return -1, []byte(err.Error())
	}
	argv := append([]string{own}, args...)
	for _, row := range settings.Table() {
		if v, ok := g.given[row.Key]; ok && row.Global && row.Key != settings.KeyOutput && row.Key != settings.KeyColor {
			argv = append(argv, "--"+row.Flag+"="+v.Text)
		}
	}
	return combinedOutput(ctx, append(argv, "--output=text", "--color=never"), g.env.Environ())
}

// runOfSystem runs a program of the system.
func runOfSystem(ctx context.Context, root string, argv []string) (exit int, output []byte) {
	if root != "" {
		return -1, []byte("not asked: it would report this machine, and not " + root)
	}
	// env looks in that PATH.
	return combinedOutput(ctx, append([]string{"/usr/bin/env"}, argv...), []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0"})
}

func combinedOutput(ctx context.Context, argv, environ []string) (exit int, output []byte) {
	ctx, cancel := context.WithTimeout(ctx, supportTime)
	defer cancel()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = environ
	c.WaitDelay = time.Second
	output, err := c.CombinedOutput()
	if c.ProcessState == nil || c.ProcessState.ExitCode() < 0 {
		return -1, append(output, err.Error()...)
	}
	return c.ProcessState.ExitCode(), output
}

// lastOf returns the last lines of a text that is longer than room.
func lastOf(text []byte, room int) string {
	if len(text) <= room {
		return string(text)
	}
	_, rest, _ := bytes.Cut(text[len(text)-room:], []byte{'\n'})
	return fmt.Sprintf("(the first %d bytes are left out)\n%s", len(text)-len(rest), rest)
}
