// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// Watching is what the watchers of all clouds share: when to look again, and what to say of that. The zero value works once
// Provider and Log are set; its methods may be called by several goroutines.
type Watching struct {
	Provider string
	Log      *slog.Logger
	// MaxPause bounds the back-off of an item that cannot be read: of a notice of minutes not much may be lost. 0 is 15 s.
	MaxPause time.Duration

	mu     sync.Mutex
	told   map[string]bool // troubles that have their line in the log
	unwell map[string]bool // items that cannot be read now
	since  time.Time
}

const (
	defaultMaxPause = 15 * time.Second
	// maxRefusedPause is for a service that refuses us, which is switched on again by a person if at all.
	maxRefusedPause = time.Minute
)

// Every looks at an item at once and then again and again, until ctx ends: at even moments of the clock while that works,
// less often while it does not.
func (w *Watching) Every(ctx context.Context, item string, every time.Duration, look func(context.Context) error) {
	failures := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := look(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := UntilTick(every)
		if err == nil {
			failures = 0
			w.Well(item)
		} else {
			failures++
			w.Trouble(item, err)
			pause = w.BackOff(every, failures, err)
		}
		timer.Reset(pause)
	}
}

// UntilTick is the time to the next of the moments that are an interval apart by the clock. So all that is looked at wakes
// the process together, which costs more than a look does. The service is the machine's own: nobody else's looks meet ours
// there. A moment that is nearly here is the one that was waited for.
func UntilTick(every time.Duration) time.Duration {
	left := every - time.Duration(time.Now().UnixNano())%every
	if left < every/10 {
		left += every
	}
	return left
}

// BackOff doubles the interval with every failure after the first, which may have been one lost packet, and shortens it at
// random so that a fleet whose service comes back does not ask at the same moment.
func (w *Watching) BackOff(every time.Duration, failures int, err error) time.Duration {
	most := w.MaxPause
	if most <= 0 {
		most = defaultMaxPause
	}
	if errors.Is(err, ErrForbidden) || errors.Is(err, ErrNotThisCloud) {
		most = maxRefusedPause
	}
	pause := every
	for range failures - 1 {
		if pause *= 2; pause >= most {
			break
		}
	}
	// An interval that is longer than the bound is kept: it was chosen so.
	pause = max(min(pause, most), every)
	return pause - rand.N(pause/4+1)
}

// Trouble says that an item cannot be read, once for each kind of trouble, until all is well again. An outage of the
// service is one line for all items.
func (w *Watching) Trouble(item string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told == nil {
		w.told, w.unwell = map[string]bool{}, map[string]bool{}
	}
	if len(w.unwell) == 0 {
		w.since = time.Now()
	}
	w.unwell[item] = true
	key := TroubleKey(item, err)
	if w.told[key] {
		return
	}
	w.told[key] = true
	w.Log.Warn("a signal of the cloud cannot be read, notices may come late", "provider", w.Provider, "item", item, "err", err, "hint", HintOf(err))
}

// Well says that an item can be read.
func (w *Watching) Well(item string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.unwell[item] {
		return
	}
	if delete(w.unwell, item); len(w.unwell) > 0 {
		return
	}
	clear(w.told)
	w.Log.Info("the signals of the cloud can be read again", "provider", w.Provider, "after", time.Since(w.since).Round(100*time.Millisecond))
}

// TroubleKey is the same for what is the same trouble to an operator. What is wrong with one answer is its item's own.
func TroubleKey(item string, err error) string {
	e, ok := errors.AsType[*Error](err)
	switch {
	case !ok, errors.Is(e.Kind, ErrBadAnswer):
		return item
	case e.Status != 0:
		return http.StatusText(e.Status)
	case Unanswered(e):
		return "silent"
	default:
		return "unreachable"
	}
}
