// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

const connectionsHeader = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     \n"

// socket writes one line as the kernel does, from address:port to address:port.
func socket(number int, own, other, state string) string {
	return fmt.Sprintf("%4d: %s %s %s 00000000:00000000 00:00000000 00000000   998        0 %d 1 0000000000000000 20 4 30 10 -1                   \n",
		number, kernelForm(own), kernelForm(other), state, 4000+number)
}

func kernelForm(s string) string {
	p := netip.MustParseAddrPort(s)
	b := p.Addr().AsSlice()
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	return fmt.Sprintf("%s:%04X", strings.ToUpper(hex.EncodeToString(b)), p.Port())
}

func TestCountConnections(t *testing.T) {
	const est, listen, timeWait = "01", "0A", "06"
	v4 := connectionsHeader +
		socket(0, "0.0.0.0:5080", "0.0.0.0:0", listen) +
		socket(1, "10.0.0.5:5080", "203.0.113.7:50001", est) +
		socket(2, "10.0.0.5:5080", "203.0.113.7:50002", est) + // one address, two viewers or one
		socket(3, "10.0.0.5:5443", "198.51.100.9:40000", est) +
		socket(4, "10.0.0.5:5443", "198.51.100.9:40001", timeWait) +
		socket(5, "10.0.0.5:1935", "198.51.100.9:40002", est) + // not asked for
		socket(6, "127.0.0.1:5080", "127.0.0.1:39000", est) +
		socket(7, "10.0.0.5:5080", "10.0.0.5:39001", est) + // ourselves by our own address
		socket(8, "10.0.0.5:5080", "10.0.0.6:39002", est) + // another node
		socket(9, "10.0.0.5:39003", "10.0.0.6:5080", est) + // ours to another node
		socket(12345, "10.0.0.5:5080", "192.0.2.44:50003", est)
	v6 := connectionsHeader +
		socket(0, "[::]:5080", "[::]:0", listen) +
		socket(1, "[::ffff:10.0.0.5]:5080", "[::ffff:192.0.2.1]:50000", est) +
		socket(2, "[::ffff:10.0.0.5]:5080", "[::ffff:10.0.0.6]:50000", est) +
		socket(3, "[::ffff:127.0.0.1]:5080", "[::ffff:127.0.0.1]:50000", est) +
		socket(4, "[2001:db8::5]:5443", "[2001:db8:1::77]:50000", est) +
		socket(5, "[::1]:5080", "[::1]:50000", est) +
		socket(6, "[fd00::5]:5080", "[fd00::6]:50000", est)
	nodes := map[netip.Addr]bool{netip.MustParseAddr("10.0.0.6"): true, netip.MustParseAddr("fd00::6"): true}
	exclude := func(a netip.Addr) bool { return nodes[a] }

	for name, c := range map[string]struct {
		files map[string]string
		want  Connections
	}{
		"both": {
			map[string]string{"proc/net/tcp": v4, "proc/net/tcp6": v6},
			Connections{Total: 6, ByPort: map[int]int{5080: 4, 5443: 2}, Local: 4, LocalByPort: map[int]int{5080: 4}, Excluded: 3},
		},
		"no IPv6": {
			map[string]string{"proc/net/tcp": v4},
			Connections{Total: 4, ByPort: map[int]int{5080: 3, 5443: 1}, Local: 2, LocalByPort: map[int]int{5080: 2}, Excluded: 1},
		},
		"through the links of a running system": {
			map[string]string{"proc/77/net/tcp": v4, "proc/self": "-> 77", "proc/net": "-> self/net"},
			Connections{Total: 4, ByPort: map[int]int{5080: 3, 5443: 1}, Local: 2, LocalByPort: map[int]int{5080: 2}, Excluded: 1},
		},
		"nobody": {map[string]string{"proc/net/tcp": connectionsHeader}, Connections{}},
		"the last line is cut": {
			map[string]string{"proc/net/tcp": v4[:len(v4)-100]},
			Connections{Total: 3, ByPort: map[int]int{5080: 2, 5443: 1}, Local: 2, LocalByPort: map[int]int{5080: 2}, Excluded: 1, Unread: 1},
		},
		"lines that make no sense": {
			map[string]string{"proc/net/tcp": v4 + "\n  13: 0500000A:13D8\n  14: 0500000A:ZZZZ 0600000A:0001 01\n" +
				"  15: 0500000A:13D8 0600000:0001 01\n  16: 0500000A 0600000A:0001 01\n" +
				strings.Repeat("x", 3*connectionsBuffer) + "\n" + socket(17, "10.0.0.5:5080", "192.0.2.45:1", est)},
			Connections{Total: 5, ByPort: map[int]int{5080: 4, 5443: 1}, Local: 2, LocalByPort: map[int]int{5080: 2}, Excluded: 1, Unread: 6},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := CountConnections(plant(t, c.files), []int{5080, 5443, 5080}, exclude)
			must.OK(t, err)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}

	// Unknown is not zero.
	for name, files := range map[string]map[string]string{
		"no list":          {"proc/": ""},
		"empty":            {"proc/net/tcp": ""},
		"something else":   {"proc/net/tcp": "tcp 0 0 10.0.0.5:5080 10.0.0.6:1 ESTABLISHED\n"},
		"half of it":       {"proc/net/tcp": v4, "proc/net/tcp6": "oops\n"},
		"a folder instead": {"proc/net/tcp/": ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := CountConnections(plant(t, files), []int{5080}, nil)
			if err == nil || !cmp.Equal(got, Connections{}) {
				t.Errorf("%+v, %v", got, err)
			}
			if errors.Is(err, fs.ErrNotExist) != (name == "no list") {
				t.Errorf("%v", err)
			}
		})
	}
}

// The running kernel and its text say the same, about IPv4 and IPv6.
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
			want := Connections{Local: 3, LocalByPort: map[int]int{port: 3}}
			asked := counter{ports: []int{port}}
			if err := asked.ask(); err != nil {
				t.Skipf("no netlink here: %v", err)
			}
			if diff := cmp.Diff(want, asked.Connections); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			read := counter{ports: []int{port}}
			must.OK(t, read.file("/", map[string]string{"tcp4": "/proc/net/tcp", "tcp6": "/proc/net/tcp6"}[network]))
			if diff := cmp.Diff(want, read.Connections); diff != "" {
				t.Errorf("read (-want +got):\n%s", diff)
			}
			if got, err := CountConnections("/", []int{port, 0, 1 << 16}, nil); err != nil || !cmp.Equal(got, want) {
				t.Errorf("%+v, %v", got, err)
			}
			if got, err := CountConnections("", nil, nil); err != nil || !cmp.Equal(got, Connections{}) {
				t.Errorf("no ports: %+v, %v", got, err)
			}
		})
	}
}

// Who says nothing for long is a balancer's reserve.
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
	c := counter{ports: []int{port}, silence: 2 * time.Second}
	count := func() Connections {
		t.Helper()
		c.Connections = Connections{}
		if err := c.ask(); err != nil {
			t.Skipf("no netlink here: %v", err)
		}
		return c.Connections
	}
	if got := count(); got.Local+got.Silent != 4 {
		t.Errorf("%+v", got)
	}
	want := Connections{Local: 2, LocalByPort: map[int]int{port: 2}, Silent: 2}
	for end := time.Now().Add(time.Minute); ; {
		// One of them says something, to the other one something is said.
		for _, c := range []net.Conn{theirs[0], ours[1]} {
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		got := count()
		if cmp.Equal(got, want) {
			break
		}
		if got.Local+got.Silent != 4 || time.Now().After(end) {
			t.Fatalf("%+v", got)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// One question is for both families and all ports, and for no other port.
func TestCountConnectionsOfManyPorts(t *testing.T) {
	var ports []int
	open := func(host string) int {
		t.Helper()
		// On all addresses: a port of 127.0.0.1 alone may be another program's on ::1.
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
	count := func(ports []int) int {
		t.Helper()
		c := counter{ports: ports}
		if err := c.ask(); err != nil {
			t.Skipf("no netlink here: %v", err)
		}
		return c.Local
	}
	if n := count(ports); n != len(ports) {
		t.Errorf("%d connections to %v", n, ports)
	}
	for _, p := range ports {
		// Next to others, at each end of the program.
		for _, asked := range [][]int{{p}, {1, p}, {p, 1}, {1, p, 65535}} {
			if n := count(asked); n != 1 {
				t.Errorf("%d connections to %v", n, asked)
			}
		}
	}
	if n := count([]int{1, 65535}); n != 0 { // neither is given to anybody who dials
		t.Errorf("%d connections to ports that nobody listens on", n)
	}
	many := counter{ports: make([]int, mostDiagPorts+1)}
	for i := range many.ports {
		many.ports[i] = i + 1
	}
	if err := many.ask(); !errors.Is(err, errNoDiag) {
		t.Errorf("too many ports: %v", err)
	}
	many.ports = many.ports[:mostDiagPorts]
	if err := many.ask(); err != nil {
		t.Errorf("not too many ports: %v", err)
	}
}

// In a network of its own a machine has viewers from elsewhere: the loopback
// interface owns all of 10.0.0.0/8 there.
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
	want := Connections{Total: 3, ByPort: map[int]int{5080: 3}, Local: 1, LocalByPort: map[int]int{5080: 1}, Excluded: 1}
	if diff := cmp.Diff(want, r.got); r.err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", r.err, diff)
	}
}

// onOwnThread runs f on a thread that ends with it, and the namespace with the
// thread. The first thread of the process is none: it never ends, and /proc/self/net
// is the network of that one, for every test.
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
		net.IPv4(10, 0, 0, 5), // ourselves
	} {
		c, err := net.DialTCP("tcp4", &net.TCPAddr{IP: from}, to)
		if err != nil {
			return Connections{}, err
		}
		defer c.Close()
	}
	return CountConnections("/", []int{5080, 5443}, func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.6") })
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

// message writes one message of the kernel's answer.
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

// silentFor is a connection on which something was sent and received so many milliseconds ago, by a kernel that tells so many
// bytes of that.
func silentFor(sent, received uint32, told int) []byte {
	ne := binary.NativeEndian
	b := diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1")
	b = append(b, 5, 0, 8, 0, 1, 0, 0, 0) // another attribute before it, of an odd length
	info := make([]byte, 4+104)
	ne.PutUint16(info, uint16(4+told))
	ne.PutUint16(info[2:], diagInfo)
	ne.PutUint32(info[4+infoSent:], sent)
	ne.PutUint32(info[4+infoGotten:], received)
	return append(b, info[:4+told]...)
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
		"silent":       {slices.Concat(message(diagTCP, silentFor(119_999, 500_000, 104)), message(diagTCP, silentFor(120_000, 120_001, 104)), done), Connections{Total: 1, ByPort: map[int]int{5080: 1}, Silent: 1}, true, nil},
		"old kernel":   {slices.Concat(message(diagTCP, silentFor(300_000, 300_000, 104)[:diagMessageSize+8+4]), message(diagTCP, silentFor(300_000, 300_000, 52)), done), Connections{Total: 2, ByPort: map[int]int{5080: 2}}, true, nil},
		"more to come": {slices.Concat(viewer, viewer), Connections{Total: 2, ByPort: map[int]int{5080: 2}}, false, nil},
		"the end":      {slices.Concat(viewer, mapped, done), Connections{Total: 1, ByPort: map[int]int{5080: 1}, Local: 1, LocalByPort: map[int]int{5080: 1}}, true, nil},
		"odd lengths":  {slices.Concat(message(diagTCP, append(diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1"), 1, 2, 3)), []byte{0}, done), Connections{Total: 1, ByPort: map[int]int{5080: 1}}, true, nil},
		"of no family": {slices.Concat(message(diagTCP, diagBody(unix.AF_UNIX, "1.1.1.1:1", "2.2.2.2:2")), done), Connections{Unread: 1}, true, nil},
		"too short":    {slices.Concat(message(diagTCP, make([]byte, diagMessageSize-4)), done), Connections{Unread: 1}, true, nil},
		"refused":      {message(unix.NLMSG_ERROR, refused), Connections{}, false, unix.EPERM},
		"bad refusal":  {message(unix.NLMSG_ERROR, nil), Connections{}, false, errCutMessage},
		"cut":          {viewer[:len(viewer)-1], Connections{}, false, errCutMessage},
		"cut head":     {done[:7], Connections{}, false, errCutMessage},
		"no length":    {make([]byte, 16), Connections{}, false, errCutMessage},
		"empty":        {nil, Connections{}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got counter
			done, err := got.messages(c.b)
			if done != c.done || !errors.Is(err, c.err) {
				t.Errorf("done %v, %v", done, err)
			}
			if diff := cmp.Diff(c.want, got.Connections); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// crowd is the text of n connections, every second one to our ports.
func crowd(n int) []byte {
	var b bytes.Buffer
	b.WriteString(connectionsHeader)
	for i := range n {
		own := []string{"10.0.0.5:5080", "10.0.0.5:27017"}[i%2]
		b.WriteString(socket(i, own, fmt.Sprintf("198.51.%d.%d:%d", i>>8&0xff, i&0xff, 1024+i%60000), "01"))
	}
	return b.Bytes()
}

func FuzzCountConnections(f *testing.F) {
	f.Add(crowd(3))
	f.Add([]byte(connectionsHeader + socket(1, "[2001:db8::5]:5443", "[2001:db8:1::77]:50000", "01")))
	f.Add(message(diagTCP, diagBody(unix.AF_INET, "10.0.0.5:5080", "203.0.113.7:1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, try := range []func(*counter) error{
			func(c *counter) error { return c.read(bytes.NewReader(b)) },
			func(c *counter) error { _, err := c.messages(b); return err },
		} {
			c := counter{ports: []int{5080, 5443}}
			_ = try(&c)
			sum := 0
			for _, n := range c.ByPort {
				sum += n
			}
			if sum != c.Total || c.Total+c.Local+c.Unread > len(b) {
				t.Errorf("%+v", c.Connections)
			}
		}
	})
}

// The text of a hundred thousand connections. The kernel's own work comes on top.
func BenchmarkCountConnections100k(b *testing.B) {
	text := crowd(100000)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		c := counter{ports: []int{5080, 5443}}
		if err := c.read(bytes.NewReader(text)); err != nil || c.Total != 50000 {
			b.Fatalf("%+v, %v", c.Connections, err)
		}
	}
}

// How much less it costs to ask this kernel than to read its text, on a machine
// with next to no connections.
func BenchmarkCountConnectionsRatio(b *testing.B) {
	cpu := func(f func() error) time.Duration {
		var before, after unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
		if err := f(); err != nil {
			b.Skip(err)
		}
		_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
		return time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	}
	var asked, read time.Duration
	for b.Loop() {
		asked += cpu(func() error { c := counter{ports: []int{5080, 5443}}; return c.ask() })
		read += cpu(func() error {
			c := counter{ports: []int{5080, 5443}}
			return errors.Join(c.file("/", "/proc/net/tcp"), c.file("/", "/proc/net/tcp6"))
		})
	}
	b.ReportMetric(float64(read)/float64(max(asked, 1)), "read/asked")
	b.ReportMetric(float64(asked.Microseconds())/float64(b.N), "asked-cpu-µs")
}
