// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

// Health is the answer of /healthz: whether this machine is to be kept. It is about
// this machine alone. What all nodes share is no reason to replace one: MongoDB that
// is away, a release of Ant Media Server that has never served here, and whatever keeps
// half of the other nodes of its group from serving as well. Nor is a server that
// somebody stopped.
type Health struct {
	Healthy bool `json:"healthy"`
	// Why it is not, or is although its server does not serve.
	Why string `json:"why,omitempty"`
}

func (d *Daemon) health(now time.Time) Health {
	v := d.view.get()
	last := v.Beat.Round
	if last.IsZero() {
		last = v.Started
	}
	limit := max(healthLimit*time.Duration(d.interval.Load()), leastHealth)
	if since := now.Sub(last); since > limit {
		return Health{Why: fmt.Sprintf("the loop has not gone round for %s", since.Round(time.Second))}
	}
	after := d.o.Settings().UnhealthyAfter
	if broken := now.Sub(v.brokenSince); after > 0 && !v.brokenSince.IsZero() && broken >= after && d.o.Server.ServedBefore() {
		why := fmt.Sprintf("Ant Media Server has not served for %s, while MongoDB could be reached: %s",
			broken.Round(time.Second), v.Server.whyDown())
		if v.spared != "" {
			why += "; kept, because " + v.spared
		}
		return Health{Healthy: v.spared != "", Why: why}
	}
	return Health{Healthy: true}
}

// broken reports whether this machine ought to serve, does not, and nothing that
// other nodes share is known to be the cause.
func (v *View) broken(now time.Time, interval time.Duration) bool {
	switch {
	case v.Phase != bootstrap.PhaseJoined, v.Lifecycle != nil && !v.Lifecycle.Ready:
		return false // it need not serve
	case v.State != cluster.StateActive && v.State != cluster.StateJoining:
		return false
	case v.Server.Up || v.Server.Since.IsZero():
		return false
	}
	// A real server answers nobody as soon as its MongoDB is gone, seconds before a beat finds that out.
	reached := v.Beat.Error == "" && v.Beat.Dropped == 0 && v.Beat.Last.After(v.Server.Since)
	return reached && now.Sub(v.Beat.Last) <= max(healthLimit*interval, leastHealth)
}

// idle reports whether an upgrade of this machine would cut no session: it is no node, or has left, or has lately none.
func (v *View) idle(now time.Time) bool {
	n, known := v.counted.Total()
	return v.Phase != bootstrap.PhaseJoined || v.State == cluster.StateLeft || known && n == 0 && now.Sub(v.countedAt) < idleTime
}

// idleTime is how old the last count of an idle node is at most.
const idleTime = time.Minute
