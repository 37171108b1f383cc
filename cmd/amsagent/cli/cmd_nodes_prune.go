// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/amsagent/amsagent/cluster"
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
			"documents of that address are removed with it. What is written in the meantime\n" +
			"stays.\n\n" +
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
	fs.BoolVar(&opts.yes, "yes", false, "do it; without it, what would be removed is printed and nothing is")
	fs.BoolVar(&opts.left, "left", false, "remove the rows of nodes that have left, too")
	fs.BoolVar(&opts.amsOnly, "ams-only", false, "remove what only Ant Media Server's own list has, without a row, too")
	fs.BoolVar(&opts.noProbe, "no-probe", false, "do not try whether anybody listens on a node's port, and keep it where somebody does")
	g.addSettings(cmd, settings.KeyMongo)
	return cmd
}

const (
	// pruneLeast is AMS's own limit: who is silent for less may be busy.
	pruneLeast = 20 * time.Second
	// pruneWait is longer than AMS's period: whoever lives writes between two looks.
	pruneWait = 6 * time.Second
)

// pruner is the cluster as far as prune changes it.
type pruner interface {
	looker
	RemoveNode(ctx context.Context, n cluster.Node) (bool, error)
	DeleteAMSNodes(ctx context.Context, address, id string, before time.Time) (gone, stay []cluster.AMSNode, err error)
	AddEvent(ctx context.Context, e cluster.Event) error
}

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
	listens bool // somebody does on its port
}

func runNodesPrune(ctx context.Context, opts pruneOptions, g *globals) error {
	if opts.olderThan < pruneLeast {
		return usageError(nil, "--older-than: %s is less than %s, for which a server that lives may be silent", opts.olderThan, settings.ShortDuration(pruneLeast))
	}
	return g.inCluster(ctx, "amsagent nodes prune", g.out.Log(), func(c *cluster.Client) error { return prune(ctx, opts, g, c) })
}

func prune(ctx context.Context, opts pruneOptions, g *globals, c pruner) error {
	fail := func(err error) error {
		return &userError{Msg: "cannot look at the cluster", Cause: err, State: "nothing was removed"}
	}
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
			return errors.New("no node is heard: MongoDB takes no writes, or was away until now; run it again once a node is heard")
		}
		data.judge(opts, members)
		return nil
	}
	err := look()
	if err == nil && len(data.Remove) > 0 {
		g.out.Progress(fmt.Sprintf("%s silent; looking again in %s, in case one of them writes", output.Count(len(data.Remove), "machine"), output.Rounded(pruneWait)))
		if !sleep.For(ctx, pruneWait) {
			return fail(ctx.Err())
		}
		err = look()
	}
	if err != nil {
		return fail(err)
	}
	if !opts.noProbe {
		data.probe(ctx, members)
	}
	if opts.yes {
		err = data.remove(ctx, g, c)
	}
	if rerr := g.result("prune", data, func(w *output.Text) { pruneText(w, data) }); rerr != nil {
		return errors.Join(err, rerr)
	}
	return err
}

// judge decides about each member that is gone.
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

// whyKept tells why a member that is gone stays; "" where it goes.
func whyKept(opts pruneOptions, m cluster.Member) string {
	// Both limits again, and AMS's own: the verdict is in a hurry, this is not.
	young := func(who string, h cluster.Signal) string {
		if h.Known && time.Duration(h.Age) < opts.olderThan {
			return fmt.Sprintf("%s silent for only %s", who, output.Roughly(h.Age))
		}
		return ""
	}
	switch {
	case m.Node == nil && !m.Server.Known:
		return "Ant Media Server's document has no readable time"
	case m.Node == nil && m.Address() == "":
		return "Ant Media Server's document has no address"
	case m.Node != nil && !m.Agent.Known:
		return "the row does not tell when it was written"
	}
	if why := young("the agent is", m.Agent); why != "" {
		return why
	}
	if why := young("Ant Media Server is", m.Server); why != "" {
		return why
	}
	switch {
	case m.Node == nil && !opts.amsOnly:
		return "has no row; --ams-only removes it"
	case m.State() == cluster.StateLeft && !opts.left:
		return "has left; --left removes it"
	}
	return ""
}

func whyGone(m cluster.Member) string {
	var words []string
	switch {
	case m.State() == cluster.StateLeft:
		words = append(words, "left "+output.Roughly(m.Agent.Age)+" ago")
	case m.Node != nil:
		words = append(words, "agent silent for "+output.Roughly(m.Agent.Age))
	default:
		words = append(words, "no agent")
	}
	switch {
	case m.Server.Known:
		words = append(words, "Ant Media Server for "+output.Roughly(m.Server.Age))
	case m.State() != cluster.StateLeft:
		words = append(words, "Ant Media Server has no document")
	}
	return strings.Join(words, ", ")
}

// probe keeps those on whose port somebody listens: a server under load may not come to write for minutes, and serves.
func (d *pruneData) probe(ctx context.Context, members []cluster.Member) {
	ctx, cancel := context.WithTimeout(ctx, probesTime)
	defer cancel()
	var all errgroup.Group
	all.SetLimit(probesOnce)
	for i := range d.Remove {
		item := &d.Remove[i]
		n := item.member.Node
		// Where the address is another machine's by now, that one would answer.
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
			item.Why = fmt.Sprintf("somebody listens on port %d of %s", item.member.Node.Port, item.member.Node.IP)
			d.Kept = append(d.Kept, item)
		}
		return item.listens
	})
}

const (
	probeTime  = 500 * time.Millisecond
	probesOnce = 16
	// probesTime bounds all of them.
	probesTime = 10 * time.Second
)

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

// remove does it. What could not be removed moves to Kept.
func (d *pruneData) remove(ctx context.Context, g *globals, c pruner) error {
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
		event := cluster.Event{Node: item.member.ID(), Kind: "prune", Who: "amsagent", Why: item.Why, Details: map[string]string{}}
		for key, value := range map[string]string{
			"address": item.Address, "state": string(item.State), "role": item.Role, "group": item.Group, "documents": strings.Join(removed, " "),
		} {
			if value != "" {
				event.Details[key] = value
			}
		}
		if err := c.AddEvent(ctx, event); err != nil {
			g.out.Log().Warn("the event could not be noted", "kind", event.Kind, "node", event.Node, "error", err)
		}
	}
	failed := errors.Join(errs...)
	if d.failed = failed != nil; !d.failed {
		return nil
	}
	return &userError{
		Msg: "cannot remove everything", Cause: failed,
		State: fmt.Sprintf("%d of %d were removed", len(d.Remove), len(plan)),
	}
}

// removeMember removes a row and its documents, or tells why it is kept.
func removeMember(ctx context.Context, c pruner, m cluster.Member) (documents []string, kept string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, "not done", err
	}
	// The row first: whoever has written it since is alive, and then nothing of it is touched.
	if m.Node != nil {
		switch gone, err := c.RemoveNode(ctx, *m.Node); {
		case err != nil:
			return nil, "not done", err
		case !gone:
			return nil, "the row was written just now", nil
		}
	}
	documents, err = removeDocuments(ctx, c, m)
	switch {
	case m.Node != nil, len(documents) > 0:
	case err != nil:
		kept = "not done"
	default:
		kept = "the document was written just now"
	}
	return documents, kept, err
}

// removeDocuments removes AMS's documents of a member as they were seen, and none that was written since.
func removeDocuments(ctx context.Context, c pruner, m cluster.Member) ([]string, error) {
	removed := []string{}
	if len(m.AMS) == 0 || m.AMS[0].LastUpdate.IsZero() {
		return removed, nil
	}
	newest := m.AMS[0].LastUpdate // they come newest first
	var addresses []string
	var errs []error
	for _, doc := range m.AMS {
		if doc.IP == "" || slices.Contains(addresses, doc.IP) {
			continue
		}
		addresses = append(addresses, doc.IP)
		gone, _, err := c.DeleteAMSNodes(ctx, doc.IP, "", newest)
		errs = append(errs, err)
		for _, n := range gone {
			if !slices.Contains(removed, n.ID) {
				removed = append(removed, n.ID)
			}
		}
	}
	return removed, errors.Join(errs...)
}

func pruneText(w *output.Text, d pruneData) {
	what := output.Count(len(d.Remove), "machine")
	switch {
	case len(d.Remove) == 0 && d.failed:
		w.Line("nothing was removed")
	case len(d.Remove) == 0:
		w.Line("%s: nobody that may be removed has been gone for %s", w.Color.Green("nothing to do"), settings.ShortDuration(time.Duration(d.OlderThan)))
	case d.DryRun:
		w.Line("%s; nothing was touched", w.Color.Bold(what+" would be removed"))
	default:
		w.Line("%s", w.Color.Green(what+" removed"))
	}
	rows := func(items []pruneItem) {
		var table [][]string
		for _, item := range items {
			why := item.Why
			if n := len(item.Documents); n > 0 {
				why += "; " + output.Count(n, "document") + " of Ant Media Server"
			}
			id := "(no row)"
			if n := item.member.Node; n != nil {
				id = nodeText(n)
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
		w.Blank()
		w.Line("to remove them: the same command with %s", w.Color.Bold("--yes"))
	}
}
