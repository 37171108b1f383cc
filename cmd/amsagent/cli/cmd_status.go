// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/lifecycle"
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
	fs.BoolVar(&opts.strict, "strict", false, "exit 6 if anything disagrees or could not be read")
	fs.StringVar(&opts.wait, "wait", "", "wait until this node is in `STATE` (joining, active, draining, left, failed), for --timeout at most; active also needs recent heartbeats of agent and server, and applications that serve")
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
	s, err := waitStatus(ctx, cluster.State(opts.wait), g, look)
	if s == nil {
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
	exit := v.summarize(output.Palette{}).exit
	if exit == exitOK && opts.strict && (len(s.Disagree) > 0 || s.Files.Err != "" || s.Process.Err != "" || !s.Row.Looked) {
		exit = exitDegraded
	}
	if err != nil || exit == exitOK || opts.wait != "" && !opts.strict {
		return err
	}
	return &quietError{exit}
}

// summary is the first line of status, and its exit code without --strict.
type summary struct {
	applies    bool
	paint      func(string) string
	word, text string
	exit       int
}

// summarize returns the first summary that applies. How a node leaves or returns comes before its files and records.
func (s *statusView) summarize(c output.Palette) summary {
	life, record := &lifecycle.View{}, cluster.StateActive
	if l := s.lifecycle(); l != nil && (s.Member || l.NeverJoined) { // after a leave, the daemon may not know it yet
		life = l
	}
	if s.Row.Registry != nil {
		record = s.Row.Registry.State
	}
	broken := s.Files.Err != "" && s.Files.Dir != ""
	const breaks = "the server cannot start with these files"
	list := []summary{
		{life.State == lifecycle.StateDraining, c.Yellow, "draining", life.Progress, exitOK},
		{life.State == lifecycle.StateLeft, c.Bold, "left", "this node is out of the cluster, the machine may terminate", exitOK},
		{life.State == lifecycle.StateParked, c.Bold, "parked", "out of the cluster until it is wanted again", exitOK},
		{life.State == lifecycle.StateResuming, c.Yellow, "resuming", "Ant Media Server is being started", exitOK},
		{broken && !s.Member, c.Red, "broken", breaks, exitFailed},
		{broken, c.Red, "broken", breaks, exitOK},
		{!s.Member && s.Files.Mode == conf.ModeStandalone, c.Bold, "not a member", "this machine is standalone", exitNotMember},
		{!s.Member, c.Bold, "not a member", "no Ant Media Server is found here", exitNotMember},
		{len(s.Disagree) > 0, c.Yellow, "degraded", output.Count(len(s.Disagree), "disagreement"), exitOK},
		{!s.Row.Looked, c.Yellow, "unknown", "a cluster node by its files; the cluster could not be asked", exitOK},
		{record == cluster.StateLeft, c.Bold, "left", "this node is out of the cluster", exitOK},
		{record != cluster.StateActive, c.Yellow, string(record), "according to its node record", exitOK},
		{true, c.Green, "active", "in the cluster as " + s.Row.Address, exitOK},
	}
	return list[slices.IndexFunc(list, func(one summary) bool { return one.applies })]
}

func statusText(w *output.Text, s *statusView) {
	first := s.summarize(w.Color)
	w.Line("%s: %s", first.paint(output.Printable(first.word)), output.Printable(first.text))
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
	launchHooks := "" // those that are not this agent's, if no setting names its own
	if life := s.lifecycle(); life != nil {
		launchHooks = output.Printable(life.LaunchHooks)
	}
	w.Fields("files", files, "process", process, "registry", registryText(w, s.Row), "agent", agentText(s.Row), "cluster", amsText(w, s.Row),
		"sessions", statusSessions(s.Row), "balancers", statusBalancers(s.Row), "daemon", s.daemonText(), "launch hooks", launchHooks, "node", s.nodeText(), "given to join", s.givenText())
	notes := s.Notes
	if s.Daemon != nil {
		notes = slices.Concat(notes, s.Daemon.Notes)
	}
	for _, note := range notes {
		w.Line("note: %s", output.OneLine(note))
	}
	s.lifeText(w)
	s.driftText(w)
	loadText(w, s.Row)
	if len(s.Disagree) > 0 {
		w.Heading("What disagrees")
	}
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
	if p.Release != nil {
		text += "; " + p.Release.String()
	}
	return output.Printable(text)
}

func registryText(w *output.Text, r bootstrap.RowView) string {
	switch {
	case !r.Looked:
		return output.Printable(r.Err)
	case r.Registry == nil:
		return "no record of this node"
	}
	text := fmt.Sprintf("%s is %s", board.NodeText(r.Registry), r.Registry.State)
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
	var documents []string
	for _, n := range r.AMS {
		documents = append(documents, n.ID+" written "+w.Ago(n.LastUpdate))
	}
	return output.Printable(strings.Join(documents, "; "))
}

// agentText is the last heartbeat, or "" without any.
func agentText(r bootstrap.RowView) string {
	if !r.Looked || r.Registry == nil || !r.Registry.Heartbeats() || !r.Agent.Known {
		return ""
	}
	text := fmt.Sprintf("last heartbeat %s ago", output.Roughly(r.Agent.Age))
	if r.Registry.Interval > 0 {
		text += ", one every " + output.Rounded(r.Registry.Interval)
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
	return board.BalancersText(*r.Registry, r.Registry.UpdatedAt.Add(time.Duration(r.Age)))
}

func statusSessions(r bootstrap.RowView) string {
	v := board.Node{Member: cluster.Member{Node: r.Registry, Agent: r.Agent}}
	s := v.Sessions()
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

// loadText shows the load of the last heartbeat.
func loadText(w *output.Text, r bootstrap.RowView) {
	v := board.Node{Member: cluster.Member{Node: r.Registry, Agent: r.Agent}}
	load := v.Load()
	gpu, index, devices := v.GPU()
	gpuName := "GPU"
	if devices > 1 && gpu != nil {
		gpuName = fmt.Sprintf("GPU #%d of %d", index, devices)
	}
	heading := sync.OnceFunc(func() { w.Heading("Load") })
	for _, row := range []struct {
		name    string
		percent *int
	}{{"CPU", load.CPU}, {"memory", load.Mem}, {"disk", load.Disk}, {gpuName, gpu}, {"score", load.Score}} {
		if row.percent != nil {
			heading()
			w.Line("  %-13s%s", row.name, board.PaintLoad(w.Color, row.percent, fmt.Sprintf("%4s", board.Percent(row.percent))))
		}
	}
}
