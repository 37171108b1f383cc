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
	// watchPoll is short, so that a dead server is reported at once.
	watchPoll = 500 * time.Millisecond
	// settleTime is how long the server must run after its first document. It is shorter if the server is up and
	// old enough.
	settleTime = 2 * time.Second
	upPoll     = 100 * time.Millisecond
	// elsewhereTime is for a document of another address: the server writes every five seconds.
	elsewhereTime = 6 * time.Second
	progressEvery = 15 * time.Second
)

// NotSeenError reports that the cluster does not have the server.
type NotSeenError struct {
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

// verify waits for a fresh document of the running server and, if untilServed, for the applications. The server
// uses this machine's clock.
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
	var elsewhere *startedElsewhereError
	switch {
	case errors.As(context.Cause(watched), &unstable):
		return nil, unstable
	case errors.As(context.Cause(watched), &elsewhere):
		return nil, &NotSeenError{Err: elsewhere}
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, &NotSeenError{Err: err} // a cancellation must not wait
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

// settle watches a restarted server: one that dies after its first document has not joined. The end of ctx keeps
// the evidence.
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

var errUp = errors.New("the server is up")

// awaitUp ends the watch when the server is up and has run for settleTime: most need longer for their start.
func (j *joiner) awaitUp(ctx context.Context, settled context.CancelCauseFunc) {
	if r := j.facts.install.Release; !r.HasLiveness() {
		return
	}
	st, err := j.Service.State(ctx)
	if err != nil || !st.Running() {
		return // the watch reports it
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

// alreadySeen needs a running server without a restart: otherwise a fresh document may be a dead server's last.
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

const patientPoll = 2 * time.Second

// await waits for this node's document. If the server's start is not known, existing documents must change.
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
	if j.result.Restarted {
		w.Elsewhere, w.Started, w.NewOnly = elsewhereTime, time.Time{}, true
		if st, err := j.Service.State(ctx); err == nil {
			w.Started = st.Started
		}
		w.MustChange = w.Started.IsZero()
	}
	return j.facts.client.WaitAMSNode(ctx, w)
}

// startedElsewhereError reports that the server uses another address from its start.
type startedElsewhereError struct{ Given, Address string }

func (e *startedElsewhereError) Error() string {
	return fmt.Sprintf("Ant Media Server was started with %s=%s, and not with %s", ams.HostAddressVariable, e.Given, e.Address)
}

// startedElsewhere returns nil if the process has this node's address or none, or its release ignores the variable.
func (j *joiner) startedElsewhere(pid int) *startedElsewhereError {
	// An unreadable process proves nothing.
	if p, err := ams.ReadProcess(j.Root, pid); err == nil && p.HostAddress != "" && !j.isAddress(p.HostAddress) && j.facts.install.Release.HonoursHostAddress() {
		return &startedElsewhereError{Given: p.HostAddress, Address: j.facts.address.Addr.String()}
	}
	return nil
}

// runsElsewhere returns another address of the running server, from its environment or from the cluster.
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

// mayBeElsewhere is false if the server's environment has this address.
func (j *joiner) mayBeElsewhere() bool {
	p, err := ams.ReadProcess(j.Root, j.facts.service.MainPID)
	return err != nil || !j.isAddress(p.HostAddress)
}

func (j *joiner) elsewhereHint(err error) string {
	var seen *cluster.AMSNotSeenError
	var started *startedElsewhereError
	if !errors.As(err, &started) && (!errors.As(err, &seen) || !seen.Elsewhere) {
		return ""
	}
	at := j.facts.address.Addr.String()
	if j.result.Restarted {
		return fmt.Sprintf("whatever starts the server has to pass %s=%s on to it; or join under the other address, with --address", ams.HostAddressVariable, at)
	}
	return fmt.Sprintf("start it through the agent, which sets %s=%s: amsagent join, with --now where viewers are on it; or join under the other address, with --address", ams.HostAddressVariable, at)
}

func (j *joiner) localAddresses() []string {
	ifaces, err := j.interfaces()
	if err != nil {
		return nil
	}
	var out []string
	for _, ifc := range ifaces {
		if !ifc.Addr.IsLoopback() {
			out = append(out, ifc.Addr.String())
		}
	}
	return out
}

// watch cancels a wait if the service dies or, with unseen, if the server has another address.
func (j *joiner) watch(ctx context.Context, died context.CancelCauseFunc, unseen bool) {
	told, began := time.Now(), time.Now()
	if j.result.Restarted {
		began = j.startedAt
	}
	for sleep.For(ctx, watchPoll) {
		st, err := j.Service.State(ctx)
		// The daemon also waits for a server that will be started.
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
	// A check that was cut off proves nothing.
	if seen := j.look(ctx); ctx.Err() == nil {
		j.say("waiting for Ant Media Server to appear in the cluster as %s: %s", j.facts.address.Addr, seen)
	}
}

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

func (j *joiner) seenFresh() bool {
	now := time.Now()
	return slices.ContainsFunc(j.seen, func(n cluster.AMSNode) bool { return j.isOurs(n) && n.Fresh(now) })
}
