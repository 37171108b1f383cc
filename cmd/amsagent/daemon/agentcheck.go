// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"

	"github.com/amsagent/amsagent/lb"
)

// agentCheck answers HAProxy's agent checks, once the port is free.
func (d *Daemon) agentCheck(ctx context.Context) {
	if d.o.AgentCheck == "" {
		return
	}
	l := listenTCP(ctx, d.o.AgentCheck, func(err error) {
		text := ""
		if err != nil {
			text = err.Error()
		}
		before := d.view.get().AgentCheckError
		d.view.change(func(v *View) { v.AgentCheckError = text })
		if err != nil && before == "" {
			d.log.Error("agent checks are not answered", "address", d.o.AgentCheck, "error", err)
		}
	})
	if l == nil {
		return
	}
	d.log.Info("agent checks are answered", "address", l.Addr().String())
	d.check.Serve(ctx, l)
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
