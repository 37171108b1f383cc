// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/plain"
)

// machineSettings are those of every command that looks at, or changes, the server on this machine.
func machineSettings() []string {
	return []string{settings.KeyMongo, settings.KeyAddress, settings.KeyAMSDir, settings.KeyAMSRelease, settings.KeyProvider, settings.KeyService, settings.KeyServiceCommand, settings.KeyTimeout}
}

// mongoTimeout bounds each call to MongoDB. The driver's own is half a minute.
const mongoTimeout = 5 * time.Second

// mustBeRoot refuses to change this machine without root, as a join does. A tree below another root may be any user's.
func mustBeRoot(g *globals, verb string) error {
	if g.env.Geteuid() == 0 || g.settings.Root != "" {
		return nil
	}
	return cannot(verb, &bootstrap.PreflightError{Findings: []bootstrap.Finding{
		{ID: bootstrap.IDRoot, Severity: bootstrap.Bad, Text: "only root may do that on this machine", Hint: bootstrap.RootHint},
	}})
}

// bootstrapMachine is this machine by the settings. offline does not touch the service.
func (g *globals) bootstrapMachine(offline bool) (*bootstrap.Machine, error) {
	s := g.settings
	m := &bootstrap.Machine{
		Root: s.Root, AMSDir: s.AMSDir, Service: ams.None{},
		Version: currentVersion().Version, Log: g.out.Log(), Progress: g.out.Progress, Euid: g.env.Geteuid(), Serving: s.Serving, Begin: context.Cause,
		Connect: func(ctx context.Context, t cluster.Target) (*cluster.Client, error) {
			return cluster.Connect(ctx, t, cluster.Options{AppName: "amsagent", Timeout: mongoTimeout, Log: g.out.Log()})
		},
	}
	if s.AMSRelease != "" {
		r, err := ams.ParseRelease(s.AMSRelease)
		if err != nil {
			return nil, s.Origin(settings.KeyAMSRelease).Fault(err)
		}
		m.Release = r
	}
	switch {
	case s.ServiceCommand != "":
		cmd, err := serviceCommand(s)
		if err != nil {
			return nil, err
		}
		if !offline {
			m.Service = cmd
			m.SetAddress = cmd.SetHostAddress
		}
		return m, nil
	case s.Service == "none" || (s.Service == "auto" && s.Root != ""):
		// systemd will start the server in a tree with systemd's folder.
		info, err := os.Stat(s.Root + "/etc/systemd/system")
		m.DropIn = err == nil && info.IsDir()
	default:
		m.DropIn = true
		if !offline {
			m.Service = ams.NewSystemd(ams.DefaultUnit)
		}
	}
	m.Program, g.notOwn = unitProgram(s.Root, g.env.Executable)
	return m, nil
}

// serviceCommand is the command that replaces systemd.
func serviceCommand(s *settings.Settings) (*ams.Command, error) {
	cmd, err := ams.NewCommand(s.ServiceCommand)
	if err != nil {
		e := s.Origin(settings.KeyServiceCommand).Fault(err)
		e.Hints = someHint(ams.Hint(err))
		return nil, e
	}
	return cmd, nil
}

// installedProgram is where the packages put this program.
const installedProgram = "/usr/bin/amsagent"

// unitProgram returns the program that the server's unit calls as root before a start: this one. In another machine's tree, or
// if another user may change this one, it is the installed one; "" if that is so of the installed one, too, or it is missing.
// The error is why it is not this one.
func unitProgram(root string, executable func() (string, error)) (string, error) {
	if root != "" {
		return installedProgram, nil
	}
	own, err := executable()
	if err == nil {
		if err = (files.Root{}).RootsAlone(own); err == nil {
			return own, nil
		}
	}
	if _, serr := os.Stat(installedProgram); serr != nil || (files.Root{}).RootsAlone(installedProgram) != nil {
		return "", err
	}
	return installedProgram, err
}

// onSystemd reports whether systemd starts the agent's units. It may also do so if a command starts Ant Media Server, if runs:
// systemd runs this machine.
func onSystemd(m *bootstrap.Machine, runs bool) bool {
	switch m.Service.(type) {
	case *ams.Systemd:
		return true
	case *ams.Command:
		return runs && m.Root == ""
	}
	return false
}

// handleDaemon lets a join start the daemon and a leave stop it. The daemon does not call it.
func handleDaemon(m *bootstrap.Machine, offline bool) {
	if !offline && onSystemd(m, ams.SystemdRuns()) {
		m.Daemon = ams.NewUnits("amsagent-node.service", "amsagent.service") // in the order of their start
	}
}

// controlSocket is the daemon's, below the root.
const controlSocket = "/run/amsagent/control.sock"

// daemon is a client of the daemon on this machine.
func (g *globals) daemon() *daemon.Client {
	return daemon.NewClient(g.settings.Root+controlSocket, g.out.Progress)
}

// holdReadiness makes the daemon not ready before a command stops or restarts the server. Without a daemon, or if it does not
// answer, the command continues.
func holdReadiness(g *globals, command string) func(context.Context) (release func()) {
	return func(ctx context.Context) func() {
		release, err := g.daemon().Hold(ctx, daemon.HoldRequest{Command: command})
		switch {
		case err == nil:
			return release
		case !errors.Is(err, daemon.ErrDown):
			g.out.Log().Warn("making the daemon not ready failed", "error", err)
		}
		return func() {}
	}
}

// findings logs the findings that did not stop the command.
func (g *globals) findings(ws []bootstrap.Finding) {
	for _, w := range ws {
		text := w.String()
		if w.Hint != "" {
			text += " (" + w.Hint + ")"
		}
		g.out.Log().Warn(output.OneLine(text)) //nolint:sloglint // the finding's own words
	}
}

// conclude logs the findings of a join or a leave, keeps its outcome for programs, and returns its error for a person.
func (g *globals) conclude(verb string, dryRun bool, result bootstrap.Outcome, found []bootstrap.Finding, err error) error {
	err = cannot(verb, err)
	if !dryRun {
		keepOutcome(g, verb, result, err)
	}
	g.findings(found)
	return err
}

// resultPath has the last outcome of join and leave.
const resultPath = "/run/amsagent/result.json"

// outcome is the content of that file. It has no secrets: every user may read it.
type outcome struct {
	SchemaVersion int       `json:"schema_version"`
	Command       string    `json:"command"`
	Outcome       string    `json:"outcome"`
	ExitCode      int       `json:"exit_code"`
	At            time.Time `json:"at"`
	Message       string    `json:"message,omitempty"`
	State         string    `json:"state,omitempty"`
}

// keepOutcome writes the outcome of a command. If it cannot, the command has not failed.
func keepOutcome(g *globals, command string, result bootstrap.Outcome, err error) {
	if g.env.Geteuid() != 0 && g.settings.Root == "" {
		return
	}
	o := outcome{SchemaVersion: output.SchemaVersion, Command: command, Outcome: string(result), At: g.env.Now().UTC().Truncate(time.Second)}
	store := &conf.Store{Root: g.settings.Root, Dir: bootstrap.StateDir}
	if err != nil {
		e := g.explain(err)
		o.Outcome, o.ExitCode, o.Message, o.State = "failed", e.Exit, g.out.Redact(e.Error()), g.out.Redact(e.State)
	} else if f, rerr := store.Read(resultPath); result == bootstrap.OutcomeUnchanged && rerr == nil && f.Exists() {
		var last outcome
		if json.Unmarshal(f.Bytes, &last) == nil && last.ExitCode == exitOK && last.Command == command {
			return // a command without a change writes nothing
		}
	}
	b, merr := json.MarshalIndent(o, "", "  ")
	if merr == nil {
		merr = store.WriteFile(resultPath, append(plain.Output(b), '\n'), 0o644, 0o755)
	}
	if merr != nil && !errors.Is(merr, fs.ErrPermission) {
		g.out.Log().Warn("writing the outcome failed", "path", resultPath, "error", merr)
	}
}

// writeFiles prints the diffs of a plan.
func writeFiles(w *output.Text, files []bootstrap.FileResult) {
	for _, f := range files {
		if !f.Changed {
			continue
		}
		w.Blank()
		if f.Diff == "" {
			w.Line("%s", output.Printable(f.Path))
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(f.Diff, "\n"), "\n") {
			w.Line("%s", diffLine(w.Color, output.Printable(line)))
		}
		if f.Mode != "" {
			w.Line("mode of %s becomes %s", output.Printable(f.Path), f.Mode)
		}
	}
}

func diffLine(c output.Palette, line string) string {
	switch {
	case strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
		return c.Bold(line)
	case strings.HasPrefix(line, "+"):
		return c.Green(line)
	case strings.HasPrefix(line, "-"):
		return c.Red(line)
	}
	return line
}
