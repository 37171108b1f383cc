// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
)

type answering struct {
	state ams.State
	err   error
	n     int
}

func (a *answering) State(context.Context) (ams.State, error) {
	a.n++
	return a.state, a.err
}

// How often the service manager is asked for the server's process, in ten minutes
// of beats.
func TestMainPID(t *testing.T) {
	for name, c := range map[string]struct {
		answering
		pid, asked int
	}{
		"it runs":                   {answering{state: ams.State{Activity: ams.ActivityActive, MainPID: 812}}, 812, 40},
		"it does not run":           {answering{state: ams.State{Activity: ams.ActivityInactive}}, 0, 40},
		"it runs, without a number": {answering{state: ams.State{Activity: ams.ActivityActive}}, 0, 2},
		"nobody tells":              {answering{state: ams.State{Activity: ams.ActivityUnknown}}, 0, 120},
		"a failure":                 {answering{err: errors.New("no bus")}, 0, 120},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := c.answering
				m := &mainPID{service: &service}
				fails := service.err != nil || !service.state.Known()
				for range 120 {
					pid, err := m.get(t.Context())
					if pid != c.pid || (err != nil) != fails {
						t.Errorf("%d, %v", pid, err)
					}
					pause(t.Context(), 5*time.Second)
				}
				if service.n != c.asked {
					t.Errorf("asked %d times, want %d", service.n, c.asked)
				}
			})
		})
	}
}

// A cause that is put in other words at each try is told once a minute.
func TestThrottle(t *testing.T) {
	var log throttle
	at, lines := time.Unix(1_800_000_000, 0), 0
	for i := range 120 {
		if log.allows(fmt.Sprint("try ", i), at.Add(time.Duration(i)*time.Second)) {
			lines++
		}
	}
	if lines != 2 {
		t.Errorf("%d lines in two minutes", lines)
	}
	if log.allows("try 60", at.Add(time.Hour)) {
		t.Error("the same words again")
	}
}
