// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// A metadata service that reports a new event with a text of any length at each poll produces a record that the next start can
// read, and hides no deadline.
func TestHostileNotices(t *testing.T) {
	living(t, 3, func(t *testing.T, w *world, l *life) {
		begin := time.Now()
		must.OK(t, l.Drain(DrainRequest{Deadline: seconds.Duration(6 * time.Hour), Reason: "kernel update", Who: "root"}))
		earliest := begin.Add(2 * time.Hour)
		long := strings.Repeat("<\x1b&\u2028\xff", 2<<10)
		for i := range 500 {
			n := Notice{
				ID: fmt.Sprintf("azure%d/%s", i, long), Source: "azure", Kind: Terminate, Reason: long, Who: long, By: long,
				Deadline: begin.Add(5*time.Hour - time.Duration(i%7)*time.Second),
				Hook: &Hook{
					Provider: "azure", Group: "g", Name: fmt.Sprint("event ", i), Token: strings.Repeat("t", i*10), Fixed: true,
					Others: []string{strings.Repeat("<", i), strings.Repeat("&", i)},
				},
			}
			switch {
			case i == 250:
				n.ID, n.Deadline = "azure250/the one", earliest
			case i%3 == 0:
				n.Deadline = time.Time{}
			case i%5 == 0:
				n.Hook.Name = long
			}
			l.Notice(n)
			tick(time.Second)
		}
		v := l.View()
		if len(v.Notices) > maxNotices || len(v.Hooks) > maxHooks {
			t.Errorf("%d notices are in force, %d hooks", len(v.Notices), len(v.Hooks))
		}
		kept := map[string]bool{}
		for _, n := range v.Notices {
			kept[n.ID] = true
		}
		if !kept["azure250/the one"] || !kept[requestID] {
			t.Errorf("kept without the earliest deadline or a person's drain: %v", kept)
		}
		if at := earliest.Add(-30 * time.Second); !v.Deadline.Equal(at.Round(0)) {
			t.Errorf("the deadline is %s, want %s", v.Deadline, at)
		}
		if lines := w.logged("\n"); v.Trouble["notices"] == "" || lines > 40 {
			t.Errorf("trouble %v, %d lines in 500 s", v.Trouble, lines)
		}
		if n := len(w.file); n == 0 || n > (256<<10) {
			t.Fatalf("the record has %d bytes", n)
		}

		// The next start has the same drain.
		l.kill()
		l = w.live()
		again := l.View()
		if again.Step != StepDraining || !again.Deadline.Equal(v.Deadline) || len(again.Notices) != len(v.Notices) {
			t.Errorf("after a restart: step %s, deadline %s, %d notices", again.Step, again.Deadline, len(again.Notices))
		}
	})
}

// A return to service is bounded as every notice, and has an id if its event has none.
func TestHostileResume(t *testing.T) {
	for id, want := range map[string]string{"": "event/resume", strings.Repeat("x", 1<<20): boundedID(strings.Repeat("x", 1<<20))} {
		m := NewRunner(newWorld(t).options())
		m.Notice(Notice{ID: id, Source: "event", Kind: Resume})
		must.Equal(t, fmt.Sprintf("%.40q", id), m.state.Start.ID, want)
	}
}

// Shortened ids stay different; a short id does not change.
func TestBoundedIDs(t *testing.T) {
	long := strings.Repeat("x", maxIDText)
	a, b := boundedID(long+"a"), boundedID(long+"b")
	if a == b || len(a) > maxIDText || boundedID(long+"a") != a || boundedID(long) != long {
		t.Errorf("%q, %q", a, b)
	}
}

// The stop time follows the applications, which come and go while the daemon runs.
func TestStopTimeFollows(t *testing.T) {
	var says time.Duration
	o := Options{StopTime: func() time.Duration { return says }}
	for _, tt := range []struct{ says, want time.Duration }{
		{3 * time.Minute, 3 * time.Minute}, {0, 90 * time.Second}, {-time.Second, 90 * time.Second}, {5 * time.Minute, 5 * time.Minute},
	} {
		if says = tt.says; o.stopTime() != tt.want {
			t.Errorf("%s: %s, want %s", tt.says, o.stopTime(), tt.want)
		}
	}
}
