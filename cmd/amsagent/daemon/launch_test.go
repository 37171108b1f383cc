// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
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
	inCluster(t, func(t *testing.T, c *clustered) {
		hook := &hookCalls{}
		c.o.Lifecycle.Hooks = hook
		c.f.have("LiveApp", "live")
		c.f.set(ams.AppStarting, "live")
		c.begin()
		c.d.life.manager.Notice(lifecycle.Notice{
			ID: "launch", Source: "aws-lifecycle", Kind: lifecycle.Launch, Received: time.Now(),
			Hook: &lifecycle.Hook{Provider: "aws", Group: "edge", Name: "up", Timeout: seconds.Duration(2 * time.Minute)},
		})
		c.stays(false, 5*time.Minute)
		must.Equal(t, "the row", c.node().State, cluster.StateActive)
		must.Contain(t, "server", c.d.view.get().Server.Why, "live is getting initialized")
		if beats, completed := hook.get(); beats < 2 || completed != 0 {
			t.Errorf("while an application starts: %d heartbeats, completed %d", beats, completed)
		}

		c.f.set("")
		c.becomes(true, 2*time.Second)
		sleep.For(t.Context(), 5*time.Second)
		_, completed := hook.get()
		must.Equal(t, "completed after all applications serve", completed, 1)
	})
}
