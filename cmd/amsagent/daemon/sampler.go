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

// MachineOptions configure the sampler of a real machine.
type MachineOptions struct {
	Root, AMSDir string
	Service      interface {
		State(context.Context) (ams.State, error)
	}
	Open func() (*ams.Installation, error)
	// Own is the number of the agent's connections to the server.
	Own      func() int
	Interval time.Duration
	Log      *slog.Logger
}

// NewMachineSampler returns a sampler of package heartbeat.
func NewMachineSampler(o MachineOptions, client func() *cluster.Client, node func() cluster.Node) Sampler {
	gpus := heartbeat.NewGPUWatcher(o.Root, o.Interval, o.Log)
	sessions := &heartbeat.SessionCounter{
		Open: o.Open, State: o.Service.State, Own: o.Own,
		Edge: func() bool { return node().Role == "edge" },
		Streams: func() (heartbeat.Streams, string) {
			if c := client(); c != nil {
				return c, node().IP
			}
			return nil, ""
		},
	}
	if o.Root == "" || o.Root == "/" {
		sessions.Connections = ams.CountConnections
	}
	s := &machineSampler{gpus: gpus, sessions: sessions}
	s.Sampler = heartbeat.NewSampler(heartbeat.SamplerOptions{
		Root: o.Root, AMSDir: o.AMSDir, Open: o.Open, State: o.Service.State, GPUs: gpus.Latest, Sessions: sessions.Count,
		Interval: o.Interval,
	})
	return s
}

type machineSampler struct {
	*heartbeat.Sampler
	gpus     *heartbeat.GPUWatcher
	sessions *heartbeat.SessionCounter
}

// Run does the slow reads.
func (s *machineSampler) Run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(func() { s.gpus.Run(ctx) })
	work.Go(func() { s.Sampler.Run(ctx) })
	work.Wait()
}

// Sessions counts publishers and viewers now; nil if not countable. The error has the causes if both are.
func (s *machineSampler) Sessions(ctx context.Context) (cluster.Sessions, error) {
	n, missing := s.sessions.CountNow(ctx)
	if n.Publishers == nil && n.Viewers == nil {
		return n, errors.Join(fmt.Errorf("publishers: %w", missing["publishers"]), fmt.Errorf("viewers: %w", missing["viewers"]))
	}
	return n, nil
}
