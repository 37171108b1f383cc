// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// The daemon's count decides whether a leave cuts sessions: unknown is not zero (review night-shift A8).
func TestLeaveAsksForSessions(t *testing.T) {
	t.Parallel()
	sessions := func(publishers, viewers, peers *int) *cluster.Sessions {
		return &cluster.Sessions{Publishers: publishers, Viewers: viewers, Peers: peers, By: cluster.CountedByAMS}
	}
	streams := sessions(new(0), new(0), new(0))
	streams.PublishersBy = cluster.CountedByConnections // SRT has no connections
	for name, tt := range map[string]struct {
		count *cluster.Sessions // nil: no daemon
		phase Phase
		now   bool
		// The result: a refusal, or a warning.
		refused, warned bool
	}{
		"none":              {count: sessions(new(0), new(0), new(0)), phase: PhaseJoined},
		"viewers":           {count: sessions(new(0), new(5), new(0)), phase: PhaseJoined, refused: true},
		"publishers":        {count: sessions(new(1), nil, nil), phase: PhaseJoined, refused: true},
		"other nodes":       {count: sessions(new(0), new(0), new(3)), phase: PhaseJoined, refused: true},
		"viewers, unknown":  {count: sessions(new(0), nil, nil), phase: PhaseJoined, refused: true},
		"streams, unknown":  {count: streams, phase: PhaseJoined, refused: true},
		"no daemon":         {phase: PhaseJoined, refused: true},
		"no daemon, now":    {phase: PhaseJoined, now: true},
		"a damaged state":   {phase: "", refused: true},
		"streams, leaving":  {count: streams, phase: PhaseLeaving, warned: true},
		"an unfinished one": {phase: PhaseLeaving, warned: true},
		"its viewers":       {count: sessions(new(0), new(5), new(0)), phase: PhaseLeaving, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := joinedTree(t)
			m.Service = runningService{}
			m.Sessions = func(context.Context) (cluster.Sessions, error) {
				if tt.count == nil {
					return cluster.Sessions{}, errors.New("no daemon answers")
				}
				return *tt.count, nil
			}
			if tt.phase == "" {
				must.OK(t, os.WriteFile(filepath.Join(m.Root, statePath), []byte("{"), 0o600))
			} else {
				change(t, m, func(s *State) { s.Phase = tt.phase })
			}
			res, err := m.Leave(t.Context(), LeaveRequest{DryRun: true, Now: tt.now})
			var refusal *PreflightError
			if errors.As(err, &refusal) != tt.refused || !tt.refused && err != nil || tt.refused && refusal.Findings[0].ID != idSessions {
				t.Errorf("refused %v, want %v", err, tt.refused)
			}
			warned := slices.ContainsFunc(res.Warnings, func(f Finding) bool { return f.ID == idSessions })
			if warned != tt.warned {
				t.Errorf("warnings %v", res.Warnings)
			}
		})
	}
}

// One look at connections proves nothing: a viewer of HLS has none between two requests. A leave looks as often as a drain.
func TestLeaveLooksForConnectionsAgain(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Service = runningService{}
	for viewersAt, refused := range map[int]bool{1: true, 7: true, connectionLooks: true, connectionLooks + 1: false} {
		synctest.Test(t, func(t *testing.T) {
			looks := 0
			m.Sessions = func(context.Context) (cluster.Sessions, error) {
				viewers := 0
				if looks++; looks == viewersAt {
					viewers = 1
				}
				return cluster.Sessions{Publishers: new(0), Viewers: &viewers, Peers: new(0), By: cluster.CountedByConnections}, nil
			}
			_, err := m.Leave(t.Context(), LeaveRequest{DryRun: true})
			if _, is := errors.AsType[*PreflightError](err); is != refused {
				t.Errorf("a viewer at look %d: refused %v", viewersAt, err)
			}
		})
	}
}

// A join that was interrupted is repeated by the daemon: unknown sessions warn then, and do not stop it for ever.
func TestInterruptedJoinIsNotRefused(t *testing.T) {
	t.Parallel()
	for phase, refused := range map[Phase]bool{PhaseJoined: true, PhaseJoining: false} {
		m := joinedTree(t)
		m.Service = runningService{}
		m.Sessions = func(context.Context) (cluster.Sessions, error) {
			return cluster.Sessions{Publishers: new(0), Viewers: new(0), By: cluster.CountedByConnections, PublishersBy: cluster.CountedByConnections}, nil
		}
		install, err := m.open()
		must.OK(t, err)
		j := &joiner{Machine: m, facts: &facts{install: install, state: &State{Phase: phase, WasJoined: true, RestartPending: true}}, result: &JoinResult{}}
		err = j.refuseSessions(t.Context())
		refusal, is := errors.AsType[*PreflightError](err)
		if found := is && slices.ContainsFunc(refusal.Findings, func(f Finding) bool { return f.ID == idSessions }); found != refused {
			t.Errorf("%s: %v", phase, err)
		}
	}
}

// A server refuses tokens in its first seconds: a join or a leave right after its start waits for the count. An older one that
// gives none is not waited for.
func TestYoungServerIsAskedAgain(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	edit(t, m, serverFile, "server.jwtServerControlEnabled=false", "server.jwtServerControlEnabled=true")
	edit(t, m, serverFile, "server.jwtServerSecretKey=", "server.jwtServerSecretKey=hush")
	for name, tt := range map[string]struct {
		age      time.Duration // of the server, at the first question
		counted  bool
		question int // the one that is answered
	}{
		"just started":           {counted: true, question: 20},
		"it refuses for a while": {age: 20 * time.Second, question: 1000},
		"an hour old":            {age: time.Hour, question: 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			m.Service = serviceIn{state: ams.State{Activity: ams.ActivityActive, Started: time.Now().Add(-tt.age)}}
			questions := 0
			m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
				body, code := "App context not running yet", http.StatusForbidden
				if questions++; questions >= tt.question {
					body, code = `{"localLiveStreams":0,"localWebRTCViewers":0,"localHLSViewers":0,"localDASHViewers":0}`, http.StatusOK
				}
				return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(body))}, nil
			})}
			_, err := m.Leave(t.Context(), LeaveRequest{DryRun: true})
			if _, refused := errors.AsType[*PreflightError](err); refused == tt.counted {
				t.Errorf("%s: after %d questions: %v", name, questions, err)
			}
			if limit := int(usualStart/time.Second) + 1; questions > limit {
				t.Errorf("%s: %d questions, at most %d", name, questions, limit)
			}
		})
	}
}

// serviceIn is a server in one state.
type serviceIn struct {
	ams.None
	state ams.State
}

func (s serviceIn) State(context.Context) (ams.State, error) { return s.state, nil }
