// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/sleep"
)

const (
	gpuRetry = 10 * time.Second
	gpuStart = 30 * time.Second // first reading: without the persistence daemon the driver initializes all devices
	gpuStale = 3                // intervals until a reading expires and a silent tool is restarted
	gpuMost  = 64               // devices; the largest machines have 16
	gpuText  = 200              // bytes of text in logs and the registry

	gpuFields = "index,driver_version,utilization.gpu,utilization.encoder,utilization.decoder,memory.used,memory.total,name"
)

// GPUState is the state of the GPU readings.
type GPUState string

// The states of the GPU readings.
const (
	GPUAbsent  GPUState = "absent"  // no device and no driver
	GPUPending GPUState = "pending" // before the first reading
	GPUFailing GPUState = "failing" // Reason is set
	GPUReady   GPUState = "ready"   // Devices are set
)

// GPUReading is the latest reading of the devices.
type GPUReading struct {
	State GPUState
	// Reason is why readings fail, also of some devices if ready.
	Reason string
	Driver string // its version
	// Devices are by index if ready. A silent one has no values.
	Devices []cluster.GPULoad
}

// GPUWatcher reads NVIDIA GPUs, the only ones Ant Media Server encodes on, through one long-running nvidia-smi.
type GPUWatcher struct {
	root     string // above /proc, /dev and the tool
	interval time.Duration
	log      *slog.Logger
	retry    time.Duration

	mu       sync.Mutex
	state    GPUState
	reason   string
	lastLine string // without values
	driver   string
	devices  []deviceReading
}

// at is zero before the first reading.
type deviceReading struct {
	cluster.GPULoad
	at time.Time
}

// NewGPUWatcher reads at an interval of whole seconds, default 5 s. Run starts it.
func NewGPUWatcher(root string, interval time.Duration, log *slog.Logger) *GPUWatcher {
	interval = cmp.Or(max(interval, 0).Truncate(time.Second), 5*time.Second)
	return &GPUWatcher{root: cmp.Or(root, "/"), interval: interval, log: log, retry: gpuRetry, state: GPUPending}
}

// Run reads until ctx ends. nvidia-smi has ended then, unless the driver blocks it in the kernel.
func (w *GPUWatcher) Run(ctx context.Context) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for more := ctx.Err() == nil; more; more = sleep.For(ctx, w.retry) {
			w.is(w.read(ctx))
		}
	}()
	<-ctx.Done()
	select {
	case <-ended:
	case <-time.After(2 * time.Second):
		w.log.Warn("nvidia-smi does not end although it was killed: the driver holds it")
	}
}

func (w *GPUWatcher) is(state GPUState, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if state == GPUFailing && reason != w.reason {
		w.log.Warn("GPU readings failed", "reason", reason)
	}
	w.state, w.reason = state, reason
}

// read runs nvidia-smi until it ends, is silent too long, or ctx ends.
func (w *GPUWatcher) read(ctx context.Context) (GPUState, string) {
	at := func(path string) string { return filepath.Join(w.root, path) }
	if !exists(at("/proc/driver/nvidia/version")) && !exists(at("/dev/nvidiactl")) {
		return GPUAbsent, ""
	}
	tool := ""
	for _, dir := range []string{"/opt/bin", "/usr/local/nvidia/bin", "/usr/local/bin", "/usr/bin"} {
		if st, err := os.Stat(at(dir + "/nvidia-smi")); err == nil && st.Mode().IsRegular() {
			tool = at(dir + "/nvidia-smi")
		}
	}
	if tool == "" {
		return GPUFailing, "NVIDIA's driver is loaded, but nvidia-smi is not there"
	}
	// Pdeathsig kills the tool when its parent thread ends, so it does not outlive the agent.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, kill := context.WithCancel(ctx)
	defer kill()
	cmd := exec.CommandContext(ctx, tool, "--query-gpu="+gpuFields, "--format=csv,noheader,nounits",
		"--loop="+strconv.Itoa(int(w.interval/time.Second)))
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		cmd.Stderr = cmd.Stdout
		err = cmd.Start()
	}
	if err != nil {
		return GPUFailing, "nvidia-smi cannot be started: " + err.Error()
	}
	context.AfterFunc(ctx, func() { _ = out.Close() }) // another process may hold its other end
	silent := time.AfterFunc(gpuStart, kill)
	defer silent.Stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if w.line(lines.Text()) {
			silent.Reset(gpuStale * w.interval)
		}
	}
	kill()
	err = cmd.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return GPUFailing, strings.TrimSuffix(fmt.Sprintf("nvidia-smi ended (%v): %s", err, w.lastLine), ": ")
}

// line reports whether the text has all gpuFields. Invalid values are nil.
func (w *GPUWatcher) line(text string) bool {
	cells := strings.Split(text, ",")
	index, err := strconv.Atoi(gpuLine(cells[0]))
	ok := err == nil && index >= 0 && index < gpuMost && len(cells) == strings.Count(gpuFields, ",")+1
	d := deviceReading{at: time.Now()}
	if ok {
		use := func(i int) *int { return percent(gpuNumber(cells[i], 100), 100) }
		memory := gpuNumber(cells[6], math.MaxInt32)
		d.Util, d.Enc, d.Dec, d.Mem = use(2), use(3), use(4), percent(gpuNumber(cells[5], memory), memory)
		d.Name = gpuLine(cells[7])
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !hasValues(d.GPULoad) {
		w.lastLine = gpuLine(text)
	}
	if ok {
		w.devices = append(w.devices, make([]deviceReading, max(0, index+1-len(w.devices)))...)
		w.driver, w.devices[index] = gpuLine(cells[1]), d
	}
	return ok
}

// Latest returns the current reading.
func (w *GPUWatcher) Latest() GPUReading {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, values := GPUReading{State: GPUReady, Driver: w.driver}, 0
	for _, d := range w.devices {
		if time.Since(d.at) > gpuStale*w.interval {
			d.GPULoad = cluster.GPULoad{Name: d.Name}
		}
		if hasValues(d.GPULoad) {
			values++
		}
		r.Devices = append(r.Devices, d.GPULoad)
	}
	switch {
	case values == 0 && w.state == GPUPending && len(r.Devices) > 0:
		return GPUReading{State: GPUFailing, Reason: cmp.Or(w.lastLine, "nvidia-smi is silent")}
	case values == 0:
		return GPUReading{State: w.state, Reason: w.reason}
	case values < len(r.Devices):
		r.Reason = cmp.Or(w.lastLine, "a device is silent")
	}
	return r
}

func hasValues(g cluster.GPULoad) bool {
	return g.Util != nil || g.Enc != nil || g.Dec != nil || g.Mem != nil
}

func gpuLine(text string) string {
	return plain.Truncate(strings.Join(strings.Fields(plain.Text(text)), " "), gpuText)
}

// gpuNumber returns NaN for no number, as "[N/A]".
func gpuNumber(cell string, most float64) float64 {
	value, _, _ := strings.Cut(gpuLine(cell), " ") // some drivers print a unit
	f, err := strconv.ParseFloat(value, 64)
	if err != nil || !(f >= 0 && f <= most) {
		return math.NaN()
	}
	return f
}
