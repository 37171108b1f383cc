// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// fastNode is a node that answers at once.
type fastNode struct {
	written, done chan time.Time
	ready         func() bool
	sessions      func() cluster.Sessions
}

func (n *fastNode) SetState(_ context.Context, s cluster.State, _ string, _ bool) error {
	if n.ready() {
		return errors.New("ready")
	}
	if s == cluster.StateDraining {
		select {
		case n.written <- time.Now():
		default:
		}
	}
	return nil
}

func (n *fastNode) Sessions(context.Context) (cluster.Sessions, error) { return n.sessions(), nil }
func (*fastNode) StopServer(context.Context) error                     { return nil }
func (*fastNode) StartServer(context.Context) error                    { return nil }
func (*fastNode) Deregister(context.Context, Departure) error          { return nil }
func (*fastNode) Joined() bool                                         { return true }
func (*fastNode) JoinedAt() time.Time                                  { return time.Time{} }

func (*fastNode) Pending(_ context.Context, launching bool) ([]cloud.Hook, error) {
	if launching {
		return nil, nil
	}
	return []cloud.Hook{*terminate().Hook}, nil
}

func (*fastNode) Extend(_ context.Context, h cloud.Hook) (time.Duration, error) {
	return time.Duration(h.Timeout), nil
}

func (n *fastNode) Complete(context.Context, Hook) error {
	n.done <- time.Now()
	return nil
}

func newFastNode() *fastNode {
	return &fastNode{written: make(chan time.Time, 1), done: make(chan time.Time, 1)}
}

// run starts a runner on the node.
func (n *fastNode) run(b *testing.B) (m *Runner, stop func()) {
	m = NewRunner(Options{
		Node: n, Hooks: n, Files: &conf.Store{Root: b.TempDir(), Dir: "/var/lib/amsagent"},
		Log: slog.New(slog.DiscardHandler), Role: func() string { return "" }, Before: noCount,
		Balancers: func(context.Context) []string { return nil }, Event: func(context.Context, cluster.Event) error { return nil },
		Uptime: BootClock("/"), Deadline: fixed(DefaultDeadline), StopTime: usualStop, Filter: noNames,
	})
	n.ready = func() bool { return m.View().Ready }
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.Run(ctx)
	}()
	return m, func() {
		cancel()
		<-ended
	}
}

// BenchmarkNotice measures from a notice to readiness off, to the state in the registry, and to the record on a real disk.
func BenchmarkNotice(b *testing.B) {
	var kept, written []time.Duration
	for b.Loop() {
		b.StopTimer()
		n := newFastNode()
		n.sessions = func() cluster.Sessions { return cluster.Sessions{Publishers: p(1), Viewers: p(1)} }
		m, stop := n.run(b)
		b.StartTimer()
		began := time.Now()
		m.Notice(terminate())
		if m.View().Ready {
			b.Fatal("ready")
		}
		kept = append(kept, time.Since(began))
		written = append(written, (<-n.written).Sub(began))
		b.StopTimer()
		stop()
		b.StartTimer()
	}
	report(b, "on-disk", kept)
	report(b, "ready-off-and-registry", written)
}

// BenchmarkLastSession measures from the end of the last session to the completed hook, with an AMS that stops at once.
func BenchmarkLastSession(b *testing.B) {
	var took []time.Duration
	for b.Loop() {
		n := newFastNode()
		gone := time.Now().Add(4 * sampleEvery)
		n.sessions = func() cluster.Sessions {
			if time.Now().Before(gone) {
				return cluster.Sessions{Publishers: p(0), Viewers: p(1)}
			}
			return cluster.Sessions{Publishers: p(0), Viewers: p(0)}
		}
		m, stop := n.run(b)
		m.Notice(terminate())
		took = append(took, (<-n.done).Sub(gone)-2*sampleEvery)
		stop()
	}
	report(b, "beyond-2-samples", took)
}

func report(b *testing.B, what string, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, what+"-p99-ms")
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, what+"-p50-ms")
	b.ReportMetric(0, "ns/op")
}
