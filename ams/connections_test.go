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
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

func nobody(netip.Addr) bool { return false }

func asking(ports ...int) counter {
	return counter{Connections{ByPort: map[int]int{}, LocalByPort: map[int]int{}}, ports, nobody, silentAfter}
}

func TestCountConnectionsOfThisMachine(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			l, err := net.Listen(network, map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[network])
			if err != nil {
				t.Skipf("no %s here: %v", network, err)
			}
			defer l.Close()
			port := l.Addr().(*net.TCPAddr).Port
			for range 3 {
				c, err := net.Dial(network, l.Addr().String())
				must.OK(t, err)
				defer c.Close()
			}
			asked := asking(port)
			if err := asked.ask(); err != nil {
				t.Skipf("no netlink here: %v", err)
			}
			want := Connections{LocalByPort: map[int]int{port: 3}}
			if got, err := CountConnections([]int{port, port, 0, 1 << 16}, nobody); err != nil || !cmp.Equal(got, want, cmpopts.EquateEmpty()) {
				t.Errorf("%+v, %v", got, err)
			}
			if got, err := CountConnections(nil, nobody); err != nil || !cmp.Equal(got, Connections{}, cmpopts.EquateEmpty()) {
				t.Errorf("no ports: %+v, %v", got, err)
			}
		})
	}
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
	c := asking(port)
	c.silence = 2 * time.Second
	count := func() Connections {
		t.Helper()
		c.Connections = asking().Connections
		if err := c.ask(); err != nil {
			t.Skipf("no netlink here: %v", err)
		}
		return c.Connections
	}
	count()                                                // or it skips
	want := Connections{LocalByPort: map[int]int{port: 2}} // those of this machine are not counted as idle
	for end := time.Now().Add(time.Minute); ; {
		// One of them sends, the other receives.
		for _, c := range []net.Conn{theirs[0], ours[1]} {
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		got := count()
		if cmp.Equal(got, want, cmpopts.EquateEmpty()) {
			break
		}
		if got.Silent != 0 || time.Now().After(end) {
			t.Fatalf("%+v", got)
		}
		<-time.After(20 * time.Millisecond)
	}
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
		c := asking(ports...)
		if err := c.ask(); err != nil {
			t.Skipf("no netlink here: %v", err)
		}
		for _, of := range c.LocalByPort {
			n += of
		}
		return n
	}
	if n := count(ports...); n != len(ports) {
		t.Errorf("%d connections to %v", n, ports)
	}
	for _, p := range ports {
		if n := count(1, p, 65535); n != 1 {
			t.Errorf("%d connections to %d", n, p)
		}
	}
	if n := count(1, 65535); n != 0 { // clients never use these ports
		t.Errorf("%d connections to ports without a listener", n)
	}
}

// In its own network namespace a machine has remote viewers: the loopback interface owns all of 10.0.0.0/8 there.
func TestCountConnectionsFromElsewhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	type result struct {
		got Connections
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
	want := Connections{ByPort: map[int]int{5080: 3}, LocalByPort: map[int]int{5080: 1}}
	if diff := cmp.Diff(want, r.got, cmpopts.EquateEmpty()); r.err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", r.err, diff)
	}
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

func countInNamespace() (Connections, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return Connections{}, fmt.Errorf("unshare: %w", err)
	}
	if err := loopbackAddress("10.0.0.5"); err != nil {
		return Connections{}, err
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: 5080})
	if err != nil {
		return Connections{}, err
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
			return Connections{}, err
		}
		defer c.Close()
	}
	return CountConnections([]int{5080, 5443}, func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.6") })
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

func TestDiagMessages(t *testing.T) {
	refused := make([]byte, 20)
	binary.NativeEndian.PutUint32(refused, uint32(0xffffffff)) // -EPERM
	viewer := message(diagTCP, diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1"))
	mapped := message(diagTCP, diagBody(unix.AF_INET6, "[::ffff:10.0.0.5]:5080", "[::ffff:127.0.0.1]:1"))
	done := message(unix.NLMSG_DONE, make([]byte, 4))
	for name, c := range map[string]struct {
		b    []byte
		want Connections
		done bool
		err  error
	}{
		"silent":       {slices.Concat(message(diagTCP, silentFor(119_999, 500_000, 104)), message(diagTCP, silentFor(120_000, 120_001, 104)), done), Connections{ByPort: map[int]int{5080: 1}, Silent: 1}, true, nil},
		"old kernel":   {slices.Concat(message(diagTCP, silentFor(300_000, 300_000, 104)[:diagMessageSize+8+4]), message(diagTCP, silentFor(300_000, 300_000, 52)), done), Connections{ByPort: map[int]int{5080: 2}}, true, nil},
		"more to come": {slices.Concat(viewer, viewer), Connections{ByPort: map[int]int{5080: 2}}, false, nil},
		"the end":      {slices.Concat(viewer, mapped, done), Connections{ByPort: map[int]int{5080: 1}, LocalByPort: map[int]int{5080: 1}}, true, nil},
		"odd lengths":  {slices.Concat(message(diagTCP, append(diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1"), 1, 2, 3)), []byte{0}, done), Connections{ByPort: map[int]int{5080: 1}}, true, nil},
		"too short":    {slices.Concat(message(diagTCP, make([]byte, diagMessageSize-4)), done), Connections{}, false, errCutMessage},
		"refused":      {message(unix.NLMSG_ERROR, refused), Connections{}, false, unix.EPERM},
		"bad refusal":  {message(unix.NLMSG_ERROR, nil), Connections{}, false, errCutMessage},
		"cut":          {viewer[:len(viewer)-1], Connections{}, false, errCutMessage},
		"cut head":     {done[:7], Connections{}, false, nil}, // without the end the next read fails
		"no length":    {make([]byte, 16), Connections{}, false, errCutMessage},
		"empty":        {nil, Connections{}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := asking(5080)
			done, err := got.messages(c.b)
			if done != c.done || !errors.Is(err, c.err) {
				t.Errorf("done %v, %v", done, err)
			}
			if diff := cmp.Diff(c.want, got.Connections, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzCountConnections(f *testing.F) {
	f.Add(message(diagTCP, diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1")))
	f.Add(message(diagTCP, silentFor(1, 2, 52)))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := asking(5080, 5443)
		_, _ = c.messages(b)
		if n := c.ByPort[5080] + c.ByPort[5443] + c.LocalByPort[5080] + c.LocalByPort[5443] + c.Silent; n > len(b) || len(c.ByPort) > 2 {
			t.Errorf("%+v", c.Connections)
		}
	})
}

// BenchmarkCountConnections is one query, on a machine with few connections.
func BenchmarkCountConnections(b *testing.B) {
	for b.Loop() {
		if _, err := CountConnections([]int{5080, 5443}, nobody); err != nil {
			b.Skip(err)
		}
	}
}
