// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
)

const (
	// watchPoll is short, so that a dead server is reported at once.
	watchPoll = 500 * time.Millisecond
	// elsewhereTime is for a document of another address: the server writes every five seconds.
	elsewhereTime = 6 * time.Second
	progressEvery = 15 * time.Second
)

// NotSeenError reports that the cluster does not have the server.
type NotSeenError struct{ Err error }

func (e *NotSeenError) Error() string { return e.Err.Error() }
func (e *NotSeenError) Unwrap() error { return e.Err }

// verify waits for a fresh document of the running server and, if untilServed, for the applications. The server
// uses this machine's clock.
func (j *joiner) verify(ctx context.Context) (*Evidence, error) {
	n, seen := j.alreadySeen()
	if !seen {
		err := j.whileAlive(ctx, true, func(ctx context.Context) (err error) {
			n, err = j.await(ctx)
			return err
		})
		_, unstable := errors.AsType[*ams.UnstableError](err)
		_, elsewhere := errors.AsType[*startedElsewhereError](err)
		switch {
		case err == nil:
		case unstable:
			return nil, err
		case elsewhere, errors.Is(ctx.Err(), context.Canceled): // a cancellation must not wait
			return nil, &NotSeenError{err}
		default:
			if saw := j.look(context.WithoutCancel(ctx)); saw != "" {
				err = fmt.Errorf("%w (%s)", err, saw)
			}
			return nil, &NotSeenError{err}
		}
	}
	ev := &Evidence{ID: n.ID, Address: n.IP, Updated: n.LastUpdate, Seen: time.Now()}
	if j.result.Restarted {
		ev.After = seconds.Duration(time.Since(j.startedAt).Round(time.Millisecond))
	}
	if !j.untilServed {
		return ev, nil
	}
	return ev, j.serve(ctx)
}

// whileAlive ends do, and returns why, if the service dies or, with unseen, if the server has another address.
func (j *joiner) whileAlive(ctx context.Context, unseen bool, do func(context.Context) error) error {
	ctx, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	var died error
	watcher.Go(func() {
		if died = j.watch(ctx, unseen); died != nil {
			stop()
		}
	})
	err := do(ctx)
	stop()
	watcher.Wait()
	return cmp.Or(died, err)
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

// startedWith returns the address with which a process was started, or "". An unreadable process proves nothing.
func (j *joiner) startedWith(pid int) string {
	p, _ := ams.ReadProcess(j.Root, pid)
	return p.HostAddress
}

// startedElsewhere returns nil if the process has this node's address or none, or its release ignores the variable.
func (j *joiner) startedElsewhere(pid int) *startedElsewhereError {
	given := j.startedWith(pid)
	if given == "" || j.isAddress(given) || !j.facts.install.Release.HonoursHostAddress() {
		return nil
	}
	return &startedElsewhereError{Given: given, Address: j.facts.address.Addr.String()}
}

// runsElsewhere returns another address of the running server, from its environment or from the cluster, or "".
func (j *joiner) runsElsewhere() string {
	st, now := j.facts.service, time.Now()
	if !st.Running() || j.seenFresh() || !j.mayBeElsewhere() {
		return ""
	}
	if e := j.startedElsewhere(st.MainPID); e != nil {
		return e.Given
	}
	locals := j.localAddresses()
	for _, n := range j.seen {
		local := slices.ContainsFunc(locals, func(a string) bool { return cluster.SameAddress(a, n.IP) })
		if local && n.Fresh(now) && !n.LastUpdate.Before(st.Started) {
			return n.IP
		}
	}
	return ""
}

// mayBeElsewhere is false if the server's environment has this address.
func (j *joiner) mayBeElsewhere() bool { return !j.isAddress(j.startedWith(j.facts.service.MainPID)) }

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

// watch returns why a wait is useless: the service is dead or, with unseen, the server has another address. It
// returns nil when ctx ends.
func (j *joiner) watch(ctx context.Context, unseen bool) error {
	told, began := time.Now(), time.Now()
	if j.result.Restarted {
		began = j.startedAt
	}
	for sleep.For(ctx, watchPoll) {
		st, err := j.Service.State(ctx)
		// The daemon also waits for a server that will be started.
		stopped := st.Activity == ams.ActivityFailed || (st.Activity == ams.ActivityInactive && j.untilServed)
		if err == nil && (st.Crashing() || stopped) {
			return &ams.UnstableError{Service: j.Service.Name(), After: time.Since(began), State: st}
		}
		if !unseen {
			continue
		}
		if err == nil && st.Running() {
			if e := j.startedElsewhere(st.MainPID); e != nil {
				return e
			}
		}
		if time.Since(told) >= progressEvery {
			told = time.Now()
			j.sayWaiting(ctx)
		}
	}
	return nil
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
