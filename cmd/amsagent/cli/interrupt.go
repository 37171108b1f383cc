// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

// oneSignal is how long further signals count as the first: coreutils' timeout sends two, and a shell may add its own.
const oneSignal = time.Second

// interruptible returns a context that the first signal cancels, as its cause. Commands then undo their changes. A second
// signal, after oneSignal, ends the process at once; the next run repairs.
func (g *globals) interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals, release := g.env.Signals()
	quit := make(chan struct{})
	over := make(chan struct{})
	go func() {
		defer close(over)
		var first time.Time
		for {
			select {
			case <-quit:
				return
			case sig := <-signals:
				switch {
				case sig == syscall.SIGHUP && g.hangup():
				case first.IsZero():
					first = time.Now()
					cancel(&interruptedError{sig})
					g.log().Log(ctx, g.stopLevel(), "stopping; a second signal stops immediately", "signal", sig.String())
				case time.Since(first) >= oneSignal:
					g.env.Exit(exitInterrupted)
				}
			}
		}
	}()
	return ctx, func() {
		release()
		close(quit)
		<-over
		cancel(nil)
	}
}

// timeOverError is the cause of a context that --timeout ended.
type timeOverError struct{ after time.Duration }

func (e *timeOverError) Error() string {
	return "not done within " + settings.ShortDuration(e.after) + " (--timeout)"
}
func (*timeOverError) Unwrap() error { return context.DeadlineExceeded }

// timed gives a command its --timeout.
func (g *globals) timed(ctx context.Context) (context.Context, func()) {
	return context.WithTimeoutCause(ctx, g.settings.Timeout, &timeOverError{g.settings.Timeout})
}
