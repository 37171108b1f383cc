// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestPoll: an item is looked at each interval, less often while it cannot be read, and an outage is two lines in the log. All
// that is looked at wakes the process together.
func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var at []time.Time
		begin := time.Now()
		<-time.After(300 * time.Millisecond)
		failing := func() bool { return time.Since(begin) > time.Minute && time.Since(begin) < 2*time.Minute }
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		Poll(ctx, slog.New(slog.NewTextHandler(&log, nil)), "spot", 2*time.Second, func(context.Context) (time.Duration, error) {
			at = append(at, time.Now())
			if failing() {
				return 0, errors.New("away")
			}
			return 0, nil
		})
		well, ill := 0, 0
		for i, a := range at {
			switch d := a.Sub(begin); {
			case d < time.Minute:
				well++
				if i > 0 && d%(2*time.Second) != 0 {
					t.Errorf("look %d after %v", i, d)
				}
			case d < 2*time.Minute:
				ill++
			}
		}
		if well < 30 || well > 31 || ill < 12 || ill > 20 {
			t.Errorf("%d looks in the first minute, %d in that of the outage", well, ill)
		}
		if lines := strings.Count(log.String(), "\n"); lines != 2 || !strings.Contains(log.String(), "can be read again") {
			t.Errorf("log:\n%s", &log)
		}
	})
}

func TestBackOff(t *testing.T) {
	away, refused := errors.New("away"), &Error{Kind: ErrForbidden}
	for _, tt := range []struct {
		every    time.Duration
		failures int
		err      error
		most     time.Duration
	}{
		{time.Second, 1, away, time.Second},
		{time.Second, 2, away, 2 * time.Second},
		{time.Second, 100, away, 5 * time.Second},
		{time.Second, 100, refused, time.Minute},
		{10 * time.Minute, 5, away, 10 * time.Minute},
	} {
		for range 100 {
			if got := backOff(tt.every, tt.failures, tt.err); got > tt.most || got < tt.most*3/4-1 {
				t.Fatalf("backOff(%s, %d, %v) = %s, want about %s", tt.every, tt.failures, tt.err, got, tt.most)
			}
		}
	}
}
