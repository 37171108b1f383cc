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
	// askPeriod is between two calls to an application.
	askPeriod = time.Second
	// askAgain follows an error answer: two in a row count.
	askAgain = 300 * time.Millisecond
	// silence bounds the wait for an answer. All servers need the shared MongoDB to answer: if it is slow, not all
	// nodes may become not ready.
	silence = 4 * time.Second
	// askLimit bounds a call. It is longer than silence, because the server continues without the caller.
	askLimit = 10 * time.Second
	// goodAfterSilence is the number of good answers in a row that are needed after silence.
	goodAfterSilence = 3
	// listEvery is for the applications on disk while no error comes.
	listEvery = 30 * time.Second
	// maxAsks bounds the calls in progress: the server's user controls the number of applications.
	maxAsks = 64
)

// Asker calls the applications of a server, as *[Server] does.
type Asker interface {
	// Applications lists those that must serve, as on disk now.
	Applications() ([]string, error)
	Ask(ctx context.Context, app string) ams.AppAnswer
}

// Served is the state of a server for viewers.
type Served struct {
	Up bool
	// Why has each application that does not serve. Without Up it is empty until all have answered or one is down.
	Why []string
	// Answers are the latest, by name. State is "" before the first answer.
	Answers []ams.AppAnswer
}

// watch computes [Served] from repeated calls. An application is down at once after a refusal or silence, and
// after two errors in a row. It is up after one good answer, or goodAfterSilence if it had served before the
// silence.
type watch struct {
	asker  Asker
	apps   map[string]*application
	asks   int       // also of removed applications
	relist time.Time // when the applications are listed again
	up     bool
}

type application struct {
	answer       ams.AppAnswer
	up           bool
	errors, good int
	silent       bool // since it served
	asking       bool
	sent         time.Time // of the last call
	next         time.Time // of the next call or, while asking, of silence
	// An application added to a running server counts once it has served.
	added, served bool
}

func (a *application) isLate() bool { return a.added && !a.served }

// Watch calls the applications, and report with each result, until it returns false or ctx ends.
func Watch(ctx context.Context, asker Asker, report func(Served) (more bool)) {
	w := &watch{asker: asker, apps: map[string]*application{}}
	answers := make(chan func(), maxAsks)
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
				r := asker.Ask(bound, name)
				answers <- func() { w.take(a, r) }
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
		case take := <-answers:
			take()
			for len(answers) > 0 {
				(<-answers)()
			}
		}
	}
}

// due marks the applications to call, longest wait first.
func (w *watch) due(now time.Time) (due []*application) {
	for _, a := range slices.SortedFunc(maps.Values(w.apps), func(a, b *application) int { return a.sent.Compare(b.sent) }) {
		if w.asks < maxAsks && !a.asking && !now.Before(a.next) {
			a.asking, a.sent, a.next = true, now, now.Add(silence)
			w.asks++
			due = append(due, a)
		}
	}
	return due
}

// take may concern a removed application.
func (w *watch) take(a *application, r ams.AppAnswer) {
	w.asks--
	a.answer, a.asking, a.next = r, false, a.sent.Add(askPeriod)
	if r.Serves() {
		a.errors, a.good = 0, a.good+1
		a.served = a.served || r.State != ams.AppWaits
		if !a.silent || a.good >= goodAfterSilence {
			a.up, a.silent = true, false
		}
		return
	}
	a.good, a.errors, a.next = 0, a.errors+1, time.Now().Add(askAgain)
	a.silent = a.silent || a.served && r.State == ams.AppSilent
	if r.State == ams.AppRefused || r.State == ams.AppSilent || a.errors > 1 {
		a.up = false
	}
	if !a.isLate() {
		w.listAgain(a.next)
	}
}

// listAgain is for an application that does not serve: it may have been removed.
func (w *watch) listAgain(at time.Time) {
	if at.Before(w.relist) {
		w.relist = at
	}
}

func (w *watch) list(now time.Time) {
	if now.Before(w.relist) {
		return
	}
	names, err := w.asker.Applications()
	if err != nil {
		return // the folder may be unreadable for a moment
	}
	maps.DeleteFunc(w.apps, func(name string, _ *application) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		if w.apps[name] == nil {
			// While the server does not serve, its applications may be unpacked again.
			w.apps[name] = &application{answer: ams.AppAnswer{Name: name}, added: w.up}
		}
	}
	w.relist = now.Add(listEvery)
}

func (w *watch) judge(now time.Time) (is Served, next time.Duration) {
	next, is.Up = askPeriod, true
	counted := 0
	for _, name := range slices.Sorted(maps.Keys(w.apps)) {
		a := w.apps[name]
		if a.asking && now.Sub(a.sent) >= silence {
			a.answer = ams.AppAnswer{Name: name, State: ams.AppSilent}
			// While the server starts, silence is normal.
			a.up, a.silent, a.good = false, a.served, 0
		}
		if wait := a.next.Sub(now); wait > 0 {
			next = min(next, wait)
		}
		is.Answers = append(is.Answers, a.answer)
		if a.isLate() {
			continue
		}
		if a.answer.State == ams.AppSilent {
			w.listAgain(now.Add(askPeriod))
		}
		counted++
		is.Up = is.Up && a.up
		switch {
		case a.up, a.answer.State == "":
		case a.answer.Serves():
			is.Why = append(is.Why, name+" was silent a moment ago")
		default:
			is.Why = append(is.Why, a.answer.String())
		}
	}
	if counted == 0 {
		is.Up, is.Why = false, []string{"no application has served yet"}
		if len(w.apps) == 0 {
			is.Why[0] = "no application is known"
		}
	}
	w.up = is.Up
	return is, next
}
