// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

// keep bounds an event log and a record: a demonstration may run for hours.
const keep = 8192

// keepSome appends one entry and drops the older half of a full list.
func keepSome[E any](all []E, one E) []E {
	if len(all) == keep {
		all = append(all[:0], all[keep/2:]...)
	}
	return append(all, one)
}

// EventLog are the books, oldest entry first. Entries are guarded by the lock of their owner: entries written under one lock
// become visible together.
type EventLog[E any] struct {
	whose   string
	lock    sync.Locker
	log     *slog.Logger
	entries []E
	changed chan struct{} // closed and replaced with every entry
	each    []func(E)
}

// NewEventLog makes empty books. whose is the owner's name in errors and in the log (nil: none).
func NewEventLog[E any](whose string, lock sync.Locker, log *slog.Logger) *EventLog[E] {
	return &EventLog[E]{whose: whose, lock: lock, log: cmp.Or(log, slog.New(slog.DiscardHandler)), changed: make(chan struct{})}
}

// Write adds an entry. The lock is held.
func (b *EventLog[E]) Write(e E) {
	b.log.Info("books", "of", b.whose, "entry", e)
	b.entries = keepSome(b.entries, e)
	close(b.changed)
	b.changed = make(chan struct{})
	for _, f := range b.each {
		f(e)
	}
}

// Each calls f with every later entry, under the lock.
func (b *EventLog[E]) Each(f func(E)) {
	b.lock.Lock()
	defer b.lock.Unlock()
	b.each = append(b.each, f)
}

// Books returns all entries, never nil.
func (b *EventLog[E]) Books() []E {
	entries, _ := b.follow()
	return entries
}

func (b *EventLog[E]) follow() ([]E, <-chan struct{}) {
	b.lock.Lock()
	defer b.lock.Unlock()
	return append([]E{}, b.entries...), b.changed
}

// WaitFor waits for an entry that fits, and returns the first.
func (b *EventLog[E]) WaitFor(ctx context.Context, fits func(E) bool) (E, error) {
	for {
		entries, changed := b.follow()
		if i := slices.IndexFunc(entries, fits); i >= 0 {
			return entries[i], nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			var none E
			return none, fmt.Errorf("waiting for an entry in the books of %s: %w", b.whose, ctx.Err())
		}
	}
}
