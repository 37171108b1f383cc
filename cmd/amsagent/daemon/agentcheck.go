// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"time"

	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lb"
)

// agentCheck answers HAProxy's agent checks, once the port is free.
func (d *Daemon) agentCheck(ctx context.Context) {
	if d.o.AgentCheck == "" {
		return
	}
	l := listenTCP(ctx, d.o.AgentCheck, func(err error, again bool) {
		if !again {
			d.log.Error("agent checks are not answered until the port is free", "address", d.o.AgentCheck, "error", err)
		}
	})
	if l == nil {
		return
	}
	d.log.Info("agent checks are answered", "address", l.Addr().String())
	var log throttle
	for again := true; again; again = sleep.For(ctx, portPause) {
		if err := d.check.Serve(ctx, l); ctx.Err() == nil && log.allows(err.Error(), time.Now()) {
			d.log.Error("agent checks are not answered for a moment", "address", d.o.AgentCheck, "error", err)
		}
	}
}

func (d *Daemon) nodeState() lb.NodeState {
	v := d.view.get()
	s := lb.NodeState{Role: v.Role, Score: v.Load.Score}
	switch {
	case v.Ready:
	case v.held > 0, v.Lifecycle != nil && !v.Lifecycle.Ready:
		s.Leaves = true
	default:
		s.Down = v.NotReady
	}
	return s
}
