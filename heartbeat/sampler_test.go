// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/shirou/gopsutil/v4/common"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// machine is a case of testdata/machines: 1/ and 2/ are the machine's trees at two samples, five seconds apart, with the
// expected second sample. A name that ends in @ is a link. The lines before the first file describe the case; "ams: N"
// is the server's process.
type machine struct {
	dir  string // holds 1, 2 and root, a link to one of them
	pid  int
	want string
}

func openMachine(t testing.TB, file string) *machine {
	t.Helper()
	ar, err := txtar.ParseFile(file)
	must.OK(t, err)
	m := &machine{dir: t.TempDir()}
	for line := range strings.Lines(string(ar.Comment)) {
		if v, ok := strings.CutPrefix(line, "ams: "); ok {
			m.pid, err = strconv.Atoi(strings.TrimSpace(v))
			must.OK(t, err)
		}
	}
	for _, f := range ar.Files {
		if f.Name == "want" {
			m.want = string(f.Data)
			continue
		}
		name := filepath.Join(m.dir, f.Name)
		must.OK(t, os.MkdirAll(filepath.Dir(name), 0o755))
		if link, ok := strings.CutSuffix(name, "@"); ok {
			err = os.Symlink(strings.TrimSpace(string(f.Data)), link)
		} else {
			err = os.WriteFile(name, f.Data, 0o644)
		}
		must.OK(t, err)
	}
	m.look(t, 1)
	return m
}

// look switches the machine to sample n.
func (m *machine) look(t testing.TB, n int) {
	t.Helper()
	root := filepath.Join(m.dir, "root")
	_ = os.Remove(root)
	must.OK(t, os.Symlink(strconv.Itoa(n), root))
}

func (m *machine) options() SamplerOptions {
	o := SamplerOptions{Root: filepath.Join(m.dir, "root")}
	if m.pid != 0 {
		o.State = m.state
	}
	return o
}

// running returns a sampler that has asked its slow sources once. It runs until the end of the bubble.
func running(t *testing.T, o SamplerOptions) *Sampler {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	if o.Open == nil {
		o.Open = func() (*ams.Installation, error) { return nil, errors.New("no server") }
	}
	s := NewSampler(o)
	go s.Run(t.Context())
	synctest.Wait()
	return s
}

// inBubble runs a test of a sampler in fake time.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Parallel()
	synctest.Test(t, f)
}

type counts func(context.Context) (cluster.Sessions, map[string]error)

// newSampler returns a sampler without devices that counts sessions so, or not at all.
func newSampler(o SamplerOptions, sessions counts) *Sampler {
	o.Log = slog.New(slog.DiscardHandler)
	s := NewSampler(o)
	s.gpus = func() GPUReading { return GPUReading{State: GPUAbsent} }
	s.sessions.ask = nil
	if sessions != nil {
		s.sessions.ask = func(ctx context.Context) (n sessionCount, _ error) {
			n.sessions, n.missing = sessions(ctx)
			return n, nil
		}
	}
	return s
}

func (m *machine) state(context.Context) (ams.State, error) { return ams.State{MainPID: m.pid}, nil }

// ask does what the goroutines of Run do, once.
func (s *Sampler) ask() {
	s.limits.look(context.Background())
	if s.disk.ask != nil {
		s.disk.look(context.Background())
	}
	if s.sessions.ask != nil {
		s.sessions.look(context.Background())
	}
}

// describe formats a sample as in the cases. Of an error it keeps only the part in want, since it names files in a
// temporary folder.
func describe(s Sample, want string) string {
	var b strings.Builder
	missing := func(what string) bool {
		err := s.Missing[what]
		if err != nil {
			text := err.Error()
			for line := range strings.Lines(want) {
				expected, ok := strings.CutPrefix(strings.TrimSpace(line), what+" unknown: ")
				if ok && strings.Contains(text, expected) {
					text = expected
				}
			}
			fmt.Fprintf(&b, "%s unknown: %s", what, text)
		}
		return err != nil
	}
	if !missing("cpu") {
		fmt.Fprintf(&b, "cpu %d", *s.Load.CPU)
	}
	b.WriteByte('\n')
	if !missing("memory") {
		fmt.Fprintf(&b, "memory %d", *s.Load.Mem)
	}
	b.WriteByte('\n')
	if !missing("network") {
		fmt.Fprintf(&b, "network %d %d", *s.Load.NetRx, *s.Load.NetTx)
	}
	b.WriteByte('\n')
	if s.Load.Score == nil {
		b.WriteString("score unknown\n")
	} else {
		fmt.Fprintf(&b, "score %d\n", *s.Load.Score)
	}
	return b.String()
}

func TestMachines(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/machines/*.txtar")
	if err != nil || len(files) < 35 {
		t.Fatalf("%d machines, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				m := openMachine(t, file)
				s := running(t, m.options())
				first := s.Sample(t.Context())
				if first.Load.CPU != nil || first.Load.NetRx != nil {
					t.Errorf("the first sample knows a change: %v", first)
				}
				time.Sleep(5 * time.Second) // the clock of synctest: no time passes
				m.look(t, 2)
				second := s.Sample(t.Context())
				must.NoDiff(t, fmt.Sprint("the second sample, missing ", second.Missing), describe(second, m.want), m.want)
				checkConsistent(t, second)
			})
		})
	}
}

// checkConsistent checks every sample: a missing value is nil and has a reason, a present one is within its bounds and
// in the heartbeat.
func checkConsistent(t *testing.T, s Sample) {
	t.Helper()
	for _, r := range []struct {
		what  string
		known bool
	}{
		{"cpu", s.Load.CPU != nil},
		{"memory", s.Load.Mem != nil},
		{"network", s.Load.NetRx != nil && s.Load.NetTx != nil},
	} {
		must.Equal(t, r.what+" is missing", s.Missing[r.what] != nil, !r.known)
	}
	for _, p := range []*int{s.Load.CPU, s.Load.Mem, s.Load.Disk, s.Load.Score} {
		if p != nil && (*p < 0 || *p > 100) {
			t.Errorf("%d %%", *p)
		}
	}
}

// The limits of the server's group stay without a process, as during a restart, until there is another one.
func TestLimitsOfARestartedServer(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := openMachine(t, "testdata/machines/cgroup2-memorymax.txtar")
		var pid atomic.Int64
		pid.Store(int64(m.pid))
		o := m.options()
		o.State = func(context.Context) (ams.State, error) {
			if pid.Load() == 0 {
				return ams.State{}, errors.New("the bus is gone")
			}
			return ams.State{MainPID: int(pid.Load())}, nil
		}
		s := running(t, o)
		if got := s.Sample(t.Context()); got.Load.Mem != nil || got.Load.Score != nil || !missing(got, "memory", "memory limit") {
			t.Errorf("memory %v, missing %v", got.Load.Mem, got.Missing)
		}
		process := filepath.Join(m.dir, "1/proc/812")
		pid.Store(0)
		must.OK(t, os.Rename(process, process+"x"))
		elapse(time.Minute)
		synctest.Wait()
		must.Equal(t, "memory", s.Sample(t.Context()).Load.Mem, nil)
		must.OK(t, os.Rename(process+"x", filepath.Join(m.dir, "1/proc/813")))
		must.OK(t, os.Remove(filepath.Join(m.dir, "1/sys/fs/cgroup/system.slice/antmedia.service/memory.max")))
		pid.Store(813)
		elapse(time.Minute)
		synctest.Wait()
		if got := s.Sample(t.Context()); got.Load.Mem == nil || *got.Load.Mem != 20 {
			t.Errorf("memory %v, missing %v", got.Load.Mem, got.Missing)
		}
	})
}

// Unreadable files are missing readings.
func TestUnreadable(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := openMachine(t, "testdata/machines/linux-6.8-vm.txtar")
		s := running(t, m.options())
		s.Sample(t.Context())
		m.look(t, 2)
		for _, name := range []string{"stat", "meminfo", "net/dev", "812/cgroup"} {
			// A folder opens and cannot be read, for root too.
			name = filepath.Join(m.dir, "2/proc", name)
			must.OK(t, errors.Join(os.Remove(name), os.Mkdir(name, 0o755)))
		}
		got := s.Sample(t.Context())
		checkConsistent(t, got)
		for _, what := range []string{"cpu", "memory", "network"} {
			must.Equal(t, what+" is missing", got.Missing[what] != nil, true)
		}
		must.Equal(t, "score of nothing", got.Load.Score, nil)
	})
}

// After the counters started again there is one sample without a rate.
func TestNetworkAfterReset(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := openMachine(t, "testdata/machines/network-counter-reset.txtar")
		s := running(t, m.options())
		for i, want := range []string{"nothing to compare with yet", "started again", ""} {
			if i > 0 {
				m.look(t, 2)
				elapse(5 * time.Second)
			}
			got := s.Sample(t.Context())
			if want == "" && (got.Load.NetRx == nil || *got.Load.NetRx != 0) {
				t.Errorf("sample %d: %v", i, got.Missing)
			}
			if want != "" && (got.Load.NetRx != nil || !missing(got, "network", want)) {
				t.Errorf("sample %d: %v", i, got.Missing)
			}
		}
	})
}

func thisProcess(context.Context) (ams.State, error) { return ams.State{MainPID: os.Getpid()}, nil }

// The readings of this machine are plausible, and the third sample knows all.
func TestThisMachine(t *testing.T) {
	t.Parallel()
	s := newSampler(SamplerOptions{AMSDir: "/", State: thisProcess}, func(context.Context) (cluster.Sessions, map[string]error) {
		n := 3
		return cluster.Sessions{Publishers: &n}, map[string]error{"viewers": errors.New("no counter")}
	})
	s.ask()
	s.Sample(t.Context())
	burn(t, 100*time.Millisecond)
	got := s.Sample(t.Context())
	checkConsistent(t, got)
	if missing(got, "cpu", "CPU limit") || missing(got, "memory", "memory limit") {
		t.Skip("this container has a limit")
	}
	for _, check := range []struct {
		name string
		ok   bool
	}{
		{"cpu", got.Load.CPU != nil && *got.Load.CPU > 0},
		{"memory", got.Load.Mem != nil && *got.Load.Mem > 0},
		{"disk", got.Load.Disk != nil},
		{"sessions", *got.Session.Publishers == 3 && got.Session.Viewers == nil},
		{"gpus", got.GPUs.State == GPUAbsent && got.Load.GPUs == nil},
		{"score", got.Load.Score != nil},
	} {
		if !check.ok {
			t.Errorf("%s is not plausible: %s", check.name, describe(got, ""))
		}
	}
	for what, err := range got.Missing {
		// A sandbox may have no card.
		if what != "viewers" && what != "network" {
			t.Errorf("missing %s: %v", what, err)
		}
	}
	t.Logf("disk %d %% score %d\n%s", *got.Load.Disk, *got.Load.Score, describe(got, ""))
}

// burn uses so much processor time.
func burn(t *testing.T, d time.Duration) {
	t.Helper()
	for end := cpuTime(t) + d; cpuTime(t) < end; {
		_ = time.Now().String()
	}
}

// A source that hangs is asked once and delays no sample; other results are used for three of their intervals.
func TestSlowAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		hang := make(chan struct{})
		silent := false
		s := newSampler(SamplerOptions{Root: t.TempDir()}, func(ctx context.Context) (cluster.Sessions, map[string]error) {
			n := 7
			if asked.Add(1) == 1 {
				<-hang
			} else if silent {
				<-ctx.Done()
			}
			return cluster.Sessions{Viewers: &n}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.Run(ctx)
		for i := range 10 {
			synctest.Wait()
			start := time.Now()
			got := s.Sample(t.Context())
			if took := time.Since(start); took != 0 || got.Session.Viewers != nil || !missing(got, "sessions", "nothing to compare with yet") {
				t.Errorf("sample %d took %v: %v, missing %v", i, took, got.Session, got.Missing)
			}
			time.Sleep(5 * time.Second) // the clock of synctest: no time passes
		}
		must.Equal(t, "asked while the first call hung (times)", asked.Load(), 1)
		silent = true
		close(hang)
		synctest.Wait()
		if got := s.Sample(t.Context()); got.Session.Viewers == nil {
			t.Errorf("the late answer is not used, missing %v", got.Missing)
		}
		time.Sleep(25 * time.Second)
		if got := s.Sample(t.Context()); got.Session.Viewers == nil {
			t.Errorf("an answer of a moment ago is not used: %v", got.Missing)
		}
		time.Sleep(10 * time.Second)
		if got := s.Sample(t.Context()); got.Session.Viewers != nil || !missing(got, "sessions", "no answer in time") {
			t.Errorf("an old answer is used: %v", got.Session)
		}
	})
}

// One source that hangs does not delay the others.
func TestSourcesAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		s := newSampler(SamplerOptions{
			Root:  t.TempDir(),
			State: func(context.Context) (ams.State, error) { <-hang; return ams.State{}, nil },
		}, func(context.Context) (cluster.Sessions, map[string]error) {
			n := 7
			return cluster.Sessions{Viewers: &n}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		defer close(hang)
		go s.Run(ctx)
		for i := range 10 {
			synctest.Wait()
			start := time.Now()
			if got := s.Sample(t.Context()); time.Since(start) != 0 || got.Session.Viewers == nil {
				t.Errorf("sample %d took %v, viewers are not known: %v", i, time.Since(start), got.Missing)
			}
			time.Sleep(5 * time.Second)
		}
	})
}

func missing(s Sample, what, text string) bool {
	err := s.Missing[what]
	return err != nil && strings.Contains(err.Error(), text)
}

// The heartbeat has exactly what was read of the devices.
func TestGPULoads(t *testing.T) {
	t.Parallel()
	pct := func(n int) *int { return &n }
	devices := []cluster.GPULoad{{Util: pct(50), Enc: pct(100), Mem: pct(25)}, {}}
	for _, tt := range []struct {
		name    string
		reading GPUReading
		want    []cluster.GPULoad
		missing bool
	}{
		{"ready", GPUReading{State: GPUReady, Devices: devices}, devices, false},
		{"absent", GPUReading{State: GPUAbsent}, nil, false},
		{"pending", GPUReading{State: GPUPending}, nil, false},
		{"ready but for one of them", GPUReading{State: GPUReady, Reason: "GPU 1 has fallen off the bus", Devices: devices}, devices, true},
		{"failing", GPUReading{State: GPUFailing, Reason: "the driver is gone"}, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSampler(SamplerOptions{Root: t.TempDir()}, nil)
			s.gpus = func() GPUReading { return tt.reading }
			got := s.Sample(t.Context())
			must.NoDiff(t, "load", got.Load.GPUs, tt.want)
			must.NoDiff(t, "reading", got.GPUs, tt.reading)
			if err := got.Missing["gpu"]; (err != nil) != tt.missing || err != nil && err.Error() != tt.reading.Reason {
				t.Errorf("missing %v", got.Missing)
			}
		})
	}
}

// For the race detector: commands share the sampler with the heartbeats.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	s := newSampler(SamplerOptions{AMSDir: "/", State: thisProcess}, nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 5 {
			s.ask()
		}
	})
	for range 8 {
		wg.Go(func() {
			for range 5 {
				checkConsistent(t, s.Sample(t.Context()))
			}
		})
	}
	wg.Wait()
}

func BenchmarkSample(b *testing.B) {
	s := newSampler(SamplerOptions{AMSDir: "/", State: thisProcess}, func(context.Context) (cluster.Sessions, map[string]error) { return cluster.Sessions{}, nil })
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		s.Sample(b.Context())
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

func cpuTime(b testing.TB) time.Duration {
	var ru syscall.Rusage
	must.OK(b, syscall.Getrusage(syscall.RUSAGE_SELF, &ru))
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// FuzzReadings feeds one text to every file: no panic, and all values within their bounds. It calls the meters without a
// sampler, whose goroutines would change the coverage in every run. It writes files: -fuzzminimizetime=20x keeps it from
// doing nothing else.
func FuzzReadings(f *testing.F) {
	for _, name := range []string{"linux-6.8-vm", "cgroup1-service", "network-garbage"} {
		ar, err := txtar.ParseFile("testdata/machines/" + name + ".txtar")
		must.OK(f, err)
		for _, file := range ar.Files {
			f.Add(file.Data)
		}
	}
	f.Add([]byte("cpu  1\ncpu0 18446744073709551615 18446744073709551615 1 1 1 1 1 1\n"))
	f.Add([]byte("MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB\n"))
	m := openMachine(f, "testdata/machines/cgroup2-memorymax.txtar")
	whole := NewSampler(m.options())
	f.Fuzz(func(t *testing.T, data []byte) {
		root := t.TempDir()
		proc, sys := filepath.Join(root, "proc"), filepath.Join(root, "sys")
		group := filepath.Join(sys, "fs/cgroup/system.slice/antmedia.service")
		for _, name := range []string{"stat", "meminfo", "net/dev", "812/cgroup"} {
			name = filepath.Join(proc, name)
			must.OK(t, errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)))
		}
		must.OK(t, os.MkdirAll(group, 0o755))
		for _, name := range []string{"memory.max", "cpu.max"} {
			must.OK(t, os.WriteFile(filepath.Join(group, name), data, 0o644))
		}
		fuzzed := context.WithValue(t.Context(), common.EnvKey, common.EnvMap{common.HostProcEnvKey: proc, common.HostSysEnvKey: sys})
		sound := context.WithValue(t.Context(), common.EnvKey, whole.env)

		var cores cpuMeter
		var network networkMeter
		for _, look := range []struct {
			ctx       context.Context //nolint:containedctx // in a table
			proc, sys string
		}{{sound, whole.proc, whole.sys}, {fuzzed, proc, sys}, {fuzzed, proc, sys}, {sound, whole.proc, whole.sys}} {
			var load cluster.Load
			cpu, err := cores.read(look.ctx)
			if (err == nil) != (cpu != nil) {
				t.Errorf("cpu %v and %v", cpu, err)
			}
			load.CPU = cpu
			if rx, tx, err := network.read(look.ctx, look.sys); err == nil && (rx == nil || tx == nil || *rx < 0 || *tx < 0) {
				t.Errorf("network %v %v", rx, tx)
			}
			_, _, _ = (&Sampler{proc: look.proc, sys: look.sys}).readGroupLimits(812)
			used, total, err := readMemory(look.ctx)
			if (err == nil) != (used != nil && total > 0) {
				t.Errorf("memory %v of %d and %v", used, total, err)
			}
			load.Mem = used
			for _, p := range []*int{cpu, used} {
				if p != nil && (*p < 0 || *p > 100) {
					t.Errorf("%d percent", *p)
				}
			}
			if sc := score(load, ams.Limits{}); sc != nil && (*sc < 0 || *sc > 100) {
				t.Errorf("score %d", *sc)
			}
		}
	})
}

// gopsutil would use HOST_PROC from the environment.
func TestEnvironmentDecidesNothing(t *testing.T) {
	t.Setenv("HOST_PROC", t.TempDir())
	t.Setenv("HOST_SYS", t.TempDir())
	got := NewSampler(SamplerOptions{}).Sample(t.Context())
	if got.Load.Mem == nil || !missing(got, "cpu", "nothing to compare with yet") {
		t.Errorf("missing %v", got.Missing)
	}
}
