// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/conf"
)

// TestStateEqual: two readings of one file are equal, whatever is behind a pointer,
// and each field counts.
func TestStateEqual(t *testing.T) {
	const text = `{"version":1,"phase":"joined","instance_id":"i","address":"10.0.0.3","since":"2026-11-21T12:00:00Z",
		"restart":{"by":"amsagent converge","since":"2026-11-21T12:00:00Z","cause":"c","values":[{"path":"/p","key":"k","old":"a","new":"b"}]},
		"restarts":{"last":"2026-11-21T11:00:00Z","causes":["c"]}}`
	read := func() *State {
		t.Helper()
		s := &State{}
		if err := json.Unmarshal([]byte(text), s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	var none *State
	if !read().Equal(read()) || !none.Equal(nil) || none.Equal(read()) || read().Equal(nil) {
		t.Error("two readings differ, or none is one")
	}
	for name, change := range map[string]func(*State){
		"phase":         func(s *State) { s.Phase = PhaseLeaving },
		"role":          func(s *State) { s.Role = "edge" },
		"pending":       func(s *State) { s.RestartPending = true },
		"no restart":    func(s *State) { s.Restart = nil },
		"by":            func(s *State) { s.Restart.By = "the daemon" },
		"values":        func(s *State) { s.Restart.Values = []conf.Difference{{Path: "/p", Key: "k", Old: "a", New: "c"}} },
		"cause":         func(s *State) { s.Restart.Cause = "" },
		"restart since": func(s *State) { s.Restart.Since = s.Since.Add(1) },
		"no restarts":   func(s *State) { s.Restarts = nil },
		"last":          func(s *State) { s.Restarts.Last = s.Since },
		"causes":        func(s *State) { s.Restarts.Causes = nil },
		"since":         func(s *State) { s.Since = s.Since.Add(1) },
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

// The server's user decides how many values differ, and must not make the state file so
// large that it is not read again.
func TestPendingValuesBounded(t *testing.T) {
	var values []conf.Difference
	for i := range 4096 {
		values = append(values, conf.Difference{Path: fmt.Sprintf("/webapps/%d/%s", i, strings.Repeat("x", 255)), Key: "db.host", Old: strings.Repeat("x", 256), New: strings.Repeat("y", 256)})
	}
	k := &converger{}
	k.pend(values, "cause")
	k.pend(values, "cause")
	if n := len(k.state.Restart.Values); n != maxPendingValues {
		t.Errorf("%d values are kept", n)
	}
	store := &conf.Store{Root: t.TempDir(), Dir: StateDir}
	if err := saveState(store, k.state); err != nil {
		t.Fatal(err)
	}
	if s, err := loadState(store); err != nil || s == nil {
		t.Errorf("%v, %v", s, err)
	}
}
