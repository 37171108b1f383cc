// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestSpotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lead = 5 * time.Minute
		for name, tt := range map[string]struct {
			first bool
			in    time.Duration
			want  time.Duration // -1 is no end
		}{
			"in time":                       {false, time.Minute, time.Minute},
			"the clock is behind":           {false, time.Hour, lead},
			"the clock is ahead":            {false, -time.Hour, 0},
			"in time, at the first look":    {true, time.Minute, time.Minute},
			"just past, at the first look":  {true, -time.Minute, 0},
			"a stop and a start before now": {true, -time.Hour, -1},
		} {
			var log bytes.Buffer
			e := cloud.SpotEnd{Lead: lead, Log: slog.New(slog.NewTextHandler(&log, nil))}
			if !tt.first && !e.Look(time.Time{}, time.Time{}).IsZero() {
				t.Errorf("%s: an end that nobody announced", name)
			}
			now := time.Now()
			announced := now.Add(tt.in).Round(0)
			got := e.Look(announced, time.Time{})
			if got.IsZero() != (tt.want < 0) || !got.IsZero() && got.Sub(now) != tt.want {
				t.Errorf("%s: %s", name, got.Sub(now))
			}
			// The machine outlives it.
			<-time.After(time.Hour + lead)
			if got := e.Look(announced, got); !got.IsZero() {
				t.Errorf("%s: still %s", name, got)
			}
			if got := e.Look(announced, time.Time{}); !got.IsZero() {
				t.Errorf("%s: again %s", name, got)
			}
			if n := strings.Count(log.String(), "long past"); n != 1 {
				t.Errorf("%s: said %d times", name, n)
			}
			if e.Look(announced.Add(2*time.Hour), time.Time{}).IsZero() {
				t.Errorf("%s: the next end is none", name)
			}
		}
	})
}
