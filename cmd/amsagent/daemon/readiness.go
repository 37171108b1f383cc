// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/lifecycle"
)

// PathReady is where a load balancer asks.
const PathReady = "/readyz"

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready bool `json:"ready"`
	// Why is the first half that is missing.
	Why string `json:"why,omitempty"`
	// Row is the state of this node in the registry, Server whether every
	// application that is to serve does.
	Row    cluster.State `json:"row"`
	Server bool          `json:"server"`
	// Applications has a word for each application, those that do not serve first;
	// Omitted is how many are left out of a long list.
	Applications map[string]string `json:"applications"`
	Omitted      int               `json:"omitted,omitempty"`
}

func (v *View) readiness() Readiness {
	r := Readiness{Ready: v.Ready, Why: v.NotReady, Row: v.State, Server: v.Server.Up, Applications: v.Server.Applications, Omitted: v.Server.Omitted}
	if r.Applications == nil {
		r.Applications = map[string]string{}
	}
	return r
}

// notReady names what keeps new viewers from being sent here; "" where nothing does.
func (v *View) notReady() string {
	switch {
	case v.Lifecycle != nil && !v.Lifecycle.Ready:
		switch v.Lifecycle.State {
		case lifecycle.StateLeft:
			return "this node has left the cluster"
		case lifecycle.StateParked:
			return "this node is parked"
		case lifecycle.StateResuming:
			return "this node resumes"
		case lifecycle.StateActive, lifecycle.StateDraining:
		}
		return "this node drains"
	case v.held > 0:
		return "amsagent " + v.holder + " is at work on this node"
	case v.departed, v.State == "" && !v.entered:
		return "this machine is not a cluster node"
	case v.State != "" && v.State != cluster.StateActive:
		return "the registry has this node as " + string(v.State)
	case v.Standalone:
		return "this machine was " + reasonStandalone
	case !v.Proved && !v.entered:
		return "Ant Media Server was not seen in the cluster yet"
	case v.probed && !v.Server.Up:
		return v.Server.whyDown()
	}
	return ""
}

// hold makes this node not ready until release, for a command that stops or restarts the server.
func (d *Daemon) hold(command string) (release func()) {
	d.view.change(func(v *View) { v.held, v.holder = v.held+1, command })
	d.log.Info("not ready while a command is at work", "command", command)
	return func() {
		s, err := d.o.Machine.StateFile()
		d.view.change(func(v *View) {
			v.held--
			// The session reads the state file only now and then. A node that left must not be ready until it does.
			v.departed = err == nil && v.Phase == bootstrap.PhaseJoined && (s == nil || s.Phase != bootstrap.PhaseJoined)
		})
		d.log.Info("the command has ended", "command", command)
		select {
		case d.again <- struct{}{}:
		default:
		}
	}
}

func (s ServerView) whyDown() string {
	if s.Why == "" {
		return NotAsked
	}
	return s.Why
}

// serving is what the row says of the server; nil where it is not known.
func (v *View) serving() *cluster.Serving {
	switch s := v.Server; {
	case v.Standalone:
		return &cluster.Serving{Why: reasonStandalone}
	case !v.probed, s.Since.IsZero():
		return nil
	case s.Up:
		return &cluster.Serving{Up: true}
	default:
		return &cluster.Serving{Why: s.whyDown()}
	}
}

func (d *Daemon) servingNow() *cluster.Serving {
	v := d.view.get()
	return v.serving()
}

// NotAsked is why a node is not ready until the first answers have come, a second after the daemon
// has begun.
const NotAsked = "the applications have not been asked yet"

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
	if broken := now.Sub(v.brokenSince); after > 0 && !v.brokenSince.IsZero() && broken >= after && d.serving.servedBefore() {
		why := fmt.Sprintf("Ant Media Server has not served for %s, while MongoDB could be reached: %s",
			broken.Round(time.Second), v.Server.whyDown())
		if v.spared != "" {
			why += "; kept, because " + v.spared
		}
		return Health{Healthy: v.spared != "", Why: why}
	}
	return Health{Healthy: true}
}

// idle reports whether an upgrade of this machine would cut no session: it is no node, or has left, or has lately none.
func (v *View) idle(now time.Time) bool {
	n, known := v.counted.Total()
	return v.Phase != bootstrap.PhaseJoined || v.State == cluster.StateLeft || known && n == 0 && now.Sub(v.countedAt) < idleTime
}

// idleTime is how old the last count of an idle node is at most.
const idleTime = time.Minute

// broken reports whether this machine ought to serve, does not, and nothing that
// other nodes share is known to be the cause.
func (v *View) broken(now time.Time, interval time.Duration) bool {
	switch {
	case v.Phase != bootstrap.PhaseJoined, v.Lifecycle != nil && !v.Lifecycle.Ready:
		return false // it need not serve
	case v.State != cluster.StateActive && v.State != cluster.StateJoining:
		return false
	case !v.probed || v.Server.Up || v.Server.Since.IsZero():
		return false
	}
	// A real server answers nobody as soon as its MongoDB is gone, seconds before a beat finds that out.
	reached := v.Beat.Error == "" && v.Beat.Dropped == 0 && v.Beat.Last.After(v.Server.Since)
	return reached && now.Sub(v.Beat.Last) <= max(healthLimit*interval, leastHealth)
}
