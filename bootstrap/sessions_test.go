// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net/http"
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
			m := newTree(t, joined, serving(&fakeService{state: isUp}))
			m.Sessions = func(context.Context) (cluster.Sessions, error) {
				if tt.count == nil {
					return cluster.Sessions{}, errors.New("no daemon answers")
				}
				return *tt.count, nil
			}
			if tt.phase == "" {
				put(t, m, stateFile, "{")
			} else {
				change(t, m, func(s *State) { s.Phase = tt.phase })
			}
			res, err := m.Leave(t.Context(), LeaveRequest{DryRun: true, Now: tt.now})
			refusal, refused := errors.AsType[*PreflightError](err)
			if refused != tt.refused || !refused && err != nil || refused && refusal.Findings[0].ID != "AMS-SESSIONS" {
				t.Errorf("refused %v, want %v", err, tt.refused)
			}
			must.Equal(t, "a warning", strings.Contains(ids(res.Warnings), "AMS-SESSIONS"), tt.warned)
		})
	}
}

// One look at connections proves nothing: a viewer of HLS has none between two requests. A leave looks as often as a drain.
func TestLeaveLooksForConnectionsAgain(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined, serving(&fakeService{state: isUp}))
	for viewersAt, refused := range map[int]bool{1: true, 7: true, 10: true, 11: false} {
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

// A server refuses tokens in its first seconds: a join or a leave right after its start waits for the count. An older one that
// gives none is not waited for.
func TestYoungServerIsAskedAgain(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined, edited(serverFile, "server.jwtServerControlEnabled=false", "server.jwtServerControlEnabled=true"),
		edited(serverFile, "server.jwtServerSecretKey=", "server.jwtServerSecretKey=hush"))
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
			m.Service = &fakeService{state: ams.State{Activity: ams.ActivityActive, Started: time.Now().Add(-tt.age)}}
			questions := 0
			m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
				body, code := "App context not running yet", http.StatusForbidden
				if questions++; questions >= tt.question {
					body, code = `{"localLiveStreams":0,"localWebRTCViewers":0,"localHLSViewers":0,"localDASHViewers":0}`, http.StatusOK
				}
				return answer(code, body)
			})}
			_, err := m.Leave(t.Context(), LeaveRequest{DryRun: true})
			if _, refused := errors.AsType[*PreflightError](err); refused == tt.counted {
				t.Errorf("%s: after %d questions: %v", name, questions, err)
			}
			if limit := 61; questions > limit {
				t.Errorf("%s: %d questions, at most %d", name, questions, limit)
			}
		})
	}
}
