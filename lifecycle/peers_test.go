// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// peers are the other machines according to the registry.
type peers struct {
	mu      sync.Mutex
	serving []string
	err     error
}

func (p *peers) Serving(_ context.Context, machines []string) ([]string, error) {
	touch()
	p.mu.Lock()
	defer p.mu.Unlock()
	others := func(m string) bool { return !slices.Contains(p.serving, m) }
	return slices.DeleteFunc(slices.Clone(machines), others), p.err
}

func (p *peers) set(serving []string, err error) {
	touch()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serving, p.err = serving, err
}

// sharedEvent is a notice whose completion releases other machines, too. It cannot be extended.
func sharedEvent(kind Kind, in time.Duration, others ...string) Notice {
	at := time.Now().Add(in)
	return Notice{
		ID: "azure:1", Source: "azure-events", Kind: kind, Reason: "scale-in", Deadline: at,
		Hook: &Hook{Provider: "azure", Group: "edge", Name: "Terminate 1", Token: "1", Fixed: true, Limit: at, Others: others},
	}
}

// The agent approves a hook that it cannot extend when the drain is done, and sends no heartbeat before. A reboot may begin as
// soon as there is no session, and AMS is not stopped for it.
func TestFixedHook(t *testing.T) {
	for _, tt := range []struct {
		kind  Kind
		in    time.Duration
		stops int
	}{
		{Terminate, 10 * time.Minute, 1},
		{Reboot, 15 * time.Minute, 0},
		{Interrupt, 30 * time.Second, 1},
	} {
		t.Run(string(tt.kind), alive(0, func(t *testing.T, w *world, l *life) {
			l.Notice(sharedEvent(tt.kind, tt.in))
			l.until("done", 30*time.Second, isDone)
			must.NoDiff(t, "completed", w.completed, []string{"Terminate 1 CONTINUE"})
			must.Equal(t, "heartbeats", len(w.beats), 0)
			must.Equal(t, "stops of AMS", w.stops, tt.stops)
		}))
	}
}

func TestLastOneOut(t *testing.T) {
	start := func(w *world, in time.Duration, p Peers) *life {
		l := w.live(func(o *Options) { o.Peers = p })
		l.Notice(sharedEvent(Terminate, in, "edge_2", "edge_3"))
		l.until("left", time.Minute, func(v View) bool { return v.Step == StepCompleting })
		return l
	}
	t.Run("the word waits for the others", inBubble(0, func(t *testing.T, w *world) {
		others := &peers{serving: []string{"edge_2", "edge_3"}}
		l := start(w, 10*time.Minute, others)
		tick(time.Minute)
		must.Equal(t, "it was said while others serve", len(w.completed), 0)
		must.Contain(t, "the trouble with the machines that it waits for", l.View().Trouble[string(opContinue)], "edge_2, edge_3")
		others.set([]string{"edge_3"}, nil)
		tick(time.Minute)
		must.Equal(t, "it was said while one of them serves", len(w.completed), 0)
		others.set(nil, nil)
		l.until("done", 10*time.Second, isDone)
		must.Equal(t, "the last one out says it", len(w.completed), 1)
		must.Equal(t, "troubles that are over", len(l.View().Trouble), 0)
	}))
	t.Run("unknown is not left", inBubble(0, func(t *testing.T, w *world) {
		others := &peers{err: errors.New("no reachable servers")}
		l := start(w, 10*time.Minute, others)
		tick(5 * time.Minute)
		must.Equal(t, "completed although the state of the others is unknown", len(w.completed), 0)
		others.set(nil, nil)
		l.until("done", 10*time.Second, isDone)
		must.Equal(t, "it is said", len(w.completed), 1)
	}))
	t.Run("when the cloud waits no longer it is said all the same", func(t *testing.T) {
		for name, p := range map[string]Peers{"others serve": &peers{serving: []string{"edge_2"}}, "no registry": noPeers{}} {
			bubble(t, 0, func(t *testing.T, w *world) {
				at := time.Now().Add(5 * time.Minute)
				l := start(w, 5*time.Minute, p)
				tick(time.Until(at) - time.Second)
				must.Equal(t, name+": it was said too early", len(w.completed), 0)
				l.until("done", 5*time.Second, isDone)
				must.Equal(t, name+": it is said", len(w.completed), 1)
			})
		}
	})
	t.Run("who finishes the stop of a machine keeps to it", inBubble(0, func(t *testing.T, w *world) {
		others := &peers{serving: []string{"edge_2"}}
		start(w, 10*time.Minute, others).kill()
		pending := func(when string, completed int) {
			t.Helper()
			must.OK(t, CompletePending(t.Context(), w, w, nil, others, w.options().Log))
			must.Equal(t, "completed "+when, len(w.completed), completed)
			w.completed, w.gone = nil, false
		}
		pending("while another serves", 0)
		others.set(nil, nil)
		pending("when it has left", 1)
		others.set([]string{"edge_2"}, nil)
		tick(10 * time.Minute)
		pending("when the cloud waits no longer", 1)
	}))
}
