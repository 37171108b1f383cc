// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// Gatherer runs the requests for independent items side by side and remembers which failed. The zero value works; Do and
// Wait are called by one goroutine.
type Gatherer struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	keys []string
	errs []error
}

// Do runs fn, whose failure is remembered under key. An item that is not set is no failure.
func (g *Gatherer) Do(key string, fn func() error) {
	g.wg.Go(func() {
		err := fn()
		if err == nil || errors.Is(err, ErrNotFound) {
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.keys = append(g.keys, key)
		g.errs = append(g.errs, err)
	})
}

// Wait waits for all, and puts the failures into an order that does not depend on timing.
func (g *Gatherer) Wait() {
	g.wg.Wait()
	slices.Sort(g.keys)
	slices.SortStableFunc(g.errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
}

// Errors are the failures, after Wait.
func (g *Gatherer) Errors() []error { return g.errs }

// Tell puts the failures into the instance, after Wait: what is missing, and why, for people and for the log.
func (g *Gatherer) Tell(log *slog.Logger, inst *Instance) {
	inst.Missing = g.keys
	for _, err := range g.errs {
		log.Warn("a part of the instance metadata could not be read", "provider", inst.Provider, "err", err)
		inst.Notes = append(inst.Notes, err.Error())
	}
}

// Finish is Wait with an error for a caller that has gone, to whom half an instance is of no use.
func (g *Gatherer) Finish(ctx context.Context, provider string) error {
	g.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("reading the %s metadata: %w", provider, err)
	}
	return nil
}
