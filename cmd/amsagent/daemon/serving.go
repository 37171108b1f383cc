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
	// askPeriod is the time from ask to ask. While all applications serve, each time
	// the next of them is asked: what befalls the server is noticed by whichever it
	// is. Otherwise all are. What viewers get is to be followed within two seconds:
	// this, and servingGrace.
	askPeriod = 700 * time.Millisecond
	// askTurns is after how many of them all have been asked. So an application that
	// fails alone is noticed within three seconds and a half.
	askTurns = 3
	// askAgain is the same while an application fails that served a moment ago.
	askAgain = 250 * time.Millisecond
	// servingGrace is for how long an application may fail, or be silent, before
	// the node is not ready: a blip of a second takes no node out. A refused
	// connection is no blip.
	servingGrace = 1050 * time.Millisecond
	// slowLimit is how long a server may take that answers in the end. It is given
	// twice what it took of late, from servingGrace up to this: a server, or a MongoDB,
	// that answers slowly serves its viewers, and a node that is taken out and put back
	// with each answer helps nobody.
	slowLimit = 4 * time.Second
	// listEvery is how often the applications on disk are listed while all serve. A
	// new one takes no node out before it has served, so there is no hurry.
	listEvery = 30 * time.Second
	// askLimit ends an ask. It is longer than the grace, since the server works on
	// a call whose caller has gone: while MongoDB is away, calls that are given up
	// and repeated would fill its threads.
	askLimit = 10 * time.Second
	// maxAsks is how many asks are under way at a time. The server's user decides how
	// many applications there are, and how long an answer is. Those that have not
	// served yet get half of it at most: as they take no node out, they must not
	// delay the asks of those that do.
	maxAsks = 8
	// judgePause is the least time from one judgement to the next, for each application:
	// with thousands of them, one for each answer takes the whole processor.
	judgePause = 20 * time.Microsecond
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
	answer ams.AppAnswer
	// failing is when the first of the asks was sent that have failed since the
	// application served; zero while it serves.
	failing time.Time
	// queued tells that it is to be asked as soon as fewer than maxAsks asks are under
	// way. Until then its last answer stands; without one it is not known.
	queued bool
	// asking tells that an ask is under way; sent is when the last one was sent. took is
	// how long answers took of late, slowLimit at most: it goes down by half with each
	// faster one.
	asking bool
	sent   time.Time
	took   time.Duration
	next   time.Time // when to ask again, while not all serve
	// served tells that it served since it was first seen. One that was made while
	// the server ran, and has not served yet, takes no node out.
	served, added bool
}

// late reports whether it was added and has not served yet.
func (a *application) late() bool { return a.added && !a.served }

// grace is how long an ask may take.
func (a *application) grace() time.Duration { return min(max(2*a.took, servingGrace), slowLimit) }

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
	queue  []string  // of applications to ask; some may be gone, or another one by now
	turn   time.Time // when to ask the next one, while all serve
	listed time.Time // when the applications were listed; zero before the first time
	noted  bool      // that this release serves
	// noteLog is for failures of that.
	noteLog throttle
}

func newServing(d *Daemon, p ServerProbe) *serving {
	return &serving{d: d, probe: p, wake: make(chan struct{}, 1), apps: map[string]*application{}}
}

// answered is an answer that came.
type answered struct {
	name   string
	of     *application
	answer ams.AppAnswer
	came   time.Time
}

// run asks until ctx ends. On a machine that is no node it asks nothing.
func (s *serving) run(ctx context.Context) {
	results := make(chan answered, 1)
	var asks sync.WaitGroup
	defer asks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Who has asked asks again: the stack of a new goroutine would grow each time.
	jobs := make(chan answered)
	work := func(r answered) {
		for {
			bound, end := context.WithTimeout(ctx, askLimit)
			r.answer = s.probe.Ask(bound, r.name)
			end()
			r.came = time.Now()
			select {
			case results <- r:
			case <-ctx.Done():
				return
			}
			select {
			case r = <-jobs:
			case <-ctx.Done():
				return
			}
		}
	}
	ask := func(name string, a *application) {
		job := answered{name: name, of: a}
		select {
		case jobs <- job:
		default:
			asks.Go(func() { work(job) })
		}
	}
	underWay := 0 // with those of applications that are gone
	begin := func(now time.Time) {
		later := s.queue[:0]
		for i, name := range s.queue {
			if underWay >= maxAsks {
				later = append(later, s.queue[i:]...)
				break
			}
			a := s.apps[name]
			switch {
			case a == nil || !a.queued:
				continue
			case a.late() && underWay >= maxAsks/2:
				later = append(later, name)
				continue
			}
			a.queued, a.asking, a.sent = false, true, now
			underWay++
			ask(name, a)
		}
		s.queue = later
	}
	for {
		wait := s.d.o.Periods.State
		now := time.Now()
		if s.d.view.get().Phase == bootstrap.PhaseJoined {
			s.list(now)
			if len(s.queue) > 2*len(s.apps) {
				s.compact() // applications come and go faster than their turn comes
			}
			for _, name := range s.due(now) {
				s.apps[name].queued = true
				s.queue = append(s.queue, name)
			}
			begin(now)
			wait = s.judge(now)
		} else if len(s.apps) > 0 {
			s.apps, s.listed = map[string]*application{}, time.Time{}
			s.change(func(v *View) { v.Server, v.brokenSince = ServerView{}, time.Time{} })
		}
		timer := time.NewTimer(wait)
		for news := false; !news; {
			news = true
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-s.wake:
			case r := <-results:
				underWay--
				news = s.take(r)
				begin(time.Now())
				if left := time.Until(now.Add(time.Duration(len(s.apps)) * judgePause)); news && left > 0 {
					news = false
					timer.Reset(left)
				}
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// list follows the applications on disk, more often where one does not serve: it may
// have been removed.
func (s *serving) list(now time.Time) {
	every := listEvery
	if !s.calm() {
		every = askAgain
	}
	if now.Sub(s.listed) < every {
		return
	}
	names, err := s.probe.Applications()
	if err != nil {
		return // those that are known are asked; a folder is unreadable for a moment
	}
	for name := range s.apps {
		if !slices.Contains(names, name) {
			delete(s.apps, name)
		}
	}
	// While the server does not serve, its applications may be unpacked anew.
	up := s.d.view.get().Server.Up
	for i, name := range names {
		if s.apps[name] == nil {
			s.apps[name] = &application{added: up, next: spread(now, i, len(names))}
		}
	}
	if len(names) > 0 {
		s.listed = now
	}
}

// compact drops from the queue what waits no more, or twice.
func (s *serving) compact() {
	seen := map[string]bool{}
	s.queue = slices.DeleteFunc(s.queue, func(name string) bool {
		a := s.apps[name]
		waits := a != nil && a.queued && !seen[name]
		seen[name] = true
		return !waits
	})
}

// calm reports that all applications serve, as far as is known.
func (s *serving) calm() bool {
	if !s.d.view.get().Server.Up {
		return false
	}
	for _, a := range s.apps {
		if !a.failing.IsZero() && !a.late() {
			return false
		}
	}
	return true
}

// due are the applications to ask now.
func (s *serving) due(now time.Time) []string {
	var names, late []string
	for name, a := range s.apps {
		switch {
		case a.asking || a.queued:
		case a.late():
			late = append(late, name)
		default:
			names = append(names, name)
		}
	}
	if !s.calm() {
		return slices.DeleteFunc(append(names, late...), func(name string) bool { return now.Before(s.apps[name].next) })
	}
	if len(names)+len(late) == 0 || now.Before(s.turn) {
		return nil
	}
	s.turn = now.Add(askPeriod)
	return append(s.oldest(names), s.oldest(late)...)
}

// oldest are those of the applications that were asked longest ago.
func (s *serving) oldest(names []string) []string {
	slices.SortStableFunc(names, func(a, b string) int { return s.apps[a].sent.Compare(s.apps[b].sent) })
	return names[:(len(names)+askTurns-1)/askTurns]
}

// take notes an answer, and reports whether it is another one than before.
func (s *serving) take(r answered) (news bool) {
	a := r.of
	if s.apps[r.name] != a {
		return false // removed, or asked before the agent stopped the server
	}
	took := min(r.came.Sub(a.sent), slowLimit)
	a.took = max(took, a.took/2)
	if took > servingGrace && !a.late() {
		for _, other := range s.apps { // what makes one of them slow makes all of them slow
			other.took = max(took, other.took)
		}
	}
	if r.answer.Serves() && took >= slowLimit {
		r.answer.State = ams.AppSlow
	}
	news = a.answer != r.answer || !s.calm()
	a.answer, a.asking, a.next = r.answer, false, a.sent.Add(askPeriod)
	if r.answer.Serves() {
		a.failing, a.served = time.Time{}, a.served || r.answer.State != ams.AppWaits
		return news
	}
	if a.failing.IsZero() {
		a.failing = a.sent
	}
	if s.d.view.get().Server.Up {
		a.next = r.came.Add(askAgain)
	}
	return true
}

// judge says whether viewers are served, and returns after what there is something
// to do.
func (s *serving) judge(now time.Time) time.Duration {
	s.mu.Lock()
	held := s.held > 0
	anew := s.stale && !held
	if anew {
		s.stale = false
		for i, name := range slices.Sorted(maps.Keys(s.apps)) {
			a := s.apps[name]
			s.apps[name] = &application{served: a.served, added: a.added, next: spread(now, i, len(s.apps))}
		}
	}
	s.mu.Unlock()
	was := s.d.view.get().Server
	next, calm := now.Add(askPeriod), s.calm()
	if calm {
		next = sooner(now, next, s.turn)
	}
	up, known := !held && slices.ContainsFunc(slices.Collect(maps.Values(s.apps)), func(a *application) bool { return !a.late() }), true
	var why []string
	var said []ams.AppAnswer
	for _, name := range slices.Sorted(maps.Keys(s.apps)) {
		a := s.apps[name]
		answer, failing := a.answer, a.failing
		if a.asking && now.Sub(a.sent) >= a.grace() {
			answer = ams.AppAnswer{Name: name, State: ams.AppSilent}
			if failing.IsZero() {
				failing = a.sent
			}
		}
		switch {
		case a.asking:
			next = sooner(now, next, a.sent.Add(a.grace()))
		case !calm:
			next = sooner(now, next, a.next)
		}
		if answer.State == "" {
			known = known && a.late()
			continue
		}
		said = append(said, answer)
		switch {
		case answer.Serves(), a.late():
			continue
		case was.Up && answer.State != ams.AppRefused && now.Sub(failing) < servingGrace:
			next = sooner(now, next, failing.Add(servingGrace))
			continue
		}
		up = false
		why = append(why, answer.String())
	}
	switch {
	case held:
		why = []string{"the agent stops or restarts the server"}
	case !known && up && !was.Up:
		up, why = false, []string{NotAsked}
	case len(s.apps) == 0:
		why = []string{"no application is known"}
	case !up && len(why) == 0:
		why = []string{"no application has served yet"}
	}
	if n := len(why) - maxNamed; n > 0 {
		why = append(why[:maxNamed], fmt.Sprintf("and %d more", n))
	}
	is := ServerView{Up: up, Why: strings.Join(why, "; ")}
	is.Applications, is.Omitted = words(said)
	s.report(was, is, now)
	if anew {
		next = now
	}
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

// spread is when to ask the i-th of n applications first: not all at one moment, so
// that what befalls the whole server is noticed by whichever is asked next.
func spread(now time.Time, i, n int) time.Time {
	return now.Add(askPeriod * time.Duration(i) / time.Duration(n))
}

// sooner is the earlier of two moments, where the second one is still to come.
func sooner(now, a, b time.Time) time.Time {
	if b.After(now) && b.Before(a) {
		return b
	}
	return a
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
	if is.Up && !s.noted {
		err := s.probe.Served()
		if s.noted = err == nil; err != nil && s.noteLog.allows(err.Error(), now) {
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
