// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// serverErrorPause separates logged errors: a client can cause any number.
const serverErrorPause = 10 * time.Second

// serverErrors handles net/http's error log. It passes one error in each serverErrorPause and counts the others.
type serverErrors struct {
	slog.Handler

	mu         sync.Mutex
	last       time.Time
	suppressed int
}

func (s *serverErrors) Handle(ctx context.Context, r slog.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.IsZero() && r.Time.Sub(s.last) < serverErrorPause {
		s.suppressed++
		return nil
	}
	slog.New(s.Handler).WarnContext(ctx, "the HTTP server reports an error", "error", r.Message, "suppressed", s.suppressed)
	s.last, s.suppressed = r.Time, 0
	return nil
}
