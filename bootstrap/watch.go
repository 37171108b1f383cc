// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
)

const (
	// askPeriod is the time between two calls to an application, unless one is in progress.
	askPeriod = time.Second
	// askAgain is the time to the next call after an error answer: two errors in a row count.
	askAgain = 300 * time.Millisecond
	// silence is the longest time to wait for an answer. All nodes of a cluster share one MongoDB, which the server asks
	// for its answer: a slow MongoDB must not make all nodes not ready.
	silence = 4 * time.Second
	// askLimit ends a call. It is longer than silence, because the server continues after the caller has gone.
	askLimit = 10 * time.Second
	// goodAfterSilence is the number of good answers in a row that an application needs after silence; else one.
	goodAfterSilence = 3
	// listEvery is how often the applications on disk are listed while all serve.
	listEvery = 30 * time.Second
	// maxAsks bounds the calls in progress: the server's user decides how many applications there are.
	maxAsks = 64
)

// Asker calls the applications of a server. *[Server] is one.
type Asker interface {
	// Applications lists those that must serve, as they are on disk now.
	Applications() ([]string, error)
	Ask(ctx context.Context, app string) ams.AppAnswer
}

// Served is what viewers get from a server.
type Served struct {
	// Up reports whether every application that counts serves.
	Up bool
	// Known is false as long as one of them has not answered, unless another is known not to serve.
	Known bool
	Why   []string // for each application that does not serve; empty while Up
	// Answers are the latest, by name. The state is "" before the first answer.
	Answers []ams.AppAnswer
}

// watch decides whether a server serves viewers, from repeated calls to its applications. An application is down at once
// if the server refuses the connection or does not answer within silence, and after two error answers in a row. It is up
// after one good answer, and after silence of one that had served, after goodAfterSilence in a row.
type watch struct {
	asker  Asker
	apps   map[string]*application
	asks   int       // in progress, also of applications that are gone
	listed time.Time // when the applications were listed
	up     bool
	sure   bool // up, and no application has answered with an error
}

// application is the state of one application.
type application struct {
	answer ams.AppAnswer // the last one
	up     bool
	// errors and good count error answers and good answers in a row.
	errors, good int
	silent       bool // since it served
	asking       bool
	sent, next   time.Time // of the last and the next call
	// An application that was added while the server ran does not count before it has served.
	added, served bool
}

func (a *application) isLate() bool { return a.added && !a.served }

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
	a.silent = a.silent || a.served && r.State == ams.AppSilent
	if r.State == ams.AppRefused || r.State == ams.AppSilent || a.errors > 1 {
		a.up = false
	}
}

// waited applies silence to a call in progress.
func (a *application) waited(now time.Time) {
	if a.asking && now.Sub(a.sent) >= silence {
		a.answer.State, a.answer.Code, a.answer.Detail = ams.AppSilent, 0, ""
		// While the server starts, silence is usual.
		a.up, a.silent, a.good = false, a.served, 0
	}
}

// answered is an answer with its application, which may have been forgotten since.
type answered struct {
	of     *application
	answer ams.AppAnswer
}

// Watch calls the applications of a server, and report with each judgement, until report returns false or ctx ends.
func Watch(ctx context.Context, asker Asker, report func(Served) (more bool)) {
	w := &watch{asker: asker, apps: map[string]*application{}}
	answers := make(chan answered, maxAsks)
	var asks sync.WaitGroup
	defer asks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		now := time.Now()
		w.list(now)
		for _, a := range w.due(now) {
			name := a.answer.Name
			asks.Go(func() {
				bound, end := context.WithTimeout(ctx, askLimit)
				defer end()
				answers <- answered{a, asker.Ask(bound, name)}
			})
		}
		is, next := w.judge(now)
		if !report(is) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		case r := <-answers:
			w.take(r)
			for len(answers) > 0 {
				w.take(<-answers)
			}
		}
	}
}

func (w *watch) take(r answered) {
	w.asks--
	r.of.take(r.answer, time.Now())
}

// due marks the applications to call now, those first that wait longest.
func (w *watch) due(now time.Time) (due []*application) {
	for _, a := range slices.SortedFunc(maps.Values(w.apps), func(a, b *application) int { return a.sent.Compare(b.sent) }) {
		if w.asks < maxAsks && !a.asking && !now.Before(a.next) {
			a.asking, a.sent = true, now
			w.asks++
			due = append(due, a)
		}
	}
	return due
}

// list follows the applications on disk, more often while one does not serve: it may have been removed.
func (w *watch) list(now time.Time) {
	every := askAgain
	if w.sure {
		every = listEvery
	}
	if now.Sub(w.listed) < every {
		return
	}
	names, err := w.asker.Applications()
	if err != nil {
		return // keep the known ones: the folder may be unreadable for a moment
	}
	maps.DeleteFunc(w.apps, func(name string, _ *application) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		if w.apps[name] == nil {
			// While the server does not serve, its applications may be unpacked again.
			w.apps[name] = &application{answer: ams.AppAnswer{Name: name}, added: w.up}
		}
	}
	w.listed = now
}

// judge also returns the time until a call is due or an answer is late.
func (w *watch) judge(now time.Time) (is Served, next time.Duration) {
	next = askPeriod
	counted, unknown, errs := 0, 0, 0
	for _, name := range slices.Sorted(maps.Keys(w.apps)) {
		a := w.apps[name]
		a.waited(now)
		due := a.next
		if a.asking {
			due = a.sent.Add(silence)
		}
		if wait := due.Sub(now); wait > 0 {
			next = min(next, wait)
		}
		is.Answers = append(is.Answers, a.answer)
		if a.isLate() {
			continue
		}
		counted++
		errs += a.errors
		switch {
		case a.answer.State == "":
			unknown++
		case !a.up && a.answer.Serves():
			is.Why = append(is.Why, name+" was silent a moment ago")
		case !a.up:
			is.Why = append(is.Why, a.answer.String())
		}
	}
	switch {
	case len(w.apps) == 0:
		is.Why = []string{"no application is known"}
	case counted == 0:
		is.Why = []string{"no application has served yet"}
	}
	is.Up = len(is.Why) == 0 && unknown == 0
	is.Known = is.Up || len(is.Why) > 0
	w.up, w.sure = is.Up, is.Up && errs == 0
	return is, max(next, time.Millisecond)
}
