// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"context"
	"sync"
	"time"
)

// The service counts five requests in a second. These two shares are less, in any second that it may look at.
const (
	readsPerSecond = 3
	pollsPerSecond = 2
	// paceWindow is a second, and how much later than the next one a request may arrive.
	paceWindow = time.Second + 250*time.Millisecond
)

// pace lets so many requests through in any window, the rest later, in their order.
type pace struct {
	mu   sync.Mutex
	last []time.Time // of the last ones, as many as fit into a window
	next int
}

func newPace(n int) *pace { return &pace{last: make([]time.Time, n)} }

// wait returns when a request may be made.
func (p *pace) wait(ctx context.Context) error {
	now := time.Now()
	p.mu.Lock()
	at := now
	if free := p.last[p.next].Add(paceWindow); free.After(at) {
		at = free
	}
	// Who gives up meanwhile has had his turn all the same: that only makes the others slower.
	p.last[p.next] = at
	p.next = (p.next + 1) % len(p.last)
	p.mu.Unlock()
	if !at.After(now) {
		return ctx.Err()
	}
	timer := time.NewTimer(at.Sub(now))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
