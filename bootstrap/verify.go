// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
)

const (
	// watchPoll is how often the service is looked at while the cluster is
	// asked: a server that died is told at once, not when time runs out.
	watchPoll = 500 * time.Millisecond
	// settleTime is how long AMS must stay up after its first document, during
	// which it starts its applications: less where it says that it is up, and was
	// started so long ago.
	settleTime = 2 * time.Second
	upPoll     = 100 * time.Millisecond
	// elsewhereTime is how long a document of another address is watched: the server
	// writes every five seconds.
	elsewhereTime = 6 * time.Second
	// progressEvery is how often a waiting command says what it sees.
	progressEvery = 15 * time.Second
)

// NotSeenError says that AMS was not seen in the cluster, with what was.
type NotSeenError struct {
	// Saw is what could be seen of the server itself.
	Saw string
	Err error
}

func (e *NotSeenError) Error() string {
	text := "Ant Media Server was not seen in the cluster"
	if e.Err != nil {
		text = e.Err.Error()
	}
	if e.Saw != "" {
		text += " (" + e.Saw + ")"
	}
	return text
}

func (e *NotSeenError) Unwrap() error { return e.Err }

// verify waits for AMS's own fresh document under this node's address, written
// by the AMS that runs now, and where that is wanted, until it serves viewers. AMS's clock is this machine's clock, so ours judges.
func (j *joiner) verify(ctx context.Context) (*Evidence, error) {
	if n, ok := j.alreadySeen(); ok {
		ev := &Evidence{ID: n.ID, Address: n.IP, Updated: n.LastUpdate, Seen: time.Now()}
		if !j.untilServed {
			return ev, nil
		}
		return ev, j.serve(ctx)
	}
	watched, died := context.WithCancelCause(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { j.watch(watched, died, true) })
	n, err := j.await(watched)
	died(nil)
	watcher.Wait()
	var unstable *ams.UnstableError
	var elsewhere *StartedElsewhereError
	switch {
	case errors.As(context.Cause(watched), &unstable):
		return nil, unstable
	case errors.As(context.Cause(watched), &elsewhere):
		return nil, &NotSeenError{Err: elsewhere}
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, &NotSeenError{Err: err} // a server that hangs must not hold up who calls it off
	case err != nil:
		return nil, &NotSeenError{Saw: j.look(context.WithoutCancel(ctx)), Err: err}
	}
	ev := &Evidence{ID: n.ID, Address: n.IP, Updated: n.LastUpdate, Seen: time.Now()}
	if j.result.Restarted {
		ev.After = time.Since(j.startedAt).Round(time.Millisecond)
	}
	if !j.untilServed {
		return ev, j.settle(ctx, ev)
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	var served error
	var work sync.WaitGroup
	work.Go(func() { served = j.serve(serving) })
	err = j.settle(ctx, ev)
	if err != nil {
		stop()
	}
	work.Wait()
	if err == nil {
		err = served
	}
	return ev, err
}

// settle watches a server that we started for a moment longer: one that writes
// its document and dies of its next step has not joined. A time that runs out
// now does not take the evidence back.
func (j *joiner) settle(ctx context.Context, ev *Evidence) error {
	if !j.result.Restarted {
		return nil
	}
	watched, settled := context.WithCancelCause(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { j.awaitUp(watched, settled) })
	_, err := ams.WaitStable(watched, j.Service, settleTime)
	settled(nil)
	watcher.Wait()
	if err == nil || errors.Is(err, ams.ErrNotManaged) || isTimeout(err) || errors.Is(context.Cause(watched), errUp) {
		return nil
	}
	return fmt.Errorf("its document %s appeared, but %w", ev.ID, err)
}

// errUp ends the watching of a server that need not be watched any more.
var errUp = errors.New("the server is up")

// awaitUp ends the watching as soon as the server says that it is up and has been for as long as a new one is watched: most
// need longer than that for their start.
func (j *joiner) awaitUp(ctx context.Context, settled context.CancelCauseFunc) {
	if r := j.facts.install.Release; !r.HasLiveness() {
		return
	}
	st, err := j.Service.State(ctx)
	if err != nil || !st.Running() {
		return // the one who watches says it
	}
	began := st.Started
	if began.IsZero() {
		began = j.startedAt
	}
	if !sleep.For(ctx, settleTime-time.Since(began)) {
		return
	}
	for {
		if ams.CheckLiveness(ctx, j.http(), j.facts.install.BaseURL()).State == ams.Live && ctx.Err() == nil {
			settled(errUp)
			return
		}
		if !sleep.For(ctx, upPoll) {
			return
		}
	}
}

// alreadySeen finds the evidence that needs no waiting: where AMS was not
// restarted and is known to run, its fresh document. Where nobody knows whether
// it runs, a fresh document may be the last word of a dead one.
func (j *joiner) alreadySeen() (cluster.AMSNode, bool) {
	st := j.facts.service
	if j.result.Restarted || !st.Running() {
		return cluster.AMSNode{}, false
	}
	now := time.Now()
	i := slices.IndexFunc(j.seen, func(n cluster.AMSNode) bool {
		return j.isOurs(n) && n.Fresh(now) && n.LastUpdate.After(st.Started)
	})
	if i < 0 {
		return cluster.AMSNode{}, false
	}
	return j.seen[i], true
}

func (j *joiner) isOurs(n cluster.AMSNode) bool { return j.isAddress(n.IP) }

func (j *joiner) isAddress(address string) bool {
	return cluster.SameAddress(address, j.facts.address.Addr.String())
}

// patientPoll is how often the server's document is looked for by who is in no hurry.
const patientPoll = 2 * time.Second

// await returns the first document that the AMS that runs now has written.
//
// The one that was stopped may have written until its end. Where the service
// manager knows when the new process began, what is older is not taken. In any
// case the second new document is: the old process was gone before we began to
// look.
func (j *joiner) await(ctx context.Context) (cluster.AMSNode, error) {
	w := cluster.AMSWait{
		Address: j.facts.address.Addr.String(), Before: j.seen, LocalAddresses: j.localAddresses(),
		Elsewhere: elsewhereTime, Started: j.facts.service.Started,
	}
	if !j.mayBeElsewhere() {
		w.Elsewhere = 0
	}
	if j.patient {
		w.Poll = patientPoll
	}
	var began time.Time
	if j.result.Restarted {
		if st, err := j.Service.State(ctx); err == nil {
			began = st.Started
		}
		w.Elsewhere, w.Started, w.NewOnly = elsewhereTime, began, true
		if began.IsZero() {
			own, err := j.ownDocuments(ctx)
			if err != nil {
				return cluster.AMSNode{}, err
			}
			// What is there now must change; what appeared since the restart
			// elsewhere may be us.
			w.Before = append(slices.DeleteFunc(slices.Clone(j.seen), j.isOurs), own...)
		}
	}
	for {
		n, err := j.facts.client.WaitAMSNode(ctx, w)
		if err != nil || began.IsZero() || !n.LastUpdate.Before(began) {
			return n, err
		}
		began, w.Before = time.Time{}, []cluster.AMSNode{n}
	}
}

// ownDocuments reads the documents of this node's address. MongoDB may be away for a
// moment, or slow while many servers start: that ends no join.
func (j *joiner) ownDocuments(ctx context.Context) ([]cluster.AMSNode, error) {
	for {
		own, err := j.facts.client.AMSNodesByAddress(ctx, j.facts.address.Addr.String())
		if err == nil || cluster.KindOf(err).Refusal() || !sleep.For(ctx, watchPoll) {
			return own, err
		}
	}
}

// StartedElsewhereError says that the server was started with another address than
// this node's, and goes by that one.
type StartedElsewhereError struct{ Given, Address string }

func (e *StartedElsewhereError) Error() string {
	return fmt.Sprintf("Ant Media Server was started with %s=%s, and not with %s", ams.HostAddressVariable, e.Given, e.Address)
}

// startedElsewhere is what the process shows of it; nil where it has this node's
// address, none, or a release that finds out its own.
func (j *joiner) startedElsewhere(pid int) *StartedElsewhereError {
	// Of one that cannot be read nothing is known.
	if p, err := ams.ReadProcess(j.Root, pid); err == nil && p.HostAddress != "" && !j.isAddress(p.HostAddress) && j.facts.install.Release.HonoursHostAddress() {
		return &StartedElsewhereError{Given: p.HostAddress, Address: j.facts.address.Addr.String()}
	}
	return nil
}

// runsElsewhere returns the other address under which the server that runs is in the
// cluster: what it was started with, or one of this machine that is seen there.
func (j *joiner) runsElsewhere() (string, bool) {
	st, now := j.facts.service, time.Now()
	if !st.Running() || j.seenFresh() || !j.mayBeElsewhere() {
		return "", false
	}
	if e := j.startedElsewhere(st.MainPID); e != nil {
		return e.Given, true
	}
	locals := j.localAddresses()
	for _, n := range j.seen {
		local := slices.ContainsFunc(locals, func(a string) bool { return cluster.SameAddress(a, n.IP) })
		if local && n.Fresh(now) && !n.LastUpdate.Before(st.Started) {
			return n.IP, true
		}
	}
	return "", false
}

// mayBeElsewhere reports whether the server that runs may have another address than
// this join is about: not where its environment says this one.
func (j *joiner) mayBeElsewhere() bool {
	p, err := ams.ReadProcess(j.Root, j.facts.service.MainPID)
	return err != nil || !j.isAddress(p.HostAddress)
}

// elsewhereHint is the way out for a server that runs under another address; ""
// where that is not the cause.
func (j *joiner) elsewhereHint(err error) string {
	var seen *cluster.AMSNotSeenError
	var started *StartedElsewhereError
	if !errors.As(err, &started) && (!errors.As(err, &seen) || !seen.Elsewhere) {
		return ""
	}
	at := j.facts.address.Addr.String()
	if j.result.Restarted {
		return fmt.Sprintf("whatever starts the server has to pass %s=%s on to it; or join under the other address, with --address", ams.HostAddressVariable, at)
	}
	return fmt.Sprintf("start it through the agent, which sets %s=%s: amsagent join, with --now where viewers are on it; or join under the other address, with --address", ams.HostAddressVariable, at)
}

// localAddresses are all addresses of this machine, where they can be known.
func (j *joiner) localAddresses() []string {
	ifaces, err := j.interfaces()
	if err != nil {
		return nil
	}
	var out []string
	for _, ifc := range ifaces {
		for _, a := range ifc.Addrs {
			if !a.IsLoopback() {
				out = append(out, a.String())
			}
		}
	}
	return out
}

// watch looks after the service while something else is waited for, and ends the
// waiting where it died; where it is not seen in the cluster yet, also where it was
// started with another address, and says every now and then what is waited for.
func (j *joiner) watch(ctx context.Context, died context.CancelCauseFunc, unseen bool) {
	told, began := time.Now(), time.Now()
	if j.result.Restarted {
		began = j.startedAt
	}
	for sleep.For(ctx, watchPoll) {
		st, err := j.Service.State(ctx)
		// A command waits for a server that runs; the daemon also for one that is to be started.
		stopped := st.Activity == ams.ActivityFailed || (st.Activity == ams.ActivityInactive && j.untilServed)
		if err == nil && (st.Crashing() || stopped) {
			died(&ams.UnstableError{Service: j.Service.Name(), After: time.Since(began), State: st})
			return
		}
		if err == nil && st.Running() && unseen {
			if e := j.startedElsewhere(st.MainPID); e != nil {
				died(e)
				return
			}
		}
		if unseen && time.Since(told) >= progressEvery {
			told = time.Now()
			j.sayWaiting(ctx)
		}
	}
}

func (j *joiner) sayWaiting(ctx context.Context) {
	// What was cut short by the end of the waiting says nothing.
	if seen := j.look(ctx); ctx.Err() == nil {
		j.say("waiting for Ant Media Server to appear in the cluster as %s: %s", j.facts.address.Addr, seen)
	}
}

// look says what can be seen of the server itself.
func (j *joiner) look(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	var saw []string
	if st, err := j.Service.State(ctx); err != nil {
		saw = append(saw, "the service does not say its state: "+err.Error())
	} else if st.Known() {
		saw = append(saw, "the service is "+st.String())
	}
	if r := j.facts.install.Release; r.HasLiveness() {
		saw = append(saw, "liveness: "+ams.CheckLiveness(ctx, j.http(), j.facts.install.BaseURL()).String())
	}
	return strings.Join(saw, "; ")
}

// seenFresh reports whether AMS was seen under this address before the join.
func (j *joiner) seenFresh() bool {
	now := time.Now()
	return slices.ContainsFunc(j.seen, func(n cluster.AMSNode) bool { return j.isOurs(n) && n.Fresh(now) })
}
