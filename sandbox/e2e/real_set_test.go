// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// TestRealSet runs a real server and its agent on a replica set whose primary steps down, is killed and hangs: the node is never
// reported gone, its heartbeats resume within 2 s of a new primary, /readyz agrees with what viewers get, and nothing is restarted
// (issue 23, 2.10).
func TestRealSet(t *testing.T) {
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}, Members: 3, Election: realElection})
	n := newRealNode(t, w, realRelease())
	n.join(w.URI())
	n.settled()
	asked := n.Asked()
	d := n.daemon()
	d.ready()
	v := n.watch(d)
	defer v.stop()
	d.Says("Ant Media Server serves viewers")
	started := d.messages()
	looks := n.Start(t, bins.agent, "nodes", "--watch", "-o", "json")
	until(t, "nodes --watch has looked once", func() string {
		if !strings.Contains(looks.Output(), `"health"`) {
			return soFar(looks.Output())
		}
		return ""
	})

	for _, fault := range []struct {
		name string
		harm func(*realmongo.Member) error
		mend func(*realmongo.Member) error
	}{
		{"hang", (*realmongo.Member).Pause, (*realmongo.Member).Resume},
		{"kill", (*realmongo.Member).Kill, func(m *realmongo.Member) error { return m.Start(t.Context()) }},
		{"step down", func(*realmongo.Member) error { return w.Mongo.StepDown(t.Context()) }, nil},
	} {
		old := n.primary(nil)
		from := time.Now()
		must.OK(t, fault.harm(old))
		harmed := time.Now()
		now := n.primary(old)
		since := time.Now()
		beat := n.beatAfter(now, harmed) // one that it has may be older than our look at it
		if late := beat.Sub(since); late > 7*time.Second {
			t.Errorf("%s: the first beat came %s after the new primary", fault.name, late)
		}
		if fault.mend != nil {
			must.OK(t, fault.mend(old))
		}
		v.until("after a "+fault.name+" the viewer is served and /readyz says so", func(m moment) bool {
			return m.at.After(since) && m.served && m.ready
		})
		wait(15 * time.Second)
		wrongly, late := v.differences(from)
		figure(t, "%s: a new primary after %s, the first beat %s later; ready while refused %s, not ready while served %s", fault.name,
			since.Sub(from).Round(100*time.Millisecond), beat.Sub(since).Round(100*time.Millisecond), wrongly.Round(100*time.Millisecond), late.Round(100*time.Millisecond))
		if wrongly > realSilentBound || late > realSilentBound {
			t.Errorf("%s: /readyz and viewers differ:\n%s", fault.name, v.story(from))
		}
	}
	n.asked("the daemon", asked)
	for message, lines := range d.messages() {
		if lines-started[message] > 3 {
			t.Errorf("%d lines for three faults: %s\n%s", lines, message, d.Output())
		}
	}
	n.verdicts(looks.Output())
	d.end()
	n.leavesInAnElection()
}

// leavesInAnElection leaves while the primary hangs: nothing of the node stays behind.
func (n *realNode) leavesInAnElection() {
	t := n.t
	t.Helper()
	old := n.primary(nil)
	must.OK(t, old.Pause())
	began := time.Now()
	said := n.MustRun(t, bins.agent, "leave", "--now")
	figure(t, "a leave in an election takes %s", time.Since(began).Round(100*time.Millisecond))
	c, err := n.primary(old).Client()
	must.OK(t, err)
	defer func() { _ = c.Disconnect(t.Context()) }()
	ours := bson.D{{Key: "ip", Value: n.Address}}
	var row struct{ State string }
	if err := c.Database("amsagent").Collection("nodes").FindOne(t.Context(), ours).Decode(&row); err != nil || row.State != "left" {
		t.Errorf("after a leave in an election the row says %q: %v\n%s", row.State, err, said)
	}
	if documents, err := c.Database("clusterdb").Collection("clusternode").CountDocuments(t.Context(), ours); err != nil || documents != 0 {
		t.Errorf("a leave in an election left %d documents of the server: %v\n%s", documents, err, said)
	}
	must.OK(t, old.Resume())
}

// realElection is mongod's own: beats are missed for longer than a node may be silent.
const realElection = 10 * time.Second

// primary waits for one other than old.
func (n *realNode) primary(old *realmongo.Member) (now *realmongo.Member) {
	n.t.Helper()
	until(n.t, "there is a primary", func() string {
		for _, m := range n.world.Mongo.Members() {
			if m == old {
				continue
			}
			if is, err := m.IsPrimary(n.t.Context()); err == nil && is {
				now = m
				return ""
			}
		}
		return "none"
	})
	return now
}

// beatAfter waits for a beat in the row, as a member of the set has it.
func (n *realNode) beatAfter(m *realmongo.Member, moment time.Time) time.Time {
	n.t.Helper()
	c, err := m.Client()
	must.OK(n.t, err)
	defer func() { _ = c.Disconnect(n.t.Context()) }()
	var row struct {
		UpdatedAt time.Time `bson:"updated_at"`
	}
	until(n.t, "a beat", func() string {
		err := c.Database("amsagent").Collection("nodes").FindOne(n.t.Context(), bson.D{{Key: "ip", Value: n.Address}}).Decode(&row)
		if err != nil {
			return err.Error()
		}
		if !row.UpdatedAt.After(moment) {
			return row.UpdatedAt.String()
		}
		return ""
	})
	return row.UpdatedAt
}

// It checks each health that `nodes --watch` printed for the node.
func (n *realNode) verdicts(said string) {
	n.t.Helper()
	all := []string{}
	for line := range strings.Lines(said) {
		var c struct {
			Node struct {
				Health cluster.Health `json:"health"`
			} `json:"member"`
		}
		if !strings.HasPrefix(line, "{") {
			continue
		}
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			n.t.Fatalf("%v: %s", err, line)
		}
		if c.Node.Health == "" {
			continue // MongoDB was away
		}
		all = append(all, string(c.Node.Health))
		if c.Node.Health == cluster.Gone {
			n.t.Errorf("a node that serves is reported gone: %s", line)
		}
	}
	if len(all) == 0 {
		n.t.Errorf("nodes --watch printed no health: %s", said)
	}
	n.t.Logf("nodes --watch printed %s", strings.Join(all, ", "))
}
