// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

// maxNamed is how many applications a reason names, and maxWords how many bytes the names and words of applications in
// one answer have: the server's user decides how many there are.
const (
	maxNamed = 8
	maxWords = 8 << 10
)

// serverProbe asks the server on this machine whether viewers are served.
type serverProbe interface {
	bootstrap.Asker
	// Port is where it served a moment ago; 0 where it did not.
	Port() int
	// ServedBefore reports whether the release that is installed has ever served,
	// and Served notes that it does.
	ServedBefore() bool
	Served() error
	// Standalone reports whether a person made this node standalone by hand.
	Standalone() (bool, error)
	// Stopped reports whether the service manager knows that somebody stopped it.
	Stopped(ctx context.Context) bool
}

// ServerView is what viewers get from the server on this machine.
type ServerView struct {
	// Up tells that every application that is to serve does.
	Up bool `json:"up"`
	// Since is when Up was last another; zero before the first answer.
	Since time.Time `json:"since,omitzero"`
	// Why names what does not serve; "" while Up.
	Why string `json:"why,omitempty"`
	// Applications has a word for each application that was asked, as far as 8 kB of
	// names and words go; those that do not serve come first. Omitted is how many are
	// left out.
	Applications map[string]string `json:"applications,omitempty"`
	Omitted      int               `json:"omitted,omitempty"`
}

// followServer calls the applications until ctx ends, while this machine is a node.
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

// words returns a word for each application that answered, those that do not serve first, as far as maxWords goes.
func words(answers []ams.AppAnswer) (word map[string]string, omitted int) {
	word = map[string]string{}
	size := 0
	for _, serves := range []bool{false, true} {
		for _, a := range answers {
			if a.State == "" || a.Serves() != serves {
				continue
			}
			is := strings.TrimPrefix(a.String(), a.Name+" ")
			if size += len(a.Name) + len(is); size > maxWords {
				omitted++
				continue
			}
			word[a.Name] = is
		}
	}
	return word, omitted
}

// changeServing changes the view, and has the row written at once if other nodes have to know. A different reason while
// viewers are not served can wait for the next heartbeat.
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

// viewOf returns what the view shows of a judgement.
func viewOf(is bootstrap.Served) ServerView {
	why := is.Why
	if !is.Known {
		why = []string{NotAsked}
	}
	if n := len(why) - maxNamed; n > 0 {
		why = append(why[:maxNamed:maxNamed], fmt.Sprintf("and %d more", n))
	}
	v := ServerView{Up: is.Up, Why: strings.Join(why, "; ")}
	v.Applications, v.Omitted = words(is.Answers)
	return v
}

// reportServer puts a judgement into the view, and returns false if this machine is no node any more.
func (d *Daemon) reportServer(served bootstrap.Served) bool {
	if !d.isJoined() {
		return false
	}
	now, was, is := time.Now(), d.view.get().Server, viewOf(served)
	if is.Since = was.Since; was.Up != is.Up || was.Since.IsZero() && served.Known {
		is.Since = now
	}
	// It may be back as a standalone server, which must get no viewers before the files are compared the next time.
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
		switch broken := v.broken(now, time.Duration(d.interval.Load())); {
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
		d.log.Warn("Ant Media Server does not serve viewers", "why", is.Why)
	default:
		return true
	}
	d.status()
	return true
}
