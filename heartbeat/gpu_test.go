// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
)

// gpuWorld is a machine with a driver, and an nvidia-smi that passes on what the
// test writes to it: a named pipe, which outlives each process.
type gpuWorld struct {
	t    *testing.T
	root string
	pipe *os.File
	log  *locked.Buffer

	w    *GPUWatcher
	stop func()
}

// newGPUWorld makes the machine, with a driver but without the tool.
func newGPUWorld(t *testing.T) *gpuWorld {
	t.Helper()
	g := &gpuWorld{t: t, root: t.TempDir(), log: &locked.Buffer{}}
	g.write("dev/nvidiactl", "")
	fifo := filepath.Join(g.root, "fifo")
	must.OK(t, unix.Mkfifo(fifo, 0o600))
	var err error
	// For reading too, so that opening does not wait for a reader.
	if g.pipe, err = os.OpenFile(fifo, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.pipe.Close() })
	return g
}

func (g *gpuWorld) write(path, content string) {
	g.t.Helper()
	file := filepath.Join(g.root, path)
	must.OK(g.t, os.MkdirAll(filepath.Dir(file), 0o755))
	must.OK(g.t, os.WriteFile(file, []byte(content), 0o644))
}

// tool installs an nvidia-smi: a shell script, in which $root is our folder.
func (g *gpuWorld) tool(body string) {
	g.t.Helper()
	script := "#!/bin/sh\nroot='" + g.root + "'\necho $$ >>$root/pids\necho \"$@\" >>$root/args\n" + body + "\n"
	path := filepath.Join(g.root, "usr/bin/nvidia-smi")
	must.OK(g.t, os.MkdirAll(filepath.Dir(path), 0o755))
	// In one step: the watcher may be looking.
	must.OK(g.t, os.WriteFile(path+".new", []byte(script), 0o755))
	must.OK(g.t, os.Rename(path+".new", path))
}

const gpuPipe = "exec cat $root/fifo"

// watch runs a watcher with short times; interval 0 means one that does not run
// out during a test.
func (g *gpuWorld) watch(interval time.Duration, paces ...func(*gpuPace)) {
	g.t.Helper()
	if interval == 0 {
		interval = time.Hour
	}
	log := slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	g.w = NewGPUWatcher(GPUOptions{Root: g.root, Interval: interval, Log: log})
	g.w.pace = gpuPace{
		look: 10 * time.Millisecond, first: time.Millisecond, most: 20 * time.Millisecond, well: time.Hour,
		start: time.Hour, reap: time.Minute, short: 10 * time.Millisecond,
	}
	for _, set := range paces {
		set(&g.w.pace)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.w.Run(ctx) }()
	var once sync.Once
	g.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				g.t.Error(err)
			}
		})
	}
	g.t.Cleanup(func() {
		g.stop()
		if g.t.Failed() {
			g.t.Logf("log:\n%s", g.log)
		}
		for _, pid := range g.pids() {
			if alive(pid) {
				g.t.Errorf("process %d is left", pid)
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	})
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

// pids are those of all that was started.
func (g *gpuWorld) pids() []int {
	b, _ := os.ReadFile(filepath.Join(g.root, "pids"))
	var all []int
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

func (g *gpuWorld) say(format string, args ...any) {
	g.t.Helper()
	if _, err := fmt.Fprintf(g.pipe, format, args...); err != nil {
		g.t.Fatal(err)
	}
}

// row is a device's, with this encoder.
func gpuTestRow(index, enc int) string {
	return fmt.Sprintf("%d, GPU-0000000%d, 550.90.07, 10, %d, 5, 1000, 23034, NVIDIA L4\n", index, index, enc)
}

// becomes waits for a state and a reason that contains all of these words.
func (g *gpuWorld) becomes(state GPUState, words ...string) GPUReading {
	g.t.Helper()
	var r GPUReading
	defer func() {
		if g.t.Failed() {
			g.t.Logf("it is %+v", r)
		}
	}()
	must.Until(g.t, fmt.Sprint(state, words), func() bool {
		r = g.w.Latest()
		ok := r.State == state
		for _, w := range words {
			ok = ok && strings.Contains(r.Reason, w)
		}
		return ok
	})
	return r
}

func (g *gpuWorld) encoder(i int, want float64) func() bool {
	return func() bool {
		r := g.w.Latest()
		return r.State == GPUReady && i < len(r.Devices) && r.Devices[i].Enc != nil && *r.Devices[i].Enc == want
	}
}

func TestGPUStreams(t *testing.T) {
	inherited := 0
	for fd := 3; fd < 1024; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			inherited++
		}
	}
	g := newGPUWorld(t)
	g.tool(`env >$root/env; readlink /proc/$$/fd/0 >$root/stdin; ls -l /proc/$$/fd >$root/fds; cut -d' ' -f5 /proc/$$/stat >$root/pgid; ` + gpuPipe)
	t.Setenv("AMSAGENT_MONGO", "mongodb://u:hush@h/")
	t.Setenv("LANG", "de_DE.UTF-8")
	g.watch(0)
	must.Until(t, "started", func() bool { return len(g.pids()) == 1 })
	if r := g.w.Latest(); r.State != GPUPending || r.Devices != nil {
		t.Errorf("before the first reading: %+v", r)
	}
	before := time.Now()
	g.say("%s%s", gpuTestRow(0, 20), gpuTestRow(1, 30))
	must.Until(t, "first reading", g.encoder(1, 30))
	r := g.w.Latest()
	if len(r.Devices) != 2 || r.At.Before(before) || r.Reason != "" || r.Devices[0].Driver != "550.90.07" || *r.Devices[1].MemUsed != 1000<<20 {
		t.Errorf("got %+v", r)
	}
	// What is handed out is the caller's.
	r.Devices[0].Name = "mine"
	if g.w.Latest().Devices[0].Name != "NVIDIA L4" {
		t.Error("a caller changed the reading")
	}

	// In pieces, and with a row cut in the middle by a pause.
	g.say("%s%s", gpuTestRow(0, 21), gpuTestRow(1, 31)[:40])
	g.say("%s", gpuTestRow(1, 31)[40:])
	must.Until(t, "second reading", g.encoder(1, 31))
	// A line without an end does no harm, and what follows it is read.
	g.say("%s\n", strings.Repeat("9, ", 100_000))
	g.say("%s%s", gpuTestRow(0, 22), gpuTestRow(1, 32))
	must.Until(t, "third reading", g.encoder(1, 32))
	// A device more, a device less.
	g.say("%s%s%s", gpuTestRow(0, 23), gpuTestRow(1, 33), gpuTestRow(2, 43))
	must.Until(t, "third device", g.encoder(2, 43))
	g.say("%s%s", gpuTestRow(0, 24), gpuTestRow(0, 25))
	must.Until(t, "one device", func() bool { return len(g.w.Latest().Devices) == 1 })
	if g.w.starts.Load() != 1 || len(g.pids()) != 1 {
		t.Errorf("%d starts", g.w.starts.Load())
	}

	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(g.root, name))
		must.OK(t, err)
		return strings.TrimSpace(string(b))
	}
	pid := g.pids()[0]
	for _, want := range []string{"LC_ALL=C", "PATH=" + gpuPath} {
		if !strings.Contains("\n"+read("env")+"\n", "\n"+want+"\n") {
			t.Errorf("%s is missing in its environment:\n%s", want, read("env"))
		}
	}
	for _, bad := range []string{"hush", "AMSAGENT", "LANG", "HOME"} {
		if strings.Contains(read("env"), bad) {
			t.Errorf("%s is in its environment:\n%s", bad, read("env"))
		}
	}
	if read("stdin") != "/dev/null" || read("pgid") != strconv.Itoa(pid) {
		t.Errorf("stdin %s, group %s of process %d", read("stdin"), read("pgid"), pid)
	}
	// Its two outputs. What we inherited from whoever runs the test may come on top.
	pipes := 0
	for line := range strings.Lines(read("fds")) {
		for _, kind := range []string{"pipe:", "socket:", "anon_inode:", "/fifo"} {
			if strings.Contains(line, kind) {
				pipes++
			}
		}
	}
	if pipes == 0 || pipes > 2+inherited {
		t.Errorf("it has %d pipes, we inherited %d:\n%s", pipes, inherited, read("fds"))
	}
	if want := "--query-gpu=" + strings.Join(gpuFields(), ",") + " --format=csv,noheader,nounits --loop-ms=3600000"; read("args") != want {
		t.Errorf("arguments %q", read("args"))
	}
	g.stop()
	if alive(pid) {
		t.Error("it is still there")
	}
}

// One that stops talking is killed, told of, and started again.
func TestGPUSilent(t *testing.T) {
	g := newGPUWorld(t)
	g.tool("trap '' TERM INT HUP\n" + gpuPipe)
	g.watch(100 * time.Millisecond)
	// A reading holds for 300 ms, in which a busy machine may give this test no turn: it is said until it is seen.
	talks := func(enc int) func() bool {
		seen := g.encoder(0, float64(enc))
		return func() bool { g.say("%s", gpuTestRow(0, enc)); return seen() }
	}
	must.Until(t, "first reading", talks(20))
	g.becomes(GPUFailing, "silent for 300ms")
	must.Until(t, "second start", func() bool { return g.w.starts.Load() >= 2 && len(g.pids()) >= 2 })
	if pid := g.pids()[0]; alive(pid) {
		t.Errorf("process %d is left", pid)
	}
	must.Until(t, "reading of the second one", talks(21))
}

// The reading of a moment ago holds while the child is started again, and says
// what is wrong meanwhile.
func TestGPUDies(t *testing.T) {
	g := newGPUWorld(t)
	g.tool("head -n 1 $root/fifo; echo 'out of luck' >&2; exit 7")
	g.watch(0)
	for i := range 5 {
		g.say("%s", gpuTestRow(0, 20+i))
		must.Until(t, "a reading", g.encoder(0, float64(20+i)))
	}
	g.becomes(GPUReady, "exit status 7", "out of luck")
	if n := g.w.starts.Load(); n < 5 {
		t.Errorf("%d starts", n)
	}
	for i, pid := range g.pids()[:4] {
		if alive(pid) {
			t.Errorf("child %d is left", i)
		}
	}
	// What it was killed by is told as well.
	must.Until(t, "the sixth, which waits", func() bool { return len(g.pids()) == 6 })
	g.tool(gpuPipe)
	n := len(g.pids())
	g.say("%s", gpuTestRow(0, 50)) // ends the waiting one
	must.Until(t, "the new one", func() bool { return len(g.pids()) > n })
	pids := g.pids()
	_ = unix.Kill(pids[len(pids)-1], unix.SIGSEGV)
	g.becomes(GPUReady, "segmentation fault")
}

func TestGPUCannotSpeakToDriver(t *testing.T) {
	for name, c := range map[string]struct{ output, reason string }{
		"no driver":  {"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", "exit status 9): NVIDIA-SMI has failed"},
		"mismatch":   {"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.90\n", "version mismatch"},
		"no devices": {"No devices were found\n", "No devices were found"},
		"nothing":    {"", "exit status 9)"},
		"half":       {"0, GPU-1, NVIDIA", "exit status 9)"},
		"index":      {"Field \"index\" is not a valid field to query.\n", "not a valid field"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, to := range []string{"", " >&2"} {
				g := newGPUWorld(t)
				g.write("said", c.output)
				g.tool("cat $root/said" + to + "; exit 9")
				g.watch(0)
				r := g.becomes(GPUFailing, c.reason)
				if r.Devices != nil {
					t.Errorf("%+v", r)
				}
				// It is tried again.
				must.Until(t, "three starts", func() bool { return g.w.starts.Load() >= 3 })
				g.stop()
			}
		})
	}
}

// Each field that a driver does not know is left out from then on, without any
// wait; another driver is asked for all again.
func TestGPUOldDriver(t *testing.T) {
	g := newGPUWorld(t)
	g.tool(`case "$*" in
	*utilization.encoder*) echo 'Field "utilization.encoder" is not a valid field to query.'; echo; exit 2;;
	*utilization.decoder*) echo 'Field "utilization.decoder" is not a valid field to query.' >&2; exit 2;;
	*driver_version*) echo 'Field "driver_version" is not a valid field to query.'; exec cat $root/never;;
esac
` + gpuPipe)
	must.OK(t, unix.Mkfifo(filepath.Join(g.root, "never"), 0o600))
	g.watch(0, func(p *gpuPace) { p.first, p.most, p.reap = time.Hour, time.Hour, 8*time.Second }) // no start here may wait; one child has to be ended
	g.say("0, GPU-1, 9, 612, 7618, Tesla M60\n")
	r := g.becomes(GPUReady)
	if d := r.Devices[0]; *d.Util != 9 || d.Enc != nil || d.Dec != nil || *d.MemUsed != 612<<20 {
		t.Errorf("%+v", d)
	}
	if g.w.starts.Load() != 4 {
		t.Errorf("%d starts", g.w.starts.Load())
	}
	// It dies: what was learned is remembered. It is replaced: all is asked again.
	kill := func() { _ = unix.Kill(g.pids()[len(g.pids())-1], unix.SIGKILL) }
	g.tool(gpuPipe)
	kill()
	must.Until(t, "the new driver", func() bool { return len(g.pids()) == 5 })
	g.say("%s", gpuTestRow(0, 77))
	must.Until(t, "its encoder", g.encoder(0, 77))
}

// Some drivers tell everything once and then only errors.
func TestGPUBlind(t *testing.T) {
	g := newGPUWorld(t)
	g.tool(gpuPipe)
	g.watch(0)
	g.say("%s", gpuTestRow(0, 20))
	must.Until(t, "a reading", g.encoder(0, 20))
	bad := "0, GPU-1, 550.90.07" + strings.Repeat(", [Unknown Error]", 5) + ", NVIDIA L4\n"
	g.say("%s%s%s", bad, bad, bad)
	g.becomes(GPUFailing, "Unknown Error")
	g.say("%s%s", bad, bad)
	must.Until(t, "started again", func() bool { return g.w.starts.Load() == 2 })
	if !strings.Contains(g.log.String(), "no values any more") {
		t.Error("nobody was told why")
	}
}

// Absent is not failing: nothing is started, nothing is wrong. Then a device
// comes, then its driver, then the tool.
func TestGPUAppearsLater(t *testing.T) {
	g := newGPUWorld(t)
	must.OK(t, os.RemoveAll(filepath.Join(g.root, "dev")))
	g.tool(gpuPipe)
	g.write("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086\n")
	g.write("sys/bus/pci/devices/0000:00:02.0/class", "0x030000\n")
	g.write("sys/bus/pci/devices/0000:00:03.0/vendor", "0x10de\n") // its sound
	g.write("sys/bus/pci/devices/0000:00:03.0/class", "0x040300\n")
	g.watch(0)
	g.becomes(GPUAbsent)
	if r := g.w.Latest(); r.Reason != "" || r.Devices != nil || g.w.starts.Load() != 0 {
		t.Errorf("%+v, %d starts", r, g.w.starts.Load())
	}
	must.OK(t, os.Remove(filepath.Join(g.root, "usr/bin/nvidia-smi")))
	g.write("sys/bus/pci/devices/0000:00:1e.0/class", "0x030200\n")
	g.write("sys/bus/pci/devices/0000:00:1e.0/vendor", "0x10de\n")
	g.becomes(GPUFailing, "1 NVIDIA device is on the PCI bus, but NVIDIA's driver is not installed")
	driver := filepath.Join(g.root, "sys/bus/pci/devices/0000:00:1e.0/driver")
	must.OK(t, os.Symlink("../../../drivers/nouveau", driver))
	g.becomes(GPUFailing, "driven by nouveau")
	_ = os.Remove(driver)
	must.OK(t, os.Symlink("../../../drivers/vfio-pci", driver))
	g.becomes(GPUAbsent) // it is a virtual machine's
	_ = os.Remove(driver)
	g.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07\n")
	g.becomes(GPUFailing, "loaded, but nvidia-smi is not there", "/usr/local/bin")
	if g.w.starts.Load() != 0 {
		t.Errorf("%d starts", g.w.starts.Load())
	}
	g.tool(gpuPipe)
	g.say("%s", gpuTestRow(0, 33))
	must.Until(t, "a reading", g.encoder(0, 33))
}

// Hundreds of children later there is nothing left of them.
func TestGPULeavesNothing(t *testing.T) {
	g := newGPUWorld(t)
	// Two children of its own, one of which holds the output.
	g.tool(`cat $root/never & cat $root/never >/dev/null & echo $! >>$root/pids; head -c 1 /dev/zero; echo oh >&2; exit 1`)
	must.OK(t, unix.Mkfifo(filepath.Join(g.root, "never"), 0o600))
	fds := func() int { e, _ := os.ReadDir("/proc/self/fd"); return len(e) }
	goroutines, descriptors := runtime.NumGoroutine(), fds()
	g.watch(0, func(p *gpuPace) { p.most = time.Millisecond })
	must.Until(t, "starts", func() bool { return g.w.starts.Load() >= 60 })
	g.stop()
	must.Until(t, "goroutines gone", func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := fds(); n > descriptors {
		t.Errorf("%d descriptors, before %d", n, descriptors)
	}
	for _, pid := range g.pids() {
		must.Until(t, "process gone", func() bool { return !alive(pid) })
	}
	var st unix.WaitStatus
	if pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a zombie: %d, %v", pid, err)
	}
}

// With the agent goes its child, however the agent goes.
func TestGPUDiesWithUs(t *testing.T) {
	g := newGPUWorld(t)
	g.tool(gpuPipe)
	us := exec.Command(os.Args[0], "-test.run=^TestGPUAgent$")
	us.Env = append(os.Environ(), "GPU_AGENT_ROOT="+g.root)
	us.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about this thread
	defer runtime.UnlockOSThread()
	must.OK(t, us.Start())
	must.Until(t, "its child", func() bool { return len(g.pids()) == 1 })
	_ = us.Process.Kill()
	_ = us.Wait()
	// It is init's now, who may take its time to bury it.
	must.Until(t, "its child is gone", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.pids()[0]))
		return err != nil || bytes.Contains(stat, []byte(") Z "))
	})
}

// TestGPUAgent is the agent that is killed.
func TestGPUAgent(t *testing.T) {
	root := os.Getenv("GPU_AGENT_ROOT")
	if root == "" {
		t.Skip("it is run by another test")
	}
	_ = NewGPUWatcher(GPUOptions{Root: root}).Run(context.Background())
}

func TestGPUReasonIsForLogs(t *testing.T) {
	got := gpuReason([]byte("a\x1b[31m b\tc\xff\n" + strings.Repeat("é", 300)))
	if len(got) > gpuReasonRoom || strings.ContainsAny(got, "\x1b\t\n\uFFFD") || !utf8.ValidString(got) || !strings.HasPrefix(got, "a [31m b c é") {
		t.Errorf("%q", got)
	}
}
