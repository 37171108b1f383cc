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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// TestGPUHardware watches real NVIDIA devices: the readings are those of nvidia-smi, a new one replaces one that dies,
// and no process is left. GPU_HARDWARE=1 enables it.
func TestGPUHardware(t *testing.T) {
	if os.Getenv("GPU_HARDWARE") == "" {
		t.Skip("GPU_HARDWARE is not set: it needs a device of NVIDIA's and its driver")
	}
	const interval = time.Second
	w := NewGPUWatcher("", interval, slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	defer running.Wait()
	defer stop()

	began := time.Now()
	first := awaitGPUs(t, w, began)
	t.Logf("ready after %.1f s: %+v", time.Since(began).Seconds(), first)
	told, err := exec.CommandContext(t.Context(), "nvidia-smi", "--query-gpu=index,name,driver_version", "--format=csv,noheader,nounits").Output()
	must.OK(t, err)
	var got bytes.Buffer
	for i, d := range first.Devices {
		if d.Mem == nil {
			t.Fatalf("device %d without readings: %+v", i, d)
		}
		fmt.Fprintf(&got, "%d, %s, %s\n", i, d.Name, first.Driver)
	}
	if got.String() != string(told) {
		t.Errorf("read\n%snvidia-smi says\n%s", &got, told)
	}

	// Restart after a crash.
	child := gpuChildren(t)
	if len(child) != 1 {
		t.Fatalf("%d processes of nvidia-smi", len(child))
	}
	must.OK(t, syscall.Kill(child[0], syscall.SIGKILL))
	killed := time.Now()
	awaitGPUs(t, w, killed.Add(interval))
	t.Logf("ready again %.1f s after kill -9", time.Since(killed).Seconds())

	var self syscall.Rusage
	must.OK(t, syscall.Getrusage(syscall.RUSAGE_SELF, &self))
	before, at := time.Duration(self.Utime.Nano()+self.Stime.Nano()), time.Now()
	awaitGPUs(t, w, at.Add(20*interval))
	must.OK(t, syscall.Getrusage(syscall.RUSAGE_SELF, &self))
	t.Logf("%.1f ms of a processor per reading", float64(time.Duration(self.Utime.Nano()+self.Stime.Nano())-before)/1e6/20)

	stop()
	running.Wait()
	if left := gpuChildren(t); len(left) > 0 {
		t.Errorf("processes %v of nvidia-smi are left", left)
	}
}

// awaitGPUs waits for a reading not older than since.
func awaitGPUs(t *testing.T, w *GPUWatcher, since time.Time) GPUReading {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		w.mu.Lock()
		read := len(w.devices) > 0 && w.devices[0].at.After(since)
		w.mu.Unlock()
		if r := w.Latest(); r.State == GPUReady && read {
			if r.Reason != "" || len(r.Devices) == 0 {
				t.Fatalf("%+v", r)
			}
			return r
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Fatalf("not ready within a minute: %+v", w.Latest())
	return GPUReading{}
}

// gpuChildren returns this process's nvidia-smi processes.
func gpuChildren(t *testing.T) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	must.OK(t, err)
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		comm, rest, _ := strings.Cut(string(b), ") ")
		fields := strings.Fields(rest)
		if !strings.HasSuffix(comm, "(nvidia-smi") || len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		must.OK(t, err)
		pids = append(pids, pid)
	}
	return pids
}
