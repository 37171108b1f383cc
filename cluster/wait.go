// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/sleep"
)

// defaultPoll: a node serves no viewers before; 200 nodes may start together.
const defaultPoll = 500 * time.Millisecond

// ErrElsewhere means that the server uses another address of this machine.
var ErrElsewhere = errors.New("it runs under another address of this machine")

// AMSWait is the input of [Client.WaitAMSNode].
type AMSWait struct {
	Address string // as AMS writes it
	// Before are earlier processes' documents; nil, or MustChange, uses the first read.
	Before         []AMSNode
	MustChange     bool
	LocalAddresses []string
	// Started is the server's start, if known. An earlier document, which the former process wrote as it ended, counts from
	// its next change.
	Started time.Time
	// Elsewhere is how long a document of another local address must be written to end the wait with ErrElsewhere; 0 is
	// never. Documents before Started are ignored, with NewOnly also those in Before.
	Elsewhere time.Duration
	NewOnly   bool
	Poll      time.Duration // default 500 ms
	// Progress is called after each read.
	Progress func(ours []AMSNode, err error)
}

// WaitAMSNode returns this machine's AMS document once it was written since AMSWait.Before and is fresh by the local clock.
// It returns an [AMSNotSeenError] when ctx ends or with [ErrElsewhere], and a [Kind.Refusal] at once.
func (c *Client) WaitAMSNode(ctx context.Context, w AMSWait) (AMSNode, error) {
	if w.Address == "" {
		return AMSNode{}, errors.New("waiting for AMS's node document: no address is given")
	}
	begin := c.now()
	seen := &AMSNotSeenError{}
	before, again := w.Before, false
	if w.MustChange {
		before = nil
	}
	local := map[string]firstSeen{}
	for {
		// A read cut short by ctx is no failure. The driver times out shortly before the deadline.
		deadline, bounded := ctx.Deadline()
		short := bounded && time.Until(deadline) < c.timeout
		all, err := c.AMSNodes(ctx)
		now := c.now()
		ended := err != nil && (ctx.Err() != nil || short && KindOf(err) == KindTimeout)
		switch {
		case err == nil:
			seen.take(all, w, now)
		case KindOf(err).Refusal():
			return AMSNode{}, err
		case !ended:
			seen.Last = err
		}
		if w.Progress != nil && !ended {
			w.Progress(seen.Ours, err)
		}
		if err == nil {
			i := slices.IndexFunc(seen.Ours, func(n AMSNode) bool { return before != nil && n.Fresh(now) && n.since(before) })
			switch {
			case i >= 0 && (again || !seen.Ours[i].LastUpdate.Before(w.Started)):
				return seen.Ours[i], nil
			case i >= 0, before == nil:
				before, again = append([]AMSNode{}, seen.Ours...), i >= 0
			}
			if n, ok := w.findElsewhere(seen.Local, local, now); ok {
				seen.Elsewhere, seen.Cause = true, ErrElsewhere
				// Callers log this repeatedly, so the text has no time. Other documents may be of another node.
				seen.text = fmt.Sprintf("AMS registered as %s, which is another address of this machine, and not as %s", n.IP, w.Address)
				return AMSNode{}, seen
			}
		}
		if !sleep.For(ctx, cmp.Or(w.Poll, defaultPoll)) {
			seen.Cause, now = context.Cause(ctx), c.now()
			seen.text = fmt.Sprintf("waited %s for AMS to register as %s: %s", now.Sub(begin).Round(100*time.Millisecond), w.Address, seen.judge(before, now))
			return AMSNode{}, seen
		}
	}
}

type firstSeen struct{ written, at time.Time }

func (w AMSWait) findElsewhere(fresh []AMSNode, known map[string]firstSeen, now time.Time) (AMSNode, bool) {
	for _, n := range fresh {
		if w.Elsewhere <= 0 || n.LastUpdate.Before(w.Started) || w.NewOnly && n.sameAs(w.Before) {
			continue
		}
		first, again := known[n.ID+n.IP]
		if !again {
			known[n.ID+n.IP] = firstSeen{n.LastUpdate, now}
		} else if n.LastUpdate.After(first.written) && now.Sub(first.at) >= w.Elsewhere {
			return n, true
		}
	}
	return AMSNode{}, false
}

func (n AMSNode) sameAs(nodes []AMSNode) bool {
	return slices.ContainsFunc(nodes, func(b AMSNode) bool { return b.ID == n.ID && SameAddress(b.IP, n.IP) })
}

func (e *AMSNotSeenError) take(all []AMSNode, w AMSWait, now time.Time) {
	e.Reads++
	e.Last, e.Ours, e.Local, e.Appeared = nil, nil, nil, nil
	for _, n := range all {
		switch {
		case SameAddress(n.IP, w.Address):
			e.Ours = append(e.Ours, n)
		case n.Fresh(now) && slices.ContainsFunc(w.LocalAddresses, func(a string) bool { return SameAddress(a, n.IP) }):
			e.Local = append(e.Local, n)
		case w.Before != nil && !n.sameAs(w.Before):
			e.Appeared = append(e.Appeared, n)
		}
	}
	slices.SortStableFunc(e.Ours, newestFirst)
}

// since accepts any change: the clock may be corrected after the boot.
func (n AMSNode) since(before []AMSNode) bool {
	return !slices.ContainsFunc(before, func(b AMSNode) bool {
		return b.ID == n.ID && b.IP == n.IP && b.LastUpdate.Equal(n.LastUpdate)
	})
}

// AMSNotSeenError reports what was found instead.
type AMSNotSeenError struct {
	Elsewhere bool      // another address of this machine
	Reads     int       // answers of MongoDB
	Ours      []AMSNode // of the address, at the last read, newest first
	Local     []AMSNode // fresh, of other local addresses
	Appeared  []AMSNode // of other addresses, not in AMSWait.Before
	Last      error     // of the last read
	Cause     error     // why the wait ended

	text string
}

func (e *AMSNotSeenError) judge(before []AMSNode, now time.Time) string {
	var newest AMSNode
	if len(e.Ours) > 0 {
		newest = e.Ours[0]
	}
	none, old := len(e.Ours) == 0, !newest.since(before)
	last := fmt.Sprintf(", the last time at %s; the local clock is at %s", newest.LastUpdate.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	switch {
	case e.Reads == 0:
		return "MongoDB could not be read"
	case len(e.Local) > 0 && (none || old): // an old document is of an earlier process
		e.Elsewhere = true
		return "it registered as " + addresses(e.Local) + ", which is another address of this machine"
	case none && len(e.Appeared) > 0:
		return "no document of this address; these appeared meanwhile and may be it under a wrong address: " + addresses(e.Appeared)
	case none:
		return "no document of this address appeared"
	case newest.LastUpdate.IsZero():
		return "its document has no readable lastUpdateTime"
	case old:
		return "its document was not written since" + last
	}
	return "it wrote its document and stopped" + last
}

func (e *AMSNotSeenError) Error() string {
	if e.Last != nil {
		return e.text + "; the last reading failed: " + e.Last.Error()
	}
	return e.text
}

func (e *AMSNotSeenError) Unwrap() error { return errors.Join(e.Cause, e.Last) }

func addresses(nodes []AMSNode) string {
	var ips []string
	for _, n := range nodes {
		if !slices.Contains(ips, n.IP) {
			ips = append(ips, n.IP)
		}
	}
	return plain.Truncate(strings.Join(ips, ", "), maxText) // a cluster may add a hundred at once
}
