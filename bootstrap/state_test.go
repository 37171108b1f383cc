// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// TestStateEqual: two readings of one file are equal, and each field counts.
func TestStateEqual(t *testing.T) {
	t.Parallel()
	const text = `{"version":1,"phase":"joined","instance_id":"i","address":"10.0.0.3","since":"2026-11-21T12:00:00Z"}`
	read := func() *State {
		t.Helper()
		s := &State{}
		must.OK(t, json.Unmarshal([]byte(text), s))
		return s
	}
	var none *State
	if !read().Equal(read()) || !none.Equal(nil) || none.Equal(read()) || read().Equal(nil) {
		t.Error("two readings differ, or none is one")
	}
	for name, change := range map[string]func(*State){
		"phase":   func(s *State) { s.Phase = PhaseLeaving },
		"role":    func(s *State) { s.Role = "edge" },
		"pending": func(s *State) { s.RestartPending = true },
		"start":   func(s *State) { s.Start = true },
		"since":   func(s *State) { s.Since = s.Since.Add(1) },
	} {
		s := read()
		if change(s); s.Equal(read()) || read().Equal(s) {
			t.Errorf("%s does not count", name)
		}
	}
	s := read()
	s.Since = s.Since.In(time.FixedZone("", 3600))
	if !s.Equal(read()) {
		t.Error("one time in two zones differs")
	}
}
