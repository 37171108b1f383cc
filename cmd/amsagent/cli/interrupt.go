// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

// oneSignal is how long further signals count as the first: coreutils' timeout sends two, and a shell may add its own.
const oneSignal = time.Second

// signals are what the signals of this process mean to a command.
type signals struct {
	mu sync.Mutex
	// reload gets a value for a hangup; nil if that means "stop".
	reload chan struct{}
	// expected says that a signal is how the command ends.
	expected bool
}

// onHangup returns a channel for hangups, which mean "read the settings again" to a daemon.
func (s *signals) onHangup() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reload = make(chan struct{}, 1)
	return s.reload
}

// expect says that a signal is how this command ends.
func (s *signals) expect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected = true
}

// hangup reports whether a hangup is taken.
func (s *signals) hangup() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reload == nil {
		return false
	}
	select {
	case s.reload <- struct{}{}:
	default: // one that waits is enough
	}
	return true
}

// level is that of the log line about a signal: for a daemon it is the usual end.
func (s *signals) level() slog.Level {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.expected:
		return slog.LevelDebug
	case s.reload != nil:
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// interruptible returns a context that the first signal cancels, as its cause. Commands then undo their changes. A second
// signal, after oneSignal, ends the process at once; the next run repairs.
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
					g.out.Log().Log(ctx, g.signals.level(), "stopping; a second signal stops immediately", "signal", sig.String())
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
