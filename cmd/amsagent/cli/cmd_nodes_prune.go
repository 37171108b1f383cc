// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
)

type pruneOptions struct {
	olderThan                   time.Duration
	yes, left, amsOnly, noProbe bool
}

func newNodesPruneCommand(g *globals) *cobra.Command {
	var opts pruneOptions
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "remove the records of nodes that are gone",
		Long: "A record is removed if the agent has been silent for --older-than, Ant Media\n" +
			"Server's own document is missing or as old, no program listens on the server's\n" +
			"port, and none of that changed between two readings some seconds apart. The\n" +
			"documents of that address are removed with it. A record or document that is\n" +
			"written in the meantime stays.\n\n" +
			"Without --yes nothing is removed.",
		Example: "  amsagent nodes prune\n" +
			"  amsagent nodes prune --older-than 1h --yes\n" +
			"  amsagent nodes prune --left --ams-only --yes",
		RunE: func(cmd *cobra.Command, _ []string) error { return runNodesPrune(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitInterrupted)
	fs := cmd.Flags()
	fs.DurationVar(&opts.olderThan, "older-than", 10*time.Minute, "only what has been silent for this `DURATION`")
	fs.Lookup("older-than").DefValue = "10m" // not Go's 10m0s
	fs.BoolVar(&opts.yes, "yes", false, "remove them; without it they are only listed")
	fs.BoolVar(&opts.left, "left", false, "remove the records of nodes that have left, too")
	fs.BoolVar(&opts.amsOnly, "ams-only", false, "remove documents of Ant Media Server without a record, too")
	fs.BoolVar(&opts.noProbe, "no-probe", false, "remove nodes without trying whether a program listens on their ports")
	g.addSettings(cmd, settings.KeyMongo)
	return cmd
}

const (
	// minPruneAge is Ant Media Server's own limit: a busy server is silent for less.
	minPruneAge = 20 * time.Second
	// pruneWait is longer than the period of a server's writes: a live one writes between two looks.
	pruneWait = 6 * time.Second
)

// pruneData is what `nodes prune` prints.
type pruneData struct {
	DryRun    bool             `json:"dry_run"`
	OlderThan seconds.Duration `json:"older_than_seconds"`
	// Remove is what was removed, or what would be; Kept is what is gone too and stays.
	Remove []pruneItem `json:"removed"`
	Kept   []pruneItem `json:"kept"`

	failed bool
}

type pruneItem struct {
	ID      string        `json:"id,omitempty"` // of the record, or ""
	Address string        `json:"address"`
	State   cluster.State `json:"state,omitempty"`
	Role    string        `json:"role,omitempty"`
	Group   string        `json:"group,omitempty"`
	Why     string        `json:"reason"`
	// Documents are AMS's own of this address.
	Documents []string `json:"documents"`

	member  cluster.Member
	listens bool // a program does on its port
}

func runNodesPrune(ctx context.Context, opts pruneOptions, g *globals) error {
	if opts.olderThan < minPruneAge {
		return usageError(nil, "--older-than: %s is less than %s, for which a live server may be silent", opts.olderThan, settings.ShortDuration(minPruneAge))
	}
	return g.inCluster(ctx, "amsagent nodes prune", g.out.Log(), func(c *cluster.Client) error { return prune(ctx, opts, g, c) })
}

func prune(ctx context.Context, opts pruneOptions, g *globals, c *cluster.Client) error {
	var o cluster.Observer
	var members []cluster.Member
	data := pruneData{DryRun: !opts.yes, OlderThan: seconds.Duration(opts.olderThan)}
	look := func() error {
		l, err := c.Look(ctx)
		if err != nil {
			return err
		}
		members = o.Observe(l)
		if slices.ContainsFunc(members, func(m cluster.Member) bool { return m.Health == cluster.Unknown }) {
			return errors.New(board.AllSilent + "; run it again once a node has one")
		}
		data.judge(opts, members)
		return nil
	}
	err := look()
	if err == nil && len(data.Remove) > 0 {
		g.out.Progress(fmt.Sprintf("%s silent; looking again in %s, in case one of them writes", output.Count(len(data.Remove), "machine"), output.Rounded(pruneWait)))
		sleep.For(ctx, pruneWait)
		err = cmp.Or(ctx.Err(), look())
	}
	if err != nil {
		return &userError{Msg: "cannot look at the cluster", Cause: err, State: "nothing was removed"}
	}
	if !opts.noProbe {
		data.probe(ctx, members)
	}
	if opts.yes {
		err = data.remove(ctx, g, c)
	}
	return errors.Join(err, g.result("prune", data, func(w *output.Text) { pruneText(w, data) }))
}

// judge decides about each silent member.
func (d *pruneData) judge(opts pruneOptions, members []cluster.Member) {
	d.Remove, d.Kept = []pruneItem{}, []pruneItem{}
	for _, m := range members {
		if !m.Silent() {
			continue
		}
		item := pruneItem{Address: m.Address(), Documents: []string{}, member: m}
		for _, doc := range m.AMS {
			item.Documents = append(item.Documents, doc.ID)
		}
		if n := m.Node; n != nil {
			item.ID, item.State, item.Role, item.Group = n.ID, n.State, n.Role, n.Group
		}
		if item.Why = whyKept(opts, m); item.Why != "" {
			d.Kept = append(d.Kept, item)
			continue
		}
		item.Why = whyGone(m)
		d.Remove = append(d.Remove, item)
	}
}

// whyKept returns "" for a member that is removed.
func whyKept(opts pruneOptions, m cluster.Member) string {
	young := func(h cluster.Signal) bool { return h.Known && time.Duration(h.Age) < opts.olderThan }
	switch {
	case m.Node == nil && !m.Server.Known:
		return "Ant Media Server's document has no readable time"
	case m.Node == nil && m.Address() == "":
		return "Ant Media Server's document has no address"
	case m.Node != nil && !m.Agent.Known:
		return "the record has no readable time"
	case young(m.Agent):
		return "the agent is silent for only " + output.Roughly(m.Agent.Age)
	case young(m.Server):
		return "Ant Media Server is silent for only " + output.Roughly(m.Server.Age)
	case m.Node == nil && !opts.amsOnly:
		return "has no record; --ams-only removes it"
	case m.State() == cluster.StateLeft && !opts.left:
		return "has left; --left removes it"
	}
	return ""
}

func whyGone(m cluster.Member) string {
	agent, left := "no agent", m.State() == cluster.StateLeft
	switch {
	case left:
		agent = "left " + output.Roughly(m.Agent.Age) + " ago"
	case m.Node != nil:
		agent = "agent silent for " + output.Roughly(m.Agent.Age)
	}
	switch {
	case m.Server.Known:
		return agent + ", Ant Media Server for " + output.Roughly(m.Server.Age)
	case left:
		return agent
	}
	return agent + ", Ant Media Server has no document"
}

const (
	probeTime    = 500 * time.Millisecond
	probesAtOnce = 128
)

// probe keeps the nodes on whose port a program listens: an overloaded server may write nothing for minutes, and serve.
func (d *pruneData) probe(ctx context.Context, members []cluster.Member) {
	var all errgroup.Group
	all.SetLimit(probesAtOnce)
	for i := range d.Remove {
		item := &d.Remove[i]
		n := item.member.Node
		// Another machine that has the address now would answer.
		reused := slices.ContainsFunc(members, func(m cluster.Member) bool {
			return !m.Silent() && m.ID() != item.member.ID() && cluster.SameAddress(m.Address(), item.Address)
		})
		if n == nil || n.State == cluster.StateLeft || n.Port <= 0 || reused {
			continue
		}
		all.Go(func() error {
			item.listens = listens(ctx, n.IP, n.Port)
			return nil
		})
	}
	_ = all.Wait()
	d.Remove = slices.DeleteFunc(d.Remove, func(item pruneItem) bool {
		if item.listens {
			item.Why = fmt.Sprintf("a program listens on port %d of %s", item.member.Node.Port, item.member.Node.IP)
			d.Kept = append(d.Kept, item)
		}
		return item.listens
	})
}

// listens opens a connection and closes it.
func listens(ctx context.Context, ip string, port int) bool {
	addr, ok := cluster.Dialable(ip)
	if !ok {
		return false
	}
	d := net.Dialer{Timeout: probeTime}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), strconv.Itoa(port)))
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// remove moves to Kept what could not be removed.
func (d *pruneData) remove(ctx context.Context, g *globals, c *cluster.Client) error {
	var errs []error
	plan := d.Remove
	d.Remove = []pruneItem{}
	for _, item := range plan {
		removed, kept, err := removeMember(ctx, c, item.member)
		errs = append(errs, err)
		if kept != "" {
			item.Why = kept
			d.Kept = append(d.Kept, item)
			continue
		}
		item.Documents = removed
		d.Remove = append(d.Remove, item)
		event := cluster.Event{Node: item.member.ID(), Kind: "prune", Who: "amsagent", Why: item.Why, Details: map[string]string{
			"address": item.Address, "state": string(item.State), "role": item.Role, "group": item.Group, "documents": strings.Join(removed, " "),
		}}
		maps.DeleteFunc(event.Details, func(_, value string) bool { return value == "" })
		if err := c.AddEvent(ctx, event); err != nil {
			g.out.Log().Warn("the event could not be noted", "kind", event.Kind, "node", event.Node, "error", err)
		}
	}
	failed := errors.Join(errs...)
	if failed == nil {
		return nil
	}
	d.failed = true
	return &userError{
		Msg: "cannot remove everything", Cause: failed,
		State: fmt.Sprintf("%d of %d were removed", len(d.Remove), len(plan)),
	}
}

// removeMember removes a record and its documents as they were seen, or returns why they are kept.
func removeMember(ctx context.Context, c *cluster.Client, m cluster.Member) (documents []string, kept string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, "not done", err
	}
	documents = []string{}
	if m.Node != nil { // first: if it was written since, the machine is alive
		switch gone, err := c.RemoveNode(ctx, *m.Node); {
		case err != nil:
			return nil, "not done", err
		case !gone:
			return nil, "the record was written just now", nil
		}
	}
	var errs []error
	done := map[string]bool{}
	for _, doc := range m.AMS {
		newest := m.AMS[0].LastUpdate
		if doc.IP == "" || newest.IsZero() || done[doc.IP] {
			continue
		}
		done[doc.IP] = true
		gone, _, err := c.DeleteAMSNodes(ctx, doc.IP, "", newest)
		errs = append(errs, err)
		for _, n := range gone {
			documents = append(documents, n.ID)
		}
	}
	err = errors.Join(errs...)
	switch {
	case m.Node != nil, len(documents) > 0:
	case err != nil:
		kept = "not done"
	default:
		kept = "the document was written just now"
	}
	return documents, kept, err
}

func pruneText(w *output.Text, d pruneData) {
	machines := output.Count(len(d.Remove), "machine")
	switch {
	case len(d.Remove) == 0 && d.failed:
		w.Line("nothing was removed")
	case len(d.Remove) == 0:
		w.Line("%s: no machine that may be removed has been gone for %s", w.Color.Green("nothing to do"), settings.ShortDuration(time.Duration(d.OlderThan)))
	case d.DryRun:
		w.Line("%s; nothing was touched", w.Color.Bold(machines+" would be removed"))
	default:
		w.Line("%s", w.Color.Green(machines+" removed"))
	}
	rows := func(items []pruneItem) {
		var table [][]string
		for _, item := range items {
			why := item.Why
			if n := len(item.Documents); n > 0 {
				why += "; " + output.Count(n, "document") + " of Ant Media Server"
			}
			id := "(no record)"
			if n := item.member.Node; n != nil {
				id = board.NodeText(n)
			}
			table = append(table, []string{id, output.Dash(item.Address), output.Dash(string(item.State)), why})
		}
		w.Table(table)
	}
	rows(d.Remove)
	if len(d.Kept) > 0 {
		w.Heading("Gone and kept")
		rows(d.Kept)
	}
	if d.DryRun && len(d.Remove) > 0 {
		w.Line("\nto remove them: the same command with %s", w.Color.Bold("--yes"))
	}
}
