// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
)

// hookCalls are the hooks of a group, of which the calls are counted.
type hookCalls struct {
	mu        sync.Mutex
	beats     int
	completed int
}

func (h *hookCalls) Pending(_ context.Context, launching bool) ([]lifecycle.Hook, error) {
	return []lifecycle.Hook{{Provider: "aws", Group: "edge", Name: "up", Timeout: seconds.Duration(2 * time.Minute), Launching: launching}}, nil
}

func (h *hookCalls) Extend(_ context.Context, hook lifecycle.Hook) (time.Duration, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.beats++
	return time.Duration(hook.Timeout), nil
}

func (h *hookCalls) Complete(_ context.Context, _ lifecycle.Hook) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.completed++
	return nil
}

func (h *hookCalls) get() (beats, completed int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.beats, h.completed
}

// A launch hook waits until every application serves: a node whose row is active, with one
// application that still starts, is not in service yet.
func TestLaunchHookWaitsForApplications(t *testing.T) {
	f := &fakeServer{apps: []string{"LiveApp", "live"}}
	f.set(ams.AppStarting, "live")
	watchFake(t, f, func(w *watched) {
		hook := &hookCalls{}
		w.d.o.Machine = &fakeMachine{state: &bootstrap.State{Phase: bootstrap.PhaseJoined}}
		w.d.o.Lifecycle = drains(&conf.Store{Root: w.t.TempDir(), Dir: bootstrap.StateDir})
		w.d.o.Lifecycle.Hooks = hook
		l := newLife(w.d)
		ctx, cancel := context.WithCancel(w.t.Context())
		var work sync.WaitGroup
		defer work.Wait()
		defer cancel()
		work.Go(func() { l.manager.Run(ctx) })
		l.manager.Notice(lifecycle.Notice{
			ID: "launch", Source: "aws-lifecycle", Kind: lifecycle.Launch, Received: time.Now(),
			Hook: &lifecycle.Hook{Provider: "aws", Group: "edge", Name: "up", Timeout: seconds.Duration(2 * time.Minute)},
		})

		w.stays(false, 5*time.Minute)
		v := w.d.view.get()
		if v.State != cluster.StateActive || !v.Proved || !strings.Contains(v.Server.Why, "live is getting initialized") {
			w.t.Errorf("the row is %s, proved %v, server: %s", v.State, v.Proved, v.Server.Why)
		}
		beats, completed := hook.get()
		if beats < 2 || completed != 0 {
			w.t.Errorf("while an application starts: %d heartbeats, completed %d", beats, completed)
		}

		w.f.set("")
		w.becomes(true, 2*time.Second)
		sleep.For(w.t.Context(), 5*time.Second)
		if _, completed = hook.get(); completed != 1 {
			w.t.Errorf("after all applications serve: completed %d", completed)
		}
	})
}
