// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// aHistory is a registry as far as events reads it.
type aHistory struct {
	nodes  []cluster.Node
	events []cluster.PastEvent
	err    error
	asked  cluster.EventQuery
}

func (h *aHistory) Nodes(context.Context) ([]cluster.Node, error) { return h.nodes, h.err }

func (h *aHistory) Events(_ context.Context, q cluster.EventQuery) ([]cluster.PastEvent, error) {
	h.asked = q
	return h.events, h.err
}

func (h *aHistory) ServerTime(context.Context) (time.Time, error) { return fixedNow(), h.err }

func TestEvents(t *testing.T) {
	cut := int64(3)
	h := &aHistory{
		nodes: []cluster.Node{{ID: "i-1", IP: "10.0.1.5"}, {ID: "i-2", IP: "10.0.1.6"}},
		events: []cluster.PastEvent{
			{At: fixedNow().Add(-time.Hour), Event: cluster.Event{Node: "i-1", Kind: "join", Who: "amsagent", Details: map[string]string{"address": "10.0.1.5"}}},
			{Event: cluster.Event{Node: "i-1", Kind: "drained", Who: "ann", Why: "scale-in\x1b[2J", Cut: &cut, Details: map[string]string{"result": "left", "a": "b"}}},
		},
	}
	e := &testEnv{}
	must.OK(t, events(t.Context(), eventsOptions{since: 2 * time.Hour, limit: 7}, []string{"10.0.1.5"}, plainGlobals(e), h))
	if q := h.asked; !slices.Equal(q.Nodes, []string{"10.0.1.5", "i-1"}) || !q.Since.Equal(fixedNow().Add(-2*time.Hour)) || q.Limit != 7 {
		t.Errorf("asked %+v", q)
	}
	want := "  2026-11-20 07:00:00 UTC  i-1  join     amsagent  address 10.0.1.5\n" +
		"  -                        i-1  drained  ann       scale-in\\u001b[2J; 3 sessions cut; a b; result left\n"
	must.NoDiff(t, "stdout", e.stdout.String(), want)

	// Off a cloud an id is no name. Of a node whose row is gone nothing else is known.
	const id, gone = "m-bce15aa9449b48d5a7ee27d83cc6dd98", "m-00000000000000000000000000000000"
	h.nodes = append(h.nodes, cluster.Node{ID: id, Hostname: "edge-7\x1b[2J"})
	h.events = []cluster.PastEvent{{Event: cluster.Event{Node: id, Kind: "join"}}, {Event: cluster.Event{Node: gone, Kind: "left"}}}
	e = &testEnv{}
	must.OK(t, events(t.Context(), eventsOptions{limit: 2}, nil, plainGlobals(e), h))
	want = `  -  edge-7\u001b[2J (` + id + ")  join  -  -\n" +
		"  -  " + gone + "                    left  -  -\n"
	must.NoDiff(t, "stdout", e.stdout.String(), want)
	e = &testEnv{}
	g := plainGlobals(e)
	g.out.SetForm("json", "never", 0)
	if err := events(t.Context(), eventsOptions{limit: 2}, nil, g, h); err != nil || !strings.Contains(e.stdout.String(), `"node": "`+id+`"`) {
		t.Errorf("%v\n%s", err, e.stdout.String())
	}

	e = &testEnv{}
	h.events, h.asked = nil, cluster.EventQuery{}
	if err := events(t.Context(), eventsOptions{limit: 1}, nil, plainGlobals(e), h); err != nil || e.stdout.String() != "no events\n" {
		t.Errorf("%v, %q", err, e.stdout.String())
	}
	if q := h.asked; len(q.Nodes) != 0 || !q.Since.IsZero() {
		t.Errorf("asked %+v", q)
	}
	h.err = errors.New("server selection timed out")
	if err := events(t.Context(), eventsOptions{limit: 1}, []string{"i-1"}, plainGlobals(e), h); !errors.Is(err, h.err) {
		t.Error(err)
	}
}

func TestEventsUsage(t *testing.T) {
	for args, want := range map[string]string{
		"i-1 i-2":             "takes one node",
		"--limit 0":           "--limit: 0 is outside 1 to 10000",
		"--since -1h":         "is in the future",
		"--since yesterday":   "since",
		"i-1 --mongo x --foo": "unknown flag",
	} {
		code, _, errOut := run(t, nil, append([]string{"events"}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(errOut, want) {
			t.Errorf("%s: exit %d\n%s", args, code, errOut)
		}
	}
}
