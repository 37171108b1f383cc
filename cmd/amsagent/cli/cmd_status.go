// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
)

type statusOptions struct {
	strict bool
	wait   string
}

func newStatusCommand(g *globals) *cobra.Command {
	var opts statusOptions
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "show this node from four sides, and how they differ",
		Long: "Four sides: the files on disk, the server that runs, this node's records as\n" +
			"its peers read them from MongoDB, and the daemon with what the cloud wants of\n" +
			"it. Contradictions are listed, each with its fix.\n\n" +
			"It needs root. Monitoring asks /readyz of the daemon.\n\n" +
			"A contradiction is not a failure of this command: it exits 0. In a script use\n" +
			"--strict, which exits 6 then, or --wait.",
		Example: "  amsagent status\n" +
			"  amsagent status --strict -o json\n" +
			"  amsagent status --wait active --timeout 2m",
		RunE: func(cmd *cobra.Command, _ []string) error { return runStatus(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitNotMember, exitDegraded, exitInterrupted)
	readsOnly(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&opts.strict, "strict", false, "exit 6 where anything disagrees or could not be looked at")
	fs.StringVar(&opts.wait, "wait", "", "wait until this node is in `STATE` (joining, active, draining, left, failed), for --timeout at most; active is what the row says with agent and server heard and viewers served")
	completes(cmd, "wait", states)
	g.addSettings(cmd, machineSettings()...)
	unlisted(cmd, settings.KeyAMSRelease, settings.KeyProvider)
	return cmd
}

func runStatus(ctx context.Context, opts statusOptions, g *globals) error {
	if err := cmp.Or(opts.check(), mustBeRoot(g, "show this node")); err != nil {
		return err
	}
	ctx, cancel := g.timed(ctx)
	defer cancel()
	m, err := g.bootstrapMachine(false)
	if err != nil {
		return err
	}
	req := bootstrap.StatusRequest{
		Valve:    bootstrap.Valve(g.settings.RemoteIPValve),
		Address:  g.settings.Address,
		Identify: g.whoami,
	}
	src, noMongo := g.mongoOrTag(ctx)
	if noMongo != nil && !errors.Is(noMongo, errNoMongo) {
		return noMongo
	}
	look := func(ctx context.Context) (*bootstrap.Status, error) {
		if noMongo != nil {
			if again, err := g.mongo(); !errors.Is(err, errNoMongo) {
				src, noMongo = again, err // a join has ended since
			}
		}
		req.Mongo = src.Target
		s, err := m.Status(ctx, req)
		if err == nil && noMongo != nil {
			s.Row.Err = output.OneLine(noMongo.Error())
		}
		return s, err
	}
	var s *bootstrap.Status
	var werr error
	if opts.wait == "" {
		s, err = look(ctx)
	} else {
		s, werr, err = waitStatus(ctx, cluster.State(opts.wait), g, look)
	}
	if err != nil {
		return cannot("look at this machine", err)
	}
	v := &statusView{Status: s, Given: g.settings.GivenToJoin()}
	v.addSettings(g)
	v.addMongo(g)
	v.askDaemon(ctx, g)
	v.addConfig(g)
	if err := g.result("status", v, func(w *output.Text) { statusText(w, v) }); err != nil {
		return err
	}
	switch {
	case werr != nil:
		return werr
	case opts.wait != "" && !opts.strict:
		return nil
	case !s.Member && s.Files.Err != "" && s.Files.Dir != "":
		return &quietError{exitFailed}
	case !s.Member:
		return &quietError{exitNotMember}
	case opts.strict && (len(s.Disagree) > 0 || s.Files.Err != "" || s.Process.Err != "" || !s.Row.Looked):
		return &quietError{exitDegraded}
	}
	return nil
}

func statusText(w *output.Text, s *statusView) {
	w.Line("%s", cmp.Or(s.lifeVerdict(w), statusVerdict(w, s.Status)))
	files := output.Printable(s.Files.Err)
	if s.Files.Mode != "" {
		files = fmt.Sprintf("%s, Ant Media Server %s in %s", s.Files.Mode, s.Files.Release, s.Files.Dir)
		if s.Files.Undo {
			files += ", leave can restore the original files"
		}
	}
	process := s.Process.Err
	if process == "" {
		process = processText(w, s.Process)
	}
	w.Fields("files", files, "process", process, "registry", registryText(w, s.Row), "agent", agentText(s.Row), "cluster", amsText(w, s.Row),
		"sessions", statusSessions(s.Row), "balancers", statusBalancers(s.Row), "daemon", s.daemonText(), "launch hooks", s.launchHooksText(), "node", s.nodeText(), "given to join", s.givenText())
	notes := s.Notes
	if s.Daemon != nil {
		notes = slices.Concat(notes, s.Daemon.Notes)
	}
	for _, note := range notes {
		w.Line("note: %s", output.OneLine(note))
	}
	s.lifeText(w)
	s.driftText(w)
	if lines := loadLines(s.Row, w.Color); len(lines) > 0 {
		w.Heading("Load")
		for _, line := range lines {
			w.Line("  %s", line)
		}
	}
	if len(s.Disagree) == 0 {
		return
	}
	w.Heading("What disagrees")
	for _, d := range s.Disagree {
		w.Line("  %s %s", w.Color.Yellow(d.ID+":"), output.Printable(d.Text))
		if d.Hint != "" {
			w.Line("      %s", output.Printable(d.Hint))
		}
	}
}

func processText(w *output.Text, p bootstrap.ProcessView) string {
	text := fmt.Sprintf("%s is %s", p.Service, p.State)
	if p.Service == (ams.None{}).Name() {
		text = "no service is asked"
	}
	if !p.State.Since.IsZero() && p.State.Running() {
		text += ", since " + w.Ago(p.State.Since)
	}
	switch alive := p.Liveness.String(); {
	case p.State.Known() && !p.State.Running(), alive == "": // a server that was stopped is not starting
	case !p.State.Known() && p.Liveness.State == ams.LiveStarting && p.Liveness.Code == 0:
		text += "; no server answers on its port"
	default:
		text += "; " + alive
	}
	return text
}

func statusVerdict(w *output.Text, s *bootstrap.Status) string {
	switch {
	case s.Files.Err != "" && s.Files.Dir != "":
		return w.Color.Red("broken") + ": the server cannot start with these files"
	case !s.Member && s.Files.Mode == conf.ModeStandalone:
		return w.Color.Bold("not a member") + ": this machine is standalone"
	case !s.Member:
		return w.Color.Bold("not a member") + ": no Ant Media Server is found here"
	case len(s.Disagree) > 0:
		return w.Color.Yellow("degraded") + fmt.Sprintf(": %s", output.Count(len(s.Disagree), "disagreement"))
	case !s.Row.Looked:
		return w.Color.Yellow("unknown") + ": a cluster node by its files; the cluster could not be asked"
	case s.Row.Registry != nil && s.Row.Registry.State == cluster.StateLeft:
		return w.Color.Bold("left") + ": this node is out of the cluster"
	case s.Row.Registry != nil && s.Row.Registry.State != cluster.StateActive:
		return w.Color.Yellow(output.Printable(string(s.Row.Registry.State))) + ": so says the registry of this node"
	}
	return w.Color.Green("active") + ": in the cluster as " + output.Printable(s.Row.Address)
}

func registryText(w *output.Text, r bootstrap.RowView) string {
	switch {
	case !r.Looked:
		return output.Printable(r.Err)
	case r.Registry == nil:
		return "no row of this node"
	}
	text := fmt.Sprintf("%s is %s", nodeText(r.Registry), r.Registry.State)
	if !r.Registry.StateSince.IsZero() {
		text += ", since " + w.Ago(r.Registry.StateSince)
	}
	if sv := r.Registry.Serving; sv != nil && !sv.Up && r.Registry.State == cluster.StateActive {
		text += "; does not serve viewers: " + cmp.Or(sv.Why, "the agent gives no reason")
	}
	return output.Printable(text)
}

func amsText(w *output.Text, r bootstrap.RowView) string {
	if !r.Looked || r.Address == "" {
		return ""
	}
	if len(r.AMS) == 0 {
		return "Ant Media Server has no document as " + r.Address
	}
	text := ""
	for _, n := range r.AMS {
		if text != "" {
			text += "; "
		}
		text += fmt.Sprintf("%s written %s", n.ID, w.Ago(n.LastUpdate))
	}
	return output.Printable(text)
}

// agentText says when the agent was heard; nothing where none ever was.
func agentText(r bootstrap.RowView) string {
	if !r.Looked || r.Registry == nil || !r.Registry.Heartbeats() || !r.Agent.Known {
		return ""
	}
	text := fmt.Sprintf("last beat %s ago, one every %s", output.Roughly(r.Agent.Age), output.Rounded(r.Registry.Interval))
	if r.Registry.Interval <= 0 {
		text = fmt.Sprintf("last beat %s ago", output.Roughly(r.Agent.Age))
	}
	if !r.Agent.Fresh {
		text += ": silent"
	}
	return text
}

func statusBalancers(r bootstrap.RowView) string {
	if r.Registry == nil {
		return ""
	}
	return balancersText(*r.Registry, r.Registry.UpdatedAt.Add(time.Duration(r.Age)))
}

// balancersText names the load balancers that know a node, and whether they send new sessions to it.
func balancersText(n cluster.Node, serverNow time.Time) string {
	var words []string
	recent := n.BalancersAt(serverNow)
	for _, name := range slices.Sorted(maps.Keys(recent)) {
		word := " took it out"
		if recent[name].Uses {
			word = " uses it"
		}
		words = append(words, output.Printable(name)+word)
	}
	return strings.Join(words, ", ")
}

func statusSessions(r bootstrap.RowView) string {
	v := nodeView{Member: cluster.Member{Node: r.Registry, Agent: r.Agent}}
	s := v.sessions()
	if s == nil || s.Publishers == nil && s.Viewers == nil {
		return ""
	}
	part := func(n *int, one string) string {
		if n == nil {
			return one + "s not known"
		}
		return output.Count(*n, one)
	}
	text := part(s.Publishers, "publisher") + ", " + part(s.Viewers, "viewer")
	if s.Viewers != nil && s.By == cluster.CountedByConnections {
		text += " (counted by connections)"
	}
	return text + s.NotCounted()
}

// loadLines shows what the agent beat last.
func loadLines(r bootstrap.RowView, color output.Palette) []string {
	v := nodeView{Member: cluster.Member{Node: r.Registry, Agent: r.Agent}}
	load := v.load()
	gpu, index, devices := v.gpu()
	gpuName := "GPU"
	if devices > 1 && gpu != nil {
		gpuName = fmt.Sprintf("GPU #%d of %d", index, devices)
	}
	var lines []string
	for _, row := range []struct {
		name    string
		percent *int
	}{{"CPU", load.CPU}, {"memory", load.Mem}, {"disk", load.Disk}, {gpuName, gpu}, {"score", load.Score}} {
		if row.percent == nil {
			continue
		}
		lines = append(lines, fmt.Sprintf("%-13s", row.name)+paintLoad(color, row.percent, fmt.Sprintf("%4s", percentText(row.percent))))
	}
	return lines
}
