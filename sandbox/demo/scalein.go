// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
)

const app, stream = "LiveApp", "concert"

// audience starts the daemons, a publisher and a viewer.
func (d *demo) audience() error {
	origin, edge := d.nodes[0], d.nodes[1]
	d.heading("The agent's daemon reports the load and the sessions of its node. A publisher streams a concert")
	d.print("   to origin-1, and one viewer watches it on edge-1")
	feeds, counted := 0, "1 publisher, 1 viewer"
	err := origin.publish(d.ctx)
	if err == nil && d.place.fed() {
		feeds, counted = 1, "2 publishers, 1 viewer"
		d.print("   (only the Enterprise Edition forwards streams between nodes: here edge-1 has a publisher, too)")
		err = edge.publish(d.ctx)
	}
	if err == nil {
		d.viewer, err = edge.watch(d.ctx)
	}
	for _, n := range d.nodes {
		if err == nil {
			err = d.daemon(n, "run", "--beat-interval", "1s")
		}
	}
	if err != nil {
		return err
	}
	if err := d.until("both nodes report their load and their sessions", func() string {
		for i, n := range d.nodes {
			row, err := d.client.Node(d.ctx, n.id)
			switch s := row.Sessions; {
			case err != nil:
				return err.Error()
			case row.State != cluster.StateActive || row.Load == nil || row.Load.CPU == nil || row.Load.Mem == nil:
				return fmt.Sprintf("%s is %s, its load %+v", n.name, row.State, row.Load)
			case s == nil || s.Publishers == nil || s.Viewers == nil || *s.Publishers != max(1-i, feeds) || *s.Viewers != i:
				text, err := json.Marshal(s)
				return fmt.Sprintf("the sessions of %s are %s, %v", n.name, text, err)
			}
		}
		return ""
	}); err != nil {
		return err
	}
	var out string
	// A beat may be late on a busy machine.
	err = d.until("both nodes are healthy", func() string {
		var err error
		if out, err = d.agentRun(origin, "nodes"); err != nil {
			return err.Error()
		}
		if !strings.HasPrefix(out, "2 nodes: 2 healthy; 1 origin, 1 edge; "+counted+"\n") {
			return out
		}
		return ""
	})
	d.show(out, 6)
	err = d.check(err == nil, "the cluster is not as it should be: %v", err)
	d.print("   AGENT, AMS: time since the last heartbeat of each; HEALTH follows from both. CPU and MEM are")
	d.print("   those of your own computer. PUB/VIEW: publishers and viewers; the agent asks AMS for them, if its")
	d.print("   settings allow that (server.jwtServerControlEnabled=true). In a browser: %s", d.page.url)
	if err = errors.Join(err, d.shown(origin.address, edge.address), d.places()); err != nil {
		return err
	}
	return d.balance()
}

// places shows where the nodes run, in JSON.
func (d *demo) places() error {
	out, err := d.agentRun(d.nodes[0], "nodes", "-o", "json")
	if err != nil {
		return err
	}
	type place struct {
		ID       string `json:"id"`
		Name     string `json:"name,omitempty"`
		Provider string `json:"provider"`
		Zone     string `json:"zone,omitempty"`
	}
	var list struct {
		Members []struct {
			Node struct {
				place
				Group string `json:"group"`
			} `json:"node"`
		} `json:"members"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return fmt.Errorf("reading the list of nodes: %w: %s", err, out)
	}
	d.print("     (of each node, the fields from its cloud)")
	for i, m := range list.Members {
		b, err := json.Marshal(m.Node.place)
		if err != nil {
			return err
		}
		d.print("     %s", b)
		n := d.nodes[i]
		if err := d.check(m.Node.ID == n.id && m.Node.Provider == d.cloud.Name && m.Node.Group == n.role+"s", "%s is listed as %s", n.name, b); err != nil {
			return err
		}
	}
	return d.check(len(list.Members) == len(d.nodes), "%d nodes are listed", len(list.Members))
}

// since prints a line of a story with its time, in as many lines as it takes.
func (d *demo) since(begin time.Time, format string, args ...any) {
	when := clock(time.Since(begin))
	for _, line := range fold(fmt.Sprintf(format, args...), screenWidth+5-storyMargin) {
		d.print("     %7s  %s", when, line)
		when = ""
	}
}

// storyMargin is before the lines of a story.
const storyMargin = 14

// fold breaks a line between words, so that no piece is wider than that.
func fold(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	return append(lines, line)
}

func clock(d time.Duration) string { return fmt.Sprintf("+%.1f s", d.Seconds()) }

// scaleIn lets the cloud terminate the edge while a viewer watches.
func (d *demo) scaleIn() error {
	edge := d.nodes[1]
	d.heading(strings.Join(d.words.shrink, "\n   "))
	v, err := edge.ask(d.ctx)
	if err != nil {
		return err
	}
	metrics := v.Metrics
	var before int
	// The applications answer a moment after the server itself.
	if err := d.until("edge-1 serves viewers", func() string {
		if before, err = edge.ready(d.ctx, metrics); err != nil {
			return err.Error()
		}
		if before != http.StatusOK {
			return fmt.Sprintf("its readiness is %d", before)
		}
		return ""
	}); err != nil {
		return err
	}
	begin := time.Now()
	if err := d.cloud.ScaleIn(edge.id); err != nil {
		return err
	}
	d.since(begin, "%s", d.words.begin)
	if err := d.until("edge-1 has noticed", func() string {
		code, err := edge.ready(d.ctx, metrics)
		if err != nil {
			return err.Error()
		}
		if code == http.StatusServiceUnavailable {
			return ""
		}
		return fmt.Sprintf("its readiness is %d", code)
	}); err != nil {
		return err
	}
	d.since(begin, "edge-1 has the notice: %s. GET /readyz, which load balancers ask, answers %d (before: %d)",
		d.words.noticed, http.StatusServiceUnavailable, before)
	if edge.check != "" {
		line, err := edge.agentCheck(d.ctx)
		if err := errors.Join(err, d.check(line == "maint", "the agent check answers %q, %v", line, err)); err != nil {
			return err
		}
		d.since(begin, "HAProxy's agent check is answered by \"maint\"")
		say := func(format string, args ...any) { d.since(begin, format, args...) }
		if err := d.sent(say, "HAProxy sends each new viewer to", "origin-1"); err != nil {
			return err
		}
	}
	if err := d.until("the cluster knows", func() string {
		row, err := d.client.Node(d.ctx, edge.id)
		if err != nil {
			return err.Error()
		}
		if row.State == cluster.StateDraining {
			return ""
		}
		return "its row is " + string(row.State)
	}); err != nil {
		return err
	}
	d.since(begin, "registry in MongoDB: edge-1 is \"draining\"; no new sessions are sent there")
	if err := d.until("edge-1 has counted", func() string {
		var err error
		if v, err = edge.ask(d.ctx); err != nil {
			return err.Error()
		}
		// While MongoDB does not answer at once, who publishes to an edge counts as a viewer, too.
		if l := v.Lifecycle; l != nil && l.Step == "draining" && l.Sessions != nil && l.Sessions.Publishers != nil && l.Sessions.Viewers != nil &&
			*l.Sessions.Viewers == 1 {
			return ""
		}
		return fmt.Sprintf("%+v", v.Lifecycle)
	}); err != nil {
		return err
	}
	first := v.Lifecycle.Counted
	d.since(begin, "edge-1: %s (%s)", v.Lifecycle.Progress, d.words.budget)
	if err = d.check(strings.HasPrefix(v.Lifecycle.Reason, d.words.reason), "edge-1 is draining for %q", v.Lifecycle.Reason); err != nil {
		return err
	}
	// Long enough for a daemon that forgets its viewer to do something rash.
	if err := d.until("edge-1 has counted thrice more", func() string {
		if !d.viewer.served() {
			err = errors.New("the viewer was cut off")
			return ""
		}
		if v, err = edge.ask(d.ctx); err != nil {
			return ""
		}
		if l := v.Lifecycle; l == nil || l.Step != "draining" {
			err = fmt.Errorf("edge-1 does not drain any more: %+v", l)
			return ""
		}
		if v.Lifecycle.Counted.Sub(first) < thrice {
			return "last at " + v.Lifecycle.Counted.String()
		}
		return ""
	}); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	d.since(begin, "the viewer is still served; %s", d.words.waits)
	run, err := edge.running()
	return errors.Join(err,
		d.check(run != "", "AMS does not run"),
		d.check(!slices.ContainsFunc(d.noted(edge), endsWait), "%s does not wait: %+v", d.words.short, d.noted(edge)))
}

// thrice is a little less than three counts take, which are a second apart.
const thrice = 2500 * time.Millisecond

// noted is what the cloud has in its books about a machine.
func (d *demo) noted(n *node) []fakecloud.Entry { return fakecloud.Of(d.cloud.Books(), n.id) }

// endsWait reports whether an entry ends the cloud's wait.
func endsWait(e fakecloud.Entry) bool { return e.What == fakecloud.Answer || e.What == fakecloud.Gone }

// finish lets the viewer go.
func (d *demo) finish() error {
	edge := d.nodes[1]
	d.heading("The viewer stops watching. No session is left, and edge-1 leaves, in this order")
	begin := time.Now()
	if d.place.fed() {
		if err := edge.endStream(d.ctx); err != nil {
			return err
		}
		d.since(begin, "the stream on edge-1 ends, too")
	}
	if err := d.viewer.leave(); err != nil {
		return err
	}
	d.since(begin, "the viewer disconnects")
	if err := d.until("AMS has stopped", func() string {
		if run, err := edge.running(); err != nil || run != "" {
			return fmt.Sprintf("it runs: %v", err)
		}
		return ""
	}); err != nil {
		return err
	}
	d.since(begin, "two counts, a second apart, found no session: AMS is stopped")
	var row cluster.Node
	if err := d.until("the cluster knows that edge-1 has left", func() string {
		var err error
		if row, err = d.client.Node(d.ctx, edge.id); err != nil {
			return err.Error()
		}
		docs, err := d.client.AMSNodesByAddress(d.ctx, edge.address)
		if err != nil || row.State != cluster.StateLeft || len(docs) > 0 {
			return fmt.Sprintf("its row is %s, and AMS has %d documents: %v", row.State, len(docs), err)
		}
		return ""
	}); err != nil {
		return err
	}
	d.since(begin, "MongoDB: edge-1 is not in AMS's list of nodes any more, and its record has the state \"left\"")
	ctx, cancel := context.WithTimeout(d.ctx, d.place.patience())
	defer cancel()
	awaited := func(what string) (fakecloud.Entry, error) {
		return d.cloud.WaitFor(ctx, func(e fakecloud.Entry) bool { return e.ID == edge.id && e.What == what })
	}
	told := fakecloud.Entry{Time: time.Now()}
	if d.words.answer != "" {
		var err error
		if told, err = awaited(fakecloud.Answer); err != nil {
			return err
		}
		d.since(begin, "%s", d.words.outcome)
	} else {
		// The daemon ends as it does on the way down of a machine, and the machine with it.
		if err := errors.Join(edge.stopAgent(), d.cloud.Off(edge.id)); err != nil {
			return err
		}
		d.since(begin, "%s", d.words.outcome)
	}
	gone, err := awaited(fakecloud.Gone)
	if err != nil {
		return err
	}
	// The machine is off, and so is all that ran on it.
	if err := edge.stopAgent(); err != nil {
		return err
	}
	beats := d.books(edge)
	err = edge.leftAlone()
	return errors.Join(
		d.check(err == nil, "the viewer did not leave by itself: %v", err),
		d.check(beats > 0 || !d.words.beats, "%s was never asked to wait longer", d.words.short),
		d.check(strings.Contains(told.Text, d.words.answer), "%s was notified with %q", d.words.short, told.Text),
		d.check(!gone.Late, "%s took the machine when the time was over: %s", d.words.short, gone.Text),
		d.check(!row.StateSince.After(told.Time), "%s was notified before the node had left", d.words.short))
}

// books shows what the cloud noted, and counts how often it was asked to wait.
func (d *demo) books(n *node) (beats int) {
	d.print("   %s", d.words.books)
	noted := d.noted(n)
	noted = noted[max(0, slices.IndexFunc(noted, func(e fakecloud.Entry) bool { return e.What == fakecloud.Notice })):]
	for _, e := range noted {
		if e.What == fakecloud.Heartbeat {
			beats++
		}
		d.print("     %7s  %s", clock(e.Time.Sub(noted[0].Time)), e.Text)
	}
	return beats
}

// silence is what two beats and a second are at a beat a second, and a little.
const silence = 3200 * time.Millisecond

// others shows what is left of the edge for the other node.
func (d *demo) others() error {
	origin, edge := d.nodes[0], d.nodes[1]
	d.heading("The machine is off. The view of the other node when edge-1 sends no more heartbeats")
	if err := d.until("edge-1 is silent", func() string {
		now, err := d.client.ServerTime(d.ctx)
		if err != nil {
			return err.Error()
		}
		row, err := d.client.Node(d.ctx, edge.id)
		if age, _ := row.Age(now); err != nil || age < silence {
			return fmt.Sprintf("last seen %s ago: %v", age, err)
		}
		return ""
	}); err != nil {
		return err
	}
	var out string
	// A beat of origin-1 may be late on a busy machine.
	if err := d.until("origin-1 is healthy, edge-1 has left", func() string {
		var err error
		if out, err = d.agentRun(origin, "nodes", "--all"); err != nil {
			return err.Error()
		}
		if !strings.Contains(out, "2 nodes: 1 healthy; 1 left;") {
			return out
		}
		return ""
	}); err != nil {
		return err
	}
	d.show(out, 6)
	row, err := d.client.Node(d.ctx, edge.id)
	if err != nil {
		return err
	}
	cut := -1
	if row.Cut != nil {
		cut = *row.Cut
	}
	d.print("   (a hyphen means unknown, which is not zero)")
	entry := fmt.Sprintf("edge-1's record in MongoDB stays: %s; reason: %s; sessions cut: %d", row.State, row.Reason, cut)
	d.print("   %s", strings.Join(fold(entry, screenWidth), "\n   "))
	err = origin.stillPublished(d.ctx)
	return errors.Join(
		d.check(row.State == cluster.StateLeft && strings.HasPrefix(row.Reason, d.words.reason) && cut == 0, "the row is %+v", row),
		d.check(strings.Contains(out, edge.address) && strings.Contains(out, " left "), "edge-1 is not in the list:\n%s", out),
		d.check(err == nil, "origin-1: %v", err))
}
