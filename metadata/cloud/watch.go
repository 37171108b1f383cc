// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/amsagent/amsagent/internal/sleep"
)

const (
	// maxPause is short: some notices give only minutes.
	maxPause = 5 * time.Second
	// Only an operator can lift a refusal.
	maxRefusedPause = time.Minute
)

// Poll calls look at aligned times until ctx ends, less often while it fails. A pause from look replaces the interval and
// bounds the back-off from below. Poll logs the first failure and the recovery; look logs a [DeniedError].
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
			pause = max(pause, backOff(every, failures, err))
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

// Watch polls an item and reports what parse returns; parse gets nil if the item is not set. Errors of parse are not
// reported, nor is [ErrNotFound], an absence without meaning.
func (c *Client) Watch(ctx context.Context, i Item, topic string, every time.Duration, report Report, parse func(*Clock, []byte) ([]Notice, error)) {
	var clock Clock
	Poll(ctx, c.Options.Log, i.Name, every, func(ctx context.Context) (time.Duration, error) {
		h, body, err := c.Once(ctx, i)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return 0, err
		}
		clock.Seen(h)
		current, err := parse(&clock, body)
		if err == nil {
			report(topic, current)
		} else if errors.Is(err, ErrNotFound) {
			err = nil
		}
		return 0, err
	})
}

// UntilTick returns the time to the next multiple of an interval: a shared wakeup of all polls is cheaper. It skips a tick
// closer than a tenth, which woke the caller.
func UntilTick(every time.Duration) time.Duration {
	left := every - time.Duration(time.Now().UnixNano())%every
	if left < every/10 {
		left += every
	}
	return left
}

// backOff doubles with each failure after the first, which may be one lost packet. Jitter spreads a fleet.
func backOff(every time.Duration, failures int, err error) time.Duration {
	most := maxPause
	if errors.Is(err, ErrForbidden) || errors.Is(err, ErrNotThisCloud) {
		most = maxRefusedPause
	}
	pause := max(every, min(every<<min(failures-1, 10), most))
	return pause - rand.N(pause/4+1)
}

// Clock is a cloud's clock, by the header Date of its answers. The zero value is the local one.
type Clock struct {
	// Known: an answer had the header.
	Known bool

	ahead time.Duration // of the local clock
}

// clockStep is more than the whole seconds of Date and the way of an answer make.
const clockStep = 2 * time.Second

// Seen takes the header of an answer.
func (c *Clock) Seen(h http.Header) {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return
	}
	c.Known = true
	if ahead := time.Since(date); (ahead - c.ahead).Abs() > clockStep {
		c.ahead = ahead
	}
}

// Local converts a time of the cloud to the local clock.
func (c *Clock) Local(at time.Time) time.Time {
	if at.IsZero() {
		return at
	}
	return at.Add(c.ahead)
}

// Past reports whether a local time is before this boot. By the local clock alone it is not known.
func (c *Clock) Past(at time.Time) bool { return c.Known && !at.IsZero() && at.Before(booted()) }

// SpotEnd converts a spot machine's announced end to the local clock.
type SpotEnd struct {
	// Lead is the notice period.
	Lead time.Duration

	at time.Time // zero: none is announced
}

// At returns when the machine ends: by the cloud's clock, and at most Lead after the first poll that saw the announcement.
// The earliest end counts.
func (s *SpotEnd) At(c *Clock, announced time.Time) time.Time {
	now := time.Now()
	at := now.Add(s.Lead)
	if c.Known {
		at = now.Add(min(max(0, c.Local(announced).Sub(now)), s.Lead))
	}
	switch {
	case announced.IsZero():
		s.at = time.Time{}
	case s.at.IsZero(), c.Known && at.Before(s.at):
		s.at = at
	}
	return s.at
}
