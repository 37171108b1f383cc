// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// FuzzReadEvent: any program with the same login may write events. Reading one does not panic, and the result is within the
// bounds and printable.
func FuzzReadEvent(f *testing.F) {
	huge := strings.Repeat("ä", 2000)
	many := bson.D{{Key: huge, Value: "x"}}
	for i := range 64 {
		many = append(many, bson.E{Key: strings.Repeat("k", i), Value: huge})
	}
	for _, doc := range []bson.D{
		{
			{Key: "at", Value: time.Unix(1772366400, 0)},
			{Key: "node", Value: "i-1"},
			{Key: "kind", Value: "leave"},
			{Key: "asked_by", Value: "root"},
			{Key: "reason", Value: "scale in"},
			{Key: "cut", Value: int64(3)},
			{Key: "details", Value: bson.D{{Key: "hook", Value: "h"}, {Key: "n", Value: int32(1)}, {Key: "", Value: bson.Symbol("s")}}},
		},
		{
			{Key: "at", Value: "1e300"},
			{Key: "node", Value: huge},
			{Key: "kind", Value: bson.A{"join"}},
			{Key: "asked_by", Value: bson.D{}},
			{Key: "reason", Value: huge},
			{Key: "cut", Value: 9.3e18},
			{Key: "details", Value: many},
		},
		{
			{Key: "at", Value: bson.Timestamp{T: 1<<32 - 1}},
			{Key: "kind", Value: "\x00\xff\x1b[2J"},
			{Key: "cut", Value: "-3 %"},
			{Key: "details", Value: bson.A{"a"}},
		},
		{{Key: "details", Value: bson.D{{Key: "a", Value: "1"}, {Key: "a", Value: "2"}}}},
		{{Key: "at", Value: int64(253402300800000)}}, // the year 10000
		{},
	} {
		data, err := bson.Marshal(doc)
		must.OK(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bson.Raw(data).Validate() != nil {
			return // the driver does not return such a document
		}
		e := readEvent(data)
		if len(data) > maxRecord && e.Kind != "unreadable" {
			t.Errorf("an event of %d bytes is shown", len(data))
		}
		// encoding/json refuses times outside these years.
		if y := e.At.Year(); y < 1 || y > 9999 {
			t.Errorf("the year %d", y)
		}
		if _, err := json.Marshal(e); err != nil {
			t.Errorf("%#v cannot be shown as JSON: %v", e, err)
		}
		must.NoDiff(t, "read again", readEvent(data), e)
	})
}

// TestHistory: a registration over the record that stood there before.
func TestHistory(t *testing.T) {
	now := time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)
	node := func(s State, reason string, silent time.Duration, change ...func(*Node)) Node {
		n := Node{ID: "i-1", BootID: "b1", Role: "edge", Interval: seconds.Duration(DefaultInterval), State: s, Reason: reason, StateSince: now, UpdatedAt: now.Add(-silent)}
		for _, f := range change {
			f(&n)
		}
		return n
	}
	boot := func(n *Node) { n.BootID = "b2" }
	role := func(n *Node) { n.Role = "origin" }
	bare := func(n *Node) { n.Interval = 0 }
	limit := goneLimit(DefaultInterval)
	for name, tt := range map[string]struct {
		was, is Node
		want    []string
	}{
		"restart of the daemon":      {node(StateActive, "join", limit-1), node(StateActive, ReasonRun, 0), nil},
		"the agent was dead":         {node(StateActive, "join", limit), node(StateActive, ReasonRun, 0), []string{"back"}},
		"a drain goes on":            {node(StateDraining, "drain", limit), node(StateActive, ReasonRun, 0), []string{"back"}},
		"no daemon before":           {node(StateActive, "join", time.Hour, bare), node(StateActive, ReasonRun, 0), nil},
		"back from a parking":        {node(StateLeft, "drain", time.Hour), node(StateJoining, ReasonRun, 0), nil},
		"boot":                       {node(StateLeft, "leave", time.Hour), node(StateJoining, ReasonRun, 0, boot), []string{"boot"}},
		"boot after a crash":         {node(StateActive, "join", time.Hour), node(StateJoining, ReasonRun, 0, boot), []string{"boot"}},
		"and it serves":              {node(StateJoining, ReasonRun, 0), node(StateActive, ReasonRun, 0), []string{"serving"}},
		"boot, and it serves":        {node(StateActive, "join", time.Hour), node(StateActive, ReasonRun, 0, boot), []string{"boot", "serving"}},
		"join of a node, booted":     {node(StateActive, "join", time.Hour), node(StateActive, ReasonJoin, 0, boot), []string{"boot", "serving"}},
		"join after a leave":         {node(StateLeft, "leave", time.Hour), node(StateJoining, ReasonJoin, 0, boot), nil},
		"join after a kill":          {node(StateJoining, ReasonJoin, 0), node(StateJoining, ReasonJoin, 0), []string{"join-interrupted"}},
		"join after a kill and boot": {node(StateJoining, ReasonJoin, time.Hour), node(StateJoining, ReasonJoin, 0, boot), []string{"join-interrupted"}},
		"another role":               {node(StateActive, "join", 0), node(StateActive, ReasonRun, 0, role), []string{"role"}},
		"another role by a join":     {node(StateLeft, "leave", time.Hour), node(StateJoining, ReasonJoin, 0, role), []string{"role"}},
		"record without a time":      {Node{ID: "i-1", BootID: "b1", Role: "edge", State: StateActive}, node(StateActive, ReasonRun, 0), nil},
	} {
		t.Run(name, func(t *testing.T) {
			var kinds []string
			for _, e := range History(tt.was, tt.is, now) {
				if kinds = append(kinds, e.Kind); e.Node != "i-1" || e.ID.IsZero() {
					t.Errorf("%+v", e)
				}
			}
			must.NoDiff(t, "kinds", kinds, tt.want)
		})
	}
	silent := History(node(StateActive, "join", time.Hour), node(StateActive, ReasonRun, 0), now)
	if len(silent) != 1 || !strings.HasSuffix(silent[0].Why, "silent from 2026-03-01T02:00:00Z to 2026-03-01T03:00:00Z") {
		t.Errorf("%+v", silent)
	}
}
