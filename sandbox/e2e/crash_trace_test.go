// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && amd64

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The agent is killed, and its calls are made to fail, by a tracer of our own.
// strace does the same from the command line, but its when=N counts in each
// thread by itself: the calls of a Go program wander over threads, and most N
// would never come. Here one counter runs over all threads, so that N from 1 to
// the last is every call there is.

// kind is what a call changes.
type kind int

const (
	other  kind = iota
	files       // names or bytes on a disk
	socket      // a message to MongoDB or to AMS
	output      // standard output or error
	spawn       // a child process: the service command, getent
)

// call is one system call of the agent that changes something outside of it.
type call struct {
	N    int // counted over all threads, from 1
	Kind kind
	Name string
	What string // the path, or what the descriptor leads to

	nr   uint64
	args [6]uint64
	fail syscall.Errno // what it was made to fail with
	ret  int64
}

func (c call) String() string { return fmt.Sprintf("call %d, %s %s", c.N, c.Name, c.What) }

// shot is a fault of the agent, and the call that it hits.
type shot struct {
	// Counts reports whether a call is counted; nil: all kinds but other and output.
	Counts func(call) bool
	// At is the number of the call; 0: none.
	At int
	// Kill ends the process before the call is made.
	Kill bool
	// Errno makes the call fail without being made.
	Errno syscall.Errno
	// Lasting makes all counted calls from At on fail.
	Lasting bool
	// Before, if not nil, is called before every counted call is made, the
	// thread that is about to make it stopped.
	Before func(call)
	// Each, if not nil, sees every counted call when it has been made, the
	// thread that made it still stopped.
	Each func(call)
}

// traced is how a run ended.
type traced struct {
	Calls  []call // those that were counted
	Hit    *call  // the one that was shot at; nil: it never came
	Killed bool
	ran    // its exit status is -1 if it was killed
}

// tracing is one run.
type tracing struct {
	pid     int
	shot    shot
	out     traced
	threads map[int]*call // nil: not in a call of interest
	mem     *os.File
}

const ptraceGetSyscallInfo = 0x420e

// syscallInfo is struct ptrace_syscall_info.
type syscallInfo struct {
	op    uint8
	_     [3]uint8
	arch  uint32
	ip    uint64
	sp    uint64
	nr    uint64 // at an exit: the result
	args  [6]uint64
	spare [4]uint64
}

// traceAgent runs a program under the tracer. It starts no other process group
// and leaves none of the program's threads behind; the program's children are
// not traced.
func traceAgent(argv, env []string, s shot) (res traced, err error) {
	dir, err := os.MkdirTemp(bins.dir, "trace-")
	if err != nil {
		return traced{}, err
	}
	defer os.RemoveAll(dir)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// ptrace knows its tracer by the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		res, err = (&tracing{shot: s, threads: map[int]*call{}}).run(dir, argv, env)
	}()
	<-done
	if err != nil {
		err = fmt.Errorf("tracing %s: %w", strings.Join(argv, " "), err)
	}
	return res, err
}

func (tr *tracing) run(dir string, argv, env []string) (_ traced, err error) {
	var fds []uintptr
	names := []string{os.DevNull, filepath.Join(dir, "stdout"), filepath.Join(dir, "stderr")}
	for i, name := range names {
		flags := os.O_RDWR
		if i > 0 {
			flags |= os.O_CREATE | os.O_TRUNC
		}
		f, err := os.OpenFile(name, flags, 0o600)
		if err != nil {
			return traced{}, err
		}
		defer f.Close()
		fds = append(fds, f.Fd())
	}
	if tr.pid, err = syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Dir: "/", Env: env, Files: fds, Sys: &syscall.SysProcAttr{Ptrace: true, Setpgid: true}}); err != nil {
		return traced{}, err
	}
	var mu sync.Mutex
	reaped := false
	// A run that hangs is a finding, not a hanging test.
	watch := time.AfterFunc(2*time.Minute, func() {
		mu.Lock()
		defer mu.Unlock()
		if !reaped {
			_ = unix.Kill(tr.pid, unix.SIGKILL)
		}
	})
	defer watch.Stop()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(tr.pid, &ws, unix.WALL, nil); err != nil {
		return traced{}, err
	}
	if err := unix.PtraceSetOptions(tr.pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return traced{}, err
	}
	if tr.mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", tr.pid)); err != nil {
		return traced{}, err
	}
	defer tr.mem.Close()
	tr.threads[tr.pid] = nil
	resume(tr.pid, 0)
	for {
		// Only what this thread began, in the group of the program: the thread may
		// have children of other tests.
		tid, err := unix.Wait4(-tr.pid, &ws, unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return traced{}, fmt.Errorf("waiting: %w", err)
		}
		if ws.Exited() || ws.Signaled() {
			if tid != tr.pid {
				delete(tr.threads, tid)
				continue
			}
			mu.Lock()
			reaped = true
			mu.Unlock()
			tr.out.Killed, tr.out.Exit = ws.Signaled(), ws.ExitStatus()
			break
		}
		if !ws.Stopped() {
			continue
		}
		_, seen := tr.threads[tid]
		switch sig := ws.StopSignal(); {
		case sig == unix.SIGTRAP|0x80:
			tr.stop(tid)
			resume(tid, 0)
		case sig == unix.SIGTRAP:
			// A new thread, or the program's own start.
			resume(tid, 0)
		case sig == unix.SIGSTOP && !seen:
			tr.threads[tid] = nil
			resume(tid, 0)
		default:
			resume(tid, int(sig))
		}
	}
	b, err := os.ReadFile(names[1])
	if err != nil {
		return traced{}, err
	}
	e, err := os.ReadFile(names[2])
	tr.out.Out, tr.out.Err = string(b), string(e)
	return tr.out, err
}

// resume lets a thread run to the next stop. One that is being killed is gone.
func resume(tid, sig int) { _ = unix.PtraceSyscall(tid, sig) }

// stop is one stop of one thread at the beginning or the end of a call.
func (tr *tracing) stop(tid int) {
	var in syscallInfo
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(tid), unsafe.Sizeof(in), uintptr(unsafe.Pointer(&in)), 0, 0)
	if errno != 0 || n == 0 {
		return
	}
	switch in.op {
	case 1:
		tr.threads[tid] = tr.enter(tid, in.nr, in.args)
	case 2:
		c := tr.threads[tid]
		tr.threads[tid] = nil
		if c == nil {
			return
		}
		c.ret = int64(in.nr)
		if c.fail != 0 {
			c.ret = -int64(c.fail)
			setReturn(tid, c.ret)
		}
		tr.out.Calls[c.N-1].ret, tr.out.Calls[c.N-1].fail = c.ret, c.fail
		if tr.shot.Each != nil {
			tr.shot.Each(*c)
		}
	}
}

func (tr *tracing) enter(tid int, nr uint64, args [6]uint64) *call {
	c := call{nr: nr, args: args}
	if !tr.describe(&c) {
		return nil
	}
	if f := tr.shot.Counts; f != nil && !f(c) || f == nil && c.Kind == output {
		return nil
	}
	c.N = len(tr.out.Calls) + 1
	hit := tr.shot.At > 0 && (c.N == tr.shot.At || tr.shot.Lasting && c.N > tr.shot.At)
	if hit && tr.out.Hit == nil {
		tr.out.Hit = &c
	}
	tr.out.Calls = append(tr.out.Calls, c)
	if tr.shot.Before != nil {
		tr.shot.Before(c)
	}
	switch {
	case hit && tr.shot.Kill:
		_ = unix.Kill(tr.pid, unix.SIGKILL)
	case hit && tr.shot.Errno != 0:
		c.fail = tr.shot.Errno
		skipCall(tid)
	}
	return &c
}

// describe names the call; false: it changes nothing that outlives the process.
func (tr *tracing) describe(c *call) bool {
	path := func(i int) string { return tr.text(c.args[i]) }
	fd := func() string {
		s, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tr.pid, int32(c.args[0])))
		if err != nil {
			return "?"
		}
		return s
	}
	c.Kind = files
	switch c.nr {
	case unix.SYS_RENAME, unix.SYS_LINK:
		c.What = path(0) + " -> " + path(1)
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		c.What = path(1) + " -> " + path(3)
	case unix.SYS_SYMLINKAT:
		c.What = path(0) + " -> " + path(2)
	case unix.SYS_UNLINK, unix.SYS_RMDIR, unix.SYS_MKDIR, unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN, unix.SYS_TRUNCATE:
		c.What = path(0)
	case unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT:
		c.What = path(1)
	case unix.SYS_OPENAT:
		if c.args[2]&(unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_RDWR) == 0 {
			return false
		}
		c.What = path(1)
		if strings.HasPrefix(c.What, "/dev/") && !strings.HasPrefix(c.What, "/dev/shm/") || strings.HasPrefix(c.What, "/proc/") || strings.HasPrefix(c.What, "/sys/") {
			return false // the runtime's own
		}
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FCHMOD, unix.SYS_FCHOWN, unix.SYS_FTRUNCATE, unix.SYS_FSETXATTR, unix.SYS_FALLOCATE, unix.SYS_FLOCK:
		c.What = fd()
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV, unix.SYS_SENDTO, unix.SYS_SENDMSG:
		c.What = fd()
		switch {
		case int32(c.args[0]) == 1 || int32(c.args[0]) == 2:
			c.Kind = output
		case strings.HasPrefix(c.What, "socket:"):
			c.Kind, c.What = socket, ""
		case !strings.HasPrefix(c.What, "/"):
			return false // an eventfd or a pipe of the runtime
		}
	case unix.SYS_CLONE:
		if c.args[0]&unix.CLONE_VFORK == 0 {
			return false
		}
		c.Kind, c.What = spawn, "a child process"
	default:
		return false
	}
	c.Name = callNames[c.nr]
	return true
}

var callNames = map[uint64]string{
	unix.SYS_RENAME: "rename", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_LINK: "link", unix.SYS_LINKAT: "linkat",
	unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_UNLINK: "unlink", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RMDIR: "rmdir", unix.SYS_MKDIR: "mkdir",
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_CHMOD: "chmod", unix.SYS_CHOWN: "chown", unix.SYS_LCHOWN: "lchown", unix.SYS_TRUNCATE: "truncate",
	unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHMODAT2: "fchmodat2", unix.SYS_FCHOWNAT: "fchownat", unix.SYS_UTIMENSAT: "utimensat",
	unix.SYS_OPENAT: "openat", unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHOWN: "fchown",
	unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FSETXATTR: "fsetxattr", unix.SYS_FALLOCATE: "fallocate", unix.SYS_FLOCK: "flock",
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_WRITEV: "writev", unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg",
	unix.SYS_CLONE: "clone",
}

// text reads a string of the program.
func (tr *tracing) text(addr uint64) string {
	buf := make([]byte, 4096)
	n, _ := tr.mem.ReadAt(buf, int64(addr))
	if i := slices.Index(buf[:n], 0); i >= 0 {
		n = i
	}
	return string(buf[:n])
}

// skipCall turns the call that is about to be made into none.
func skipCall(tid int) {
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &regs) == nil {
		regs.Orig_rax = ^uint64(0)
		_ = unix.PtraceSetRegs(tid, &regs)
	}
}

func setReturn(tid int, ret int64) {
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &regs) == nil {
		regs.Rax = uint64(ret)
		_ = unix.PtraceSetRegs(tid, &regs)
	}
}

// tally counts calls by name.
func tally(calls []call) string {
	count := map[string]int{}
	for _, c := range calls {
		name := c.Name
		if c.Kind == socket {
			name += "(socket)"
		}
		count[name]++
	}
	var out []string
	for name, n := range count {
		out = append(out, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
