// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
)

// MachineOptions are what looks at a real machine.
type MachineOptions struct {
	Root, AMSDir string
	// Service tells which process AMS is.
	Service interface {
		State(context.Context) (ams.State, error)
	}
	// Open looks at the installation.
	Open func() (*ams.Installation, error)
	// Own is how many connections to the server are the agent's; nil: none.
	Own      func() int
	Interval time.Duration
	Log      *slog.Logger
}

// The service manager is asked which process the server is while there is none;
// a process that runs is looked at itself. One that runs and is not told of is
// asked for as seldom as one that is: some commands know no processes.
const (
	pidEvery     = 15 * time.Second
	pidlessEvery = 5 * time.Minute
)

// NewMachineSampler puts together what package heartbeat has for it.
func NewMachineSampler(o MachineOptions, client func() *cluster.Client, node func() cluster.Node) Sampler {
	gpus := heartbeat.NewGPUWatcher(heartbeat.GPUOptions{Root: o.Root, Interval: o.Interval, Log: o.Log})
	sessions := &heartbeat.SessionCounter{
		Open: o.Open, Root: o.Root, State: o.Service.State, Own: o.Own,
		Edge: func() bool { return node().Role == "edge" },
		Streams: func() (heartbeat.Streams, string) {
			if c := client(); c != nil {
				return c, node().IP
			}
			return nil, ""
		},
	}
	pid := &mainPID{service: o.Service}
	s := &machineSampler{gpus: gpus, sessions: sessions, open: o.Open, root: o.Root}
	s.Sampler = heartbeat.NewSampler(heartbeat.SamplerOptions{
		Root: o.Root, AMSDir: o.AMSDir, AMSPID: pid.get, GPUs: gpus.Latest, Sessions: sessions.Count, Log: o.Log,
	})
	return s
}

type machineSampler struct {
	*heartbeat.Sampler
	gpus     *heartbeat.GPUWatcher
	sessions *heartbeat.SessionCounter
	open     func() (*ams.Installation, error)
	root     string
}

// Run keeps the watcher of the GPUs going and the limits up to date.
func (s *machineSampler) Run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(func() { _ = s.gpus.Run(ctx) }) // ends with ctx alone
	for {
		if in, err := s.open(); err == nil {
			if p, err := in.ServerSettings(); err == nil {
				s.SetLimits(heartbeat.ReadLimits(in.Release, p.Get))
			}
		}
		if !pause(ctx, limitsEvery) {
			break
		}
	}
	work.Wait()
}

// Sessions counts publishers and viewers now. What could not be counted is nil;
// the error says why.
func (s *machineSampler) Sessions(ctx context.Context) (cluster.Sessions, error) {
	n, missing := s.sessions.CountNow(ctx)
	var errs []error
	for _, m := range missing {
		errs = append(errs, fmt.Errorf("%s: %w", m.What, m.Err))
	}
	if len(errs) == 2 {
		return n, errors.Join(errs...)
	}
	return n, nil
}

// limitsEvery is how often AMS's own limits are read again.
const limitsEvery = 10 * time.Minute

// mainPID remembers the service's process for a while.
type mainPID struct {
	service interface {
		State(context.Context) (ams.State, error)
	}
	mu   sync.Mutex
	pid  int
	next time.Time // when to ask again
}

func (m *mainPID) get(ctx context.Context) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if now.Before(m.next) {
		return m.pid, nil
	}
	st, err := m.service.State(ctx)
	if err != nil {
		return 0, err
	}
	if !st.Known() {
		return 0, errors.New("nobody tells which process the server is")
	}
	m.pid, m.next = st.MainPID, now.Add(pidEvery)
	if st.Running() && st.MainPID == 0 {
		m.next = now.Add(pidlessEvery)
	}
	return m.pid, nil
}
