// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/rig"
)

const app, stream = "LiveApp", "concert"

// audience starts the daemons, a publisher and a viewer.
func (d *demo) audience() {
	origin, edge := d.nodes[0], d.nodes[1]
	d.heading("The agent's daemon reports the load and the sessions of its node. A publisher streams a concert")
	d.print("   to origin-1, and one viewer watches it on edge-1")
	feeds, counted := 0, "1 publisher, 1 viewer"
	origin.publish()
	if d.place.fed() {
		feeds, counted = 1, "2 publishers, 1 viewer"
		d.print("   (only the Enterprise Edition forwards streams between nodes: here edge-1 has a publisher, too)")
		edge.publish()
	}
	d.viewer = edge.watch()
	d.Cleanup(d.viewer.leave)
	for _, n := range d.nodes {
		d.daemon(n, "--beat-interval", "1s")
	}
	d.until("both nodes report their load and their sessions", func() string {
		for i, n := range d.nodes {
			row := n.Record()
			switch s := row.Sessions; {
			case row.State != cluster.StateActive || row.Load == nil || row.Load.CPU == nil || row.Load.Mem == nil:
				return fmt.Sprintf("%s is %s, its load %+v", n.name, row.State, row.Load)
			case s == nil || s.Publishers == nil || s.Viewers == nil || *s.Publishers != max(1-i, feeds) || *s.Viewers != i:
				text, err := json.Marshal(s)
				return fmt.Sprintf("the sessions of %s are %s, %v", n.name, text, err)
			}
		}
		return ""
	})
	var out string
	// A beat may be late on a busy machine.
	d.until("both nodes are healthy", func() string {
		if out = d.agentRun(origin, "nodes"); !strings.HasPrefix(out, "2 nodes: 2 healthy; 1 origin, 1 edge; "+counted+"\n") {
			return out
		}
		return ""
	})
	d.checks++
	d.show(out, 6)
	d.print("   AGENT, AMS: time since the last heartbeat of each; HEALTH follows from both. CPU and MEM are")
	d.print("   those of your own computer. PUB/VIEW: publishers and viewers; the agent asks AMS for them, if its")
	d.print("   settings allow that (server.jwtServerControlEnabled=true). In a browser: %s", d.page)
	d.shown(origin.Address, edge.Address)
	d.places()
	d.balance()
}

// places shows where the nodes run, in JSON.
func (d *demo) places() {
	out := d.agentRun(d.nodes[0], "nodes", "-o", "json")
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
	must.OK(d, json.Unmarshal([]byte(out), &list))
	d.print("     (of each node, the fields from its cloud)")
	d.check(len(list.Members) == len(d.nodes), "%d nodes are listed", len(list.Members))
	for i, m := range list.Members {
		b, err := json.Marshal(m.Node.place)
		must.OK(d, err)
		d.print("     %s", b)
		n := d.nodes[i]
		d.check(m.Node.ID == n.ID && m.Node.Provider == d.cloud.Name && m.Node.Group == n.role+"s", "%s is listed as %s", n.name, b)
	}
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
func (d *demo) scaleIn() {
	edge := d.nodes[1]
	d.heading(strings.Join(d.words.shrink, "\n   "))
	readiness := func(what string, want int) {
		d.until(what, func() string {
			if code := d.ready(edge); code != want {
				return fmt.Sprintf("its readiness is %d", code)
			}
			return ""
		})
	}
	// The applications answer a moment after the server itself.
	readiness("edge-1 serves viewers", http.StatusOK)
	begin := time.Now()
	must.OK(d, d.cloud.ScaleIn(edge.ID))
	d.since(begin, "%s", d.words.begin)
	readiness("edge-1 has noticed", http.StatusServiceUnavailable)
	d.since(begin, "edge-1 has the notice: %s. GET /readyz, which load balancers ask, answers %d (before: %d)",
		d.words.noticed, http.StatusServiceUnavailable, http.StatusOK)
	if edge.check != "" {
		line, err := d.agentCheck(edge)
		d.check(err == nil && line == "maint", "the agent check answers %q, %v", line, err)
		d.since(begin, "HAProxy's agent check is answered by \"maint\"")
		d.sent(func(format string, args ...any) { d.since(begin, format, args...) }, "HAProxy sends each new viewer to", "origin-1")
	}
	edge.RecordIs(cluster.StateDraining)
	d.since(begin, "registry in MongoDB: edge-1 is \"draining\"; no new sessions are sent there")
	// While MongoDB does not answer at once, who publishes to an edge counts as a viewer, too.
	v := edge.daemon.Life("one viewer is counted", func(v lifecycle.View) bool {
		return v.Step == lifecycle.StepDraining && v.Sessions != nil && v.Sessions.Publishers != nil && v.Sessions.Viewers != nil && *v.Sessions.Viewers == 1
	})
	first := v.Counted
	d.since(begin, "edge-1: %s (%s)", v.Progress, d.words.budget)
	d.check(strings.HasPrefix(v.Reason, d.words.reason), "edge-1 is draining for %q", v.Reason)
	// Long enough for a daemon that forgets its viewer to do something rash.
	d.until("edge-1 has counted thrice more", func() string {
		if !d.viewer.served() {
			d.Fatal("the viewer was cut off")
		}
		v := edge.daemon.View().Lifecycle
		if v == nil || v.Step != lifecycle.StepDraining {
			d.Fatalf("edge-1 does not drain any more: %+v", v)
		}
		if v.Counted.Sub(first) < thrice {
			return "last at " + v.Counted.String()
		}
		return ""
	})
	d.since(begin, "the viewer is still served; %s", d.words.waits)
	d.check(edge.running() != "", "AMS does not run")
	d.check(!slices.ContainsFunc(d.noted(edge), endsWait), "%s does not wait: %+v", d.words.short, d.noted(edge))
}

// thrice is a little less than three counts take, which are a second apart.
const thrice = 2500 * time.Millisecond

// noted is what the cloud has in its books about a machine.
func (d *demo) noted(n *node) []fakecloud.Entry { return fakecloud.Of(d.cloud.Books(), n.ID) }

// endsWait reports whether an entry ends the cloud's wait.
func endsWait(e fakecloud.Entry) bool { return e.What == fakecloud.Answer || e.What == fakecloud.Gone }

// finish lets the viewer go.
func (d *demo) finish() {
	edge := d.nodes[1]
	d.heading("The viewer stops watching. No session is left, and edge-1 leaves, in this order")
	begin := time.Now()
	if d.place.fed() {
		edge.endStream()
		d.since(begin, "the stream on edge-1 ends, too")
	}
	d.viewer.leave()
	d.since(begin, "the viewer disconnects")
	d.until("AMS has stopped", edge.running)
	d.since(begin, "two counts, a second apart, found no session: AMS is stopped")
	edge.RecordIs(cluster.StateLeft)
	d.until("AMS has no document", func() string {
		if docs := edge.Documents(); len(docs) > 0 {
			return fmt.Sprintf("%+v", docs)
		}
		return ""
	})
	d.since(begin, "MongoDB: edge-1 is not in AMS's list of nodes any more, and its record has the state \"left\"")
	ctx, cancel := context.WithTimeout(d.ctx, rig.Patience)
	defer cancel()
	awaited := func(what string) fakecloud.Entry {
		e, err := d.cloud.WaitFor(ctx, func(e fakecloud.Entry) bool { return e.ID == edge.ID && e.What == what })
		must.OK(d, err)
		return e
	}
	end := func() {
		_, err := edge.daemon.Stop(20 * time.Second)
		must.OK(d, err)
	}
	told := fakecloud.Entry{Time: time.Now()}
	if d.words.answer != "" {
		told = awaited(fakecloud.Answer)
	} else {
		// The daemon ends as it does on the way down of a machine, and the machine with it.
		end()
		must.OK(d, d.cloud.Off(edge.ID))
	}
	d.since(begin, "%s", d.words.outcome)
	gone := awaited(fakecloud.Gone)
	// The machine is off, and so is all that ran on it.
	end()
	beats, row, err := d.books(edge), edge.Record(), edge.leftAlone()
	d.check(err == nil, "the viewer did not leave by itself: %v", err)
	d.check(beats > 0 || !d.words.beats, "%s was never asked to wait longer", d.words.short)
	d.check(strings.Contains(told.Text, d.words.answer), "%s was notified with %q", d.words.short, told.Text)
	d.check(!gone.Late, "%s took the machine when the time was over: %s", d.words.short, gone.Text)
	d.check(!row.StateSince.After(told.Time), "%s was notified before the node had left", d.words.short)
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
func (d *demo) others() {
	origin, edge := d.nodes[0], d.nodes[1]
	d.heading("The machine is off. The view of the other node when edge-1 sends no more heartbeats")
	d.until("edge-1 is silent", func() string {
		now, err := d.client.ServerTime(d.ctx)
		if err != nil {
			return err.Error()
		}
		if age, _ := edge.Record().Age(now); age < silence {
			return fmt.Sprintf("last seen %s ago", age)
		}
		return ""
	})
	var out string
	// A beat of origin-1 may be late on a busy machine.
	d.until("origin-1 is healthy, edge-1 has left", func() string {
		if out = d.agentRun(origin, "nodes", "--all"); !strings.Contains(out, "2 nodes: 1 healthy; 1 left;") {
			return out
		}
		return ""
	})
	d.show(out, 6)
	row, cut := edge.Record(), -1
	if row.Cut != nil {
		cut = *row.Cut
	}
	d.print("   (a hyphen means unknown, which is not zero)")
	entry := fmt.Sprintf("edge-1's record in MongoDB stays: %s; reason: %s; sessions cut: %d", row.State, row.Reason, cut)
	d.print("   %s", strings.Join(fold(entry, screenWidth), "\n   "))
	err := origin.stillPublished()
	d.check(row.State == cluster.StateLeft && strings.HasPrefix(row.Reason, d.words.reason) && cut == 0, "the row is %+v", row)
	d.check(strings.Contains(out, edge.Address) && strings.Contains(out, " left "), "edge-1 is not in the list:\n%s", out)
	d.check(err == nil, "origin-1: %v", err)
}
