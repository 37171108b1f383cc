// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

// found counts connections to the HTTP and RTMP ports of a test.
type found struct {
	byPort, localByPort map[int]int
	silent              int
}

// count returns a visitor of connections to these ports, of which the silent ones count apart.
func (f *found) count(silentAfter time.Duration, ports ...int) func(Connection) {
	*f = found{byPort: map[int]int{}, localByPort: map[int]int{}}
	return func(c Connection) {
		switch {
		case !slices.Contains(ports, c.Port):
		case c.Silent >= silentAfter:
			f.silent++
		case c.Local:
			f.localByPort[c.Port]++
		default:
			f.byPort[c.Port]++
		}
	}
}

func same(a, b found) string {
	return cmp.Diff(a, b, cmp.AllowUnexported(found{}), cmpopts.EquateEmpty())
}

// A connection that is silent for long is a balancer's reserve.
func TestCountConnectionsLeavesTheSilentOut(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must.OK(t, err)
	defer l.Close()
	var ours, theirs []net.Conn
	for range 4 {
		c, err := net.Dial("tcp4", l.Addr().String())
		must.OK(t, err)
		defer c.Close()
		a, err := l.Accept()
		must.OK(t, err)
		defer a.Close()
		ours, theirs = append(ours, a), append(theirs, c)
	}
	port := l.Addr().(*net.TCPAddr).Port
	count := func() (got found) {
		t.Helper()
		if err := EachConnection(got.count(2*time.Second, port)); err != nil {
			t.Skipf("no netlink here: %v", err)
		}
		return got
	}
	want := found{localByPort: map[int]int{port: 2}, silent: 2}
	must.Until(t, "two that are silent", func() bool {
		// One of the others sends, one receives.
		for _, c := range []net.Conn{theirs[0], ours[1]} {
			_, err = c.Write([]byte("x"))
			must.OK(t, err)
		}
		return same(want, count()) == ""
	})
}

// One query covers both families and exactly these ports.
func TestCountConnectionsOfManyPorts(t *testing.T) {
	var ports []int
	open := func(host string) int {
		t.Helper()
		// On all addresses: the same port of ::1 may be another program's.
		l, err := net.Listen("tcp", ":0")
		must.OK(t, err)
		t.Cleanup(func() { l.Close() })
		port := l.Addr().(*net.TCPAddr).Port
		c, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			t.Skipf("no %s here: %v", host, err)
		}
		t.Cleanup(func() { c.Close() })
		return port
	}
	for range 4 {
		ports = append(ports, open("127.0.0.1"), open("::1"))
	}
	count := func(ports ...int) (n int) {
		t.Helper()
		var got found
		if err := EachConnection(got.count(time.Hour, ports...)); err != nil {
			t.Skipf("no netlink here: %v", err)
		}
		for _, of := range got.localByPort {
			n += of
		}
		return n
	}
	must.Equal(t, fmt.Sprintf("connections to %v", ports), count(ports...), len(ports))
	for _, p := range ports {
		must.Equal(t, fmt.Sprintf("connections to %d", p), count(1, p, 65535), 1)
	}
	must.Equal(t, "connections to ports without a listener", count(1, 65535), 0) // clients never use these ports
}

// In its own network namespace a machine has remote viewers: the loopback interface owns all of 10.0.0.0/8 there.
func TestCountConnectionsFromElsewhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	type result struct {
		got found
		err error
	}
	results := make(chan result, 1)
	go onOwnThread(func() {
		got, err := countInNamespace()
		results <- result{got, err}
	})
	r := <-results
	if errors.Is(r.err, unix.EPERM) {
		t.Skip(r.err)
	}
	want := found{byPort: map[int]int{5080: 4}, localByPort: map[int]int{5080: 1}}
	if diff := same(want, r.got); r.err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", r.err, diff)
	}
}

// The connections that the agent sees are the server's only if its user listens in the agent's network (review night-shift A2).
// Docker's proxy is root's, as a server in a container is.
func TestCheckNetwork(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	must.OK(t, err)
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	must.OK(t, EachConnection(func(Connection) {}))
	java, docker := filepath.Join(t.TempDir(), "java"), filepath.Join(t.TempDir(), "docker")
	must.OK(t, os.Symlink("/bin/sh", java))
	must.OK(t, os.Symlink("/bin/sh", docker))
	// start runs a process, and returns its id.
	start := func(program string, attr syscall.SysProcAttr) int {
		t.Helper()
		cmd := exec.Command(program, "-c", "read -r _")
		cmd.Dir, cmd.SysProcAttr = "/", &attr
		in, err := cmd.StdinPipe()
		must.OK(t, err)
		must.OK(t, cmd.Start())
		t.Cleanup(func() {
			_ = in.Close()
			_ = cmd.Wait()
		})
		return cmd.Process.Pid
	}
	seen := func(what string, pid, port int, want bool) {
		t.Helper()
		if err := CheckNetwork(pid, port); (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	server := start(java, syscall.SysProcAttr{})
	seen("a server", server, port, true)
	seen("another port", server, 1, false)
	seen("no process", 0, port, false)
	seen("a process that has ended", 1<<22+1, port, false)
	if os.Geteuid() != 0 {
		seen("a script that started the server", start("/bin/sh", syscall.SysProcAttr{}), port, true)
		return
	}
	seen("docker's client, and its proxy", start(docker, syscall.SysProcAttr{}), port, false)
	seen("another network", start(java, syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}), port, false)
	seen("another user's port", start("/bin/sh", syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}), port, false)
}

// onOwnThread runs f on a thread that ends with it, and the namespace with the thread. It does not use the first thread
// of the process, which never ends and whose network is /proc/self/net, for every test.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
	runtime.UnlockOSThread()
}

func countInNamespace() (got found, _ error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return got, fmt.Errorf("unshare: %w", err)
	}
	if err := loopbackAddress("10.0.0.5"); err != nil {
		return got, err
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: 5080})
	if err != nil {
		return got, err
	}
	defer l.Close()
	to := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 5), Port: 5080}
	for _, from := range []net.IP{
		net.IPv4(10, 1, 0, 1), net.IPv4(10, 1, 0, 1), net.IPv4(10, 1, 0, 2), // viewers
		net.IPv4(10, 0, 0, 6), // another node
		net.IPv4(10, 0, 0, 5), // this node
	} {
		c, err := net.DialTCP("tcp4", &net.TCPAddr{IP: from}, to)
		if err != nil {
			return got, err
		}
		defer c.Close()
	}
	err = EachConnection(got.count(time.Hour, 5080, 5443))
	return got, err
}

func loopbackAddress(addr string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ip := netip.MustParseAddr(addr).As4()
	if err := ifr.SetInet4Addr(ip[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, ifr); err != nil {
		return fmt.Errorf("giving lo an address: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}

// message builds one message of the kernel's response.
func message(kind uint16, body []byte) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(body))
	binary.NativeEndian.PutUint32(b, uint32(unix.NLMSG_HDRLEN+len(body)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	return append(b, body...)
}

func diagBody(family byte, own, other string) []byte {
	b := make([]byte, diagMessageSize)
	b[0], b[1] = family, 1
	o, r := netip.MustParseAddrPort(own), netip.MustParseAddrPort(other)
	binary.BigEndian.PutUint16(b[4:], o.Port())
	binary.BigEndian.PutUint16(b[6:], r.Port())
	copy(b[8:24], o.Addr().AsSlice())
	copy(b[24:40], r.Addr().AsSlice())
	return b
}

// silentFor is a connection with its last send and receive so many milliseconds ago, from a kernel that reports so many
// bytes of tcp_info.
func silentFor(sent, received uint32, size int) []byte {
	ne := binary.NativeEndian
	b := diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1")
	b = append(b, 5, 0, 8, 0, 1, 0, 0, 0) // an attribute of odd length before it
	info := make([]byte, 4+104)
	ne.PutUint16(info, uint16(4+size))
	ne.PutUint16(info[2:], diagInfo)
	ne.PutUint32(info[4+infoSent:], sent)
	ne.PutUint32(info[4+infoReceived:], received)
	return append(b, info[:4+size]...)
}

func visitor(visit func(Connection)) func([]byte) {
	return func(m []byte) { visit(connection(m)) }
}

func TestDiagMessages(t *testing.T) {
	refused := make([]byte, 20)
	binary.NativeEndian.PutUint32(refused, uint32(0xffffffff)) // -EPERM
	viewer := message(diagTCP, diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1"))
	mapped := message(diagTCP, diagBody(unix.AF_INET6, "[::ffff:10.0.0.5]:5080", "[::ffff:127.0.0.1]:1"))
	done := message(unix.NLMSG_DONE, make([]byte, 4))
	for name, c := range map[string]struct {
		b    []byte
		want found
		done bool
		err  error
	}{
		"silent":       {slices.Concat(message(diagTCP, silentFor(119_999, 500_000, 104)), message(diagTCP, silentFor(120_000, 120_001, 104)), done), found{byPort: map[int]int{5080: 1}, silent: 1}, true, nil},
		"old kernel":   {slices.Concat(message(diagTCP, silentFor(300_000, 300_000, 104)[:diagMessageSize+8+4]), message(diagTCP, silentFor(300_000, 300_000, 52)), done), found{byPort: map[int]int{5080: 2}}, true, nil},
		"more to come": {slices.Concat(viewer, viewer), found{byPort: map[int]int{5080: 2}}, false, nil},
		"the end":      {slices.Concat(viewer, mapped, done), found{byPort: map[int]int{5080: 1}, localByPort: map[int]int{5080: 1}}, true, nil},
		"odd lengths":  {slices.Concat(message(diagTCP, append(diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1"), 1, 2, 3)), []byte{0}, done), found{byPort: map[int]int{5080: 1}}, true, nil},
		"too short":    {slices.Concat(message(diagTCP, make([]byte, diagMessageSize-4)), done), found{}, false, errCutMessage},
		"refused":      {message(unix.NLMSG_ERROR, refused), found{}, false, unix.EPERM},
		"bad refusal":  {message(unix.NLMSG_ERROR, nil), found{}, false, errCutMessage},
		"cut":          {viewer[:len(viewer)-1], found{}, false, errCutMessage},
		"cut head":     {done[:7], found{}, false, nil}, // without the end the next read fails
		"no length":    {make([]byte, 16), found{}, false, errCutMessage},
		"empty":        {nil, found{}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got found
			done, err := visitMessages(c.b, visitor(got.count(2*time.Minute, 5080)))
			if done != c.done || !errors.Is(err, c.err) {
				t.Errorf("done %v, %v", done, err)
			}
			if diff := same(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzCountConnections(f *testing.F) {
	f.Add(message(diagTCP, diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1")))
	f.Add(message(diagTCP, silentFor(1, 2, 52)))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_, _ = visitMessages(b, visitor(func(c Connection) {
			if n++; c.Port < 0 || c.Port > 65535 || !c.From.IsValid() || c.Silent < 0 {
				t.Errorf("%+v", c)
			}
		}))
		if n > len(b)/diagMessageSize {
			t.Errorf("%d connections in %d bytes", n, len(b))
		}
	})
}

// BenchmarkCountConnections is one query, on a machine with few connections.
func BenchmarkCountConnections(b *testing.B) {
	for b.Loop() {
		if err := EachConnection(func(Connection) {}); err != nil {
			b.Skip(err)
		}
	}
}
