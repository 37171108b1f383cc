// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// defaultPoll: a node waits for this on its way to its first viewer, and 200
	// nodes that start together must not hammer. One reading is a few documents.
	defaultPoll = 250 * time.Millisecond
	// searchShare is how much longer than a search the pause after it is, and mostPoll
	// how long at most.
	searchShare = 10
	mostPoll    = 2 * time.Second
	// lastLook bounds the one reading of the whole list that tells what was
	// seen instead, when the time has run out already.
	lastLook = 5 * time.Second
	// elsewherePoll is the time between two looks at the machine's other addresses.
	elsewherePoll = time.Second
)

// ErrElsewhere ends the waiting for a server that is seen to write under another
// address of this machine.
var ErrElsewhere = errors.New("it runs under another address of this machine")

// AMSWait says which document [Client.WaitAMSNode] waits for.
type AMSWait struct {
	// Address is what AMS on this machine writes as its ip.
	Address string
	// Before is what [Client.AMSNodes] returned before AMS was started. Only
	// what was written since proves anything: a document may be left from an
	// earlier life of the same machine, or be the last word of the AMS that
	// was just stopped. nil, where it could not be read, makes the first
	// reading here take its place; then AMS has to be seen writing.
	Before []AMSNode
	// LocalAddresses are all addresses of this machine. They let a failure
	// tell "AMS registered as 172.17.0.1, which is this machine" from nodes
	// that merely joined meanwhile. May be empty.
	LocalAddresses []string
	// Elsewhere is how long a document of another address of this machine is
	// watched, which has to be written meanwhile, before the waiting ends with
	// ErrElsewhere; 0 waits on. Started, if not zero, is when the process began: what
	// is older is not its. NewOnly counts only documents that Before has not: the
	// server was started since.
	Elsewhere time.Duration
	Started   time.Time
	NewOnly   bool
	// Poll is the time between two readings. Default 250 ms.
	Poll time.Duration
	// Progress is called after each reading, if set, with what is there of
	// our address, or why it could not be read.
	Progress func(ours []AMSNode, err error)
}

// WaitAMSNode returns AMS's own document of this machine as soon as it is
// proof that AMS has joined: it has our address, was written since
// AMSWait.Before, and is fresh by the local clock. That is the evidence of a
// join.
//
// It ends with ctx, or with [ErrElsewhere], and then returns an [AMSNotSeenError],
// which tells what was seen instead; where ctx was cancelled, without another look.
// Failures to reach MongoDB are waited out like everything
// else, but a refusal (credentials, rights) is returned at once.
func (c *Client) WaitAMSNode(ctx context.Context, w AMSWait) (AMSNode, error) {
	if w.Address == "" {
		return AMSNode{}, errors.New("waiting for AMS's node document: no address is given")
	}
	poll := w.Poll
	if poll <= 0 {
		poll = defaultPoll
	}
	start := c.now()
	seen := &AMSNotSeenError{Address: w.Address}
	before, known := w.Before, w.Before != nil
	tick := time.NewTicker(poll)
	defer tick.Stop()
	other := elsewhere{AMSWait: w}
	for {
		short, began := endsBefore(ctx, c.timeout), time.Now()
		ours, err := c.AMSNodesByAddress(ctx, w.Address)
		cost := time.Since(began)
		// A reading that our own end cut short says nothing about MongoDB.
		ended := err != nil && (ctx.Err() != nil || short && KindOf(err) == KindTimeout)
		switch {
		case err == nil:
			seen.Reads, seen.Ours, seen.Last = seen.Reads+1, ours, nil
		case !ended:
			seen.Last = err
		}
		if w.Progress != nil && !ended {
			w.Progress(ours, err)
		}
		if KindOf(err).Refusal() {
			return AMSNode{}, err
		}
		if err == nil {
			if n, ok := written(ours, before, c.now(), known); ok {
				return n, nil
			}
			if !known {
				before, known = ours, true
			}
			if n, ok := other.written(ctx, c); ok {
				seen.Waited, seen.Cause = c.now().Sub(start), ErrElsewhere
				// That one alone: another address of this machine may be a neighbour's, too.
				seen.Local, seen.Verdict = []AMSNode{n}, AMSElsewhere
				return AMSNode{}, seen
			}
		}
		select {
		case <-ctx.Done():
			seen.Waited = c.now().Sub(start)
			seen.Cause = context.Cause(ctx)
			if errors.Is(ctx.Err(), context.Canceled) {
				// Who calls it off asks for no reason, and must not wait for one.
				seen.judge(before, c.now())
				return AMSNode{}, seen
			}
			c.lookAround(ctx, seen, w, before)
			return AMSNode{}, seen
		case <-tick.C:
		}
		// Each search reads all of clusternode. Where that takes long, others wait for it.
		if rest := searchShare*cost - poll; rest > 0 {
			pause, stop := context.WithTimeout(ctx, min(rest, mostPoll))
			<-pause.Done()
			stop()
		}
	}
}

// elsewhere looks for the server under other addresses of this machine.
type elsewhere struct {
	AMSWait
	looked time.Time
	first  map[string]AMSNode // by id and address, as seen first
	since  map[string]time.Time
}

// written returns the document of another address that was written for as long as
// is asked for.
func (e *elsewhere) written(ctx context.Context, c *Client) (AMSNode, bool) {
	now := c.now()
	if e.Elsewhere <= 0 || now.Sub(e.looked) < elsewherePoll {
		return AMSNode{}, false
	}
	e.looked = now
	if e.first == nil {
		e.first, e.since = map[string]AMSNode{}, map[string]time.Time{}
	}
	for _, address := range e.LocalAddresses {
		if SameAddress(address, e.Address) {
			continue
		}
		docs, err := c.AMSNodesByAddress(ctx, address)
		if err != nil {
			return AMSNode{}, false
		}
		for _, n := range docs {
			if !e.counts(n, now) {
				continue
			}
			key := n.ID + " " + n.IP
			first, ok := e.first[key]
			if !ok {
				e.first[key], e.since[key] = n, now
				continue
			}
			if n.LastUpdate.After(first.LastUpdate) && now.Sub(e.since[key]) >= e.Elsewhere {
				return n, true
			}
		}
	}
	return AMSNode{}, false
}

// counts reports whether a document may be that of the server that runs now.
func (e *elsewhere) counts(n AMSNode, now time.Time) bool {
	if !n.Fresh(now) || n.LastUpdate.Before(e.Started) {
		return false
	}
	return !e.NewOnly || !slices.ContainsFunc(e.Before, func(b AMSNode) bool { return b.ID == n.ID && SameAddress(b.IP, n.IP) })
}

// endsBefore reports whether ctx ends within d.
func endsBefore(ctx context.Context, d time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) < d
}

// written returns the newest document that is fresh and was written since
// before. It asks whether the stamp changed, not whether it grew: a clock that
// was corrected after the boot may have gone back.
func written(ours, before []AMSNode, now time.Time, known bool) (AMSNode, bool) {
	if !known {
		return AMSNode{}, false
	}
	var found AMSNode
	var ok bool
	for _, n := range ours {
		if n.Fresh(now) && n.since(before) && (!ok || n.LastUpdate.After(found.LastUpdate)) {
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

// lookAround reads the whole list once more, to tell what was seen instead.
func (c *Client) lookAround(ctx context.Context, seen *AMSNotSeenError, w AMSWait, before []AMSNode) {
	// The time has run out; an answer to "why" is worth a moment more.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(lastLook, c.timeout))
	defer cancel()
	all, err := c.AMSNodes(ctx)
	if err != nil {
		seen.Last = err
	} else {
		seen.Reads++
		seen.Last = nil
		seen.Ours = nil
		for _, n := range all {
			local := slices.ContainsFunc(w.LocalAddresses, func(a string) bool { return SameAddress(a, n.IP) })
			switch {
			case SameAddress(n.IP, w.Address):
				seen.Ours = append(seen.Ours, n)
			case local && n.Fresh(c.now()):
				seen.Local = append(seen.Local, n)
			case w.Before != nil && !slices.ContainsFunc(w.Before, func(b AMSNode) bool { return b.ID == n.ID && b.IP == n.IP }):
				seen.Appeared = append(seen.Appeared, n)
			}
		}
	}
	seen.judge(before, c.now())
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
