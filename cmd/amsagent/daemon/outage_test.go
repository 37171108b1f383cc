// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/sleep"
)

// A cause of the machine's own still ends in a replacement, also if it began in an
// outage that all nodes had.
func TestServerBrokenAfterOutage(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.start()
		sleep.For(t.Context(), time.Minute)
		c.link.Cut.Store(true)
		c.f.set(ams.AppRefused, "LiveApp")
		sleep.For(t.Context(), 10*time.Minute)
		c.healthy(true)
		c.link.Cut.Store(false)
		back := time.Now()
		sleep.For(t.Context(), 6*time.Second) // one interval, and the search of a server that is under way
		if at := c.node().UpdatedAt; at.Before(back) {
			t.Errorf("no heartbeat since %s, MongoDB is back since %s", at, back)
		}
		sleep.For(t.Context(), 4*time.Minute)
		c.healthy(true)
		sleep.For(t.Context(), 90*time.Second)
		c.healthy(false)
	})
}

// The registry knows within a moment that viewers are not served any more, or again.
func TestRowFollowsServer(t *testing.T) {
	inCluster(t, func(t *testing.T, c *clustered) {
		c.begin()
		says := func(up bool, why string) {
			t.Helper()
			synctest.Wait()
			s := c.node().Serving
			if s == nil || s.Up != up || !strings.Contains(s.Why, why) || up && s.Why != "" {
				t.Errorf("the row says %+v, want %v %q", s, up, why)
			}
		}
		sleep.For(t.Context(), 6*time.Second)
		says(true, "") // the first beat may have come before the first answers
		for range 5 {
			sleep.For(t.Context(), 6170*time.Millisecond)
			c.f.set(ams.AppFailing, "LiveApp")
			c.becomes(false, 2*time.Second)
			says(false, "LiveApp fails")
			sleep.For(t.Context(), 7*time.Second)
			c.f.set("")
			c.becomes(true, 2*time.Second)
			says(true, "")
		}
		// What no other node has to know is no reason for a beat.
		before := c.node().Seq
		sleep.For(t.Context(), time.Minute)
		if beats := c.node().Seq - before; beats > 13 {
			t.Errorf("%d beats in a minute at 5 s", beats)
		}
	})
}
