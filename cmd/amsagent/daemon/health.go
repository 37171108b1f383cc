// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

// Health is the answer of /healthz: whether to keep this machine. Shared causes do not count: an unreachable MongoDB, a
// release of Ant Media Server that never served here, or anything that stops half of the group's other nodes. Nor does a
// manual stop.
type Health struct {
	Healthy bool `json:"healthy"`
	// Why is set if the machine is unhealthy, or healthy without serving.
	Why string `json:"reason,omitempty"`
}

func (d *Daemon) health(now time.Time) Health {
	v := d.view.get()
	last := v.Beat.Round
	if last.IsZero() {
		last = v.Started
	}
	limit := max(healthLimit*d.interval, leastHealth)
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

// broken reports whether this machine should serve, does not, and no shared cause is known.
func (v *View) broken(now time.Time, interval time.Duration) bool {
	switch {
	case v.Phase != bootstrap.PhaseJoined, v.Lifecycle != nil && !v.Lifecycle.Ready:
		return false // need not serve
	case v.State != cluster.StateActive && v.State != cluster.StateJoining:
		return false
	case v.Server.Up || v.Server.Since.IsZero():
		return false
	}
	// A server stops answering with its MongoDB, seconds before a heartbeat fails.
	reached := v.Beat.Error == "" && v.Beat.Dropped == 0 && v.Beat.Last.After(v.Server.Since)
	return reached && now.Sub(v.Beat.Last) <= max(healthLimit*interval, leastHealth)
}

// idle reports whether an upgrade of this machine would cut no session.
func (v *View) idle(now time.Time) bool {
	return v.Phase != bootstrap.PhaseJoined || v.State == cluster.StateLeft || v.counted.IsEmpty() && now.Sub(v.countedAt) < idleTime
}

// idleTime is the maximum age of an idle node's last count.
const idleTime = time.Minute
