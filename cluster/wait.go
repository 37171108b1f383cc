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
)

const (
	// defaultPoll is the time between two readings of the list of nodes: a node waits for this on its way to its first viewer, and 200
	// nodes may start together.
	defaultPoll = 500 * time.Millisecond
	// readingShare is how much longer than a reading the pause after it is, and mostPoll how long at most.
	readingShare = 10
	mostPoll     = 2 * time.Second
)

// ErrElsewhere ends the waiting for a server that writes under another address of this machine.
var ErrElsewhere = errors.New("it runs under another address of this machine")

// AMSWait says which document [Client.WaitAMSNode] waits for.
type AMSWait struct {
	// Address is what AMS on this machine writes as its ip.
	Address string
	// Before is what [Client.AMSNodes] returned before AMS was started: a document may be left from an earlier life of the machine.
	// nil makes the first reading take its place; then AMS has to be seen writing.
	Before []AMSNode
	// LocalAddresses are all addresses of this machine, which tell "AMS registered as 172.17.0.1, which is this machine" from
	// nodes that joined meanwhile. May be empty.
	LocalAddresses []string
	// Elsewhere is how long a document of another address of this machine must be written before the waiting ends with
	// ErrElsewhere; 0 waits on. Older documents than Started are not the server's, nor with NewOnly those in Before.
	Elsewhere time.Duration
	Started   time.Time
	NewOnly   bool
	Poll      time.Duration // 0 is 500 ms
	// Progress is called after each reading, if set, with the documents of the address, or why the list could not be read.
	Progress func(ours []AMSNode, err error)
}

// WaitAMSNode returns AMS's own document of this machine as soon as it proves that AMS has joined: it has the address, was
// written since AMSWait.Before, and is fresh by the local clock.
//
// It ends with ctx, or with [ErrElsewhere], and then returns an [AMSNotSeenError]. If MongoDB does not answer, it waits on; if
// MongoDB refuses the credentials, that error is returned at once.
func (c *Client) WaitAMSNode(ctx context.Context, w AMSWait) (AMSNode, error) {
	if w.Address == "" {
		return AMSNode{}, errors.New("waiting for AMS's node document: no address is given")
	}
	begin := c.now()
	seen := &AMSNotSeenError{Address: w.Address}
	before := w.Before
	local := map[string]firstSeen{}
	for {
		began := time.Now()
		all, err := c.AMSNodes(ctx)
		now := c.now()
		switch {
		case err == nil:
			seen.take(all, w, now)
		case KindOf(err).Refusal():
			return AMSNode{}, err
		case ctx.Err() == nil: // else the reading was cut short, which says nothing about MongoDB
			seen.Last = err
		}
		if w.Progress != nil && ctx.Err() == nil {
			w.Progress(seen.Ours, err)
		}
		if err == nil {
			if n, ok := written(seen.Ours, before, now); ok {
				return n, nil
			}
			if before == nil {
				before = append([]AMSNode{}, seen.Ours...)
			}
			for _, n := range seen.Local {
				if w.Elsewhere > 0 && w.counts(n) && local[n.ID+n.IP].wrote(n, now, w.Elsewhere) {
					// That one alone: another address of this machine may be a neighbour's, too.
					seen.Local, seen.Verdict, seen.Waited, seen.Cause = []AMSNode{n}, AMSElsewhere, now.Sub(begin), ErrElsewhere
					return AMSNode{}, seen
				}
				if _, known := local[n.ID+n.IP]; !known {
					local[n.ID+n.IP] = firstSeen{n.LastUpdate, now}
				}
			}
		}
		pause := time.NewTimer(max(cmp.Or(w.Poll, defaultPoll), min(readingShare*time.Since(began), mostPoll)))
		select {
		case <-ctx.Done():
			pause.Stop()
			seen.Waited, seen.Cause = c.now().Sub(begin), context.Cause(ctx)
			seen.judge(before, c.now())
			return AMSNode{}, seen
		case <-pause.C:
		}
	}
}

// firstSeen is a document of another address of this machine, as it was first read.
type firstSeen struct{ written, at time.Time }

// wrote reports whether it was written for so long.
func (f firstSeen) wrote(n AMSNode, now time.Time, long time.Duration) bool {
	return !f.at.IsZero() && n.LastUpdate.After(f.written) && now.Sub(f.at) >= long
}

// counts reports whether a fresh document may be that of the server that runs now.
func (w AMSWait) counts(n AMSNode) bool {
	return !n.LastUpdate.Before(w.Started) && !(w.NewOnly && n.sameAs(w.Before))
}

func (n AMSNode) sameAs(nodes []AMSNode) bool {
	return slices.ContainsFunc(nodes, func(b AMSNode) bool { return b.ID == n.ID && SameAddress(b.IP, n.IP) })
}

// take sorts the list of nodes.
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
}

// written returns the newest document that is fresh and was written since before, which is nil if it is not known. It asks whether the
// time changed, not whether it grew: a clock that was corrected after the boot may have gone back.
func written(ours, before []AMSNode, now time.Time) (found AMSNode, ok bool) {
	for _, n := range ours {
		if before != nil && n.Fresh(now) && n.since(before) && (!ok || n.LastUpdate.After(found.LastUpdate)) {
			found, ok = n, true
		}
	}
	return found, ok
}

// since reports whether n is not among before as it is now.
func (n AMSNode) since(before []AMSNode) bool {
	return !slices.ContainsFunc(before, func(b AMSNode) bool {
		return b.ID == n.ID && b.IP == n.IP && b.LastUpdate.Equal(n.LastUpdate)
	})
}

// AMSVerdict names what was seen instead of the document waited for.
type AMSVerdict string

// The verdicts.
const (
	// AMSUnread: MongoDB could not be read, nothing is known.
	AMSUnread AMSVerdict = "unread"
	// AMSNothing: no document of our address, and no sign of another.
	AMSNothing AMSVerdict = "nothing"
	// AMSElsewhere: AMS writes under another address of this machine.
	AMSElsewhere AMSVerdict = "elsewhere"
	// AMSMaybeElsewhere: nothing of our address, but other addresses appeared
	// since, one of which may be ours by mistake.
	AMSMaybeElsewhere AMSVerdict = "maybe-elsewhere"
	// AMSNotAdvancing: our document is as it was before we started.
	AMSNotAdvancing AMSVerdict = "not-advancing"
	// AMSStopped: our document was written since, and then no more, or with a
	// clock that is not the local one.
	AMSStopped AMSVerdict = "stale"
)

// AMSNotSeenError tells what was seen instead of a fresh document of our own
// address. errors.Is finds the end of the context and the last failure to read.
type AMSNotSeenError struct {
	Address string
	Waited  time.Duration
	Verdict AMSVerdict
	Reads   int       // how often MongoDB answered
	Ours    []AMSNode // documents of our address, when last read
	Local   []AMSNode // fresh documents of other addresses of this machine
	// Appeared are documents of addresses that were not there before.
	Appeared []AMSNode
	Last     error // the last failure to read, nil if the last reading worked
	Cause    error // why the waiting ended

	age time.Duration // of the newest of Ours
	// timeless says that the newest of Ours has no readable time.
	timeless bool
}

func (e *AMSNotSeenError) judge(before []AMSNode, now time.Time) {
	switch {
	case e.Reads == 0:
		e.Verdict = AMSUnread
	case len(e.Ours) == 0 && len(e.Local) > 0:
		e.Verdict = AMSElsewhere
	case len(e.Ours) == 0 && len(e.Appeared) > 0:
		e.Verdict = AMSMaybeElsewhere
	case len(e.Ours) == 0:
		e.Verdict = AMSNothing
	default:
		newest := slices.MaxFunc(e.Ours, func(a, b AMSNode) int { return a.LastUpdate.Compare(b.LastUpdate) })
		e.age, e.timeless = now.Sub(newest.LastUpdate), newest.LastUpdate.IsZero()
		e.Verdict = AMSNotAdvancing
		if newest.since(before) {
			e.Verdict = AMSStopped
		} else if len(e.Local) > 0 {
			e.Verdict = AMSElsewhere // the old document is of another life
		}
	}
}

// byLocalClock says how old a time is. A server's clock may be ahead of this machine's.
func byLocalClock(age time.Duration) string {
	if age < 0 {
		return age.Abs().Round(time.Second).String() + " ahead of the local clock"
	}
	return age.Round(time.Second).String() + " ago by the local clock"
}

// Error tells the verdict with its evidence.
func (e *AMSNotSeenError) Error() string {
	if errors.Is(e.Cause, ErrElsewhere) && len(e.Local) > 0 {
		// Said again and again by who waits on: the same words each time.
		return fmt.Sprintf("AMS registered as %s, which is another address of this machine, and not as %s", addresses(e.Local), e.Address)
	}
	waited := e.Waited.Round(100 * time.Millisecond)
	s := fmt.Sprintf("waited %s for AMS to register as %s: ", waited, e.Address)
	switch {
	case e.Verdict == AMSUnread:
		s += "MongoDB could not be read"
	case e.Verdict == AMSElsewhere:
		s += "it registered as " + addresses(e.Local) + ", which is another address of this machine"
	case e.Verdict == AMSMaybeElsewhere:
		s += "no document of this address; these appeared meanwhile and may be it under a wrong address: " + addresses(e.Appeared)
	case e.Verdict == AMSNothing:
		s += "no document of this address appeared"
	case e.timeless:
		s += "its document has no readable lastUpdateTime"
	case e.Verdict == AMSNotAdvancing:
		s += fmt.Sprintf("its document was not written since, the last time was %s", byLocalClock(e.age))
	default:
		s += fmt.Sprintf("it wrote its document and stopped, the last time was %s", byLocalClock(e.age))
	}
	if e.Last != nil {
		s += "; the last reading failed: " + e.Last.Error()
	}
	return s
}

// Unwrap returns why the waiting ended and the last failure to read.
func (e *AMSNotSeenError) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Cause, e.Last} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

func addresses(nodes []AMSNode) string {
	const most = 5 // in a scaling event there may be a hundred
	var ips []string
	for _, n := range nodes {
		if !slices.Contains(ips, n.IP) {
			ips = append(ips, n.IP)
		}
	}
	if len(ips) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(ips[:most], ", "), len(ips)-most)
	}
	return strings.Join(ips, ", ")
}
