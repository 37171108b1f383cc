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

// ServerProbe asks the server on this machine whether viewers are served.
type ServerProbe interface {
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

// serving follows the server on this machine, for as long as the daemon runs.
type serving struct {
	d     *Daemon
	probe ServerProbe
	wake  chan struct{} // has room for one
}

func newServing(d *Daemon, p ServerProbe) *serving {
	return &serving{d: d, probe: p, wake: make(chan struct{}, 1)}
}

// run calls the applications until ctx ends, while this machine is a node.
func (s *serving) run(ctx context.Context) {
	for ctx.Err() == nil {
		if s.joined() {
			bootstrap.Watch(ctx, s.probe, s.report)
			s.change(func(v *View) { v.Server, v.brokenSince = ServerView{}, time.Time{} })
		}
		select {
		case <-ctx.Done():
		case <-time.After(s.d.o.Periods.State):
		case <-s.wake:
		}
	}
}

func (s *serving) joined() bool { return s.d.view.get().Phase == bootstrap.PhaseJoined }

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

// change changes the view, and has the row written at once where other nodes have to
// know.
func (s *serving) change(f func(*View)) {
	var before, after *cluster.Serving
	s.d.view.change(func(v *View) {
		before = v.serving()
		f(v)
		after = v.serving()
	})
	// A different reason while viewers are not served can wait for the next beat.
	if (before == nil) == (after == nil) && (before == nil || before.Up == after.Up) {
		return
	}
	select {
	case s.d.beatNow <- struct{}{}:
	default:
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

// report puts a judgement into the view, and returns false if this machine is no node any more.
func (s *serving) report(served bootstrap.Served) bool {
	if !s.joined() {
		return false
	}
	now, was, is := time.Now(), s.d.view.get().Server, viewOf(served)
	if is.Since = was.Since; was.Up != is.Up || was.Since.IsZero() && served.Known {
		is.Since = now
	}
	// It may be back as a standalone server, which must get no viewers before the files are compared the next time.
	back := is.Up && !was.Up
	var byHand bool
	var unread error
	if back {
		byHand, unread = s.probe.Standalone()
	}
	s.change(func(v *View) {
		v.Server = is
		if back && unread == nil {
			v.Standalone = byHand
		}
		switch broken := v.broken(now, time.Duration(s.d.interval.Load())); {
		case !broken:
			v.brokenSince = time.Time{}
		case v.brokenSince.IsZero():
			v.brokenSince = now
		}
	})
	switch {
	case back:
		s.d.log.Info("Ant Media Server serves viewers")
		if err := s.probe.Served(); err != nil {
			s.d.log.Warn("the release that serves could not be noted", "error", err)
		}
	case was.Up && !is.Up:
		s.d.log.Warn("Ant Media Server does not serve viewers", "why", is.Why)
	default:
		return true
	}
	s.d.status()
	return true
}

// look has the server looked at now.
func (s *serving) look() {
	if s == nil {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// servedBefore reports whether the release that is installed has ever served here.
func (s *serving) servedBefore() bool { return s != nil && s.probe.ServedBefore() }
