// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package books keeps what has happened in a pretended service: books, which can be
// followed, and a record of the requests that it got.
package books

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// keep bounds what is kept: a demonstration may run for hours.
const keep = 8192

// keepSome adds one to all, and lets go of the older half where there are enough.
func keepSome[E any](all []E, one E) []E {
	if len(all) == keep {
		all = append(all[:0], all[keep/2:]...)
	}
	return append(all, one)
}

// Books are entries, oldest first, that others read and wait for. They are kept under
// the lock of the service: what it writes while it holds that is seen together.
type Books[E any] struct {
	lock    sync.Locker
	bounded bool
	entries []E
	changed chan struct{} // closed and replaced with every entry
}

// New begins books under the lock of a service.
func New[E any](lock sync.Locker) *Books[E] {
	return &Books[E]{lock: lock, changed: make(chan struct{})}
}

// NewBounded begins books that have the last few thousand entries.
func NewBounded[E any](lock sync.Locker) *Books[E] {
	b := New[E](lock)
	b.bounded = true
	return b
}

// Write adds an entry. The lock is held.
func (b *Books[E]) Write(e E) {
	if b.bounded {
		b.entries = keepSome(b.entries, e)
	} else {
		b.entries = append(b.entries, e)
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// All is what has happened. It is never nil.
func (b *Books[E]) All() []E {
	b.lock.Lock()
	defer b.lock.Unlock()
	return append([]E{}, b.entries...)
}

// Follow gives what has happened, and a channel that is closed with the next entry.
func (b *Books[E]) Follow() ([]E, <-chan struct{}) {
	b.lock.Lock()
	defer b.lock.Unlock()
	return slices.Clone(b.entries), b.changed
}

// WaitFor waits until the books hold an entry that fits, and returns the first. whose
// they are is said where the wait was in vain.
func (b *Books[E]) WaitFor(ctx context.Context, whose string, fits func(E) bool) (E, error) {
	return WaitFor(ctx, whose, b.Follow, fits)
}

// WaitFor waits for an entry of books that follow gives in other words.
func WaitFor[E any](ctx context.Context, whose string, follow func() ([]E, <-chan struct{}), fits func(E) bool) (E, error) {
	for {
		entries, changed := follow()
		if i := slices.IndexFunc(entries, fits); i >= 0 {
			return entries[i], nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			var none E
			return none, fmt.Errorf("waiting for an entry in the books of %s: %w", whose, ctx.Err())
		}
	}
}

// Record holds the last few thousand requests, oldest first, each with its number. The
// zero value is one without any. All methods may be called from any goroutine.
type Record[R any] struct {
	mu   sync.Mutex
	seen int // the number of the last
	last []R
}

// Add puts down a request that has come, and returns its number: 1 for the first.
func (r *Record[R]) Add(request func(seq int) R) (seq int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen++
	r.last = keepSome(r.last, request(r.seen))
	return r.seen
}

// Change adds to what is known of a request, unless it has been let go of.
func (r *Record[R]) Change(seq int, change func(*R)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := len(r.last) - 1 - (r.seen - seq); i >= 0 && i < len(r.last) {
		change(&r.last[i])
	}
}

// All are those that are held. It is never nil.
func (r *Record[R]) All() []R {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]R{}, r.last...)
}
