// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"go.mongodb.org/mongo-driver/v2/event"
)

// kindPrimary is a kind of server in the driver's events.
const kindPrimary = "RSPrimary"

// watch has the last report on each server by host:port: the cause of a server selection error.
type watch struct {
	mu     sync.Mutex
	failed map[string]error
	seen   map[string]event.ServerDescription
}

func newWatch() *watch {
	return &watch{failed: map[string]error{}, seen: map[string]event.ServerDescription{}}
}

func (w *watch) servers() *event.ServerMonitor {
	return &event.ServerMonitor{
		ServerHeartbeatFailed: func(e *event.ServerHeartbeatFailedEvent) {
			// The driver cancels its monitor when a call fails: pools gets that error.
			if !errors.Is(e.Failure, context.Canceled) {
				w.fails(hostOf(e.ConnectionID), e.Failure)
			}
		},
		ServerHeartbeatSucceeded: func(e *event.ServerHeartbeatSucceededEvent) {
			w.mu.Lock()
			defer w.mu.Unlock()
			host := hostOf(e.ConnectionID)
			delete(w.failed, host)
			w.seen[host] = e.Reply
		},
	}
}

func (w *watch) pools() *event.PoolMonitor {
	return &event.PoolMonitor{Event: func(e *event.PoolEvent) {
		if e.Type == event.ConnectionPoolCleared && e.Error != nil {
			w.fails(e.Address, e.Error)
		}
	}}
}

func (w *watch) fails(host string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed[host] = err
}

// member prefers a member of a replica set.
func (w *watch) member() (d event.ServerDescription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d = range w.seen {
		if d.SetName != "" {
			break
		}
	}
	return d
}

type finding struct {
	kind       Kind
	host, text string
}

// finding returns why no server could be used.
func (w *watch) finding(t Target) (finding, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if set := t.option("replicaSet"); set != "" && len(w.failed) == 0 && len(w.seen) > 0 {
		// The driver drops servers of other sets.
		if !slices.ContainsFunc(slices.Collect(maps.Values(w.seen)), func(d event.ServerDescription) bool { return d.SetName == set }) {
			return finding{KindConfig, t.hostList(), "no server belongs to replica set " + set}, true
		}
	}
	var all []finding
	for host, err := range w.failed {
		f := finding{kindOf(err), host, innermost(err)}
		if _, answered := w.seen[host]; f.kind == KindLost && !answered {
			f.text += " (" + hintTLS(t) + ")"
		}
		all = append(all, f)
	}
	for host, d := range w.seen {
		if w.failed[host] != nil {
			continue
		}
		if !strings.HasPrefix(d.Kind, "RS") || d.Kind == kindPrimary {
			return finding{}, false
		}
		all = append(all, finding{KindNotPrimary, host, "it is " + d.Kind})
	}
	if len(all) == 0 {
		return finding{}, false
	}
	slices.SortFunc(all, func(a, b finding) int {
		return cmp.Or(slices.Index(importance, b.kind)-slices.Index(importance, a.kind), strings.Compare(a.host, b.host))
	})
	best := all[0]
	var hosts, texts []string
	for _, f := range all {
		if f.kind == best.kind {
			hosts = append(hosts, f.host)
		}
		texts = append(texts, f.host+": "+f.text)
	}
	best.host = strings.Join(hosts, ", ")
	if len(all) > 1 {
		best.text = strings.Join(texts, "; ")
	}
	return best, true
}
