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

// follow looks every so often until look is done or fails, or until ctx ends: the error is then the cause of that.
func follow(ctx context.Context, every time.Duration, look func(context.Context) (done bool, err error)) error {
	for {
		if done, err := look(ctx); done || err != nil {
			return err
		}
		if !sleep.For(ctx, every) {
			return context.Cause(ctx)
		}
	}
}

// upTo gives a command that follows a drain its --timeout, if it has one.
func upTo(ctx context.Context, timeout time.Duration) (context.Context, func()) {
	if timeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, timeout, &timeOverError{timeout})
}

// stopped is the error after a signal or --timeout ended the following alone.
func stopped(err error, progress string) *userError {
	if over, ok := errors.AsType[*timeOverError](err); ok {
		return &userError{Msg: "it is not over after " + output.Rounded(over.after), Cause: errors.New(progress), ID: idTimeout, Exit: exitUnknown}
	}
	return &userError{Msg: stoppedFollowing, Cause: err}
}

const (
	stoppedFollowing = "stopped following; nothing else was stopped"
	drainContinues   = "the drain continues"
)

// reporter prints progress: a busy node's numbers change all the time, and the end of the last session is reported at once.
type reporter struct {
	g *globals
	// every is the longest silence, gap the shortest time between two lines that differ in their numbers only.
	every, gap time.Duration
	said       time.Time
	shown      cluster.Sessions // in the last line
}

func newReporter(g *globals) reporter {
	r := reporter{g: g, every: 30 * time.Second, gap: 5 * time.Second}
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

// source is what a command follows, and may be away for a while.
type source struct {
	name     string
	lost     string        // what is missing, as "the daemon has not answered"
	limit    time.Duration // of its silence
	then     string        // what happens when it is back
	since    time.Time
	reported bool
}

// reportAway reports a source that does not answer, and returns an error after its limit. The first failure may be a restart.
func (r *reporter) reportAway(ctx context.Context, s *source, err error) error {
	now := time.Now()
	s.since = cmp.Or(s.since, now)
	silence := now.Sub(s.since)
	switch {
	case ctx.Err() != nil, silence == 0:
	case silence >= s.limit:
		return &userError{Msg: "lost sight of it", Cause: fmt.Errorf("%s for %s: %w", s.lost, output.Rounded(silence), err), State: s.then, Exit: exitUnknown}
	case !s.reported:
		s.reported, r.said = true, now
		r.g.out.Log().Warn("no answer", "source", s.name, "silence", output.Rounded(silence), "then", s.then, "error", err)
	case now.Sub(r.said) >= r.every:
		r.said = now
		r.g.out.Progress(fmt.Sprintf("%s for %s", s.lost, output.Rounded(silence)))
	}
	return nil //nolint:nilerr // who ends ctx says so
}

func (r *reporter) reportBack(s *source) {
	if s.reported {
		r.g.out.Progress(fmt.Sprintf("%s is back after %s", s.name, output.Rounded(time.Since(s.since))))
	}
	s.since, s.reported = time.Time{}, false
}

// follower follows one drain, or one start, to its end.
type follower struct {
	reporter
	c      *daemon.Client
	launch bool          // a start, not a drain
	ask    time.Duration // between two questions to the daemon
	cloud  time.Duration // bounds the wait for a cloud that does not answer, if nothing else is left to do
	// began is the time of the request: an earlier note is no news.
	began time.Time

	daemon    source
	last      lifecycle.View
	noted     map[lifecycle.Note]bool
	trouble   map[string]string
	onlyCloud time.Time // since when only the cloud is left, and does not answer; or zero
}

func newFollower(g *globals) *follower {
	return &follower{
		reporter: newReporter(g), c: g.daemon(), ask: 500 * time.Millisecond, cloud: 30 * time.Second, began: time.Now(),
		daemon: source{name: "the daemon", lost: "the daemon has not answered", limit: time.Minute, then: "the daemon continues when it is back"}, noted: map[lifecycle.Note]bool{}, trouble: map[string]string{},
	}
}

var errNotStopped = errors.New("Ant Media Server does not end") //nolint:staticcheck // a name

// follow returns when the drain, or the start, is over. first is the daemon's answer to the request.
func (f *follower) follow(ctx context.Context, first lifecycle.View) error {
	if done, err := f.take(first); done || err != nil {
		return err
	}
	err := follow(ctx, f.ask, func(ctx context.Context) (bool, error) {
		v, err := f.c.Follow(ctx)
		switch {
		case is(daemon.ErrVersion, fs.ErrPermission)(err), as[*daemon.Refusal](err):
			state, hint := f.continues()
			return false, &userError{Msg: "lost sight of it", Cause: err, State: state, Hints: []string{hint}, Exit: exitUnknown}
		case err != nil && f.waitedForCloud():
			return true, nil
		case err != nil:
			return false, f.reportAway(ctx, &f.daemon, err)
		}
		f.reportBack(&f.daemon)
		return f.take(v)
	})
	if err == nil || as[*userError](err) {
		return err
	}
	u := stopped(err, progressOf(f.last, f.g.env.Now()))
	state, hint := f.continues()
	u.State, u.Hints = state, []string{hint}
	return u
}

// continues is what happens if the command does not follow any longer.
func (f *follower) continues() (state, hint string) {
	switch {
	case f.launch:
		return "the daemon continues", "`amsagent status` shows the progress"
	case f.last.State == lifecycle.StateDraining && (f.last.Step == lifecycle.StepAnnouncing || f.last.Step == lifecycle.StepDraining):
		return drainContinues, "`amsagent drain` follows it again, `amsagent undrain` cancels it"
	}
	return drainContinues, "`amsagent drain` follows it again; it can no longer be cancelled"
}

func (f *follower) waitedForCloud() bool {
	return !f.onlyCloud.IsZero() && time.Since(f.onlyCloud) >= f.cloud
}

// take reports the news of a view, and whether it is the end.
func (f *follower) take(v lifecycle.View) (done bool, err error) {
	was := f.last
	f.news(v)
	f.last = v
	if f.launch {
		done, err = startEnded(v)
	} else {
		done, err = drainEnded(v, was.State == "")
	}
	if done || err != nil {
		return done, err
	}
	news := was.State != v.State || was.Step != v.Step || was.Start != v.Start ||
		was.Deadline.Sub(v.Deadline).Abs() > time.Second || was.DeadlineBy != v.DeadlineBy
	f.show(sessionsIn(v.Sessions), news, progressOf(v, f.g.env.Now()))
	if !v.OnlyCloud() {
		f.onlyCloud = time.Time{}
		return false, nil
	}
	f.onlyCloud = cmp.Or(f.onlyCloud, time.Now())
	return f.waitedForCloud(), nil
}

// drainEnded reports whether a drain is over. first means that v is the daemon's answer to the request.
func drainEnded(v lifecycle.View, first bool) (bool, error) {
	switch v.State {
	case lifecycle.StateDraining, lifecycle.StateLeft, lifecycle.StateParked:
		if !v.StopFailed {
			return v.Finished(), nil
		}
		u := endedBadly("this node cannot leave", errNotStopped, v)
		u.State = "Ant Media Server still runs; the daemon stops it again until it ends, and completes the cloud's hook meanwhile"
		return false, u
	case lifecycle.StateActive, lifecycle.StateResuming:
		if first {
			return false, nothingToFollow(v)
		}
		return false, &userError{Msg: "the drain was cancelled", Cause: &undrainedError{by: v.CancelledBy}, State: nodeState(v)}
	}
	return false, nothingToFollow(v)
}

// startEnded reports whether a start is over.
func startEnded(v lifecycle.View) (bool, error) {
	switch {
	case v.Start == "failed":
		return false, endedBadly("this node does not serve", errors.New("Ant Media Server is not seen in the cluster"), v) //nolint:staticcheck // a name
	case v.Start == "starting", v.State == lifecycle.StateResuming:
		return false, nil
	case v.State == lifecycle.StateActive:
		return true, nil
	}
	return false, nothingToFollow(v)
}

func endedBadly(msg string, cause error, v lifecycle.View) *userError {
	return &userError{Msg: msg, Cause: cause, State: nodeState(v), Hints: []string{"`amsagent status` and journalctl -u amsagent show more"}}
}

func nothingToFollow(v lifecycle.View) error {
	cause := "the daemon does not act on it"
	if v.State == "" {
		cause = "the daemon has no record of it any more"
	}
	return endedBadly("there is nothing to follow", errors.New(cause), v)
}

func sessionsIn(s *cluster.Sessions) cluster.Sessions { return *cmp.Or(s, &cluster.Sessions{}) }

// news reports each event and each new failure once.
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

// clockSlack is what a time may lose on its way, with something for a clock that is being set.
const clockSlack = 2 * time.Second

// progressOf is a view in one line, with the time left as of now.
func progressOf(v lifecycle.View, now time.Time) string {
	if v.Start == "starting" {
		return "waiting for this node to serve"
	}
	return cmp.Or(v.Line(now), string(v.State))
}
