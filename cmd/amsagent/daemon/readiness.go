// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/lifecycle"
)

// PathReady is the path for load balancers.
const PathReady = "/readyz"

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready bool `json:"ready"`
	// Why is the first cause.
	Why string `json:"why,omitempty"`
	// Row is the registry's state of this node; Server reports whether all required applications serve.
	Row    cluster.State `json:"row"`
	Server bool          `json:"server"`
	// Applications maps names to states, not serving first; Omitted counts others.
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

// notReady returns why no new viewers may come, or "".
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
	case !v.Server.Up:
		return v.Server.whyDown()
	}
	return ""
}

// hold makes this node not ready until release.
func (d *Daemon) hold(command string) (release func()) {
	d.view.change(func(v *View) { v.held, v.holder = v.held+1, command })
	d.log.Info("not ready while a command is at work", "command", command)
	return func() {
		s, err := d.o.Machine.StateFile()
		d.view.change(func(v *View) {
			v.held--
			// The session reads the state file rarely. A node that left must not be ready until then.
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

// serving is the record's entry for the server; nil if unknown.
func (v *View) serving() *cluster.Serving {
	switch s := v.Server; {
	case v.Standalone:
		return &cluster.Serving{Why: reasonStandalone}
	case s.Since.IsZero():
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

// NotAsked is the cause until the first answers, about a second after the daemon's start.
const NotAsked = "the applications have not been asked yet"
