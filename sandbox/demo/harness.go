// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// harness lets a program use what tests use: it is a testing.TB, with the methods that the rig and realams call.
type harness struct {
	testing.TB
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	failure  error
	logs     string
	cleanups []func()
}

func newHarness(ctx context.Context) *harness {
	h := &harness{}
	h.ctx, h.cancel = context.WithCancel(ctx)
	return h
}

// run calls f, which may end its goroutine as a test does that fails. When the context ends it waits no longer than a moment.
func (h *harness) run(f func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-h.ctx.Done():
		select {
		case <-done:
		case <-time.After(2 * time.Second):
		}
	}
	return h.err()
}

// close does what was left for the end, the last first. A failure of one does not keep the others.
func (h *harness) close() error {
	failed := h.Failed()
	h.mu.Lock()
	left := h.cleanups
	h.mu.Unlock()
	for _, f := range slices.Backward(left) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		<-done
	}
	h.cancel()
	if failed {
		return nil // the caller has the failure, and what fails now follows from it
	}
	return h.err()
}

func (h *harness) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failure
}

// said is what was logged, at its end.
func (h *harness) said() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.logs
}

func (h *harness) fail(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failure = errors.Join(h.failure, errors.New(text))
}

func (h *harness) Helper()                           {}
func (h *harness) Context() context.Context          { return h.ctx }
func (h *harness) Failed() bool                      { return h.err() != nil }
func (h *harness) Error(args ...any)                 { h.fail(fmt.Sprint(args...)) }
func (h *harness) Errorf(format string, args ...any) { h.fail(fmt.Sprintf(format, args...)) }
func (h *harness) FailNow()                          { runtime.Goexit() }
func (h *harness) Fatal(args ...any)                 { h.Error(args...); runtime.Goexit() }
func (h *harness) Fatalf(format string, args ...any) { h.Errorf(format, args...); runtime.Goexit() }
func (h *harness) Skip(args ...any)                  { h.Fatal(args...) }
func (h *harness) Log(args ...any)                   { h.Logf("%s", fmt.Sprint(args...)) }

// Logf keeps the last 2,000 bytes of a text.
func (h *harness) Logf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.logs += "\n" + text[max(0, len(text)-2000):]
}

func (h *harness) Cleanup(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cleanups = append(h.cleanups, f)
}
