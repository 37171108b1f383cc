// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestWatchingEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := cloud.Watching{Provider: "x", Log: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		var looks []time.Duration
		began := time.Now()
		fails := map[int]error{
			2: errors.New("lost"), 3: errors.New("lost in another way"), 4: errors.New("lost"),
			5: &cloud.Error{Kind: cloud.ErrNotReady, Status: 503}, 6: &cloud.Error{Kind: cloud.ErrNotReady, Status: 503},
		}
		w.Every(ctx, "item", 2*time.Second, func(context.Context) error {
			looks = append(looks, time.Since(began))
			if len(looks) == 9 {
				cancel()
			}
			return fails[len(looks)]
		})
		// The first retry comes after the usual time, later ones ever later, and never more than the bound; each may be
		// shortened by a quarter. Where all is well, the moments are even ones of the clock, wherever the one before was.
		const even, tenth = 2 * time.Second, 200 * time.Millisecond
		for i, gap := range []struct{ least, most time.Duration }{
			{tenth, even + tenth},
			{1500 * time.Millisecond, 2 * time.Second},
			{3 * time.Second, 4 * time.Second},
			{6 * time.Second, 8 * time.Second},
			{11250 * time.Millisecond, 15 * time.Second},
			{11250 * time.Millisecond, 15 * time.Second},
			{tenth, even + tenth},
			{even - tenth, even + tenth},
		} {
			if got := looks[i+1] - looks[i]; got < gap.least || got > gap.most {
				t.Errorf("look %d came after %s, want %s to %s", i+2, got, gap.least, gap.most)
			}
		}
		if got := strings.Count(log.String(), "cannot be read"); got != 2 {
			t.Errorf("two kinds of trouble were said %d times:\n%s", got, &log)
		}
		if got := strings.Count(log.String(), "can be read again"); got != 1 {
			t.Errorf("that all is well was said %d times:\n%s", got, &log)
		}
	})
}

// TestWatchingTogether: an outage of the service is one line, whatever is asked of it, and is over with its last item.
func TestWatchingTogether(t *testing.T) {
	var log bytes.Buffer
	w := cloud.Watching{Provider: "x", Log: slog.New(slog.NewTextHandler(&log, nil))}
	away := &cloud.Error{Kind: cloud.ErrNotReady, Status: 500}
	for range 3 {
		w.Trouble("a", away)
		w.Trouble("b", away)
	}
	w.Well("never unwell")
	w.Well("a")
	if got := strings.Count(log.String(), "\n"); got != 1 {
		t.Errorf("%d lines while b is away:\n%s", got, &log)
	}
	w.Well("b")
	w.Trouble("a", away)
	if got := strings.Count(log.String(), "\n"); got != 3 {
		t.Errorf("%d lines after all was well and a away again:\n%s", got, &log)
	}
}

func TestBackOff(t *testing.T) {
	w := cloud.Watching{}
	refused := &cloud.Error{Kind: cloud.ErrForbidden}
	for _, tc := range []struct {
		every    time.Duration
		failures int
		err      error
		want     time.Duration
	}{
		{time.Second, 1, errors.New("x"), time.Second},
		{time.Second, 2, errors.New("x"), 2 * time.Second},
		{time.Second, 100, errors.New("x"), 15 * time.Second},
		{time.Minute, 3, errors.New("x"), time.Minute},
		{time.Second, 100, refused, time.Minute},
	} {
		for range 20 {
			if got := w.BackOff(tc.every, tc.failures, tc.err); got > tc.want || got < tc.want*3/4 {
				t.Errorf("every %s after %d failures: %s, want %s or a quarter less", tc.every, tc.failures, got, tc.want)
			}
		}
	}
}
