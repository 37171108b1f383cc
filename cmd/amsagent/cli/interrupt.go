// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"syscall"
	"time"
)

// How far a command is. A file system that hangs, as that of a network does whose server is away, ends with no context; a
// process that is ended in the middle of a change leaves it to the next run.
const (
	looking  int32 = iota // nothing was changed
	changing              // something may be half done
	ended                 // the process ends: nothing is begun any more
)

const (
	// readingLimit is how long after its end a command may go on that has changed nothing.
	readingLimit = 5 * time.Second
	// undoLimit is the same for one that has begun a change, and undoes it. A rollback stops the server and starts it
	// twice at most, in [bootstrap] three minutes each.
	undoLimit = 15 * time.Minute
	// oneSignal is how long further signals say the same as the first: the timeout of coreutils sends its own to the child and
	// to its process group, which is two, and a shell may add its own.
	oneSignal = time.Second
)

// interruptible returns a context that the first signal cancels; its cause says which. Commands then undo what is half
// done. A second one, not before oneSignal has passed, does not want to wait for that: the process ends at once, and the next
// run repairs.
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
	calm := g.endAfter(ctx)
	return ctx, func() {
		release()
		close(quit)
		<-over
		calm()
		cancel(nil)
	}
}

// timeOverError is the cause of a context that --timeout ended.
type timeOverError struct{ after time.Duration }

func (e *timeOverError) Error() string {
	return "not done within " + shortDuration(e.after) + " (--timeout)"
}
func (*timeOverError) Unwrap() error { return context.DeadlineExceeded }

// timed gives a command its --timeout.
func (g *globals) timed(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithTimeoutCause(ctx, g.settings.Timeout, &timeOverError{g.settings.Timeout})
	calm := g.endAfter(ctx)
	return ctx, func() {
		calm()
		cancel()
	}
}

// endAfter ends the process where ctx has ended and the command does not, until the returned function is called.
func (g *globals) endAfter(ctx context.Context) (calm func()) {
	quit := make(chan struct{})
	wait := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-quit:
			return false
		case <-t.C:
			return true
		}
	}
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		state := stateUntouched
		switch {
		case !wait(readingLimit):
			return
		case g.reached.CompareAndSwap(looking, ended):
		case g.isDaemon() || !wait(undoLimit-readingLimit): // a daemon drains for as long as that takes
			return
		default:
			state = "what was begun is half done: the next run of amsagent finishes or undoes it"
		}
		g.env.Exit(g.report(ctx, &userError{
			Msg: "a file system does not answer", Cause: context.Cause(ctx), State: state,
			Hints: []string{"look which: findmnt, and dmesg"}, Exit: exitUnknown,
		}))
	})
	return func() {
		close(quit)
		if !stop() {
			<-over
		}
	}
}

// begin comes before a command's first change: none is made after the command's time, or while the process ends.
func (g *globals) begin(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if !g.reached.CompareAndSwap(looking, changing) && g.reached.Load() == ended {
		return cmp.Or(context.Cause(ctx), context.Canceled)
	}
	return nil
}
