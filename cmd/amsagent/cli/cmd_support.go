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

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/plain"
)

func newSupportCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "support [flags]",
		Short: "print what somebody who helps needs to know, without secrets",
		Long: "What the commands that only look say here, what the service manager knows of this agent and\n" +
			"the server, the journal of the agent's units, and a few facts about the machine: one text, to\n" +
			"be read by you before you send it. Nothing is changed, and nothing is sent.\n\n" +
			"Passwords, tokens and keys are masked. Names, addresses, ids and paths are shown. Not in it:\n" +
			"the server's own log, its files, and what viewers and publishers do.\n\n" +
			"A part that cannot be had says why; the others are there. As root it tells most.",
		Example: "  amsagent support > support.txt\n" +
			"  amsagent support -o json | gzip > support.json.gz",
		RunE: func(cmd *cobra.Command, _ []string) error { return runSupport(cmd.Context(), g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitInterrupted)
	readsOnly(cmd)
	noSettings(cmd) // where they are wrong, each of its commands says so
	return cmd
}

// supportData is what `support` prints.
type supportData struct {
	Time  time.Time     `json:"time"`
	Parts []supportPart `json:"parts"`
}

// supportPart is what one command said.
type supportPart struct {
	// Command is its command line.
	Command string `json:"command"`
	// Exit is its exit status; 127 where there is no such program, -1 where it did not end in time.
	Exit int           `json:"exit"`
	Took time.Duration `json:"took_ns"`
	Text string        `json:"text"`
}

const (
	// supportTime bounds a program of the system; the agent's own commands have bounds of their own.
	supportTime = 20 * time.Second
	// supportRoom bounds what one command says; of more the end is kept.
	supportRoom = 1 << 20
)

// supportLooks are the agent's own commands.
func supportLooks() [][]string {
	return [][]string{
		{"version"}, {"config"}, {"status", "--timeout", supportTime.String()}, {"doctor"}, {"metadata"}, {"nodes", "--all"}, {"events", "--limit", "200"},
	}
}

// supportPrograms are programs of the system.
func supportPrograms() [][]string {
	units := []string{"amsagent", "amsagent-node"}
	show := []string{
		"systemctl", "show", "--no-pager",
		"--property=Id,LoadState,UnitFileState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,ActiveEnterTimestamp,MemoryCurrent,FragmentPath,DropInPaths",
	}
	journal := []string{"journalctl", "--no-pager", "--output=short-iso", "--lines=1000"}
	for _, u := range units {
		journal = append(journal, "--unit="+u)
	}
	return [][]string{
		{"uname", "-a"},
		{"cat", "/etc/os-release"},
		{"uptime"},
		{"free", "-m"},
		{"df", "-h"},
		{"ip", "-brief", "address"},
		{"ls", "-lan", "/etc/amsagent", "/var/lib/amsagent", "/run/amsagent"},
		append(append(show, units...), "antmedia"),
		journal,
	}
}

func runSupport(ctx context.Context, g *globals) error {
	data := supportData{Time: g.env.Now().UTC()}
	add := func(argv []string, run func() (int, []byte)) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := supportPart{Command: strings.Join(argv, " ")}
		g.log().Info("asking", "command", p.Command)
		begin := g.env.Now()
		exit, said := run()
		p.Exit, p.Took, p.Text = exit, g.env.Now().Sub(begin), g.redact(plain.Text(lastOf(said, supportRoom)))
		data.Parts = append(data.Parts, p)
		return nil
	}
	for _, args := range supportLooks() {
		says := func() (int, []byte) { return g.agentSays(ctx, args) }
		if err := add(append([]string{"amsagent"}, args...), says); err != nil {
			return err
		}
	}
	for _, argv := range supportPrograms() {
		if err := add(argv, func() (int, []byte) { return g.systemSays(ctx, argv) }); err != nil {
			return err
		}
	}
	return g.result("support", data, func(w *textWriter) {
		w.line("amsagent support, %s", data.Time.Format(time.RFC3339))
		for _, p := range data.Parts {
			w.heading(fmt.Sprintf("=== %s (exit %d, %s)", p.Command, p.Exit, rounded(p.Took)))
			w.b.WriteString(p.Text)
			if !strings.HasSuffix(p.Text, "\n") {
				w.b.WriteByte('\n')
			}
		}
	})
}

// agentSays runs another command of this program, with the flags that all of them have, as it would run without a terminal.
func (g *globals) agentSays(ctx context.Context, args []string) (exit int, said []byte) {
	var out locked.Buffer // the goroutine that watches signals logs to it, too
	env := g.env
	env.Stdin, env.Stdout, env.Stderr, env.IsTerminal, env.IsJournal = nil, &out, &out, nil, false
	for _, row := range settingsTable() {
		if v, ok := g.given[row.key]; ok && row.global && row.key != keyOutput && row.key != keyColor {
			args = append(args, "--"+row.flag+"="+v.text)
		}
	}
	ended := make(chan int, 2)
	env.Exit = func(code int) { // a second signal
		if ctx.Err() == nil { // else this command ends, too
			ended <- code
		}
	}
	go func() { ended <- Main(append(args, "--output=text", "--color=never"), env) }() //nolint:contextcheck // it hears the same signals
	exit = <-ended
	return exit, []byte(out.String())
}

// systemSays runs a program of the system that this command needs nothing else from.
func (g *globals) systemSays(ctx context.Context, argv []string) (exit int, said []byte) {
	if g.settings.Root != "" {
		return -1, []byte("not asked: it would tell of this machine, and not of " + g.settings.Root)
	}
	ctx, cancel := context.WithTimeout(ctx, supportTime)
	defer cancel()
	c := exec.CommandContext(ctx, "/usr/bin/env", argv...) // which looks in that PATH
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0"}
	c.WaitDelay = time.Second
	said, err := c.CombinedOutput()
	if c.ProcessState == nil || c.ProcessState.ExitCode() < 0 {
		return -1, append(said, err.Error()...)
	}
	return c.ProcessState.ExitCode(), said
}

// lastOf is the end of a text that is longer than room, from the beginning of a line.
func lastOf(said []byte, room int) string {
	if len(said) <= room {
		return string(said)
	}
	_, rest, _ := bytes.Cut(said[len(said)-room:], []byte{'\n'})
	return fmt.Sprintf("(the first %d bytes are left out)\n%s", len(said)-len(rest), rest)
}
