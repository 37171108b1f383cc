// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Connections is the result of [CountConnections] by local port.
type Connections struct {
	ByPort map[int]int
	// LocalByPort counts connections from this machine, such as health checks and proxies.
	LocalByPort map[int]int
	// Silent counts those from elsewhere without a byte for two minutes.
	Silent int
}

// silentAfter is twice the usual idle timeout.
const silentAfter = 2 * time.Minute

// From linux/inet_diag.h.
const (
	// diagTCP is TCPDIAG_GETSOCK: one response has IPv4 and IPv6.
	diagTCP         = 18
	diagRequestSize = 60
	diagMessageSize = 72
	diagEstablished = 1 << unix.BPF_TCP_ESTABLISHED
	// diagInfo is struct tcp_info (linux/tcp.h) with the milliseconds since the last send and receive.
	diagInfo               = 2
	infoSent, infoReceived = 44, 52
)

var diagTimeout = unix.Timeval{Sec: 2}

var errCutMessage = errors.New("a message of the kernel is cut")

// CountConnections counts established TCP connections to local ports in the agent's network namespace, without those that
// exclude selects. It only estimates viewers: publishers and panel users count, and a load balancer may share or keep
// connections. Silent ones do not count: players send a request every few seconds, WebRTC clients something every three.
func CountConnections(ports []int, exclude func(netip.Addr) bool) (Connections, error) {
	c := counter{Connections{ByPort: map[int]int{}, LocalByPort: map[int]int{}}, ports, exclude, silentAfter}
	if err := c.ask(); err != nil {
		return Connections{}, fmt.Errorf("counting connections: %w", err)
	}
	return c.Connections, nil
}

type counter struct {
	Connections
	ports   []int
	exclude func(netip.Addr) bool
	silence time.Duration
}

// ask uses sock_diag(7).
func (c *counter) ask() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &diagTimeout); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	request := make([]byte, unix.NLMSG_HDRLEN+diagRequestSize)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], diagTCP)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := request[unix.NLMSG_HDRLEN:]
	body[0], body[3] = unix.AF_INET, 1<<(diagInfo-1)
	binary.NativeEndian.PutUint32(body[52:], diagEstablished)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 16<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if done, err := c.messages(buf[:n]); done || err != nil {
			return err
		}
	}
}

func (c *counter) messages(b []byte) (done bool, err error) {
	list, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return false, errCutMessage
	}
	for _, m := range list {
		switch m.Header.Type {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(m.Data) < 4 {
				return false, errCutMessage
			}
			return false, os.NewSyscallError("sock_diag", unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data))))
		case diagTCP:
			if len(m.Data) < diagMessageSize {
				return false, errCutMessage
			}
			c.message(m.Data)
		}
	}
	return false, nil
}

// message parses family, state, two bytes, local and remote port, local and remote address, both with room for IPv6.
func (c *counter) message(b []byte) {
	const source, destination = 8, 24
	port := int(binary.BigEndian.Uint16(b[4:]))
	if !slices.Contains(c.ports, port) {
		return
	}
	own, other := netip.AddrFrom16([16]byte(b[source:])).Unmap(), netip.AddrFrom16([16]byte(b[destination:])).Unmap()
	if b[0] == unix.AF_INET {
		own, other = netip.AddrFrom4([4]byte(b[source:])), netip.AddrFrom4([4]byte(b[destination:]))
	}
	local := other.IsLoopback() || other == own
	switch {
	case c.exclude(other):
	case silence(b[diagMessageSize:]) < c.silence && local:
		c.LocalByPort[port]++
	case silence(b[diagMessageSize:]) < c.silence:
		c.ByPort[port]++
	case !local: // a proxy or a check keeps most local ones open
		c.Silent++
	}
}

func silence(attrs []byte) time.Duration {
	ne := binary.NativeEndian
	for len(attrs) >= unix.SizeofRtAttr {
		size := int(ne.Uint16(attrs))
		if size < unix.SizeofRtAttr || size > len(attrs) {
			break
		}
		if value := attrs[unix.SizeofRtAttr:size]; ne.Uint16(attrs[2:]) == diagInfo && len(value) >= infoReceived+4 {
			return time.Duration(min(ne.Uint32(value[infoSent:]), ne.Uint32(value[infoReceived:]))) * time.Millisecond
		}
		attrs = attrs[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(attrs)):]
	}
	return 0
}
