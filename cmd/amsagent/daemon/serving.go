// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
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
	watch *bootstrap.ServerWatch

	mu sync.Mutex
	// held counts the stops of the agent's own that are in progress.
	held int

	// For the goroutine of run: noted reports whether it was noted that this release serves, and noteTried when that was
	// tried last.
	noted     bool
	noteTried time.Time
}

func newServing(d *Daemon, p ServerProbe) *serving {
	wake := make(chan struct{}, 1)
	return &serving{d: d, probe: p, wake: wake, watch: bootstrap.NewServerWatch(p, wake)}
}

// run calls the applications until ctx ends, while this machine is a node.
func (s *serving) run(ctx context.Context) {
	for ctx.Err() == nil {
		if s.joined() {
			s.watch.Run(ctx, s.report)
			s.change(func(v *View) { v.Server, v.brokenSince = ServerView{}, time.Time{} })
		}
		timer := time.NewTimer(s.d.o.Periods.State)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.wake:
		}
		timer.Stop()
	}
}

func (s *serving) joined() bool { return s.d.view.get().Phase == bootstrap.PhaseJoined }

// words has a word for as many applications as maxWords lets in.
func words(answers []ams.AppAnswer) (word map[string]string, omitted int) {
	said := slices.DeleteFunc(slices.Clone(answers), func(a ams.AppAnswer) bool { return a.State == "" })
	sort.SliceStable(said, func(i, j int) bool { return serves(said[i]) < serves(said[j]) })
	word = make(map[string]string)
	size := 0
	for i, a := range said {
		is := strings.TrimPrefix(a.String(), a.Name+" ")
		if size += len(a.Name) + len(is); size > maxWords {
			return word, len(said) - i
		}
		word[a.Name] = is
	}
	return word, 0
}

func serves(a ams.AppAnswer) int {
	if a.Serves() {
		return 1
	}
	return 0
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

// view is the judgement as the view shows it.
func (s *serving) view(is bootstrap.Served) ServerView {
	why := is.Why
	switch {
	case s.held > 0:
		why = []string{stopped}
	case !is.Known:
		why = []string{NotAsked}
	}
	if n := len(why) - maxNamed; n > 0 {
		why = append(why[:maxNamed:maxNamed], fmt.Sprintf("and %d more", n))
	}
	v := ServerView{Up: is.Up && s.held == 0, Why: strings.Join(why, "; ")}
	v.Applications, v.Omitted = words(is.Answers)
	return v
}

// stopped is why a node is not ready while the agent stops or restarts its server.
const stopped = "the agent stops or restarts the server"

// report puts a judgement into the view.
func (s *serving) report(served bootstrap.Served) bool {
	if !s.joined() {
		return false
	}
	now, interval := time.Now(), time.Duration(s.d.interval.Load())
	was := s.d.view.get().Server
	back := served.Up && !was.Up
	// It may have been started as another server: nobody is sent there until the files are compared the next time.
	var byHand bool
	var unread error
	if back {
		byHand, unread = s.probe.Standalone()
	}
	s.mu.Lock()
	is := s.view(served)
	if is.Since = was.Since; was.Up != is.Up || was.Since.IsZero() && served.Known {
		is.Since = now
	}
	s.change(func(v *View) {
		v.Server = is
		if back && unread == nil { // what was known holds otherwise
			v.Standalone = byHand
		}
		switch broken := v.broken(now, interval); {
		case !broken:
			v.brokenSince = time.Time{}
		case v.brokenSince.IsZero():
			v.brokenSince = now
		}
	})
	s.mu.Unlock()
	if is.Up && !s.noted && now.Sub(s.noteTried) >= time.Minute {
		s.noteTried = now
		s.d.seenMu.Lock()
		err := s.probe.Served()
		s.d.seenMu.Unlock()
		if s.noted = err == nil; err != nil {
			s.d.log.Warn("the release that serves could not be noted", "error", err)
		}
	}
	if was.Up == is.Up {
		return true
	}
	if is.Up {
		s.d.log.Info("Ant Media Server serves viewers")
	} else {
		s.noted = false // another release may be installed while it is down
		s.d.log.Warn("Ant Media Server does not serve viewers", "why", is.Why)
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

// hold makes the node not ready at once, for as long as the agent itself stops or restarts the server.
func (s *serving) hold() (release func()) {
	if s == nil {
		return func() {}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held++
	s.change(func(v *View) {
		if v.Server.Up {
			v.Server.Up, v.Server.Since = false, time.Now()
		}
		v.Server.Why = stopped
	})
	return func() {
		s.watch.Reset()
		s.mu.Lock()
		s.held--
		s.mu.Unlock()
		s.look()
	}
}

// servedBefore reports whether the release that is installed has ever served here.
func (s *serving) servedBefore() bool { return s != nil && s.probe.ServedBefore() }
