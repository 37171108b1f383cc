// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
)

// peers are the other machines according to the registry.
type peers struct {
	mu      sync.Mutex
	serving []string
	err     error
	asked   int
}

func (p *peers) Serving(_ context.Context, machines []string) ([]string, error) {
	touch()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	var out []string
	for _, m := range machines {
		if slices.Contains(p.serving, m) {
			out = append(out, m)
		}
	}
	return out, p.err
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

// empty is a machine without sessions.
func empty(t *testing.T) *world {
	w := newWorld(t)
	w.viewers = p(0)
	return w
}

func TestFixedHook(t *testing.T) {
	t.Run("the agent approves when the drain is done, and sends no heartbeat before", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w := empty(t)
			l := w.live()
			defer l.kill()
			l.Notice(sharedEvent(Terminate, 10*time.Minute))
			l.until("done", time.Minute, isDone)
			w.set(func(w *world) {
				if diff := cmp.Diff([]string{"Terminate 1 CONTINUE"}, w.completed); diff != "" || len(w.beats) != 0 {
					t.Errorf("completed %s, %d heartbeats", diff, len(w.beats))
				}
			})
		})
	})
	t.Run("a reboot may begin as soon as there is no session, and AMS is not stopped for it", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w := empty(t)
			l := w.live(func(o *Options) { o.Deadline = fixed(time.Hour) })
			defer l.kill()
			l.Notice(sharedEvent(Reboot, 15*time.Minute))
			l.until("done", time.Minute, isDone)
			tick(time.Second)
			w.set(func(w *world) {
				if diff := cmp.Diff([]string{"Terminate 1 CONTINUE"}, w.completed); diff != "" || w.stops != 0 {
					t.Errorf("completed %s; AMS was stopped %d times", diff, w.stops)
				}
			})
		})
	})
	t.Run("an interruption that came with a hook is acknowledged", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w := empty(t)
			l := w.live()
			defer l.kill()
			l.Notice(sharedEvent(Interrupt, 30*time.Second))
			l.until("done", 30*time.Second, isDone)
			w.set(func(w *world) {
				must.Equal(t, fmt.Sprintf("completed %v", w.completed), len(w.completed), 1)
			})
		})
	})
}

func TestLastOneOut(t *testing.T) {
	start := func(t *testing.T, in time.Duration, p Peers) (*world, *life) {
		w := empty(t)
		l := w.live(func(o *Options) { o.Peers = p })
		l.Notice(sharedEvent(Terminate, in, "edge_2", "edge_3"))
		l.until("left", time.Minute, func(v View) bool { return v.Step == StepCompleting })
		return w, l
	}
	completed := func(w *world) (n int) {
		w.set(func(w *world) { n = len(w.completed) })
		return n
	}
	t.Run("the word waits for the others", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			others := &peers{serving: []string{"edge_2", "edge_3"}}
			w, l := start(t, 10*time.Minute, others)
			defer l.kill()
			tick(time.Minute)
			must.Equal(t, "it was said while others serve", completed(w), 0)
			must.Contain(t, "the trouble with the machines that it waits for", l.View().Trouble[string(opContinue)], "edge_2, edge_3")
			others.set([]string{"edge_3"}, nil)
			tick(time.Minute)
			must.Equal(t, "it was said while one of them serves", completed(w), 0)
			others.set(nil, nil)
			l.until("done", 10*time.Second, isDone)
			must.Equal(t, "the last one out says it", completed(w), 1)
			if v := l.View(); len(v.Trouble) != 0 {
				t.Errorf("trouble that is over: %v", v.Trouble)
			}
		})
	})
	t.Run("unknown is not left", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			others := &peers{err: errors.New("no reachable servers")}
			w, l := start(t, 10*time.Minute, others)
			defer l.kill()
			tick(5 * time.Minute)
			must.Equal(t, "completed although the state of the others is unknown", completed(w), 0)
			others.set(nil, nil)
			l.until("done", 10*time.Second, isDone)
			must.Equal(t, "it is said", completed(w), 1)
		})
	})
	t.Run("when the cloud waits no longer it is said all the same", func(t *testing.T) {
		for name, p := range map[string]Peers{"others serve": &peers{serving: []string{"edge_2"}}, "no registry": noPeers{}} {
			bubble(t, func(t *testing.T) {
				at := time.Now().Add(5 * time.Minute)
				w, l := start(t, 5*time.Minute, p)
				defer l.kill()
				tick(time.Until(at) - time.Second)
				must.Equal(t, name+": it was said too early", completed(w), 0)
				l.until("done", 5*time.Second, isDone)
				must.Equal(t, name+": it is said", completed(w), 1)
			})
		}
	})
	t.Run("who finishes the stop of a machine keeps to it", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			others := &peers{serving: []string{"edge_2"}}
			w, l := start(t, 10*time.Minute, others)
			l.kill()
			log := w.options().Log
			if err := CompletePending(t.Context(), w, w, nil, others, log); err != nil || completed(w) != 0 {
				t.Fatalf("%v; completed %d", err, completed(w))
			}
			others.set(nil, nil)
			if err := CompletePending(t.Context(), w, w, nil, others, log); err != nil || completed(w) != 1 {
				t.Fatalf("%v; completed %d", err, completed(w))
			}
		})
	})
}
