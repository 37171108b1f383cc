// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
)

// progressLog is the longest silence of a command that waits: a log shows that nothing hangs.
const progressLog = 30 * time.Second

// pace is how a drain is followed.
type pace struct {
	// every is the longest silence, gap the shortest time between two lines that differ in their numbers only.
	every, gap time.Duration
	// ask is the time from one question to the daemon to the next, patience how long one that does not answer is asked.
	ask, patience time.Duration
	// cloud is how long a cloud that cannot be told is waited for, when nothing else is left to do.
	cloud time.Duration
}

// reporter prints progress: a busy node's numbers change all the time, and that the last session is gone is told at once.
type reporter struct {
	g *globals
	pace
	said  time.Time
	shown cluster.Sessions // in the last line
}

func newReporter(g *globals) reporter {
	r := reporter{g: g, pace: pace{
		every: progressLog, gap: 5 * time.Second, ask: 500 * time.Millisecond, patience: time.Minute, cloud: 30 * time.Second,
	}}
	if g.env.IsTerminal(g.env.Stderr) {
		r.gap = time.Second
	}
	return r
}

func (r *reporter) show(s cluster.Sessions, news bool, line string) {
	n, known := s.Total()
	since := time.Since(r.said)
	numbers := r.shown.Left() != s.Left() && (known && n == 0 || since >= r.gap)
	if news || numbers || since >= r.every {
		r.said, r.shown = time.Now(), s
		r.g.out.Progress(line)
	}
}

// follower follows one drain, or one start, to its end.
type follower struct {
	reporter
	c *daemon.Client
	// launch says that it is a start, not a drain.
	launch bool
	// began is when it was asked for: notes from before are no news.
	began time.Time

	last    lifecycle.View
	noted   map[lifecycle.Note]bool
	trouble map[string]string
	lost    time.Time // since when the daemon is away; zero where it is not
	told    bool      // that it is
	untold  time.Time // since when only the cloud is left, and cannot be told; zero where that is not so
}

// How a drain or a start ends otherwise than it should.
var (
	// errForgotten: the daemon knows nothing of what we follow.
	errForgotten = errors.New("the daemon knows nothing of it any more")
	// errNotTaken: it does nothing about what it was asked.
	errNotTaken = errors.New("the daemon does nothing about it")
	// errNotStopped: the server did not end in its time; the daemon stops it again and again.
	errNotStopped = errors.New("Ant Media Server does not end") //nolint:staticcheck // a name
	// errNotServing: the start has failed.
	errNotServing = errors.New("Ant Media Server is not seen in the cluster") //nolint:staticcheck // a name
)

// follow returns the view with which it ended. first is what the daemon answered when it was asked.
func (f *follower) follow(ctx context.Context, first lifecycle.View) (lifecycle.View, error) {
	f.noted, f.trouble = map[lifecycle.Note]bool{}, map[string]string{}
	done, err := f.take(first)
	for !done && err == nil {
		if !f.untold.IsZero() && time.Since(f.untold) >= f.cloud {
			break
		}
		if !sleep.For(ctx, f.ask) {
			return f.last, context.Cause(ctx)
		}
		switch v, failed := f.c.Follow(ctx); {
		case failed == nil:
			f.found()
			done, err = f.take(v)
		case ctx.Err() != nil:
			return f.last, context.Cause(ctx)
		default:
			err = f.away(failed)
		}
	}
	return f.last, err
}

// away notes that the daemon is not heard, and gives up where that will not mend.
func (f *follower) away(err error) error {
	if errors.Is(err, daemon.ErrVersion) || as[*daemon.Refusal](err) || errors.Is(err, fs.ErrPermission) {
		return err
	}
	now := time.Now()
	if f.lost.IsZero() {
		// It may be restarted. Whether it is away the next try shows.
		f.lost = now
		return nil
	}
	if since := now.Sub(f.lost); since >= f.patience {
		return fmt.Errorf("the daemon has been away for %s: %w", output.Rounded(since), err)
	}
	switch {
	case !f.told:
		f.told, f.said = true, now
		f.g.out.Log().Warn("the daemon is away; it goes on where it was when it is back", "error", err)
	case now.Sub(f.said) >= f.every:
		f.said = now
		f.g.out.Progress(fmt.Sprintf("the daemon has been away for %s", output.Rounded(now.Sub(f.lost))))
	}
	return nil
}

func (f *follower) found() {
	if f.told {
		f.g.out.Progress(fmt.Sprintf("the daemon is back after %s", output.Rounded(time.Since(f.lost))))
	}
	f.lost, f.told = time.Time{}, false
}

// take looks at a view, says what is new in it, and reports whether it is the end.
func (f *follower) take(v lifecycle.View) (done bool, err error) {
	first := f.last.State == ""
	f.news(v)
	was := f.last
	f.last = v
	if f.launch {
		done, err = startEnded(v)
	} else {
		done, err = drainEnded(v, first)
	}
	if !done && err == nil {
		news := was.State != v.State || was.Step != v.Step || was.Start != v.Start ||
			was.Deadline.Sub(v.Deadline).Abs() > time.Second || was.DeadlineBy != v.DeadlineBy
		f.show(sessionsIn(v), news, progressOf(v, f.g.env.Now()))
	}
	switch {
	case !v.OnlyCloud():
		f.untold = time.Time{}
	case f.untold.IsZero():
		f.untold = time.Now()
	}
	return done, err
}

// drainEnded judges a drain. first tells that this is what the daemon answered when it was asked for one.
func drainEnded(v lifecycle.View, first bool) (bool, error) {
	switch v.State {
	case lifecycle.StateDraining, lifecycle.StateLeft, lifecycle.StateParked:
		if v.StopFailed {
			return false, errNotStopped
		}
		return v.Finished(), nil
	case lifecycle.StateActive, lifecycle.StateResuming:
		if first {
			return false, errNotTaken
		}
		return false, &undrainedError{by: v.CancelledBy}
	}
	return false, errForgotten
}

// startEnded judges a start.
func startEnded(v lifecycle.View) (bool, error) {
	switch {
	case v.Start == "failed":
		return false, errNotServing
	case v.Start == "starting", v.State == lifecycle.StateResuming:
		return false, nil
	case v.State == lifecycle.StateActive:
		return true, nil
	case v.State == "":
		return false, errForgotten
	}
	return false, errNotTaken
}

func sessionsIn(v lifecycle.View) cluster.Sessions {
	if v.Sessions == nil {
		return cluster.Sessions{}
	}
	return *v.Sessions
}

// news says what happened, and what does not go well, each once.
func (f *follower) news(v lifecycle.View) {
	for _, n := range v.Notes {
		n.At = n.At.UTC()
		if !f.noted[n] && n.At.After(f.began.Add(-clockSlack)) {
			f.g.out.Progress(n.Text)
		}
		f.noted[n] = true
	}
	for _, about := range slices.Sorted(maps.Keys(v.Trouble)) {
		if text := v.Trouble[about]; f.trouble[about] != text {
			f.trouble[about] = text
			f.g.out.Log().Warn(output.OneLine(text), "about", about) //nolint:sloglint // the daemon's own words
		}
	}
}

// clockSlack is what a time may lose on its way, with something for a clock that is put right.
const clockSlack = 2 * time.Second

// progressOf is a view in one line, with the time left as of now.
func progressOf(v lifecycle.View, now time.Time) string {
	if v.Start == "starting" {
		return "waiting for this node to serve"
	}
	return cmp.Or(v.Line(now), string(v.State))
}
