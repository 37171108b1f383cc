// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"log/slog"
	"time"
)

// SpotEnd tells news of the end of a spot machine from an end that is over, and keeps a wrong clock of the machine from
// moving the end. It belongs to one watch.
type SpotEnd struct {
	// Lead is how long before the end the cloud announces it.
	Lead time.Duration
	Log  *slog.Logger

	looked bool
	over   time.Time // an end that the machine has outlived
}

// staleAfter: clouds take a machine some minutes after the time they announced, if not then.
const staleAfter = time.Hour

// Look takes the end that the metadata announces at this look, zero for none, and returns when the machine ends by its own
// clock: between now and Lead from now. Zero is no end. signalled is what was returned for the end in force, zero for none.
//
// What appears while we watch is news, whatever the clock says. What was there at the first look and is long past is not:
// the machine was stopped and started again.
func (s *SpotEnd) Look(announced, signalled time.Time) time.Time {
	if !s.looked {
		s.looked, signalled = true, announced
	}
	if announced.IsZero() || announced.Equal(s.over) {
		return time.Time{}
	}
	now := time.Now()
	if !signalled.IsZero() && now.Sub(signalled) >= staleAfter {
		s.over = announced
		s.Log.Info("the announced end of this spot machine is long past, and nothing is done about it", "at", announced)
		return time.Time{}
	}
	left := announced.Sub(now)
	if in := min(max(0, left), s.Lead); in != left {
		return now.Add(in)
	}
	return announced
}
