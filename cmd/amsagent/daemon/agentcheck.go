// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net"

	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lb"
)

// agentCheck answers HAProxy's agent checks, once the port is free.
func (d *Daemon) agentCheck(ctx context.Context) {
	if d.o.AgentCheck == "" {
		return
	}
	var listen net.ListenConfig
	for failed := false; ; failed = true {
		l, err := listen.Listen(ctx, "tcp", d.o.AgentCheck)
		if err == nil {
			d.log.Info("agent checks are answered", "address", l.Addr().String())
			err = d.check.Serve(ctx, &boundedListener{Listener: l})
		}
		if ctx.Err() != nil {
			return
		}
		if !failed {
			d.log.Error("agent checks are not answered until the port is free", "address", d.o.AgentCheck, "error", err)
		}
		if !sleep.For(ctx, portPause) {
			return
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
