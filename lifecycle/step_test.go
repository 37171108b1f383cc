// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

var update = flag.Bool("update", false, "rewrite the table of docs/drain.md")

// history is a random sequence of events of one machine.
type history struct {
	t   *testing.T
	rng *rand.Rand
	s   state
	c   config
	// joined and joinedAt are the content of the state file.
	joined   bool
	joinedAt time.Time
	now      instant
	// sources are the reports of the cloud, by topic.
	sources map[string][]cloud.Notice
	steps   int
	cancels bool // the event is an undrain
	// completes is the hook whose completion the event confirms, completed those of this transition.
	completes string
	completed map[string]bool
}

func newHistory(t *testing.T, seed uint64) *history {
	rng := rand.New(rand.NewPCG(seed, 7))
	h := &history{
		t: t, rng: rng, now: instant(time.Hour), s: state{}.clone(), joined: rng.IntN(5) > 0, sources: map[string][]cloud.Notice{},
		completed: map[string]bool{},
		c: config{
			Role: []string{"edge", "origin"}[rng.IntN(2)], Budget: time.Hour, Final: rng.IntN(4) > 0,
			Hooks: rng.IntN(4) > 0,
			Wall:  wallClock(time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)),
		},
	}
	h.c.Joined, h.c.JoinedAt = func() bool { return h.joined }, func() time.Time { return h.joinedAt }
	return h
}

func (h *history) situation() situation { return situation{&h.s, h.now, &h.c} }

// do applies an event and checks the invariants.
func (h *history) do(e event) error {
	before := h.s
	next, err := step(h.situation(), e)
	h.s = next
	h.steps++
	h.invariants(before, err)
	h.cancels, h.completes = false, ""
	return err
}

func (h *history) invariants(before state, err error) {
	s := h.situation()
	fail := func(what string) {
		h.t.Helper()
		h.t.Errorf("%s\nbefore %+v\nnow %+v", what, before, h.s)
	}
	if s.Phase == StepNone && h.joined && s.goal() > goalNone {
		fail("ready although a notice is due")
	}
	if s.Want == cluster.StateLeft && s.StoppedAt == 0 && !s.NeverJoined {
		fail("the record says left before the server has ended")
	}
	for i := range s.Hooks {
		a := &s.Hooks[i]
		reboot := s.Phase == StepDone && s.Goal == goalReboot
		if s.hookOp(a) == opComplete && !a.Hook.Launching && s.StoppedAt == 0 && !s.NeverJoined && !reboot && s.Phase != stepStopFailed {
			fail("a hook is completed before the server has ended")
		}
	}
	if h.cancels && err == nil && !before.reversible(situation{&before, h.now, &h.c}.goal()) {
		fail("a drain was cancelled after the stop had begun")
	}
	if s.Phase == StepAnnouncing && s.Entered.Add(10*time.Second).reached(h.now) {
		fail("load balancers are waited for without a bound")
	}
	if stopping(s) && s.StoppedAt != 0 {
		fail("the server is stopped again")
	}
	if h.completes != "" {
		h.completed[h.completes] = true
	}
	if h.newTransition(before) {
		clear(h.completed)
	}
	for i := range s.Hooks {
		a := &s.Hooks[i]
		if s.hookOp(a) == opComplete && (h.completed[hookKey(a.Hook)] || s.parking() && len(h.completed) > 0) {
			fail("a hook is completed twice")
		}
	}
}

// newTransition reports whether the cloud may wait again for a hook that was completed.
func (h *history) newTransition(before state) bool {
	now := h.s
	if now.Began != before.Began || now.leaving() != before.leaving() || (now.Start == nil) != (before.Start == nil) {
		return true
	}
	if now.Start != nil && now.Start.ID != before.Start.ID {
		return true
	}
	return slices.ContainsFunc(now.Notices, func(n notice) bool {
		was := before.notice(n.ID)
		return slices.Contains(hookKinds(), n.Kind) && n.inForce() && (was == nil || !was.inForce())
	})
}

func stopping(s situation) bool { return s.Phase == StepStopping || s.Phase == stepStopFailed }

func (h *history) pick(of ...event) event { return of[h.rng.IntN(len(of))] }

// random returns one of the events that can come now.
func (h *history) random() event {
	rng := h.rng
	count := func() *int {
		if rng.IntN(4) == 0 {
			return nil
		}
		return p(rng.IntN(2))
	}
	look := func(topic string, kinds ...Kind) event {
		var current []cloud.Notice
		for _, kind := range kinds {
			n := cloud.Notice{ID: topic + "/" + string(kind), Kind: kind, Past: rng.IntN(9) == 0}
			if rng.IntN(2) == 0 {
				n.At = h.c.Wall.time(h.now.Add(time.Duration(rng.IntN(int(3 * time.Hour)))))
			}
			if rng.IntN(3) == 0 {
				n.Hook = &Hook{Provider: "p", Group: "g", Name: "drain", Fixed: rng.IntN(2) == 0, Timeout: seconds.Duration(time.Hour)}
			}
			current = append(current, n)
		}
		h.sources[topic] = current
		return reported(topic, current...)
	}
	var known Hook
	op := opNone
	if n := len(h.s.Hooks); n > 0 {
		a := &h.s.Hooks[rng.IntN(n)]
		known, op = a.Hook, h.situation().hookOp(a)
	}
	answers := []error{nil, nil, cloud.ErrGone, cloud.ErrNotWaiting, cloud.ErrMoved, errOthers, errors.New("503"), &cloud.DeniedError{Permission: "complete"}}
	finds := []error{nil, nil, nil, cloud.ErrGone, errors.New("503"), &cloud.DeniedError{Permission: "describe"}, &cloud.OthersHooksError{Group: "g"}}
	launching := rng.IntN(2) == 0
	var hooks []Hook
	for i := range rng.IntN(3) {
		hooks = append(hooks, Hook{Provider: "p", Group: "g", Name: fmt.Sprint("drain", i), Timeout: seconds.Duration(time.Hour), Launching: launching})
	}
	written := []error{nil, nil, errors.New("no primary"), &cluster.TransitionError{From: cluster.StateLeft, To: h.s.Want}}
	switch rng.IntN(23) {
	case 0:
		return look("aws-lifecycle", []Kind{Terminate, Park, Reimage, cloud.Unknown}[rng.IntN(4)])
	case 1, 2:
		return look("aws-lifecycle")
	case 3:
		return look("aws-spot", Interrupt)
	case 4:
		return look("aws-scheduled", Reboot)
	case 5:
		return h.pick(look("aws-spot"), look("aws-scheduled"))
	case 6: // the same report again
		for topic, current := range h.sources {
			return reported(topic, current...)
		}
	case 7:
		q := DrainRequest{Deadline: seconds.Duration(time.Duration(rng.IntN(int(time.Hour)))), Now: rng.IntN(9) == 0}
		return func(s situation) error { return s.drainRequested(q) }
	case 8:
		recorded := []cluster.State{"", cluster.StateDraining}[rng.IntN(2)]
		h.cancels = true
		return func(s situation) error { return s.drainCancelled("root", recorded) }
	case 9, 10, 11:
		return sessionsCounted(cluster.Sessions{Publishers: count(), Viewers: count()}, nil)
	case 12:
		return sessionsCounted(cluster.Sessions{}, errors.New("403"))
	case 13, 14:
		want, err := h.s.Want, written[rng.IntN(len(written))]
		return change(func(s situation) { s.recordWritten(want, err) })
	case 15:
		return h.pick(stopTried(nil, false), stopTried(ErrNotManaged, false), stopTried(errors.New("hangs"), true))
	case 16:
		return change(hooksFound{launching: launching, hooks: hooks, err: finds[rng.IntN(len(finds))]}.apply)
	case 17, 18:
		err := answers[rng.IntN(len(answers))]
		if op == opComplete && err == nil {
			h.completes = hookKey(known)
		}
		return change(hookAnswered{hook: known, op: op, err: err, since: h.now - instant(rng.IntN(int(3*time.Hour)))}.apply)
	case 19:
		return h.pick(joinSeen(true), joinSeen(false), change(situation.settingsRead), change(func(s situation) { s.Have = "" }), change(func(s situation) { s.Forgotten = false }))
	case 20:
		return h.pick(startProved(nil), startProved(errors.New("no document")), noticed(Notice{ID: "launch", Kind: Launch}))
	case 22:
		return h.pick(balancersSeen(), balancersSeen("lb-1"))
	case 21:
		if rng.IntN(20) == 0 {
			return noticed(Notice{ID: "shutdown", Kind: Shutdown, Source: "systemd"})
		}
		return noticed(Notice{ID: "aws-lifecycle/resume", Kind: Resume, Source: "event"})
	}
	return passed
}

func stopTried(err error, final bool) event {
	return change(func(s situation) { s.stopTried(err, final) })
}

func sessionsCounted(sessions cluster.Sessions, err error) event {
	return change(func(s situation) { s.sessionsCounted(sessions, err) })
}

func joinSeen(joining bool) event {
	return func(s situation) error { return s.joinSeen(joining) }
}

func startProved(err error) event {
	return change(func(s situation) { s.startProved(err) })
}

func noticed(n Notice) event { return func(s situation) error { return s.noticed(n) } }

func balancersSeen(using ...string) event {
	return change(func(s situation) { s.balancers, s.balancersAsked = using, true })
}

// drift changes the inputs of the steps.
func (h *history) drift() {
	switch h.rng.IntN(12) {
	case 0:
		h.joined = !h.joined
	case 1:
		h.joinedAt = h.c.Wall.time(h.now)
	case 2:
		h.joinedAt = time.Time{}
	case 3:
		h.c.Final = true
	}
	switch s := h.situation(); h.rng.IntN(4) {
	case 0:
		h.now = h.now.Add(pollEvery)
	case 1:
		h.now = max(h.now, s.deadline())
	default:
		h.now = h.now.Add(time.Duration(h.rng.IntN(int(5 * time.Minute))))
	}
}

// A million random steps keep the invariants and take every transition. After each history the drain ends by itself: sessions
// stay uncountable, MongoDB and the cloud stay away, and only the server stops when asked to.
func TestRandomSteps(t *testing.T) {
	fired := make([]atomic.Int64, len(transitions))
	table := slices.Clone(transitions)
	t.Cleanup(func() { transitions = table })
	transitions = slices.Clone(table)
	for i, tr := range table {
		transitions[i].do = func(s situation) {
			fired[i].Add(1)
			if tr.do != nil {
				tr.do(s)
			}
		}
	}
	var steps atomic.Int64
	var work sync.WaitGroup
	const workers = 4
	histories := must.Sample(uint64(5_000), 20_000)
	for first := range uint64(workers) {
		work.Go(func() {
			for seed := first; seed < histories && !t.Failed(); seed += workers {
				h := newHistory(t, seed)
				for range 50 {
					_ = h.do(h.random())
					h.drift()
				}
				h.ends()
				steps.Add(int64(h.steps))
			}
		})
	}
	work.Wait()
	t.Logf("%d steps", steps.Load())
	for i, tr := range transitions {
		t.Logf("%7d %s → %s: %s", fired[i].Load(), tr.from, tr.to, tr.why)
		if fired[i].Load() == 0 {
			t.Errorf("never taken: %q → %q, %s", tr.from, tr.to, tr.why)
		}
	}
}

// ends continues without outside help until the drain is over, or waits only for the cloud.
func (h *history) ends() {
	h.c.Final = true
	began := h.now
	for wait := pollEvery; h.now.Sub(began) <= 50*time.Hour; wait += wait / 8 {
		s := h.situation()
		calls := slices.ContainsFunc(s.Hooks, func(a hook) bool { return s.hookOp(&a) != opNone }) || s.wantsHooks(false) || s.wantsHooks(true)
		switch {
		case !s.leaving() && (len(s.due()) == 0 || !h.joined), s.Phase == StepDone, s.isOver():
			return
		case s.Phase == StepCompleting && calls:
			return // the agent asks the cloud for ever
		}
		h.now = h.now.Add(wait)
		if stopping(s) {
			_ = h.do(stopTried(nil, false))
		} else {
			_ = h.do(passed)
		}
	}
	h.t.Errorf("the drain does not end in %s: %+v", h.now.Sub(began), h.s)
}

// The table in docs/drain.md matches the code.
func TestDrainTable(t *testing.T) {
	const file, begin, end = "../docs/drain.md", "<!-- transitions -->\n", "<!-- end -->"
	name := func(p Step) string {
		if p == StepNone {
			return "serving"
		}
		return string(p)
	}
	var table strings.Builder
	table.WriteString("| from | to | when |\n|---|---|---|\n")
	for _, tr := range transitions {
		fmt.Fprintf(&table, "| %s | %s | %s |\n", name(tr.from), name(tr.to), tr.why)
	}
	data, err := os.ReadFile(file)
	must.OK(t, err)
	head, rest, ok := strings.Cut(string(data), begin)
	was, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no table", file)
	}
	if *update {
		must.OK(t, os.WriteFile(file, []byte(head+begin+table.String()+end+tail), 0o600))
	} else if was != table.String() {
		t.Errorf("the table of %s differs; -update rewrites it:\n%s", file, table.String())
	}
}

func reported(topic string, current ...cloud.Notice) event {
	return func(s situation) error { return s.reported(topic, current) }
}
