// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

const (
	// askPeriod is the time from one ask of an application to the next, while none is under way.
	askPeriod = time.Second
	// askAgain is the same after an answer that is an error: one of them takes no node out, two in a row do.
	askAgain = 300 * time.Millisecond
	// silence is for how long an answer is waited for. All nodes of a cluster share one MongoDB, which the server asks for
	// its answer: where that is slow, no node is taken out of a cluster whose other nodes are as slow.
	silence = 4 * time.Second
	// askLimit ends an ask. It is longer than silence, since the server works on
	// a call whose caller has gone.
	askLimit = 10 * time.Second
	// goodAfterSilence is how many good answers in a row an application needs that was silent; else one is enough.
	goodAfterSilence = 3
	// listEvery is how often the applications on disk are listed while all serve. A
	// new one takes no node out before it has served, so there is no hurry.
	listEvery = 30 * time.Second
	// maxAsks is how many asks are under way at a time. The server's user decides how
	// many applications there are. Those that have not served yet get half of it at most: as they take no node out,
	// they must not delay the asks of those that do.
	maxAsks = 64
	// judgePause is the least time from one judgement to the next.
	judgePause = 20 * time.Millisecond
	// maxNamed is how many applications a reason names, and maxWords how many bytes the
	// names and words of applications in one answer have.
	maxNamed = 8
	maxWords = 8 << 10
)

// ServerProbe asks the server on this machine whether viewers are served.
type ServerProbe interface {
	// Applications lists those that are to serve, as they are on disk now.
	Applications() ([]string, error)
	Ask(ctx context.Context, app string) ams.AppAnswer
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

// application is one application as the watch knows it.
type application struct {
	answer ams.AppAnswer // the last one
	// up tells that it serves; errors are answers that are errors, and good are good ones, in a row.
	up           bool
	errors, good int
	silent       bool      // since it was up
	asking       bool      // an ask is under way
	sent         time.Time // when the last one was sent
	next         time.Time // when to ask again
	// added tells that it was made while the server ran: before it has served it takes no node out.
	added, served bool
}

// late reports whether it was added and has not served yet.
func (a *application) late() bool { return a.added && !a.served }

// take takes an answer.
func (a *application) take(r ams.AppAnswer, now time.Time) {
	a.waited(now)
	a.answer, a.asking, a.next = r, false, a.sent.Add(askPeriod)
	if r.Serves() {
		a.errors, a.good = 0, a.good+1
		a.served = a.served || r.State != ams.AppWaits
		if !a.silent || a.good >= goodAfterSilence {
			a.up, a.silent = true, false
		}
		return
	}
	a.good, a.errors, a.next = 0, a.errors+1, now.Add(askAgain)
	a.silent = a.silent || r.State == ams.AppSilent
	if r.State == ams.AppRefused || r.State == ams.AppSilent || a.errors > 1 {
		a.up = false
	}
}

// waited takes into account that an ask is under way for long.
func (a *application) waited(now time.Time) {
	if a.asking && now.Sub(a.sent) >= silence {
		a.answer = ams.AppAnswer{Name: a.answer.Name, State: ams.AppSilent}
		a.up, a.silent, a.good = false, true, 0
	}
}

// serving watches the server on this machine, for as long as the daemon runs.
type serving struct {
	d     *Daemon
	probe ServerProbe

	mu sync.Mutex
	// held counts the stops of the agent's own that are under way.
	held int
	// stale tells that the answers are of the server before such a stop.
	stale bool
	wake  chan struct{} // has room for one

	// What follows is for the goroutine of run alone.
	apps   map[string]*application
	asks   int       // under way, with those of applications that are gone
	listed time.Time // when the applications were listed; zero before the first time
	// noted tells that it was noted that this release serves, and noteTried when that was tried last.
	noted     bool
	noteTried time.Time
}

func newServing(d *Daemon, p ServerProbe) *serving {
	return &serving{d: d, probe: p, wake: make(chan struct{}, 1), apps: map[string]*application{}}
}

// answered is an answer that came.
type answered struct {
	of     *application
	answer ams.AppAnswer
}

// run asks until ctx ends. On a machine that is no node it asks nothing.
func (s *serving) run(ctx context.Context) {
	results := make(chan answered, maxAsks)
	var asks sync.WaitGroup
	defer asks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ask := func(name string, a *application) {
		asks.Go(func() {
			bound, end := context.WithTimeout(ctx, askLimit)
			defer end()
			results <- answered{a, s.probe.Ask(bound, name)}
		})
	}
	take := func(r answered) {
		s.asks--
		r.of.take(r.answer, time.Now())
	}
	for ctx.Err() == nil {
		wait := s.d.o.Periods.State
		if s.d.view.get().Phase == bootstrap.PhaseJoined {
			wait = s.round(time.Now(), ask)
		} else if len(s.apps) > 0 {
			s.apps, s.listed = map[string]*application{}, time.Time{}
			s.change(func(v *View) { v.Server, v.brokenSince = ServerView{}, time.Time{} })
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.wake:
		case r := <-results:
			take(r)
			// Others come at the same moment.
			for more := time.After(judgePause); more != nil; {
				select {
				case r := <-results:
					take(r)
				case <-more:
					more = nil
				}
			}
		}
		timer.Stop()
	}
}

// round asks the applications that are due, judges, and returns after what there is something to do.
func (s *serving) round(now time.Time, ask func(string, *application)) time.Duration {
	s.mu.Lock()
	held, anew := s.held > 0, s.stale && s.held == 0
	s.stale = s.stale && !anew
	s.mu.Unlock()
	if anew {
		for name, a := range s.apps {
			s.apps[name] = &application{served: a.served, added: a.added}
		}
	}
	s.list(now)
	names := slices.SortedFunc(maps.Keys(s.apps), func(a, b string) int { return s.apps[a].sent.Compare(s.apps[b].sent) })
	for _, late := range []bool{false, true} {
		most := maxAsks
		if late {
			most = maxAsks / 2
		}
		for _, name := range names {
			if a := s.apps[name]; s.asks < most && a.late() == late && !a.asking && !now.Before(a.next) {
				a.asking, a.sent, a.answer.Name = true, now, name
				s.asks++
				ask(name, a)
			}
		}
	}
	return s.judge(now, held)
}

// list follows the applications on disk, more often where one does not serve: it may
// have been removed.
func (s *serving) list(now time.Time) {
	every := listEvery
	if !s.d.view.get().Server.Up || slices.ContainsFunc(slices.Collect(maps.Values(s.apps)), func(a *application) bool { return a.errors > 0 && !a.late() }) {
		every = askAgain
	}
	if now.Sub(s.listed) < every {
		return
	}
	names, err := s.probe.Applications()
	if err != nil {
		return // those that are known are asked; a folder is unreadable for a moment
	}
	maps.DeleteFunc(s.apps, func(name string, _ *application) bool { return !slices.Contains(names, name) })
	// While the server does not serve, its applications may be unpacked anew.
	up := s.d.view.get().Server.Up
	for _, name := range names {
		if s.apps[name] == nil {
			s.apps[name] = &application{added: up}
		}
	}
	if len(names) > 0 {
		s.listed = now
	}
}

// judge says whether viewers are served, and returns after what there is something
// to do.
func (s *serving) judge(now time.Time, held bool) time.Duration {
	next := now.Add(askPeriod)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	up, known, counted := !held, true, false
	var why []string
	var said []ams.AppAnswer
	for _, name := range slices.Sorted(maps.Keys(s.apps)) {
		a := s.apps[name]
		a.waited(now)
		if a.asking {
			sooner(a.sent.Add(silence))
		} else {
			sooner(a.next)
		}
		if a.answer.State != "" {
			said = append(said, a.answer)
		}
		switch {
		case a.late():
			continue
		case a.answer.State == "":
			known = false
		case !a.up && a.answer.Serves():
			why = append(why, name+" was silent a moment ago")
		case !a.up:
			why = append(why, a.answer.String())
		}
		counted, up = true, up && a.up
	}
	switch {
	case held:
		why = []string{"the agent stops or restarts the server"}
	case len(s.apps) == 0:
		up, why = false, []string{"no application is known"}
	case !counted:
		up, why = false, []string{"no application has served yet"}
	case !known && len(why) == 0:
		why = []string{NotAsked}
	}
	if n := len(why) - maxNamed; n > 0 {
		why = append(why[:maxNamed], fmt.Sprintf("and %d more", n))
	}
	is := ServerView{Up: up}
	if !up {
		is.Why = strings.Join(why, "; ")
	}
	is.Applications, is.Omitted = words(said)
	s.report(s.d.view.get().Server, is, now)
	return max(next.Sub(now), time.Millisecond)
}

// words has a word for as many applications as maxWords lets in.
func words(said []ams.AppAnswer) (word map[string]string, omitted int) {
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

// report makes the view say it.
func (s *serving) report(was, is ServerView, now time.Time) {
	is.Since = was.Since
	if was.Up != is.Up || was.Since.IsZero() {
		is.Since = now
	}
	interval := time.Duration(s.d.interval.Load())
	back := is.Up && !was.Up
	// It may have been started as another server than it was: nobody is sent there
	// until the files are compared the next time.
	var byHand bool
	var unread error
	if back {
		byHand, unread = s.probe.Standalone()
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
		return
	}
	if is.Up {
		s.d.log.Info("Ant Media Server serves viewers")
	} else {
		s.noted = false // another release may be installed while it is down
		s.d.log.Warn("Ant Media Server does not serve viewers", "why", is.Why)
	}
	s.d.status()
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

// hold makes the node not ready at once, for as long as the agent itself stops or
// restarts the server.
func (s *serving) hold() (release func()) {
	if s == nil {
		return func() {}
	}
	count := func(n int) {
		s.mu.Lock()
		s.held += n
		held := s.held > 0
		s.stale = true
		s.mu.Unlock()
		if held {
			s.change(func(v *View) {
				if v.Server.Up {
					v.Server.Up, v.Server.Since = false, time.Now()
				}
				v.Server.Why = "the agent stops or restarts the server"
			})
		}
		s.look()
	}
	count(1)
	return func() { count(-1) }
}

// servedBefore reports whether the release that is installed has ever served here.
func (s *serving) servedBefore() bool { return s != nil && s.probe.ServedBefore() }
