// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/common"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
)

// errFirst is not a failure: a change needs two samples.
var errFirst = errors.New("nothing to compare with yet: it is the change since the look before")

const (
	limitsEvery = time.Minute
	diskEvery   = 10 * time.Second
	// sessionsEvery is the number of heartbeats for each count.
	sessionsEvery = 2
)

// Sample is one measurement. Unknown values are nil.
type Sample struct {
	At      time.Time
	Load    cluster.Load
	GPUs    GPUReading
	Session cluster.Sessions
	// Missing has reasons by reading: cpu, memory, network, disk, gpu, publishers, viewers, or sessions for both.
	Missing map[string]error
}

// SamplerOptions are the sources of a sampler.
type SamplerOptions struct {
	// Root is above /proc, /sys, /dev and AMSDir; default "/".
	Root string
	// AMSDir is the installation, whose volume is measured; "" measures none.
	AMSDir string
	// Open reads the installation. Until then, AMS's limits are those of a current release.
	Open func() (*ams.Installation, error)
	// State queries the service manager for the server's control group. A server that does not run has no sessions.
	State func(context.Context) (ams.State, error)
	// Streams returns MongoDB and this node's address; nil outside a cluster.
	Streams func() (Streams, string)
	// Own counts the agent's connections to the server.
	Own func() int
	// Edge: nothing is published here, so RTMP clients are viewers.
	Edge     func() bool
	Interval time.Duration
	Log      *slog.Logger
}

// Sampler measures changes since its last sample, so each series of heartbeats needs its own. It is safe for concurrent use.
type Sampler struct {
	opts    SamplerOptions
	sys     string
	proc    string
	env     common.EnvMap
	install *ams.Installation
	counter *sessionCounter
	watcher *GPUWatcher
	gpus    func() GPUReading

	mu      sync.Mutex
	cpu     cpuMeter
	network networkMeter
	// Slow sources have their own goroutines.
	disk     latest[*int]
	limits   latest[serverLimits]
	sessions latest[sessionCount]
}

type sessionCount struct {
	sessions cluster.Sessions
	missing  map[string]error
}

type serverLimits struct {
	memory  uint64 // bytes; 0 before the first look
	cpu     bool
	streams ams.Limits
}

// latest is the last result of a slow source.
type latest[T any] struct {
	every time.Duration
	ask   func(context.Context) (T, error) // nil without the source

	mu    sync.Mutex
	value T
	err   error
	at    time.Time // zero before the first
}

// A look that hangs is the last.
func (l *latest[T]) run(ctx context.Context) {
	for more := l.ask != nil; more; more = sleep.For(ctx, l.every) {
		l.look(ctx)
	}
}

func (l *latest[T]) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, staleAfter*l.every)
	defer cancel()
	v, err := l.ask(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value, l.err, l.at = v, err, time.Now()
}

// staleAfter is in intervals.
const staleAfter = 3

func (l *latest[T]) get() (v T, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ask == nil:
		return v, nil
	case l.at.IsZero():
		return v, errFirst
	case time.Since(l.at) > staleAfter*l.every:
		return v, errors.New("no answer in time")
	}
	return l.value, l.err
}

// NewSampler does not measure yet.
func NewSampler(o SamplerOptions) *Sampler {
	root := cmp.Or(o.Root, "/")
	s := &Sampler{opts: o, proc: filepath.Join(root, "proc"), sys: filepath.Join(root, "sys")}
	// Set even the default: gopsutil would use HOST_PROC from the environment.
	s.env = common.EnvMap{common.HostProcEnvKey: s.proc, common.HostSysEnvKey: s.sys}
	s.limits.every, s.limits.ask = limitsEvery, s.readLimits
	s.disk.every = diskEvery
	if o.AMSDir != "" {
		s.disk.ask = func(context.Context) (*int, error) { return readDisk(filepath.Join(root, o.AMSDir)) }
	}
	s.counter = &sessionCounter{SamplerOptions: o, Network: ams.CheckNetwork}
	if root == "/" {
		s.counter.Connections = ams.EachConnection
	}
	s.sessions.every = sessionsEvery * cmp.Or(max(o.Interval, 0), cluster.DefaultInterval)
	s.sessions.ask = func(ctx context.Context) (n sessionCount, _ error) {
		n.sessions, n.missing = s.counter.count(ctx, openEvery, askEvery)
		return n, nil
	}
	s.watcher = NewGPUWatcher(root, o.Interval, o.Log)
	s.gpus = s.watcher.Latest
	return s
}

// Run reads the slow sources until ctx ends. If they hang, it waits only for nvidia-smi, and briefly.
func (s *Sampler) Run(ctx context.Context) {
	go s.limits.run(ctx)
	go s.disk.run(ctx)
	go s.sessions.run(ctx)
	s.watcher.Run(ctx)
}

// Sessions counts publishers and viewers with less caching; nil if not countable, with the causes as the error.
func (s *Sampler) Sessions(ctx context.Context) (cluster.Sessions, error) {
	n, missing := s.counter.count(ctx, drainEvery, drainEvery)
	var err error
	for _, what := range slices.Sorted(maps.Keys(missing)) {
		err = errors.Join(err, fmt.Errorf("%s: %w", what, missing[what]))
	}
	return n, err
}

// readLimits keeps unreadable limits, as while the server does not run.
func (s *Sampler) readLimits(ctx context.Context) (serverLimits, error) {
	l := s.limits.value // only this goroutine writes it
	// Opening the installation costs memory.
	if s.opts.Open != nil && (s.install == nil || s.install.Outdated()) {
		s.install, _ = s.opts.Open()
		if s.install != nil && s.install.ServerErr == nil {
			l.streams = s.install.Limits
		}
	}
	if s.opts.State != nil {
		st, err := s.opts.State(ctx)
		if err == nil && (st.MainPID > 0 || s.limits.at.IsZero()) {
			if memory, cpu, err := s.readGroupLimits(st.MainPID); err == nil {
				l.memory, l.cpu = memory, cpu != noLimit
			}
		}
	}
	return l, nil
}

// Sample measures once, without waiting.
func (s *Sampler) Sample(ctx context.Context) Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Sample{At: time.Now(), Missing: map[string]error{}}
	load := &out.Load
	miss := func(what string, err error) {
		if err != nil {
			out.Missing[what] = err
		}
	}
	// gopsutil gets the root by its context. None of these files can hang.
	local := context.WithValue(context.WithoutCancel(ctx), common.EnvKey, s.env)
	// AMS and the kernel use the limits of its control group: the machine's figures would be too low.
	limits, _ := s.limits.get()
	cpu, err := s.cpu.read(local)
	if err == nil && limits.cpu {
		cpu, err = nil, errors.New("the server's control group has a CPU limit (cpu.max), of which the use is not read")
	}
	miss("cpu", err)
	load.CPU = cpu
	load.NetRx, load.NetTx, err = s.network.read(local, s.sys)
	miss("network", err)
	memory, total, err := readMemory(local)
	limited := limits.memory != 0 && limits.memory < total
	if limited {
		memory = nil
		err = errors.New("the server's control group has a memory limit (memory.max), of which the use is not read")
	}
	miss("memory", err)
	load.Mem = memory
	load.Disk, err = s.disk.get()
	miss("disk", err)
	n, err := s.sessions.get()
	miss("sessions", err)
	out.Session = n.sessions
	maps.Copy(out.Missing, n.missing)
	out.GPUs = s.gpus()
	if out.GPUs.Reason != "" {
		miss("gpu", errors.New(out.GPUs.Reason))
	}
	load.GPUs = out.GPUs.Devices
	if !limits.cpu && !limited {
		load.Score = score(*load, limits.streams)
	}
	return out
}

// percent is a whole number from 0 to 100; nil for NaN or a total of 0.
func percent(part, total float64) *int {
	p := part / total * 100
	if math.IsNaN(p) || total <= 0 {
		return nil
	}
	n := int(math.Round(min(max(p, 0), 100)))
	return &n
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
