// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
)

// fakeService is a server under a service manager. A stop and a start change its state. The calls have the names `state`,
// `stop`, `start` and `reload`.
type fakeService struct {
	ams.None
	state ams.State
	fails map[string]error // by call
	hangs bool             // a question for its state waits for the end of its context
	// ending is how many questions for its state a server that is stopping still gets, and late is that after a stop.
	ending, late int
	// save, if not nil, is the end of the server: it writes its settings as it had read them.
	save func()
	// on, if not nil, comes before each call. Its error replaces the call. Before `state` it is alone with the fields.
	on      func(call string) error
	booting bool     // the machine has not reached sysinit.target
	calls   []string // all but `state`

	mu sync.Mutex
}

var (
	isUp   = ams.State{Activity: ams.ActivityActive, MainPID: 1}
	isDown = ams.State{Activity: ams.ActivityInactive}
)

// running is a server that has been running for an hour.
func running() *fakeService {
	return &fakeService{state: ams.State{Activity: ams.ActivityActive, StopTimeout: time.Second, Started: time.Now().Add(-time.Hour)}}
}

func (s *fakeService) did() string { return strings.Join(s.calls, " ") }

// called returns the error of a call. A manager does nothing for a context that has ended.
func (s *fakeService) called(ctx context.Context, call string) error {
	if call != "state" {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.mu.Lock()
		s.calls = append(s.calls, call)
		s.mu.Unlock()
	}
	if s.on == nil {
		return s.fails[call]
	}
	return cmp.Or(s.on(call), s.fails[call])
}

func (s *fakeService) State(ctx context.Context) (ams.State, error) {
	if s.hangs {
		<-ctx.Done()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.called(ctx, "state"); err != nil {
		return ams.State{}, err
	}
	if s.ending == 0 {
		return s.state, nil
	}
	if s.ending--; s.ending == 0 {
		s.end()
	}
	return ams.State{Activity: ams.ActivityDeactivating, MainPID: 1}, nil
}

func (s *fakeService) Stop(ctx context.Context) error {
	err := s.called(ctx, "stop")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending = max(s.ending, s.late); err == nil && s.ending == 0 {
		s.end()
	}
	return err
}

func (s *fakeService) end() {
	if s.state = isDown; s.save != nil {
		s.save()
	}
}

func (s *fakeService) Start(ctx context.Context) error {
	if err := s.called(ctx, "start"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending > 0 {
		s.end() // the one that has not ended yet
	}
	s.state, s.ending = isUp, 0
	return nil
}

func (s *fakeService) Reload(ctx context.Context) error             { return s.called(ctx, "reload") }
func (s *fakeService) SystemStarting(context.Context) (bool, error) { return s.booting, nil }
