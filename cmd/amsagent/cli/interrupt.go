// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

// oneSignal is how long further signals count as the first: coreutils' timeout sends two, and a shell may add its own.
const oneSignal = time.Second

// signals is the meaning of a signal to a command. The goroutine that receives the signals reads it, too.
type signals struct {
	// reload gets a value for a hangup; without it a hangup means "stop".
	reload atomic.Pointer[chan struct{}]
	// level is that of the log line about a signal.
	level slog.LevelVar
}

// onHangup returns a channel for hangups, which mean "read the settings again" to a daemon. A signal is its usual end.
func (s *signals) onHangup() chan struct{} {
	reload := make(chan struct{}, 1)
	s.reload.Store(&reload)
	s.level.Set(slog.LevelInfo)
	return reload
}

// expect makes a signal the expected end of this command.
func (s *signals) expect() { s.level.Set(slog.LevelDebug) }

// hangup reports whether a hangup means "read the settings again".
func (s *signals) hangup() bool {
	reload := s.reload.Load()
	if reload == nil {
		return false
	}
	select {
	case *reload <- struct{}{}:
	default: // one that waits is enough
	}
	return true
}

// interruptible returns a context that the first signal cancels, as its cause. Commands then undo their changes. A second
// signal, after oneSignal, ends the process at once; the next run repairs the files.
func interruptible(parent context.Context, g *globals) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	received, release := g.env.Signals()
	quit := make(chan struct{})
	over := make(chan struct{})
	go func() {
		defer close(over)
		var first time.Time
		for {
			select {
			case <-quit:
				return
			case sig := <-received:
				switch {
				case sig == syscall.SIGHUP && g.signals.hangup():
				case first.IsZero():
					first = time.Now()
					cancel(&interruptedError{sig})
					g.out.Log().Log(ctx, g.signals.level.Level(), "stopping; a second signal stops immediately", "signal", sig.String())
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

// interruptedError is the cause of a context that a signal ended.
type interruptedError struct{ sig os.Signal }

func (e *interruptedError) Error() string { return "interrupted by signal: " + e.sig.String() }
