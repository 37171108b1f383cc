// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/shirou/gopsutil/v4/common"

	"github.com/amsagent/amsagent/cluster"
)

// Values of [Missing.What]. The session counter names publishers and viewers.
const (
	whatCPU      = "cpu"
	whatMemory   = "memory"
	whatNetwork  = "network"
	whatDisk     = "disk"
	whatGPU      = "gpu"
	whatSessions = "sessions"
)

// ErrFirst means that a reading is the difference of two samples, and this was the first. It is not a failure.
var ErrFirst = errors.New("nothing to compare with yet: it is the change since the look before")

var (
	errNoAnswer = errors.New("no answer in time")
	errNoTime   = errors.New("no time has passed since the look before")
)

const (
	// limitsEvery and volumeEvery are the intervals of reading the server's control group and the volume.
	limitsEvery = time.Minute
	volumeEvery = 10 * time.Second
	// sessionsEvery is the number of heartbeats for each count of sessions.
	sessionsEvery = 2
	// maxProcFile bounds the files that are read whole.
	maxProcFile = 64 << 10
)

// SamplerOptions are the sources of a sampler. The zero value measures this machine, without AMS, GPUs and sessions: a
// source that is not set is not missing.
type SamplerOptions struct {
	// Root is above /proc, /sys and AMSDir; "" is the real root.
	Root string
	// AMSDir is the installation, whose volume is measured; "" measures none.
	AMSDir string

	// AMSPID returns the main process of the service, for the limits of its control group; 0 if none runs.
	AMSPID func(ctx context.Context) (int, error)
	// GPUs returns the latest reading. It must not wait.
	GPUs func() GPUReading
	// Sessions counts publishers and viewers, each second Interval.
	Sessions func(ctx context.Context) (cluster.Sessions, []Missing)
	Interval time.Duration
	Now      func() time.Time
	Log      *slog.Logger
}

// Sampler measures the machine. Many readings are changes since the sample before, so each series of heartbeats needs
// its own. Its methods are safe for concurrent use.
type Sampler struct {
	opts SamplerOptions
	sys  string // of the root
	proc string
	env  common.EnvMap
	log  *slog.Logger

	mu      sync.Mutex
	score   Limits // AMS's limits for streams
	cpu     cpuMeter
	network networkMeter
	// Slow sources have their own goroutines.
	volume   latest[volume]
	limits   latest[groupLimits]
	sessions latest[sessionCount]
	// statfs is replaced in tests in which it hangs.
	statfs func(path string, to *syscall.Statfs_t) error

	readings map[string]*reading // that are missing
}

type sessionCount struct {
	sessions cluster.Sessions
	missing  []Missing
}

// latest is the last result of a slow source.
type latest[T any] struct {
	mu    sync.Mutex
	value T
	at    time.Time // zero before the first result
}

// run calls ask repeatedly until ctx ends; a call that hangs is the last one.
func (l *latest[T]) run(ctx context.Context, every time.Duration, now func() time.Time, ask func(context.Context) T) {
	for ctx.Err() == nil {
		bound, cancel := context.WithTimeout(ctx, staleAfter*every)
		l.set(ask(bound), now())
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
}

func (l *latest[T]) set(v T, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value, l.at = v, at
}

// staleAfter is the number of intervals until a result expires.
const staleAfter = 3

// get returns the current result.
func (l *latest[T]) get(now time.Time, every time.Duration) (v T, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.at.IsZero():
		return v, ErrFirst
	case now.Sub(l.at) > staleAfter*every:
		return v, errNoAnswer
	}
	return l.value, nil
}

// NewSampler returns a sampler, without measuring yet.
func NewSampler(o SamplerOptions) *Sampler {
	o.Interval = cmp.Or(max(o.Interval, 0), cluster.DefaultInterval)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	root := cmp.Or(o.Root, "/")
	s := &Sampler{
		opts: o, proc: filepath.Join(root, "proc"), sys: filepath.Join(root, "sys"), log: o.Log, statfs: syscall.Statfs,
		readings: map[string]*reading{},
	}
	// Set even the default: otherwise gopsutil would use HOST_PROC from the environment.
	s.env = common.EnvMap{common.HostProcEnvKey: s.proc, common.HostSysEnvKey: s.sys}
	return s
}

// SetLimits sets AMS's limits; until then those of a current release apply.
func (s *Sampler) SetLimits(l Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.score = l
}

// Run reads the slow sources until ctx ends. It does not wait for one that hangs.
func (s *Sampler) Run(ctx context.Context) {
	if s.opts.AMSDir != "" {
		go s.volume.run(ctx, volumeEvery, s.opts.Now, func(context.Context) volume { return s.readVolume() })
	}
	if s.opts.AMSPID != nil {
		go s.limits.run(ctx, limitsEvery, s.opts.Now, s.readLimits)
	}
	if s.opts.Sessions != nil {
		go s.sessions.run(ctx, sessionsEvery*s.opts.Interval, s.opts.Now, func(ctx context.Context) sessionCount {
			n, missing := s.opts.Sessions(ctx)
			return sessionCount{n, missing}
		})
	}
	<-ctx.Done()
}

// Sample measures the machine once, without waiting. Unknown values are nil and named in [Sample.Missing].
func (s *Sampler) Sample(ctx context.Context) Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Sample{At: s.opts.Now()}
	miss := func(what string, err error) {
		if err != nil {
			out.Missing = append(out.Missing, Missing{What: what, Err: err})
		}
	}
	// gopsutil gets the root by its context. None of these files can hang.
	local := context.WithValue(context.WithoutCancel(ctx), common.EnvKey, s.env)
	limits, _ := s.limits.get(out.At, limitsEvery)
	cpu, err := s.cpu.read(local)
	if err == nil && limits.cpu {
		cpu, err = nil, errCPULimit
	}
	miss(whatCPU, err)
	out.CPU, out.Load.CPU = cpu, whole(cpu)
	out.Load.NetRx, out.Load.NetTx, err = s.network.read(local, s.sys, s.opts.Now)
	miss(whatNetwork, err)
	memory, err := readMemory(local, s.proc)
	limited := limits.memory != 0 && limits.memory < memory.total
	if err == nil && limited {
		err = errMemoryLimit
	}
	miss(whatMemory, err)
	if err == nil {
		out.MemTotal, out.MemUsed = &memory.total, &memory.used
		out.Load.Mem = whole(share(memory.used, memory.total))
	}
	if s.opts.AMSDir != "" {
		v, err := s.volume.get(out.At, volumeEvery)
		err = cmp.Or(err, v.err)
		miss(whatDisk, err)
		if err == nil {
			out.DiskTotal, out.DiskUsed = &v.total, &v.used
			out.Load.Disk = v.percent()
		}
	}
	if s.opts.Sessions != nil {
		n, err := s.sessions.get(out.At, sessionsEvery*s.opts.Interval)
		miss(whatSessions, err)
		out.Session = n.sessions
		out.Missing = append(out.Missing, n.missing...)
	}
	if s.opts.GPUs != nil {
		out.GPUs = s.opts.GPUs()
		if out.GPUs.State == GPUFailing || out.GPUs.State == GPUReady && out.GPUs.Reason != "" {
			miss(whatGPU, errors.New(cmp.Or(out.GPUs.Reason, "the devices cannot be read")))
		}
		out.Load.GPUs = gpuLoads(out.GPUs)
	}
	if !limits.cpu && !limited {
		out.Load.Score = score(&out, s.score)
	}
	s.report(ctx, out.At, out.Missing)
	return out
}

// reading is a missing one.
type reading struct {
	since  time.Time
	logged bool
}

// missingFor is the time until a missing reading is logged: a restart of the server and an election of MongoDB take
// less.
const missingFor = 30 * time.Second

// report logs readings that are missing for long, and their return.
func (s *Sampler) report(ctx context.Context, now time.Time, missing []Missing) {
	gone := map[string]bool{}
	for _, m := range missing {
		if errors.Is(m.Err, ErrFirst) || errors.Is(m.Err, errNoTime) || errors.Is(m.Err, errNotMember) {
			continue // the operator cannot fix these
		}
		gone[m.What] = true
		r := s.readings[m.What]
		if r == nil || now.Before(r.since) { // the clock was set back
			r = &reading{since: now}
			s.readings[m.What] = r
		}
		if !r.logged && now.Sub(r.since) >= missingFor {
			r.logged = true
			s.log.WarnContext(ctx, "a reading is missing", "reading", m.What, "since", r.since, "error", m.Err)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(s.readings)) {
		if gone[what] {
			continue
		}
		if s.readings[what].logged {
			s.log.InfoContext(ctx, "a reading is back", "reading", what)
		}
		delete(s.readings, what)
	}
}

// whole rounds a percentage for the heartbeat: 0 to 100.
func whole(p *float64) *int {
	if p == nil || math.IsNaN(*p) {
		return nil
	}
	n := int(math.Round(min(max(*p, 0), 100)))
	return &n
}

// share returns part of total in percent; nil for a total of 0.
func share(part, total uint64) *float64 {
	if total == 0 {
		return nil
	}
	p := float64(part) / float64(total) * 100
	return &p
}

// gpuLoads returns the devices for the heartbeat.
func gpuLoads(r GPUReading) []cluster.GPULoad {
	if r.State != GPUReady || len(r.Devices) == 0 {
		return nil
	}
	loads := make([]cluster.GPULoad, 0, len(r.Devices))
	for _, d := range r.Devices {
		loads = append(loads, cluster.GPULoad{Name: d.Name, Util: whole(d.Util), Enc: whole(d.Enc), Dec: whole(d.Dec), Mem: whole(d.memory())})
	}
	return loads
}

// memory returns the used share of a device's memory.
func (g GPU) memory() *float64 {
	if g.MemUsed == nil || g.MemTotal == nil {
		return nil
	}
	return share(*g.MemUsed, *g.MemTotal)
}

// readFile reads a file of /proc or /sys, which have no size. A pipe in its place, as in a test's tree, does not block
// it.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Most files fit, and take one read and one that finds the end.
	b := make([]byte, 0, 1024)
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, err
		case len(b) > maxProcFile:
			return nil, fmt.Errorf("%s is larger than %d bytes", name, maxProcFile)
		case len(b) == cap(b):
			b = slices.Grow(b, cap(b))
		}
	}
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
