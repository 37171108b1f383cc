// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
)

// gpuWorld is a machine with a driver, and an nvidia-smi that copies a named pipe, which outlives each process.
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
	g.pipe, err = os.OpenFile(fifo, os.O_RDWR, 0)
	must.OK(t, err)
	t.Cleanup(func() { g.pipe.Close() })
	return g
}

func (g *gpuWorld) write(path, content string) {
	g.t.Helper()
	file := filepath.Join(g.root, path)
	must.OK(g.t, os.MkdirAll(filepath.Dir(file), 0o755))
	must.OK(g.t, os.WriteFile(file, []byte(content), 0o644))
}

// tool installs an nvidia-smi: a shell script, in which $root is the test's folder.
func (g *gpuWorld) tool(body string) {
	g.t.Helper()
	script := "#!/bin/sh\nroot='" + g.root + "'\necho $$ >>$root/pids\necho \"$@\" >>$root/args\n" + body + "\n"
	path := filepath.Join(g.root, "usr/bin/nvidia-smi")
	must.OK(g.t, os.MkdirAll(filepath.Dir(path), 0o755))
	// Atomically: the watcher may read it.
	must.OK(g.t, os.WriteFile(path+".new", []byte(script), 0o755))
	must.OK(g.t, os.Rename(path+".new", path))
}

const gpuPipe = "exec cat $root/fifo"

// watch runs a watcher that restarts its tool immediately.
func (g *gpuWorld) watch() {
	g.t.Helper()
	log := slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	g.w = NewGPUWatcher(g.root, time.Second, log)
	g.w.retry = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); g.w.Run(ctx) }()
	g.stop = func() { cancel(); <-ended }
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

// pids returns the ids of all started processes.
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

// gpuTestLine is the line of a device.
func gpuTestLine(index, enc int) string {
	return fmt.Sprintf("%d, 550.90.07, 10, %d, 5, 1000, 23034, NVIDIA L4\n", index, enc)
}

// becomes waits for a state and a reason with these words.
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

func (g *gpuWorld) encoder(i, want int) func() bool {
	return func() bool {
		r := g.w.Latest()
		return r.State == GPUReady && i < len(r.Devices) && r.Devices[i].Enc != nil && *r.Devices[i].Enc == want
	}
}

func TestGPUStreams(t *testing.T) {
	g := newGPUWorld(t)
	g.tool(`env >$root/env; readlink /proc/$$/fd/0 >$root/stdin; ` + gpuPipe)
	t.Setenv("AMSAGENT_MONGO", "mongodb://u:hush@h/")
	g.watch()
	must.Until(t, "started", func() bool { return len(g.pids()) == 1 })
	if r := g.w.Latest(); r.State != GPUPending || r.Devices != nil {
		t.Errorf("before the first reading: %+v", r)
	}
	// A reading expires after 3 s: repeat it until it is seen.
	says := func(what string, ok func() bool, lines ...string) {
		t.Helper()
		must.Until(t, what, func() bool { g.say("%s", strings.Join(lines, "")); return ok() })
	}
	says("first reading", g.encoder(1, 30), gpuTestLine(0, 20), gpuTestLine(1, 30))
	r := g.w.Latest()
	if len(r.Devices) != 2 || r.Reason != "" || r.Driver != "550.90.07" || *r.Devices[1].Mem != 4 {
		t.Errorf("got %+v", r)
	}
	says("a device more", g.encoder(2, 43), gpuTestLine(0, 23), gpuTestLine(1, 33), gpuTestLine(2, 43))
	// A silent device keeps its place, without values.
	says("a device less", func() bool {
		r := g.w.Latest()
		return r.State == GPUReady && r.Reason != "" && len(r.Devices) == 3 && r.Devices[1].Enc == nil && r.Devices[1].Name == "NVIDIA L4"
	}, gpuTestLine(0, 24), gpuTestLine(2, 44))
	must.Equal(t, "starts", len(g.pids()), 1)

	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(g.root, name))
		must.OK(t, err)
		return strings.TrimSpace(string(b))
	}
	for _, bad := range []string{"hush", "AMSAGENT", "HOME"} {
		if strings.Contains(read("env"), bad) {
			t.Errorf("%s is in its environment:\n%s", bad, read("env"))
		}
	}
	if want := "--query-gpu=" + gpuFields + " --format=csv,noheader,nounits --loop=1"; read("args") != want || read("stdin") != "/dev/null" {
		t.Errorf("arguments %q, standard input %s", read("args"), read("stdin"))
	}
}

// A silent tool is reported, killed and restarted; so is one that prints an endless line.
func TestGPUSilent(t *testing.T) {
	g := newGPUWorld(t)
	g.tool("trap '' TERM INT HUP\n" + gpuPipe)
	g.watch()
	must.Until(t, "a reading", func() bool { g.say("%s", gpuTestLine(0, 20)); return g.encoder(0, 20)() })
	g.becomes(GPUFailing, "nvidia-smi")
	must.Until(t, "second start", func() bool { return len(g.pids()) >= 2 })
	must.Equal(t, "the first process is left", alive(g.pids()[0]), false)
	must.Until(t, "a reading of the second one", func() bool { g.say("%s", gpuTestLine(0, 21)); return g.encoder(0, 21)() })
	starts := len(g.pids())
	g.say("%s\n", strings.Repeat("9, ", 100_000))
	must.Until(t, "third start", func() bool { return len(g.pids()) > starts })
}

// The last reading stays during a restart; then the reason is reported.
func TestGPUDies(t *testing.T) {
	g := newGPUWorld(t)
	g.tool("head -n 1 $root/fifo; echo 'out of luck' >&2; exit 7")
	g.watch()
	for i := range 3 {
		g.say("%s", gpuTestLine(0, 20+i))
		must.Until(t, "a reading", g.encoder(0, 20+i))
	}
	g.becomes(GPUFailing, "nvidia-smi ended (exit status 7): out of luck")
	g.tool(gpuPipe)
	n := len(g.pids())
	g.say("%s", gpuTestLine(0, 50)) // ends the waiting one
	must.Until(t, "the new one", func() bool { return len(g.pids()) > n })
	pids := g.pids()
	_ = unix.Kill(pids[len(pids)-1], unix.SIGSEGV)
	g.becomes(GPUFailing, "segmentation fault")
}

func TestGPUCannotSpeakToDriver(t *testing.T) {
	for name, c := range map[string]struct{ output, reason string }{
		"no driver":  {"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", "exit status 9): NVIDIA-SMI has failed"},
		"mismatch":   {"Failed to initialize NVML: Driver/library version mismatch\n", "version mismatch"},
		"no devices": {"No devices were found\n", "No devices were found"},
		"nothing":    {"", "exit status 9)"},
		"half":       {"0, NVIDIA", "exit status 9)"},
		"field":      {"Field \"utilization.encoder\" is not a valid field to query.\n", "not a valid field"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, to := range []string{"", " >&2"} {
				g := newGPUWorld(t)
				g.write("said", c.output)
				g.tool("cat $root/said" + to + "; exit 9")
				g.watch()
				must.Equal(t, "devices", len(g.becomes(GPUFailing, c.reason).Devices), 0)
				// Retry.
				must.Until(t, "three starts", func() bool { return len(g.pids()) >= 3 })
				g.stop()
			}
		})
	}
}

// Absent is not failing: no process, no error. Then the driver appears, then the tool.
func TestGPUAppearsLater(t *testing.T) {
	g := newGPUWorld(t)
	must.OK(t, os.RemoveAll(filepath.Join(g.root, "dev")))
	g.tool(gpuPipe)
	g.watch()
	g.becomes(GPUAbsent)
	if r := g.w.Latest(); r.Reason != "" || r.Devices != nil || len(g.pids()) != 0 {
		t.Errorf("%+v, %d starts", r, len(g.pids()))
	}
	must.OK(t, os.Remove(filepath.Join(g.root, "usr/bin/nvidia-smi")))
	g.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07\n")
	g.becomes(GPUFailing, "loaded, but nvidia-smi is not there")
	g.tool(gpuPipe)
	must.Until(t, "a reading", func() bool { g.say("%s", gpuTestLine(0, 33)); return g.encoder(0, 33)() })
}

// Hundreds of children leave nothing behind.
func TestGPULeavesNothing(t *testing.T) {
	g := newGPUWorld(t)
	g.tool(`head -c 1 /dev/zero; echo oh >&2; exit 1`)
	fds := func() int { e, _ := os.ReadDir("/proc/self/fd"); return len(e) }
	goroutines, descriptors := runtime.NumGoroutine(), fds()
	g.watch()
	must.Until(t, "starts", func() bool { return len(g.pids()) >= 60 })
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

// The child ends with the agent, even if the agent is killed.
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
	// It is now a child of init, which may reap it late.
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
	NewGPUWatcher(root, 0, slog.New(slog.DiscardHandler)).Run(context.Background())
}

// gpuOutputs returns the recorded outputs of testdata/nvidia-smi, with the current columns.
func gpuOutputs(t testing.TB) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("testdata/nvidia-smi/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	all := map[string][]string{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		must.OK(t, err)
		lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		fields, ok := strings.CutPrefix(lines[1], "# fields: ")
		if len(lines) < 3 || !ok || !strings.HasPrefix(lines[0], "# ") {
			t.Fatalf("%s does not begin with what it is and with its fields", file)
		}
		asked := strings.Split(fields, ",")
		for i, line := range lines[2:] {
			cells := strings.Split(line, ",")
			if len(cells) != len(asked) {
				continue
			}
			var now []string
			for _, field := range strings.Split(gpuFields, ",") {
				cell := "[N/A]"
				if j := slices.Index(asked, field); j >= 0 {
					cell = strings.TrimSpace(cells[j])
				}
				now = append(now, cell)
			}
			lines[2+i] = strings.Join(now, ", ")
		}
		all[strings.TrimSuffix(filepath.Base(file), ".txt")] = lines[2:]
	}
	return all
}

var updateGPU = flag.Bool("update", false, "write the expected readings")

func gpuRead(lines []string) GPUReading {
	w := NewGPUWatcher("", 0, slog.New(slog.DiscardHandler))
	for _, line := range lines {
		w.line(line)
	}
	return w.Latest()
}

// TestGPUOutputs compares the reading of each recorded output.
func TestGPUOutputs(t *testing.T) {
	for name, lines := range gpuOutputs(t) {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(gpuRead(lines), "", "  ")
			must.OK(t, err)
			got = append(got, '\n')
			file := filepath.Join("testdata/nvidia-smi", name+".json")
			if *updateGPU {
				must.OK(t, os.WriteFile(file, got, 0o644))
			}
			want, err := os.ReadFile(file)
			must.OK(t, err)
			must.NoDiff(t, file, string(got), string(want))
		})
	}
}

func FuzzGPURow(f *testing.F) {
	f.Add("7,,,,,0,,\xae\ni")
	for _, lines := range gpuOutputs(f) {
		for _, line := range lines {
			f.Add(line)
		}
	}
	f.Fuzz(func(t *testing.T, line string) {
		r := gpuRead([]string{line, line})
		if len(r.Devices) > gpuMost || len(r.Reason) > gpuText || strings.ContainsFunc(r.Reason, unicode.IsControl) {
			t.Errorf("%d devices, %q", len(r.Devices), r.Reason)
		}
		for _, g := range r.Devices {
			for _, p := range []*int{g.Util, g.Enc, g.Dec, g.Mem} {
				if p != nil && !(*p >= 0 && *p <= 100) {
					t.Errorf("%v percent in %q", *p, line)
				}
			}
			if len(g.Name) > gpuText || strings.ContainsFunc(g.Name, unicode.IsControl) {
				t.Errorf("%+v of %q", g, line)
			}
		}
	})
}
