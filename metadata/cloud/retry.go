// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Call describes one item to the retry loop.
type Call struct {
	Provider string
	// Item is what is being read, in words, for errors and log lines.
	Item string
	// Attempts bounds the tries; 0 tries until the context ends.
	Attempts int
	// NotFoundAttempts is how often a 404 is asked again before it is believed; 0 believes the first.
	NotFoundAttempts int
	// Judge may change the verdict on one failed try: its hint, its kind. It may be nil.
	Judge func(*Error, *Attempt)
}

// badAnswerAttempts: an answer that is no answer (a page of a half-started service, say) is asked again this often. More
// would only delay the message.
const badAnswerAttempts = 3

// Do calls fn until it succeeds, the error is final, or the context ends. Each try has its own deadline; waits double and
// are jittered; each retry is a line in the log.
func Do[T any](ctx context.Context, o Options, c Call, fn func(context.Context) (T, error)) (T, error) {
	var found, zero T
	err := retry(ctx, o, c, func(ctx context.Context) (err error) {
		found, err = fn(ctx)
		return err
	})
	if err != nil {
		return zero, err
	}
	return found, nil
}

func retry(ctx context.Context, o Options, c Call, fn func(context.Context) error) error {
	o = o.WithDefaults()
	wait := o.RetryWait
	refused, unusable := 0, 0
	var last *Error // of kind ErrNotReady
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			if last != nil {
				last.Context = err
				return last
			}
			return &Error{Provider: c.Provider, Item: c.Item, Kind: ErrNotReady, Attempts: n - 1, Cause: err, Context: err}
		}
		e := try(ctx, o, c, fn)
		if e == nil {
			o.Log.Debug("metadata read", "provider", c.Provider, "item", c.Item, "attempt", n)
			return nil
		}
		e.Attempts = n
		if err := ctx.Err(); err != nil {
			if last != nil && e.Status == 0 {
				last.Attempts, e = n, last // this try was cut short: the one before says what is wrong
			}
			e.Context = err
			return e
		}
		if errors.Is(e.Kind, ErrNotReady) {
			last = e
		}

		pause := wait/2 + rand.N(wait/2+1)
		switch {
		case e.Status == http.StatusUnauthorized:
			// The session token ended or was lost; it has been dropped below us. A second refusal in a row is meant.
			if refused++; refused > 1 {
				e.Kind = ErrForbidden
				return e
			}
			pause = 0
		case errors.Is(e.Kind, ErrNotReady):
			refused = 0
		case errors.Is(e.Kind, ErrBadAnswer) && e.Status == http.StatusOK:
			if unusable++; unusable >= badAnswerAttempts {
				return e
			}
		case errors.Is(e.Kind, ErrNotFound) && n <= c.NotFoundAttempts:
		default:
			return e
		}
		if c.Attempts > 0 && n >= c.Attempts {
			return e
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
			// Sleeping into the deadline would change nothing.
			e.Context = context.DeadlineExceeded
			return e
		}
		o.Log.Warn("metadata service gave no usable answer, trying again",
			"provider", c.Provider, "item", c.Item, "attempt", n, "wait", pause.Round(time.Millisecond), "err", e, "hint", e.Hint)
		if pause == 0 {
			continue
		}
		wait = min(2*wait, MaxRetryWait)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			e.Context = ctx.Err()
			return e
		case <-timer.C:
		}
	}
}

// try makes one try and gives its verdict.
func try(ctx context.Context, o Options, c Call, fn func(context.Context) error) *Error {
	ctx, cancel := context.WithTimeout(ctx, o.AttemptTimeout)
	defer cancel()
	ctx, a := withAttempt(ctx)
	err := fn(ctx)
	if err == nil {
		return nil
	}
	e := verdict(err, a)
	e.Provider, e.Item = c.Provider, c.Item
	if c.Judge != nil {
		c.Judge(e, a)
	}
	return e
}

// BadAnswer marks an answer that was received and cannot be what was asked for.
func BadAnswer(cause error) error { return &Error{Kind: ErrBadAnswer, Cause: cause} }

func verdict(err error, a *Attempt) *Error {
	status := a.Status()
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Kind: e.Kind, Status: status, Hint: e.Hint, Cause: e.Cause}
	}
	wire := a.failure()
	if wire != nil {
		err = wire
	}
	e := &Error{Status: status, Cause: err}
	switch {
	case errors.Is(err, errTooLarge):
		e.Kind, e.Cause = ErrBadAnswer, errTooLarge
	case status == 0:
		e.Kind, e.Cause = ErrNotReady, shortCause(err, a)
	case status < 300:
		e.Kind = ErrBadAnswer
		if wire != nil {
			// The head came and the rest did not: the line's fault, not the answer's.
			e.Kind, e.Cause = ErrNotReady, errors.New("the answer was cut short")
		}
	case status < 400:
		e.Kind = ErrBadAnswer
	case status == http.StatusNotFound:
		e.Kind = ErrNotFound
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		e.Kind = ErrForbidden
	case status == http.StatusGone, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500:
		e.Kind = ErrNotReady
	default:
		e.Kind = ErrBadAnswer
	}
	return e
}

// shortCause replaces the nested texts of the libraries by what an operator needs.
func shortCause(err error, a *Attempt) error {
	switch {
	case isTimeout(err) && a.Connected():
		return noAnswerError{}
	case isTimeout(err):
		return noConnectionError{}
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}

// WireCause takes the layers of net/http off what ended a call of a cloud's API.
func WireCause(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}

// noAnswerError: somebody took the connection and then said nothing.
type noAnswerError struct{}

func (noAnswerError) Error() string { return "connected, and no answer in time" }

func (noAnswerError) Is(target error) bool { return target == context.DeadlineExceeded }

// noConnectionError: nobody took the connection.
type noConnectionError struct{}

func (noConnectionError) Error() string { return "no connection in time" }

func (noConnectionError) Is(target error) bool { return target == context.DeadlineExceeded }

// Unanswered says whether a try ended with a connection that stayed silent.
func Unanswered(e *Error) bool {
	_, ok := errors.AsType[noAnswerError](e.Cause)
	return ok
}

// Unconnected says whether a try ended without a connection.
func Unconnected(e *Error, a *Attempt) bool { return e.Status == 0 && !a.Connected() }

func isTimeout(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}
