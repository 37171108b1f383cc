// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// The kernel's own numbers of its list of sockets (linux/sock_diag.h and
// linux/inet_diag.h); package unix has no names for them.
const (
	sockDiagByFamily = 20
	diagRequestSize  = unix.NLMSG_HDRLEN + 56
	diagMessageSize  = 72
	diagEstablished  = 1 << 1 // the states that are asked for, as bits
)

// diagPatience bounds the wait for an answer that the kernel gives at once.
var diagPatience = unix.Timeval{Sec: 2}

// errNoDiag: the kernel does not tell, or may not be asked.
var errNoDiag = errors.New("the kernel does not list its connections by netlink")

// ask counts what the running kernel says by netlink, and nothing if it fails.
func (c *counter) ask() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoDiag, os.NewSyscallError("socket", err))
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &diagPatience); err != nil {
		return fmt.Errorf("%w: %w", errNoDiag, os.NewSyscallError("setsockopt", err))
	}
	before := c.Connections
	c.ByPort = nil
	buf := make([]byte, connectionsBuffer)
	asked := false
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for _, port := range c.ports {
			if port <= 0 || port > 0xffff {
				continue
			}
			err := c.dump(fd, family, uint16(port), buf)
			// Without IPv6 there is nobody to ask for it.
			if errors.Is(err, unix.ENOENT) && family == unix.AF_INET6 && asked {
				break
			}
			if err != nil {
				c.Connections = before
				return fmt.Errorf("%w: %w", errNoDiag, err)
			}
			asked = true
		}
	}
	return nil
}

// dump asks for the established connections to one port of ours. The kernel does
// the picking, so that a node's many others cost next to nothing.
func (c *counter) dump(fd int, family uint8, port uint16, buf []byte) error {
	var req [diagRequestSize]byte
	ne := binary.NativeEndian
	ne.PutUint32(req[0:], diagRequestSize)
	ne.PutUint16(req[4:], sockDiagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := req[unix.NLMSG_HDRLEN:]
	body[0], body[1] = family, unix.IPPROTO_TCP
	ne.PutUint32(body[4:], diagEstablished)
	binary.BigEndian.PutUint16(body[8:], port)
	if err := unix.Sendto(fd, req[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
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

var errCutMessage = errors.New("a message of the kernel is cut")

// messages takes one answer apart. done says that it was the last.
func (c *counter) messages(b []byte) (done bool, err error) {
	for len(b) > 0 {
		if len(b) < unix.NLMSG_HDRLEN {
			return false, errCutMessage
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false, errCutMessage
		}
		body := b[unix.NLMSG_HDRLEN:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errCutMessage
			}
			return false, os.NewSyscallError("sock_diag", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
		case sockDiagByFamily:
			if len(body) < diagMessageSize || !c.message(body) {
				c.Unread++
			}
		}
		b = b[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
	}
	return false, nil
}

// message takes one connection: family, state, and two bytes more; then our port,
// theirs, our address and theirs, with room for IPv6 each.
func (c *counter) message(b []byte) bool {
	const port, source, destination = 4, 8, 24
	var own, other netip.Addr
	switch b[0] {
	case unix.AF_INET:
		own, other = netip.AddrFrom4([4]byte(b[source:])), netip.AddrFrom4([4]byte(b[destination:]))
	case unix.AF_INET6:
		own, other = netip.AddrFrom16([16]byte(b[source:])).Unmap(), netip.AddrFrom16([16]byte(b[destination:])).Unmap()
	default:
		return false
	}
	c.count(int(binary.BigEndian.Uint16(b[port:])), own, other)
	return true
}
