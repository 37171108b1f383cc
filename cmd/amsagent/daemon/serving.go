// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

// maxNamed bounds the applications in a reason, maxWords the bytes of names and states in an answer: the server's user
// controls their number.
const (
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
}

// ServerView is the state of the local server.
type ServerView struct {
	// Up reports whether all required applications serve.
	Up bool `json:"up"`
	// Since is the last change of Up; zero before the first answer.
	Since time.Time `json:"since,omitzero"`
	// Why names what does not serve; "" while Up.
	Why string `json:"why,omitempty"`
	// Applications maps names to states, up to 8 kB, not serving first. Omitted counts others.
	Applications map[string]string `json:"applications,omitempty"`
	Omitted      int               `json:"omitted,omitempty"`
}

// followServer checks the applications while this machine is a node.
func (d *Daemon) followServer(ctx context.Context) {
	for ctx.Err() == nil {
		if d.isJoined() {
			bootstrap.Watch(ctx, d.o.Server, d.reportServer)
			d.changeServing(func(v *View) { v.Server, v.brokenSince = ServerView{}, time.Time{} })
		}
		select {
		case <-ctx.Done():
		case <-time.After(d.o.Periods.State):
		case <-d.phaseChanged:
		}
	}
}

func (d *Daemon) isJoined() bool { return d.view.get().Phase == bootstrap.PhaseJoined }

// changeServing sends a heartbeat at once if other nodes must know. A new reason while not serving can wait.
func (d *Daemon) changeServing(f func(*View)) {
	var before, after *cluster.Serving
	d.view.change(func(v *View) {
		before = v.serving()
		f(v)
		after = v.serving()
	})
	if (before == nil) != (after == nil) || before != nil && before.Up != after.Up {
		select {
		case d.beatNow <- struct{}{}:
		default:
		}
	}
}

func viewOf(is bootstrap.Served) ServerView {
	why := is.Why
	if !is.Up && len(why) == 0 {
		why = []string{NotAsked}
	}
	if n := len(why) - maxNamed; n > 0 {
		why = append(why[:maxNamed:maxNamed], fmt.Sprintf("and %d more", n))
	}
	v := ServerView{Up: is.Up, Why: strings.Join(why, "; "), Applications: map[string]string{}}
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

// reportServer returns false if this machine is no longer a node.
func (d *Daemon) reportServer(served bootstrap.Served) bool {
	if !d.isJoined() {
		return false
	}
	now, was, is := time.Now(), d.view.get().Server, viewOf(served)
	if is.Since = was.Since; was.Up != is.Up || was.Since.IsZero() && len(served.Why) > 0 {
		is.Since = now
	}
	// It may be standalone now, and must get no viewers before the next comparison of the files.
	back := is.Up && !was.Up
	var byHand bool
	var unread error
	if back {
		byHand, unread = d.o.Server.Standalone()
	}
	d.changeServing(func(v *View) {
		v.Server = is
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
	switch {
	case back:
		d.log.Info("Ant Media Server serves viewers")
		if err := d.o.Server.Served(); err != nil {
			d.log.Warn("the release that serves could not be noted", "error", err)
		}
	case was.Up && !is.Up:
		d.log.Warn("Ant Media Server does not serve viewers", "reason", is.Why)
	default:
		return true
	}
	d.status()
	return true
}
