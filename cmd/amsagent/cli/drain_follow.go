// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
)

// pace is how a drain is followed.
type pace struct {
	// every is the longest silence, gap the shortest time between two lines that differ in their numbers only.
	every, gap time.Duration
	// silence is after what a daemon that says nothing hangs.
	silence time.Duration
	// retry is the time from one try to reach the daemon to the next, patience how long that goes on.
	retry, patience time.Duration
	// adopt is how long the daemon gets to begin what it was asked.
	adopt time.Duration
}

func (g *globals) pace() pace {
	p := pace{
		every: progressLog, gap: 5 * time.Second, silence: 4 * daemon.FollowEvery,
		retry: controlRetry, patience: time.Minute, adopt: controlTime,
	}
	if g.env.IsTerminal(g.env.Stderr) {
		p.gap = time.Second
	}
	return p
}

// follower follows one drain, or one launch, to its end.
type follower struct {
	g *globals
	c *controlClient
	pace
	// id is the drain's; "" until the daemon has begun it.
	id string
	// began is when it was asked for: what ended before is another one's end.
	began time.Time
	// launch says that it is a launch, not a drain.
	launch bool

	last  daemon.DrainView
	said  time.Time
	shown cluster.Sessions // in the last line
	noted map[string]bool
	lost  time.Time // since when the daemon is away; zero where it is not
	told  bool      // that it is
}

var (
	// errForgotten: the daemon knows nothing of what we follow.
	errForgotten = errors.New("the daemon knows nothing of it any more")
	// errNotBegun: it does nothing about what it was asked.
	errNotBegun = errors.New("the daemon does nothing about it")
)

// follow returns the view with which it ended. first is what the daemon answered when it was asked.
func (f *follower) follow(ctx context.Context, first daemon.DrainView) (daemon.DrainView, error) {
	views := make(chan daemon.DrainView)
	broken := make(chan error, 1)
	reading, stop := context.WithCancel(ctx)
	defer stop()
	read := func() {
		broken <- f.c.follow(reading, f.silence, func(v daemon.DrainView) bool {
			select {
			case views <- v:
				return true
			case <-reading.Done():
				return false
			}
		})
	}
	if done, err := f.take(first); done || err != nil {
		return f.last, err
	}
	running := true
	go read()
	defer func() {
		stop()
		if running {
			<-broken
		}
	}()
	tick := time.NewTicker(min(f.gap, f.every, time.Second))
	defer tick.Stop()
	again := time.NewTimer(0)
	again.Stop()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return f.last, context.Cause(ctx)
		case v := <-views:
			f.found()
			if done, err := f.take(v); done || err != nil {
				return f.last, err
			}
		case err := <-broken:
			running = false
			if ctx.Err() != nil {
				return f.last, context.Cause(ctx)
			}
			if err = f.away(err); err != nil {
				return f.last, err
			}
			again.Reset(f.retry)
		case <-again.C:
			running = true
			go read()
		case <-tick.C:
			if err := f.idle(); err != nil {
				return f.last, err
			}
		}
	}
}

// away notes that the daemon is not heard, and gives up where that will not mend.
func (f *follower) away(err error) error {
	var refusal *daemon.Refusal
	switch {
	case as[*oddDaemonError](err), errors.Is(err, fs.ErrPermission):
		return err
	case errors.As(err, &refusal) && refusal.Code != daemon.RefusedNotReady:
		return err
	}
	now := time.Now()
	if f.lost.IsZero() {
		// It may just have ended this answer. Whether it is away the next try shows.
		f.lost = now
		return nil
	}
	if since := now.Sub(f.lost); since >= f.patience {
		return fmt.Errorf("the daemon has been away for %s: %w", rounded(since), err)
	}
	if !f.told {
		f.told, f.said = true, now
		f.g.log().Warn("the daemon is away; it goes on where it was when it is back", "error", err)
	}
	return nil
}

func (f *follower) found() {
	if f.told {
		f.g.progress(fmt.Sprintf("the daemon is back after %s", rounded(time.Since(f.lost))))
	}
	f.lost, f.told = time.Time{}, false
}

// take looks at a view, says what is new in it, and reports whether it is the end.
func (f *follower) take(v daemon.DrainView) (done bool, err error) {
	f.notes(v)
	was := f.last
	f.last = v
	switch {
	case f.id == "" && !f.fresh(v):
		// Nothing waits for a node that serves already.
		return f.launch && v.State == cluster.StateActive && !v.Draining(), f.begun(v)
	case f.id == "":
		f.id = v.ID
	case v.ID != f.id && v.Draining() && !f.launch:
		f.id = v.ID // whatever came between: it is draining, and we are to see it gone
	case v.ID != f.id && !f.launch && v.State == cluster.StateLeft:
		f.last.Outcome = daemon.OutcomeLeft // told by its row alone
		return true, nil
	case v.ID != f.id && !f.launch && v.State == cluster.StateActive:
		f.last.Outcome = daemon.OutcomeUndrained // by whom was forgotten
		return true, nil
	case v.ID != f.id:
		return false, errForgotten
	}
	if !v.Ended.IsZero() {
		return true, nil
	}
	f.say(was, v)
	return false, nil
}

// begun is an error where the daemon had time to begin what it was asked, and did not.
func (f *follower) begun(v daemon.DrainView) error {
	if f.id != "" || time.Since(f.began) <= f.adopt {
		return nil
	}
	if n := len(v.Notes); n > 0 {
		return fmt.Errorf("%w: %s", errNotBegun, v.Notes[n-1])
	}
	return errNotBegun
}

// fresh reports whether a view is about what was asked for, and not about what ended before.
func (f *follower) fresh(v daemon.DrainView) bool {
	return v.ID != "" && v.Launching() == f.launch && (v.Ended.IsZero() || v.Ended.After(f.began.Add(-fullSeconds)) || v.State == cluster.StateLeft)
}

// fullSeconds is what a time may lose on its way, with something for a clock that is put right.
const fullSeconds = 2 * time.Second

// idle says every now and then how things are, where nothing changes.
func (f *follower) idle() error {
	if err := f.begun(f.last); err != nil {
		return err
	}
	now := time.Now()
	if f.said.IsZero() || now.Sub(f.said) < f.every {
		return nil
	}
	f.said = now
	if f.told {
		f.g.progress(fmt.Sprintf("the daemon has been away for %s", rounded(now.Sub(f.lost))))
		return nil
	}
	f.shown = f.last.Sessions
	f.g.progress(progressOf(f.last, f.g.env.Now()))
	return nil
}

// say prints a line where a view is news.
func (f *follower) say(was, v daemon.DrainView) {
	now := time.Now()
	n, known := v.Sessions.Total()
	// A busy node's numbers change all the time; that the last session is gone is told at once.
	numbers := !f.shown.Equal(v.Sessions) && (known && n == 0 || now.Sub(f.said) >= f.gap)
	// Before the server stops, a step has the numbers in its words.
	step := was.Step != v.Step && (v.Irreversible || v.Launching())
	if numbers || step || f.said.IsZero() || was.State != v.State || was.Irreversible != v.Irreversible ||
		was.Deadline.Sub(v.Deadline).Abs() > time.Second || was.DeadlineOwner != v.DeadlineOwner {
		f.said, f.shown = now, v.Sessions
		f.g.progress(progressOf(v, f.g.env.Now()))
	}
}

// notes says each note once. Those that were there before us are history, which `amsagent status` tells.
func (f *follower) notes(v daemon.DrainView) {
	first := f.noted == nil
	if first {
		f.noted = map[string]bool{}
	}
	for _, note := range v.Notes {
		if !f.noted[note] && !first {
			f.g.progress(note)
		}
		f.noted[note] = true
	}
}

// progressOf is a drain in one line: "2 publishers, 31 viewers left, 11m of the hook's budget".
func progressOf(v daemon.DrainView, now time.Time) string {
	if v.ID == "" {
		return "waiting for the daemon to begin"
	}
	if v.Launching() {
		return orElse(v.Step, "waiting for this node to serve")
	}
	if v.Irreversible {
		return orElse(v.Step, "leaving")
	}
	parts := []string{sessionsLeft(v.Sessions)}
	if budget := budgetLeft(v, now); budget != "" {
		parts = append(parts, budget)
	}
	return strings.Join(parts, ", ")
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func sessionsLeft(s cluster.Sessions) string {
	if n, known := s.Total(); known && n == 0 {
		return "no publishers and no viewers left"
	}
	about := ""
	if s.By == cluster.CountedByConnections {
		about = "about "
	}
	switch {
	case s.Publishers == nil && s.Viewers == nil:
		return "publishers and viewers not known"
	case s.Publishers == nil:
		return about + count(*s.Viewers, "viewer") + " left, publishers not known"
	case s.Viewers == nil:
		return count(*s.Publishers, "publisher") + " left, viewers not known"
	}
	return count(*s.Publishers, "publisher") + ", " + about + count(*s.Viewers, "viewer") + " left"
}

func budgetLeft(v daemon.DrainView, now time.Time) string {
	left := v.Deadline.Sub(now)
	switch {
	case v.Deadline.IsZero():
		return ""
	case left <= 0:
		return "the deadline has come"
	case left >= time.Minute:
		left = left.Truncate(time.Minute)
	default:
		left = left.Truncate(time.Second)
	}
	text := shortDuration(left)
	switch {
	case strings.HasPrefix(v.DeadlineOwner, "hook "):
		return text + " of the hook's budget"
	case v.DeadlineOwner != "":
		return text + " to the deadline (" + v.DeadlineOwner + ")"
	}
	return text + " to the deadline"
}
