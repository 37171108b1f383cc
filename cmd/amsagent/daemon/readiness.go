// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/lifecycle"
)

const (
	// PathReady is the path for load balancers.
	PathReady = "/readyz"
	// NotAsked is the cause until the first answers, about a second after the daemon's start.
	NotAsked = "the applications have not been asked yet"

	// maxNamed bounds the applications in a reason, maxWords the bytes of names and states in an answer: the server's
	// user controls their number.
	maxNamed = 8
	maxWords = 8 << 10
)

// serverProbe checks the local server.
type serverProbe interface {
	bootstrap.Asker
	// Port is the port at which it serves, or 0.
	Port() int
	// ServedBefore reports whether the installed release has ever served; Served records that it does.
	ServedBefore() bool
	Served() error
	// Standalone reports whether the node was made standalone by hand.
	Standalone() (bool, error)
	// Stopped reports whether the service manager knows of a manual stop.
	Stopped(ctx context.Context) bool
	// Release compares the running server with its files.
	Release(ctx context.Context) bootstrap.RunningRelease
}

// ServerView is the state of the local server.
type ServerView struct {
	// Up reports whether all required applications serve.
	Up bool `json:"up"`
	// Since is the last change of Up; zero before the first answer.
	Since time.Time `json:"since,omitzero"`
	// Why names what does not serve; "" while Up.
	Why string `json:"reason,omitempty"`
	// Applications maps names to states, up to 8 kB, not serving first. Omitted counts others.
	Applications map[string]string `json:"applications,omitempty"`
	Omitted      int               `json:"omitted,omitempty"`
}

func (s ServerView) whyDown() string { return cmp.Or(s.Why, NotAsked) }

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready bool `json:"ready"`
	// Why is the first cause.
	Why string `json:"reason,omitempty"`
	// Row is the registry's state of this node, "" without a node; Server reports whether all required applications serve.
	Row    cluster.State `json:"state"`
	Server bool          `json:"server"`
	// Applications maps names to states, not serving first; Omitted counts others.
	Applications map[string]string `json:"applications"`
	Omitted      int               `json:"omitted,omitempty"`
}

func (v *View) readiness(redact func(string) string) Readiness {
	r := Readiness{Ready: v.Ready, Why: redact(v.NotReady), Row: v.State, Server: v.Server.Up, Applications: map[string]string{}, Omitted: v.Server.Omitted}
	for app, is := range v.Server.Applications {
		r.Applications[app] = redact(is)
	}
	return r
}

// withoutViewers are the states of a drain in which a node is not ready. In all others it drains.
var withoutViewers = map[lifecycle.State]string{
	lifecycle.StateLeft:     "this node has left the cluster",
	lifecycle.StateParked:   "this node is parked",
	lifecycle.StateResuming: "this node resumes",
}

// notReady returns why no new viewers may come, or "".
func (v *View) notReady() string {
	switch {
	case v.Lifecycle != nil && !v.Lifecycle.Ready:
		return cmp.Or(withoutViewers[v.Lifecycle.State], "this node drains")
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

// stopsServer reports whether a drain or a command stops the server, or has stopped it.
func (v *View) stopsServer() bool {
	stops := []lifecycle.Step{lifecycle.StepStopping, lifecycle.StepDeregistering, lifecycle.StepCompleting, lifecycle.StepDone}
	return v.held > 0 || v.Lifecycle != nil && slices.Contains(stops, v.Lifecycle.Step)
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
		poke(d.again)
	}
}

// followServer checks the applications while this machine is a node.
func (d *Daemon) followServer(ctx context.Context) {
	for ctx.Err() == nil {
		if d.view.get().Phase == bootstrap.PhaseJoined {
			bootstrap.Watch(ctx, d.o.Server, d.reportServer)
			d.view.change(func(v *View) { v.Server, v.Release, v.brokenSince = ServerView{}, nil, time.Time{} })
		}
		select {
		case <-ctx.Done():
		case <-time.After(d.o.Periods.State):
		case <-d.phaseChanged:
		}
	}
}

// reportServer returns false if this machine is no longer a node.
func (d *Daemon) reportServer(served bootstrap.Served) bool {
	before := d.view.get()
	if before.Phase != bootstrap.PhaseJoined {
		return false
	}
	now, was, is := time.Now(), before.Server, viewOf(served)
	changed := was.Up != is.Up || was.Since.IsZero() && len(served.Why) > 0
	if is.Since = was.Since; changed {
		is.Since = now
	}
	// It may be standalone now, and must get no viewers before the next comparison of the files.
	var byHand bool
	var unread error
	back := is.Up && !was.Up
	if back {
		byHand, unread = d.o.Server.Standalone()
	}
	d.view.change(func(v *View) {
		v.Server = is
		if changed {
			v.Release = nil // of another process, perhaps
		}
		if back && unread == nil {
			v.Standalone = byHand
		}
		switch broken := v.broken(now, d.interval); {
		case !broken:
			v.brokenSince = time.Time{}
		case v.brokenSince.IsZero():
			v.brokenSince = now
		}
	})
	if !changed {
		return true
	}
	poke(d.beatNow) // other nodes must know
	if back {
		d.log.Info("Ant Media Server serves viewers")
		if err := d.o.Server.Served(); err != nil {
			d.log.Warn("the release that serves could not be noted", "error", err)
		}
	} else if was.Up {
		write := d.log.Warn
		if before.stopsServer() {
			write = d.log.Info
		}
		write("Ant Media Server does not serve viewers", "reason", is.Why)
	}
	d.status()
	return true
}

func viewOf(is bootstrap.Served) ServerView {
	v := ServerView{Up: is.Up, Applications: map[string]string{}}
	why := is.Why
	if n := len(why) - maxNamed; n > 0 {
		why = append(why[:maxNamed:maxNamed], fmt.Sprintf("and %d more", n))
	}
	if v.Why = strings.Join(why, "; "); !v.Up {
		v.Why = v.whyDown()
	}
	size := 0
	for _, serves := range []bool{false, true} {
		for _, a := range is.Answers {
			if a.State == "" || a.Serves() != serves {
				continue
			}
			word := strings.TrimPrefix(a.String(), a.Name+" ")
			if size += len(a.Name) + len(word); size > maxWords {
				v.Omitted++
				continue
			}
			v.Applications[a.Name] = word
		}
	}
	return v
}
