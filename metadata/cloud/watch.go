// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/amsagent/amsagent/internal/sleep"
)

const (
	// maxPause bounds the back-off of an item that cannot be read: of a notice of minutes not much may be lost.
	maxPause = 5 * time.Second
	// maxRefusedPause is for a service that refuses us, which a person switches on again if at all.
	maxRefusedPause = time.Minute
)

// Poll looks at an item at once and then again and again, until ctx ends: at even moments of the clock while that works, less
// often while it does not. A pause that look returns replaces the first, and is the minimum of the second. The first failure
// in a row is logged, and its end. A [DeniedError] is logged by look, and only its end here.
func Poll(ctx context.Context, log *slog.Logger, item string, every time.Duration, look func(context.Context) (time.Duration, error)) {
	failures, bad := 0, false
	for {
		pause, err := look(ctx)
		if ctx.Err() != nil {
			return
		}
		_, denied := errors.AsType[*DeniedError](err)
		switch {
		case err != nil && !denied:
			if failures++; failures == 1 {
				log.Warn("cloud signal cannot be read, notices may come late", "item", item, "error", err, "hint", HintOf(err))
			}
			pause = max(pause, BackOff(every, failures, err))
		case err == nil && bad:
			failures = 0
			log.Info("cloud signal can be read again", "item", item)
		}
		if bad = err != nil; pause == 0 {
			pause = UntilTick(every)
		}
		if !sleep.For(ctx, pause) {
			return
		}
	}
}

// Watch polls an item and reports what parse makes of it; of an item that is not set it gets nil. An answer that parse cannot read
// is not reported, nor is [ErrNotFound]: an absence that says nothing.
func (c *Client) Watch(ctx context.Context, i Item, topic string, every time.Duration, report Report, parse func([]byte) ([]Notice, error)) {
	Poll(ctx, c.opts.Log, i.Name, every, func(ctx context.Context) (time.Duration, error) {
		_, body, err := c.Once(ctx, i)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return 0, err
		}
		current, err := parse(body)
		if err == nil {
			report(topic, current)
		} else if errors.Is(err, ErrNotFound) {
			err = nil
		}
		return 0, err
	})
}

// UntilTick is the time to the next of the moments that are an interval apart by the clock. So all that is looked at wakes
// the process together, which costs more than a look does. A moment that is nearly here is the one that was waited for.
func UntilTick(every time.Duration) time.Duration {
	left := every - time.Duration(time.Now().UnixNano())%every
	if left < every/10 {
		left += every
	}
	return left
}

// BackOff doubles the interval with every failure after the first, which may have been one lost packet, and shortens it at
// random so that a fleet whose service comes back does not ask at the same moment.
func BackOff(every time.Duration, failures int, err error) time.Duration {
	most := maxPause
	if errors.Is(err, ErrForbidden) || errors.Is(err, ErrNotThisCloud) {
		most = maxRefusedPause
	}
	pause := max(every, min(every<<min(failures-1, 10), most))
	return pause - rand.N(pause/4+1)
}

// SpotEnd turns the end that the cloud announces for a spot machine into one by this machine's clock.
type SpotEnd struct {
	// Lead is how long before the end the cloud announces it.
	Lead time.Duration

	looked        bool
	announced, at time.Time
}

// staleAfter: clouds take a machine some minutes after the time they announced, if not then.
const staleAfter = time.Hour

// At takes the end announced at this look, zero for none, and returns when the machine ends: between the moment of the first
// look at it and Lead after that, whatever the machine's clock says. Of several ends the earliest counts. It is zero for an
// end that was long past at the first look, or has passed an hour ago: the machine was started again.
func (s *SpotEnd) At(announced time.Time) time.Time {
	now, first := time.Now(), !s.looked
	s.looked = true
	switch {
	case announced.IsZero():
		s.announced, s.at = time.Time{}, time.Time{}
	case !announced.Equal(s.announced):
		at := now.Add(min(max(0, announced.Sub(now)), s.Lead))
		if first && now.Sub(announced) > staleAfter {
			at = announced
		}
		if s.at.IsZero() || at.Before(s.at) {
			s.at = at
		}
		s.announced = announced
	}
	if s.at.IsZero() || now.Sub(s.at) > staleAfter {
		return time.Time{}
	}
	return s.at
}
