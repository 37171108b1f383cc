// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/amsagent/amsagent/metadata/record"
)

// Gatherer runs the requests for independent items side by side and remembers which failed. The zero value works; Do and
// Wait are called by one goroutine.
type Gatherer struct {
	// Serial makes one item be read after the other, in a fixed order: two recordings of one machine are then the same.
	Serial bool

	wg   sync.WaitGroup
	mu   sync.Mutex
	keys []string
	errs []error
}

// Do runs fn, whose failure is remembered under key. An item that is not set is no failure.
func (g *Gatherer) Do(key string, fn func() error) {
	run := func() {
		err := fn()
		if err == nil || errors.Is(err, ErrNotFound) {
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.keys = append(g.keys, key)
		g.errs = append(g.errs, err)
	}
	if g.Serial {
		run()
		return
	}
	g.wg.Go(run)
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

// Finish is Wait with an error where there is to be no instance: for a failure that is our own and not the service's, a
// recording that cannot be written, and for a caller that has gone, to whom half an instance is of no use.
func (g *Gatherer) Finish(ctx context.Context, provider string) error {
	g.Wait()
	for _, err := range g.errs {
		if errors.Is(err, errRecording) {
			return err
		}
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("reading the %s metadata: %w", provider, err)
	}
	return nil
}

var errRecording = errors.New("recording what the metadata service says")

// JudgeRecording is the part of a provider's Judge that is the same for all: a recording that cannot be written is not the
// service's fault, and no retry mends a full disk. It reports whether it was that.
func JudgeRecording(e *Error) bool {
	werr, ok := errors.AsType[*record.WriteError](e.Cause)
	if ok {
		e.Kind, e.Cause = errRecording, werr
	}
	return ok
}

// RecordingClient is HTTPClient with the recorder around its transport where a recording is wanted; it makes the folder of
// that.
func (o Options) RecordingClient(p record.Policy) (*http.Client, error) {
	if o.Record == "" {
		return o.HTTPClient(nil), nil
	}
	if err := record.Prepare(o.Record); err != nil {
		return nil, err
	}
	return o.HTTPClient(func(next http.RoundTripper) http.RoundTripper {
		return record.NewTransport(o.Record, next, p)
	}), nil
}
