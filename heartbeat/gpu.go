// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/pci"
)

// gpuPath is the search path of the child. It is not ours: the tool must behave
// the same from a terminal and from a unit.
const gpuPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// gpuTool is the program that comes with NVIDIA's driver.
const gpuTool = "nvidia-smi"

// gpuFolders are where packages, the vendor's installer, container runtimes and
// WSL put the tool.
func gpuFolders() []string {
	return []string{"/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/opt/bin", "/opt/nvidia/bin", "/bin", "/usr/lib/wsl/lib"}
}

// GPUOptions says how to watch. The zero value is fit for a real machine, but for
// the log.
type GPUOptions struct {
	// Root is prefixed to every path that is looked at, for tests.
	Root string
	// Interval is the time from reading to reading; default 5 s.
	Interval time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Log gets one line for each change of state; default none.
	Log *slog.Logger
}

// gpuPace holds the watcher's own times.
type gpuPace struct {
	// look is how often a machine without a driver is looked at. It costs some
	// dozens of small files in /sys, and nothing is started.
	look time.Duration
	// first and most bound the wait before the tool is started again. A driver
	// that is broken stays so until somebody comes, and each start costs up to a
	// second of CPU time.
	first, most time.Duration
	// well is how long a child has to run until its death counts as the first one.
	well time.Duration
	// start is how long the first reading may take: without the persistence
	// daemon, each start initialises all devices, some seconds each.
	start time.Duration
	// reap is how long a killed child may take to be gone.
	reap time.Duration
	// short is after how much quiet a reading is taken for complete.
	short time.Duration
}

func gpuPaceOf() gpuPace {
	return gpuPace{
		look: 30 * time.Second, first: time.Second, most: 2 * time.Minute, well: time.Minute,
		start: 30 * time.Second, reap: 2 * time.Second, short: 200 * time.Millisecond,
	}
}

// gpuStale is after how many intervals a reading is of the past.
const gpuStale = 3

// gpuBlind is after how many readings without any value, after others with, the
// tool is started anew: some drivers tell everything once and then only errors,
// until the next start.
const gpuBlind = 3

// GPUWatcher keeps an eye on the machine's GPUs, NVIDIA's alone (Ant Media Server
// encodes on no others), through one nvidia-smi that runs as long as the watcher
// and prints a reading per interval. On a machine without a driver it looks from
// time to time whether one has appeared, and starts nothing.
//
// A device that is there and does not answer keeps its place, without readings.
type GPUWatcher struct {
	o    GPUOptions
	pace gpuPace

	running atomic.Bool
	starts  atomic.Uint64 // of nvidia-smi

	mu   sync.Mutex
	part gpuPart
}

// gpuPart is what is known of the devices.
type gpuPart struct {
	state   GPUState
	reason  string
	at      time.Time
	devices []GPU  // the last ones that were ready; never changed in place
	partly  string // what was wrong with some of them
}

// NewGPUWatcher makes a watcher that knows nothing until Run is called.
func NewGPUWatcher(o GPUOptions) *GPUWatcher {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Interval <= 0 {
		o.Interval = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w := &GPUWatcher{o: o, pace: gpuPaceOf()}
	w.part = gpuPart{state: GPUPending, reason: "not looked yet"}
	return w
}

// Latest is the latest word about the devices. It never waits.
func (w *GPUWatcher) Latest() GPUReading {
	now := w.o.Now()
	w.mu.Lock()
	part := w.part
	w.mu.Unlock()
	return part.reading(now, gpuStale*w.o.Interval)
}

func joinGPUReasons(reasons ...string) string {
	return strings.Join(slices.DeleteFunc(reasons, func(r string) bool { return r == "" }), "; ")
}

// reading is what is known at this moment. What was read a moment ago holds while
// the tool is started again; what is too old does not, whatever the state.
func (p gpuPart) reading(now time.Time, limit time.Duration) GPUReading {
	age := now.Sub(p.at)
	switch {
	case p.state == GPUAbsent:
		return GPUReading{State: GPUAbsent}
	case p.devices != nil && age <= limit:
		reason := p.partly
		if p.state == GPUFailing {
			reason = joinGPUReasons(reason, p.reason)
		}
		return GPUReading{State: GPUReady, Reason: reason, At: p.at, Devices: slices.Clone(p.devices)}
	case p.state == GPUReady:
		return GPUReading{State: GPUFailing, Reason: "silent for " + age.Round(time.Second).String(), At: p.at}
	}
	return GPUReading{State: p.state, Reason: p.reason, At: p.at}
}

// Run watches until ctx ends. No child of it is left then, unless the driver holds
// one in the kernel, where no signal reaches it.
func (w *GPUWatcher) Run(ctx context.Context) error {
	if !w.running.CompareAndSwap(false, true) {
		return errors.New("the GPUs are watched already")
	}
	defer w.running.Store(false)
	w.watch(ctx)
	return nil
}

// set changes what is known, and says so once where it is another state or another
// reason.
func (w *GPUWatcher) set(to gpuPart) {
	w.mu.Lock()
	was := w.part
	if to.devices == nil && to.state == GPUFailing {
		to.devices, to.at, to.partly = was.devices, was.at, was.partly // they hold while they are fresh
	}
	w.part = to
	w.mu.Unlock()
	if was.state == to.state && was.reason == to.reason {
		return
	}
	log := w.o.Log.With("state", string(to.state))
	switch {
	case to.state == GPUFailing || to.reason != "" && to.state == GPUReady:
		log.Warn("GPU", "reason", to.reason)
	case to.state == GPUReady:
		log.Info("GPU", "devices", len(to.devices), "driver", to.devices[0].Driver)
	default:
		log.Debug("GPU", "reason", to.reason)
	}
}

func (w *GPUWatcher) nvidiaIs(state GPUState, reason string) {
	w.set(gpuPart{state: state, reason: reason})
}

// nvidiaFails says what is wrong; lost: what was read before does not hold any
// more.
func (w *GPUWatcher) nvidiaFails(reason string, lost bool) {
	if lost {
		w.mu.Lock()
		w.part.devices = nil
		w.mu.Unlock()
	}
	w.nvidiaIs(GPUFailing, reason)
}

// gpuLook is what a look at the machine shows of NVIDIA.
type gpuLook struct {
	state  GPUState // GPUPending: the tool is worth a start
	reason string
	tool   gpuToolID
}

// gpuToolID tells one version of the tool from another one of the same name.
type gpuToolID struct {
	path     string
	size     int64
	modified time.Time
}

// look finds out what there is, from a few small files. It starts nothing.
func (w *GPUWatcher) look() gpuLook {
	at := func(path string) string { return filepath.Join(w.o.Root, path) }
	there := func(path string) bool { _, err := os.Stat(at(path)); return err == nil }
	n, foreign := nvidiaOnBus(w.o.Root)
	var l gpuLook
	driver := there("/proc/driver/nvidia/version") || there("/dev/nvidiactl")
	for _, dir := range gpuFolders() {
		if tool, ok := gpuProgram(at(filepath.Join(dir, gpuTool))); ok {
			l.tool = tool
			break
		}
	}
	// In WSL the device is Windows', and the tool in a folder that Windows puts
	// there is the only sign of its kind.
	driver = driver || l.tool.path != "" && strings.Contains(l.tool.path, "/wsl/") && there("/dev/dxg")
	devices := "1 NVIDIA device is"
	if n != 1 {
		devices = strconv.Itoa(n) + " NVIDIA devices are"
	}
	switch {
	case !driver && n == 0:
		l.state = GPUAbsent
	case !driver && foreign != "":
		l.state, l.reason = GPUFailing, devices+" on the PCI bus, driven by "+foreign+" in place of NVIDIA's driver"
	case l.tool.path == "" && !driver:
		l.state, l.reason = GPUFailing, devices+" on the PCI bus, but NVIDIA's driver is not installed"
	case l.tool.path == "":
		l.state, l.reason = GPUFailing, "NVIDIA's driver is loaded, but nvidia-smi is not there: looked for "+strings.Join(gpuFolders(), ", ")
	default:
		// Without the driver too: the tool may load it, which the daemon's unit does not permit, or says why it cannot.
		l.state = GPUPending
	}
	return l
}

// gpuProgram takes hold of a program's identity.
func gpuProgram(path string) (gpuToolID, bool) {
	st, err := os.Stat(path)
	if err != nil || !filepath.IsAbs(path) || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return gpuToolID{}, false
	}
	return gpuToolID{path, st.Size(), st.ModTime()}, true
}

// nvidiaOnBus counts NVIDIA's displays and accelerators on the PCI bus, but for
// those that were handed to a virtual machine; foreign is another driver that
// has taken one.
func nvidiaOnBus(root string) (n int, foreign string) {
	drivers, _ := pci.NVIDIADrivers(root)
	for _, driver := range drivers {
		switch driver {
		case "vfio-pci", "pci-stub", "pciback":
			continue
		case "nvidia", "":
		default:
			foreign = gpuReason([]byte(driver))
		}
		n++
	}
	return n, foreign
}

// gpuBackoff spaces the starts of a tool that does not live.
type gpuBackoff struct {
	first, most time.Duration
	tries       int
}

// next is how long to wait before the next start: twice as long each time, half of
// it by chance, so that a fleet whose driver was broken by one upgrade does not
// start it in step.
func (b *gpuBackoff) next() time.Duration {
	d := b.first << min(b.tries, 20)
	if d > b.most || d <= 0 {
		d = b.most
	}
	b.tries++
	return d/2 + rand.N(d/2+1)
}

func (b *gpuBackoff) reset() { b.tries = 0 }

// gpuWait returns false where ctx ended first.
func gpuWait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

func (w *GPUWatcher) watch(ctx context.Context) {
	back := gpuBackoff{first: w.pace.first, most: w.pace.most}
	var tool gpuToolID
	fields := gpuFields()
	for ctx.Err() == nil {
		l := w.look()
		w.mu.Lock()
		failing := w.part.state == GPUFailing
		w.mu.Unlock()
		if l.state != GPUPending {
			w.nvidiaIs(l.state, l.reason)
			back.reset()
			if !gpuWait(ctx, w.pace.look) {
				return
			}
			continue
		}
		if !failing { // else the reason stays until there is something better to say
			w.nvidiaIs(GPUPending, "nvidia-smi has not told anything yet")
		}
		if l.tool != tool {
			tool, fields = l.tool, gpuFields() // another driver may know more
		}
		end := w.stream(ctx, tool.path, fields)
		if ctx.Err() != nil {
			return
		}
		if i := slices.Index(fields, end.unknown); i > 0 { // without an index there are no rows
			w.o.Log.Debug("the driver does not know a field", "field", end.unknown)
			fields = slices.Delete(fields, i, i+1)
			continue
		}
		w.nvidiaFails(end.reason, end.lost)
		if end.well {
			back.reset()
		}
		// A driver that appears or is replaced meanwhile has not deserved the wait.
		for wait := back.next(); wait > 0; wait -= w.pace.look {
			if !gpuWait(ctx, min(wait, w.pace.look)) {
				return
			}
			if now := w.look(); now != l {
				back.reset()
				break
			}
		}
	}
}

// gpuEnd is how a child ended, and why.
type gpuEnd struct {
	reason  string
	unknown string // the field that the driver does not know
	well    bool   // it had run well
	lost    bool   // it said itself that there is nothing to be read
}

// gpuStream is one child's output on its way to readings.
type gpuStream struct {
	w      *GPUWatcher
	fields []string
	lines  gpuLines
	frames gpuFrames

	said    string // the last line that was no row
	unknown string
	lost    bool
	last    time.Time // when the last row came, or the child was started
	rows    bool
	seeing  bool // it gave values once
	blind   int
}

// stream starts the tool and takes its readings, until it ends or has to be
// ended. One child at most exists at any time: while a killed one is not gone,
// no other is started.
func (w *GPUWatcher) stream(ctx context.Context, tool string, fields []string) gpuEnd {
	life, kill := context.WithCancel(ctx)
	defer kill()
	w.starts.Add(1)
	began := time.Now()
	c, err := startGPUChild(life, tool, []string{
		"--query-gpu=" + strings.Join(fields, ","), "--format=csv,noheader,nounits",
		"--loop-ms=" + strconv.FormatInt(max(1, w.o.Interval.Milliseconds()), 10),
	})
	if err != nil {
		return gpuEnd{reason: "nvidia-smi cannot be started: " + gpuReason([]byte(err.Error()))}
	}
	s := &gpuStream{w: w, fields: fields, last: began}
	why := s.read(c)
	if r, ok := s.frames.quiet(false); ok {
		s.take(r) // it died right after it
	}
	if why == "" {
		// How one that closed its output, or said why it must end, ends by itself is worth
		// knowing.
		c.ends(w.pace.reap / 4)
	}
	kill()
	w.reap(ctx, c)
	_ = c.out.Close()

	end := gpuEnd{unknown: s.unknown, lost: s.lost, reason: why}
	heard := c.heard()
	if field, ok := gpuUnknownField(heard); ok {
		end.unknown = field
	}
	end.lost = end.lost || gpuComplaint(heard)
	words := gpuWords(heard, s.said)
	if why == "" {
		end.reason = "nvidia-smi ended (" + c.how() + ")"
	}
	if words != "" {
		end.reason += ": " + words
	}
	end.well = s.seeing && s.blind == 0 && s.last.Sub(began) >= w.pace.well
	return end
}

// read reads until the child's end, or until it is of no use any more; then it
// says why.
func (s *gpuStream) read(c *gpuChild) (why string) {
	var buf [2 << 10]byte
	limit := max(gpuStale*s.w.o.Interval, s.w.pace.start)
	short := min(s.w.pace.short, s.w.o.Interval/4)
	quiet := 0 // how many of the two gaps have passed since the last bytes
	heard := s.last
	for {
		until := s.last.Add(limit)
		switch {
		case quiet == 0 && s.rows:
			until = earlier(until, heard.Add(short))
		case quiet == 1:
			until = earlier(until, heard.Add(s.w.o.Interval/2))
		}
		_ = c.out.SetReadDeadline(until)
		n, err := c.out.Read(buf[:])
		if n > 0 {
			quiet, heard = 0, time.Now()
			s.lines.feed(buf[:n], s.line)
			if s.rows {
				limit = gpuStale * s.w.o.Interval
			}
		}
		switch {
		case s.unknown != "":
			return "" // it ends by itself, or is ended
		case s.blind >= gpuBlind && s.seeing:
			return "nvidia-smi gives no values any more"
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return ""
		case time.Since(s.last) >= limit: // whatever else it says
			if heard.After(s.last) {
				return "nvidia-smi gave no reading for " + limit.String()
			}
			return "nvidia-smi is silent for " + limit.String()
		case err != nil && quiet < 2 && s.rows:
			quiet++
			if r, ok := s.frames.quiet(quiet == 2); ok {
				s.take(r)
			}
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (s *gpuStream) line(b []byte) {
	if b == nil { // too long to be one
		s.frames.tear()
		return
	}
	if len(b) == 0 {
		return
	}
	row, err := parseGPURow(b, s.fields, s.frames.before)
	if err == nil {
		s.last, s.rows = time.Now(), true
		if r, ok := s.frames.row(row, s.w.o.Now()); ok {
			s.take(r)
		}
		return
	}
	said := gpuReason(b)
	s.said = gpuWords(s.said, said)
	if field, ok := gpuUnknownField(said); ok {
		s.unknown = field
	}
	switch {
	case gpuComplaint(said):
		s.lost = len(s.frames.cur) == 0
		s.frames.complain(said)
	case strings.Count(said, ",") > 1:
		s.frames.tear()
	}
}

// gpuWords chooses of two lines what tells why: the later one, unless only the
// former one complains.
func gpuWords(former, later string) string {
	if later == "" || gpuComplaint(former) && !gpuComplaint(later) {
		return former
	}
	return later
}

// take publishes a reading.
func (s *gpuStream) take(r GPUReading) {
	s.lost = false
	if r.State == GPUFailing {
		s.blind++
		s.w.nvidiaFails(r.Reason, true)
		return
	}
	s.blind, s.seeing, s.said = 0, true, ""
	s.w.set(gpuPart{state: GPUReady, reason: r.Reason, partly: r.Reason, at: r.At, devices: r.Devices})
}

// gpuChild is a running nvidia-smi.
type gpuChild struct {
	cmd  *exec.Cmd
	out  *os.File
	err  *os.File
	done chan struct{} // closed when it is gone, and reaped

	mu    sync.Mutex
	lines gpuLines // of its standard error
	words string
	deaf  chan struct{} // closed when its standard error is at its end
}

// startGPUChild starts the tool: with nothing of our environment, no input, a
// process group of its own, and to be killed by the kernel if we are.
func startGPUChild(ctx context.Context, tool string, args []string) (*gpuChild, error) {
	out, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, out.Close(), outW.Close())
	}
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + gpuPath, "LC_ALL=C"}
	// A container runtime mounts the tool and its library side by side, where the
	// loader does not look.
	if lib := filepath.Join(filepath.Dir(filepath.Dir(tool)), "lib64"); !strings.HasPrefix(lib, "/usr/lib64") {
		if _, err := os.Stat(filepath.Join(lib, "libnvidia-ml.so.1")); err == nil {
			cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+lib)
		}
	}
	cmd.Stdout, cmd.Stderr = outW, errW // Stdin nil is /dev/null
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// It holds nothing that would need an orderly end.
	cmd.Cancel = func() error {
		if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); err != nil {
			return os.ErrProcessDone
		}
		return nil
	}
	c := &gpuChild{cmd: cmd, out: out, err: errR, done: make(chan struct{}), deaf: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the signal of our death when the thread ends that
		// started the child, so that this one has to stay. It waits here anyway.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		_, _ = outW.Close(), errW.Close()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait()
		// What it started goes with it, and with that the other ends of our pipes.
		// The group's number cannot be another's while one of its processes lives.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, out.Close(), errR.Close())
	}
	go c.listen()
	return c, nil
}

// listen keeps the last words of the child's standard error.
func (c *gpuChild) listen() {
	defer close(c.deaf)
	var buf [512]byte
	for {
		n, err := c.err.Read(buf[:])
		c.mu.Lock()
		c.lines.feed(buf[:n], func(b []byte) {
			if len(b) > 0 {
				c.words = gpuWords(c.words, gpuReason(b))
			}
		})
		if errors.Is(err, io.EOF) && c.lines.n > 0 && !c.lines.skipping {
			c.words = gpuWords(c.words, gpuReason(c.lines.buf[:c.lines.n])) // it had no time for the line end
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *gpuChild) heard() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.words
}

// ends waits for the child's end, and reports whether it came in this time.
func (c *gpuChild) ends(within time.Duration) bool {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-c.done:
		return true
	case <-t.C:
		return false
	}
}

// how says how it ended.
func (c *gpuChild) how() string {
	select {
	case <-c.done:
		return c.cmd.ProcessState.String()
	default:
		return "its output is closed"
	}
}

// reap waits until a killed child is gone. One that the driver holds in the kernel
// cannot be killed; until it goes, the devices are failing, and nothing else is
// started, or the machine would fill with them.
func (w *GPUWatcher) reap(ctx context.Context, c *gpuChild) {
	// Its last words are read to their end, unless somebody else holds the pipe.
	defer func() {
		_ = c.err.SetReadDeadline(time.Now().Add(w.pace.reap))
		<-c.deaf
		_ = c.err.Close()
	}()
	if c.ends(w.pace.reap) {
		return
	}
	reason := fmt.Sprintf("nvidia-smi (process %d) does not end although it was killed: the driver holds it", c.cmd.Process.Pid)
	w.nvidiaFails(reason, false)
	select {
	case <-c.done:
	case <-ctx.Done():
		w.o.Log.Warn("a child is left behind", "pid", c.cmd.Process.Pid)
	}
}
