// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel's own numbers of its list of sockets (linux/inet_diag.h); package
// unix has no names for them.
const (
	// diagTCP is TCPDIAG_GETSOCK, the oldest of the requests, which iproute2 asked
	// with for ten years. The newer one takes a family, and the kernel would walk its
	// table for each of the two.
	diagTCP         = 18
	diagRequestSize = 60
	diagMessageSize = 72
	diagEstablished = 1 << 1 // the states that are asked for, as bits

	// diagInfo is the attribute with struct tcp_info (linux/tcp.h), for which the request has
	// a bit. In it stand, in milliseconds, how long ago something was sent and received
	// last; both begin with the connection.
	diagInfo             = 2
	infoSent, infoGotten = 44, 52

	// diagFilter is the attribute that holds a program, by which the kernel picks;
	// these are its instructions.
	diagFilter                     = 1
	diagJump, diagLeast, diagMost  = 1, 2, 3 // as diagLeast <= our port <= diagMost
	diagCompareSize, diagShortSize = 8, 4
	// mostDiagPorts is more than a server has, and keeps the offsets in 16 bits.
	mostDiagPorts = 64
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
	c.ByPort, c.LocalByPort = nil, nil
	buf := make([]byte, connectionsBuffer)
	if err := c.dump(fd, buf); err != nil {
		c.Connections = before
		return fmt.Errorf("%w: %w", errNoDiag, err)
	}
	return nil
}

// dump asks for the established connections to our ports, of both families at
// once. The kernel does the picking, so that a node's many others cost next to
// nothing. What costs is its walk over a table that is made for as many connections
// as the machine has memory for, however few there are: it is one for all ports.
func (c *counter) dump(fd int, buf []byte) error {
	ports := slices.DeleteFunc(slices.Clone(c.ports), func(p int) bool { return p <= 0 || p > 0xffff })
	switch {
	case len(ports) == 0:
		return nil
	case len(ports) > mostDiagPorts:
		return errManyPorts
	}
	if err := unix.Sendto(fd, diagRequest(ports), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
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

// diagRequest asks for what is established and of one of the ports.
func diagRequest(ports []int) []byte {
	ne := binary.NativeEndian
	filter := portFilter(ports)
	req := make([]byte, unix.NLMSG_HDRLEN+diagRequestSize+unix.SizeofRtAttr, unix.NLMSG_HDRLEN+diagRequestSize+unix.SizeofRtAttr+len(filter))
	attr := req[unix.NLMSG_HDRLEN+diagRequestSize:]
	ne.PutUint16(attr[0:], uint16(unix.SizeofRtAttr+len(filter)))
	ne.PutUint16(attr[2:], diagFilter)
	req = append(req, filter...)
	ne.PutUint32(req[0:], uint32(len(req)))
	ne.PutUint16(req[4:], diagTCP)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := req[unix.NLMSG_HDRLEN:]
	body[0] = unix.AF_INET // and the other one comes along
	body[3] = 1 << (diagInfo - 1)
	ne.PutUint32(body[52:], diagEstablished)
	return req
}

// portFilter is the program of a filter: our port is one of ports. An instruction
// says how far to go where it holds, and where it does not. Who comes to the end
// is picked, who goes beyond it is not. The kernel refuses a program that goes to
// anything but the beginning of an instruction.
func portFilter(ports []int) []byte {
	const one = 2*diagCompareSize + diagShortSize
	size := one*len(ports) - diagShortSize // the last one needs no jump
	program := make([]byte, 0, size)
	instruction := func(code uint8, yes, no int) {
		program = append(program, code, uint8(yes))
		program = binary.NativeEndian.AppendUint16(program, uint16(no))
	}
	for i, p := range ports {
		// To the next port; after the last one beyond the end.
		next := (i + 1) * one
		if i == len(ports)-1 {
			next = size + diagShortSize
		}
		for _, code := range []uint8{diagLeast, diagMost} {
			instruction(code, diagCompareSize, next-len(program))
			instruction(0, 0, p) // what to compare with
		}
		if i < len(ports)-1 {
			instruction(diagJump, diagShortSize, size-len(program))
		}
	}
	return program
}

var (
	errCutMessage = errors.New("a message of the kernel is cut")
	errManyPorts  = errors.New("too many ports for one question")
)

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
		case diagTCP:
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
	if silent, ok := silence(b[diagMessageSize:]); ok && silent >= cmp.Or(c.silence, silentAfter) {
		c.Silent++
		return true
	}
	c.count(int(binary.BigEndian.Uint16(b[port:])), own, other)
	return true
}

// silence finds among a connection's attributes for how long nothing came or went on
// it; false where the kernel does not tell.
func silence(attrs []byte) (time.Duration, bool) {
	ne := binary.NativeEndian
	for len(attrs) >= unix.SizeofRtAttr {
		size := int(ne.Uint16(attrs))
		if size < unix.SizeofRtAttr || size > len(attrs) {
			break
		}
		if value := attrs[unix.SizeofRtAttr:size]; ne.Uint16(attrs[2:]) == diagInfo && len(value) >= infoGotten+4 {
			return time.Duration(min(ne.Uint32(value[infoSent:]), ne.Uint32(value[infoGotten:]))) * time.Millisecond, true
		}
		attrs = attrs[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(attrs)):]
	}
	return 0, false
}
