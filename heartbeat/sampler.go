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
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/shirou/gopsutil/v4/common"

	"github.com/amsagent/amsagent/cluster"
)

// What a sample may have to say is missing, as in [Missing.What]. Publishers
// and viewers are named by whoever counts them.
const (
	whatCPU      = "cpu"
	whatMemory   = "memory"
	whatNetwork  = "network"
	whatDisk     = "disk"
	whatGPU      = "gpu"
	whatSessions = "sessions"
)

// ErrFirst says that a reading is a difference of two looks, and this was the
// first of them. It is no failure: the next sample has it.
var ErrFirst = errors.New("nothing to compare with yet: it is the change since the look before")

var (
	errNoAnswer = errors.New("no answer in time; it is used when it comes")
	errNoTime   = errors.New("no time has passed since the look before")
)

const (
	// defaultWait is how long a sample waits for what may be slow. Together with
	// the write it has to fit into a beat, and the shortest one is a second.
	defaultWait = 500 * time.Millisecond
	// askLimit bounds a question that is still open when its sample is long
	// gone. It is longer than a beat on purpose: an answer that takes seconds
	// each time is better late than never.
	askLimit = 20 * time.Second
	// pidEvery is after how long AMSPID is asked again although the process that it
	// told of is still there: asking a service manager costs more than the rest of a
	// sample, and a main process that lives stays the main process but in odd units.
	pidEvery = 5 * time.Minute
	// maxProcFile is more than any file we read whole ourselves. What is larger
	// is not what its name says.
	maxProcFile = 64 << 10
)

// SamplerOptions say where to look and whom to ask. The zero value looks at
// this machine and knows nothing of AMS, of GPUs and of sessions: what nobody
// was named for is not asked for, and is not missing.
type SamplerOptions struct {
	// Root is what /proc, /sys and AMSDir are below; "" is the real root.
	Root string
	// AMSDir is the installation, for the volume that it is on; "" measures none.
	AMSDir string

	// AMSPID returns the main process of the service, for the limits of its control group; 0 if none runs. It is
	// asked when that process has ended, and now and then.
	AMSPID func(ctx context.Context) (int, error)
	// GPUs tells the latest word about the devices. It must not wait.
	GPUs func() GPUReading
	// Sessions counts publishers and viewers. Like AMSPID it is called by a
	// goroutine of its own, one call at a time; its ctx ends after 20 seconds.
	Sessions func(ctx context.Context) (cluster.Sessions, []Missing)

	// Wait is how long a sample waits for the volume, AMSPID and Sessions; 0 is
	// half a second. What comes later belongs to the next sample.
	Wait time.Duration
	Now  func() time.Time
	Log  *slog.Logger
}

// Sampler looks at the machine. Much of what it tells is a change since the
// look before, so there is one of it for one series of beats. Its methods may
// be called by several goroutines at once.
type Sampler struct {
	opts SamplerOptions
	proc string // of the root
	sys  string
	env  common.EnvMap
	log  *slog.Logger

	// mu is held for a whole sample, which Wait bounds.
	mu      sync.Mutex
	limits  Limits // where AMS refuses streams
	cpu     cpuMeter
	network networkMeter

	volume   ask[volume]
	pid      ask[pidAnswer]
	server   int       // the server's process, as it was last returned
	pidAt    time.Time // when it was
	limited  struct{ memory, cpu bool }
	sessions ask[sessionsAnswer]
	// statfs is the system's own, but for tests in which it hangs.
	statfs func(path string, to *syscall.Statfs_t) error

	readings map[string]*reading // that are missing
}

type pidAnswer struct {
	pid int
	err error
}

type sessionsAnswer struct {
	sessions cluster.Sessions
	missing  []Missing
}

// NewSampler makes a sampler. It does not look yet.
func NewSampler(o SamplerOptions) *Sampler {
	if o.Wait <= 0 {
		o.Wait = defaultWait
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	root := cmp.Or(o.Root, "/")
	s := &Sampler{
		opts:   o,
		proc:   filepath.Join(root, "proc"),
		sys:    filepath.Join(root, "sys"),
		log:    o.Log,
		statfs: syscall.Statfs,

		readings: map[string]*reading{},
	}
	// Said even where it is the default: gopsutil would otherwise take HOST_PROC
	// from the environment, which is not ours to read.
	s.env = common.EnvMap{common.HostProcEnvKey: s.proc, common.HostSysEnvKey: s.sys}
	return s
}

// SetLimits says where AMS refuses streams; until then it is where a current release
// does.
func (s *Sampler) SetLimits(l Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits = l
}

// Sample looks at the machine once. It returns within [SamplerOptions.Wait]
// and some milliseconds, whatever hangs, and earlier when ctx ends; what it
// could not read is nil and named in [Sample.Missing].
func (s *Sampler) Sample(ctx context.Context) Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Sample{At: s.opts.Now()}
	miss := func(what string, err error) {
		if err != nil {
			out.Missing = append(out.Missing, Missing{What: what, Err: err})
		}
	}

	// What may be slow is asked first, all at once, and looked for last.
	if s.opts.AMSDir != "" {
		s.volume.start(ctx, s.readVolume)
	}
	asksPID := s.opts.AMSPID != nil &&
		(s.server <= 0 || !within(pidEvery, s.pidAt, out.At) || !exists(filepath.Join(s.proc, strconv.Itoa(s.server))))
	if asksPID {
		s.pid.start(ctx, func(ctx context.Context) pidAnswer {
			pid, err := s.opts.AMSPID(ctx)
			return pidAnswer{pid, err}
		})
	}
	if s.opts.Sessions != nil {
		s.sessions.start(ctx, func(ctx context.Context) sessionsAnswer {
			sessions, missing := s.opts.Sessions(ctx)
			return sessionsAnswer{sessions, missing}
		})
	}
	waiting, cancel := context.WithTimeout(ctx, s.opts.Wait)
	defer cancel()

	// gopsutil is told of the root by its context. None of these files can hang.
	local := context.WithValue(context.WithoutCancel(ctx), common.EnvKey, s.env)
	memory, memoryErr := readMemory(local, s.proc)
	if asksPID {
		if answer, err := s.pid.take(waiting); err == nil && answer.err == nil {
			s.server, s.pidAt = answer.pid, out.At
		}
	}
	// The limits of a process that is not there any more hold until there is another one.
	if memory, cpu, err := readLimits(s.proc, s.sys, s.server, memory.total); err == nil {
		s.limited.memory, s.limited.cpu = memory, cpu
	}
	cpu, err := s.cpu.read(local, s.proc, s.opts.Now)
	if err == nil && s.limited.cpu {
		cpu, err = nil, errCPULimit
	}
	miss(whatCPU, err)
	out.CPU, out.Load.CPU = cpu, whole(cpu)
	rx, tx, err := s.network.read(local, s.sys, s.opts.Now)
	miss(whatNetwork, err)
	out.Load.NetRx, out.Load.NetTx = rx, tx

	if memoryErr == nil && s.limited.memory {
		memoryErr = errMemoryLimit
	}
	miss(whatMemory, memoryErr)
	if memoryErr == nil {
		out.MemTotal, out.MemUsed = &memory.total, &memory.used
		out.Load.Mem = whole(share(memory.used, memory.total))
	}

	if s.opts.AMSDir != "" {
		v, err := s.volume.take(waiting)
		if err == nil {
			err = v.err
		}
		miss(whatDisk, err)
		if err == nil {
			out.DiskTotal, out.DiskUsed = &v.total, &v.used
			out.Load.Disk = v.percent()
		}
	}
	if s.opts.Sessions != nil {
		answer, err := s.sessions.take(waiting)
		miss(whatSessions, err)
		if err == nil {
			out.Session = answer.sessions
			out.Missing = append(out.Missing, answer.missing...)
		}
	}
	if s.opts.GPUs != nil {
		out.GPUs = s.opts.GPUs()
		switch state, reason := out.GPUs.State, out.GPUs.Reason; {
		case state == GPUFailing:
			miss(whatGPU, errors.New(cmp.Or(reason, "the devices cannot be read")))
		case state == GPUReady && reason != "": // some of them
			miss(whatGPU, errors.New(reason))
		}
		out.Load.GPUs = gpuLoads(out.GPUs)
	}
	if !s.limited.memory && !s.limited.cpu {
		out.Load.Score = score(&out, s.limits)
	}
	s.report(ctx, out.At, out.Missing)
	return out
}

// reading is one that is missing.
type reading struct {
	since  time.Time
	logged bool
}

// missingFor is how long a reading is missing before the log says so: a restart of the server and an election of
// MongoDB take less.
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

// ask is a question that may take longer than a sample can wait: to a server,
// or to a volume whose own server is gone. At most one is open at a time, and
// an answer that comes late is the next sample's.
type ask[T any] struct {
	answer chan T // nil where none is open; has room for the answer
	cancel context.CancelFunc
	old    bool // the open one is from an earlier sample, and had its time
	late   *T
}

// start asks, unless the last question is still open.
func (a *ask[T]) start(ctx context.Context, question func(context.Context) T) {
	a.late = nil
	if a.answer != nil {
		select {
		case late := <-a.answer:
			a.late = &late
			a.stop()
		default:
			a.old = true
			return
		}
	}
	// It outlives the sample that asked.
	ctx, a.cancel = context.WithTimeout(context.WithoutCancel(ctx), askLimit)
	answer := make(chan T, 1)
	a.answer, a.old = answer, false
	go func() { answer <- question(ctx) }()
}

// take returns the answer, else one that came late, else an error. It waits for
// a question that this sample asked, and not for one that an earlier sample
// waited for already.
func (a *ask[T]) take(ctx context.Context) (T, error) {
	// Looked at first: the time may have run out while another was waited for.
	select {
	case v := <-a.answer:
		a.stop()
		return v, nil
	default:
	}
	if !a.old {
		select {
		case v := <-a.answer:
			a.stop()
			return v, nil
		case <-ctx.Done():
		}
	}
	if a.late != nil {
		return *a.late, nil
	}
	var none T
	return none, errNoAnswer
}

// stop forgets the open question.
func (a *ask[T]) stop() {
	if a.cancel != nil {
		a.cancel()
	}
	a.cancel = nil
	a.answer = nil
}

// whole makes a percentage what a beat tells: a whole one, 0 to 100.
func whole(p *float64) *int {
	if p == nil || math.IsNaN(*p) {
		return nil
	}
	n := int(math.Round(min(max(*p, 0), 100)))
	return &n
}

// share is part of total in percent, nil of nothing.
func share(part, total uint64) *float64 {
	if total == 0 {
		return nil
	}
	p := float64(part) / float64(total) * 100
	return &p
}

// gpuLoads is what a beat tells of the devices.
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

// memory is the share in use of a device's memory.
func (g GPU) memory() *float64 {
	if g.MemUsed == nil || g.MemTotal == nil {
		return nil
	}
	return share(*g.MemUsed, *g.MemTotal)
}

// readFile reads a file of /proc or /sys, which have no size to go by. A pipe
// in the place of one, as a tree made for a test may hold, does not make it wait.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Nearly all that we read fits, and takes one read and one that finds the end.
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
