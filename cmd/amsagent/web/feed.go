// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
)

const (
	lookEvery = time.Second
	// lookLimit bounds one look: the page says within 3 s that MongoDB is away.
	lookLimit = 2 * time.Second
	// kept points, one for each step, are the history of a headroom.
	kept, step = 180, 5 * time.Second
)

// Reader reads the cluster. *cluster.Client is one.
type Reader interface {
	Look(ctx context.Context) (cluster.Look, error)
	Events(ctx context.Context, q cluster.EventQuery) ([]cluster.PastEvent, error)
}

// state is what is known of the cluster. It never changes.
type state struct {
	look    cluster.Look
	members []cluster.Member
	nodes   board.Nodes // but those that have left
	groups  []headroom
	read    time.Time      // of the last good look; zero before the first
	failed  string         // why the last look failed, or ""
	cut     map[string]int // sessions that nodes of a role cut when they left, since the start
}

// headroom is what the serving nodes of a role, or in a zone, have left.
type headroom struct {
	kind, name string        // "role" or "zone"
	nodes      int           // that serve
	unknown    int           // of these without a score
	score      int           // sum of the known ones, in percent
	free       int           // sum of what they leave of 100 %
	all        board.Summary // of all its nodes
	history    []*int        // free percents, the latest last; nil where none was known
}

// freePercent is the free share of the capacity of the nodes whose score is known; nil without one.
func (h headroom) freePercent() *int {
	if h.nodes == h.unknown {
		return nil
	}
	return new(h.free / (h.nodes - h.unknown))
}

// find returns the machine with this id, or nil.
func (s state) find(id string) *cluster.Member {
	i := slices.IndexFunc(s.members, func(m cluster.Member) bool { return m.ID() == id })
	if i < 0 {
		return nil
	}
	return &s.members[i]
}

// feed looks at the cluster once a second, for all readers.
type feed struct {
	reader   Reader
	log      *slog.Logger
	now      func() time.Time
	observer cluster.Observer
	sampled  time.Time

	mu      sync.Mutex
	is      state
	changed chan struct{} // closed at the next look
}

// state returns what is known, and a channel that is closed at the next look.
func (f *feed) state() (state, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.is, f.changed
}

func (f *feed) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		f.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (f *feed) look(ctx context.Context) {
	bound, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	look, err := f.reader.Look(bound)
	if ctx.Err() != nil {
		return
	}
	is, _ := f.state()
	if err != nil {
		f.observer.Failed()
		if is.failed == "" {
			f.log.Warn("MongoDB cannot be read", "error", err)
		}
		is.failed = err.Error()
	} else {
		if is.failed != "" {
			f.log.Info("MongoDB can be read again")
		}
		members := f.observer.Observe(look)
		if is.read.IsZero() {
			is.cut = map[string]int{}
		} else {
			is.cut = countCut(is.cut, is.look.Nodes, look.Nodes)
		}
		is.look, is.members, is.read, is.failed = look, members, look.At, ""
		is.nodes = board.New(board.Query{}, look, members)
	}
	groups := headrooms(is.members)
	samples := f.now().Sub(f.sampled) >= step-lookEvery/2
	if samples {
		f.sampled = f.now()
	}
	for i := range groups {
		g := &groups[i]
		for _, was := range is.groups {
			if was.kind == g.kind && was.name == g.name {
				g.history = was.history
			}
		}
		if samples {
			point := g.freePercent()
			if is.failed != "" {
				point = nil
			}
			g.history = append(slices.Clone(g.history), point)
			g.history = g.history[max(0, len(g.history)-kept):]
		}
	}
	is.groups = groups
	f.mu.Lock()
	defer f.mu.Unlock()
	f.is = is
	close(f.changed)
	f.changed = make(chan struct{})
}

// countCut adds the sessions of nodes that have left since the last look.
func countCut(sums map[string]int, was, is []cluster.Node) map[string]int {
	before := map[string]cluster.Node{}
	for _, n := range was {
		before[n.ID] = n
	}
	sums = maps.Clone(sums)
	for _, n := range is {
		b, known := before[n.ID]
		if known && n.State == cluster.StateLeft && n.Cut != nil && (b.State != cluster.StateLeft || b.Cut == nil || !b.StateSince.Equal(n.StateSince)) {
			sums[roleOf(n)] += *n.Cut
		}
	}
	return sums
}

func roleOf(n cluster.Node) string { return cmp.Or(strings.ToLower(n.Role), board.NoRole) }

// headrooms returns those of the roles, then of the zones if there are several.
func headrooms(members []cluster.Member) []headroom {
	groups := map[[2]string][]board.Node{}
	for _, m := range members {
		if m.Node == nil || m.State() == cluster.StateLeft {
			continue
		}
		role, zone := [2]string{"role", roleOf(*m.Node)}, [2]string{"zone", m.Node.Zone}
		groups[role] = append(groups[role], board.Node{Member: m})
		if m.Node.Zone != "" {
			groups[zone] = append(groups[zone], board.Node{Member: m})
		}
	}
	var list []headroom
	for _, key := range slices.SortedFunc(maps.Keys(groups), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		h := headroom{kind: key[0], name: key[1], all: board.Summarize(groups[key])}
		for _, v := range groups[key] {
			if v.State() != cluster.StateActive || v.Health != cluster.Healthy {
				continue
			}
			h.nodes++
			if score := v.Load().Score; score != nil {
				h.score, h.free = h.score+*score, h.free+max(0, 100-*score)
			} else {
				h.unknown++
			}
		}
		list = append(list, h)
	}
	if zones := slices.IndexFunc(list, func(h headroom) bool { return h.kind == "zone" }); zones >= 0 && zones == len(list)-1 {
		list = list[:zones]
	}
	return list
}
