// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

const (
	// verifyPoll is how often the cluster is asked. AMS writes its document
	// every 5 s; a tenth of that wastes nobody's time.
	verifyPoll = 500 * time.Millisecond
	// progressEvery is how often a waiting command says what it sees.
	progressEvery = 10 * time.Second
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
	for {
		var ev *Evidence
		ev, last = j.look(ctx, address)
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

func (j *joiner) look(ctx context.Context, address string) (*Evidence, observation) {
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
	nodes, err := j.facts.client.AMSNodes(ctx)
	if err != nil {
		note("%s", summary(err))
		return nil, o
	}
	now := time.Now()
	mine := 0
	for _, n := range nodes {
		switch {
		case cluster.SameAddress(n.IP, address):
			mine++
			if j.isEvidence(n, now) {
				return &Evidence{ID: n.ID, Address: n.IP, Updated: n.LastUpdate}, o
			}
		case !j.startedAt.IsZero() && n.LastUpdate.After(j.startedAt) && !j.known(n):
			note("since the start %s appeared as %s: if that is this machine, it registers under another address", n.ID, n.IP)
		}
	}
	if mine == 0 {
		note("no document of this address among %d", len(nodes))
	} else {
		note("its document is old or does not move")
	}
	if j.facts.install.Release.HasLiveness() || !j.facts.install.Release.Known() {
		note("liveness: %s", ams.CheckLiveness(ctx, j.http(), j.facts.install.BaseURL()))
	}
	return nil, o
}

// isEvidence reports whether a document of our address was written by the AMS
// that runs now: fresh, and, where we restarted it, written after that and
// newer than anything seen before.
func (j *joiner) isEvidence(n cluster.AMSNode, now time.Time) bool {
	if !n.Fresh(now) {
		return false
	}
	if j.startedAt.IsZero() {
		return true
	}
	for _, old := range j.seen {
		if old.ID == n.ID && !n.LastUpdate.After(old.LastUpdate) {
			return false
		}
	}
	return !n.LastUpdate.Before(j.startedAt.Truncate(time.Millisecond))
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
