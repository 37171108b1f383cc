// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

const (
	// verifyPoll is how often the cluster is asked. AMS writes its document
	// every 5 s; a tenth of that wastes nobody's time.
	verifyPoll = 500 * time.Millisecond
	// lookAround is how often all documents are read, to find this machine
	// under another address. Two hundred machines may be joining at once.
	lookAround = 2 * time.Second
	// wrongAfter is when a document under another of our own addresses is
	// final: AMS has written it three times.
	wrongAfter = 15 * time.Second
	// progressEvery is how often a waiting command says what it sees.
	progressEvery = 15 * time.Second
)

// NotSeenError says what was seen while waiting for AMS to appear in the
// cluster.
type NotSeenError struct {
	Address string
	// Saw is in words for people, one observation each.
	Saw []string
	Err error
}

func (e *NotSeenError) Error() string {
	s := "no fresh document of " + e.Address + " in clusterdb.clusternode"
	if len(e.Saw) > 0 {
		s += " (" + strings.Join(e.Saw, "; ") + ")"
	}
	if e.Err != nil && !errors.Is(e.Err, context.DeadlineExceeded) {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *NotSeenError) Unwrap() error { return e.Err }

// verify waits for AMS's own fresh document under this node's address. AMS's
// clock is this machine's clock, so ours judges.
func (j *joiner) verify(ctx context.Context) (*Evidence, error) {
	address := j.facts.address.Addr.String()
	start := time.Now()
	told := start
	var last observation
	var looked time.Time // at everybody's documents
	for {
		var ev *Evidence
		everybody := time.Since(looked) >= lookAround
		if everybody {
			looked = time.Now()
		}
		ev, last = j.look(ctx, address, everybody)
		if ev != nil {
			if j.result.Restarted {
				ev.After = time.Since(j.startedAt).Round(time.Millisecond)
			}
			return ev, nil
		}
		if last.fatal != nil {
			return nil, &NotSeenError{Address: address, Saw: last.saw, Err: last.fatal}
		}
		if time.Since(told) >= progressEvery {
			told = time.Now()
			j.say("waiting for Ant Media Server to appear in the cluster as %s: %s", address, strings.Join(last.saw, "; "))
		}
		if err := pause(ctx, verifyPoll); err != nil {
			return nil, &NotSeenError{Address: address, Saw: last.saw, Err: err}
		}
	}
}

// observation is one look at everything that can be seen of AMS.
type observation struct {
	saw   []string
	fatal error // waiting longer is of no use
}

func (j *joiner) look(ctx context.Context, address string, everybody bool) (*Evidence, observation) {
	var o observation
	note := func(format string, args ...any) { o.saw = append(o.saw, fmt.Sprintf(format, args...)) }

	st, err := j.Service.State(ctx)
	switch {
	case err != nil:
		note("the service does not say its state: %v", err)
	case st.Crashing() || st.Activity == ams.ActivityFailed || (st.Known() && st.Activity == ams.ActivityInactive && !j.startedAt.IsZero()):
		o.fatal = &ams.UnstableError{Service: j.Service.Name(), After: time.Since(j.startedAt), State: st}
		note("the service is %s", st)
		return nil, o
	case st.Known():
		note("the service is %s", st)
	}
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	own, err := j.facts.client.AMSNodesByAddress(ctx, address)
	if err != nil {
		note("%s", summary(err))
		return nil, o
	}
	now := time.Now()
	for _, n := range own {
		if j.isEvidence(n, now, st) {
			return &Evidence{ID: n.ID, Address: n.IP, Updated: n.LastUpdate}, o
		}
	}
	if len(own) == 0 {
		note("no document of this address")
	} else {
		note("its document is old or does not move")
	}
	if everybody {
		o.fatal = j.lookElsewhere(ctx)
	}
	o.saw = append(o.saw, j.elsewhere...)
	if j.facts.install.Release.HasLiveness() || !j.facts.install.Release.Known() {
		note("liveness: %s", ams.CheckLiveness(ctx, j.http(), j.facts.install.BaseURL()))
	}
	return nil, o
}

// lookElsewhere looks for this machine's AMS under another address. That is
// certain, and waiting of no use, when the address is one of our own and AMS has
// had time to write under it again and again.
func (j *joiner) lookElsewhere(ctx context.Context) error {
	nodes, err := j.facts.client.AMSNodes(ctx)
	if err != nil || j.startedAt.IsZero() {
		return nil //nolint:nilerr // the look at our own document already said it
	}
	j.elsewhere = nil
	mine, err := ams.HostInterfaces(j.Root)
	if err != nil {
		mine = nil // below another root: unknown
	}
	for _, n := range nodes {
		if !n.LastUpdate.After(j.startedAt) || j.known(n) {
			continue
		}
		j.elsewhere = append(j.elsewhere, fmt.Sprintf("since the start %s appeared as %s: if that is this machine, it registers under another address", n.ID, n.IP))
		for _, ifc := range mine {
			for _, a := range ifc.Addrs {
				if cluster.SameAddress(a.String(), n.IP) && time.Since(j.startedAt) > wrongAfter {
					return fmt.Errorf("the server registers as %s, an address of this machine's %s", n.IP, ifc.Name)
				}
			}
		}
	}
	return nil
}

// isEvidence reports whether a document of our address was written by the AMS
// that runs now. One that we started must have written it after that, newer than
// anything seen before. One that ran already must be known to run, or be seen to
// write: a fresh document may be the last word of a dead one.
func (j *joiner) isEvidence(n cluster.AMSNode, now time.Time, st ams.State) bool {
	if !n.Fresh(now) {
		return false
	}
	moved := true
	for _, old := range j.seen {
		if old.ID == n.ID && !n.LastUpdate.After(old.LastUpdate) {
			moved = false
		}
	}
	if !j.startedAt.IsZero() {
		return moved && !n.LastUpdate.Before(j.startedAt.Truncate(time.Millisecond))
	}
	return moved || (st.Running() && n.LastUpdate.After(st.Started))
}

// known reports whether the document was there before the restart.
func (j *joiner) known(n cluster.AMSNode) bool {
	for _, old := range j.seen {
		if old.ID == n.ID {
			return true
		}
	}
	return false
}

// seenFresh reports whether AMS was seen under this address before the join.
func (j *joiner) seenFresh() bool {
	now := time.Now()
	return slices.ContainsFunc(j.seen, func(n cluster.AMSNode) bool { return n.Fresh(now) })
}
