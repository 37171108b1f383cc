// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
)

// Connection is an established TCP connection to a local port.
type Connection struct {
	Port int
	From netip.Addr
	// Local: from this machine, as health checks and proxies.
	Local bool
	// Silent is the time since the last byte; 0 if unknown.
	Silent time.Duration
}

// From linux/inet_diag.h.
const (
	// diagTCP is TCPDIAG_GETSOCK: one response has IPv4 and IPv6.
	diagTCP         = 18
	diagRequestSize = 60
	diagMessageSize = 72
	diagUser        = 64 // idiag_uid
	diagEstablished = 1 << unix.BPF_TCP_ESTABLISHED
	diagListen      = 1 << unix.BPF_TCP_LISTEN
	// diagInfo is struct tcp_info (linux/tcp.h) with the milliseconds since the last send and receive.
	diagInfo               = 2
	infoSent, infoReceived = 44, 52
)

var diagTimeout = unix.Timeval{Sec: 2}

var errCutMessage = errors.New("a message of the kernel is cut")

// EachConnection visits the connections of the agent's network namespace.
func EachConnection(visit func(Connection)) error {
	if err := eachSocket(diagEstablished, func(m []byte) { visit(connection(m)) }); err != nil {
		return fmt.Errorf("counting connections: %w", err)
	}
	return nil
}

// effectiveUser is the second one in /proc/PID/status.
var effectiveUser = regexp.MustCompile(`(?m)^Uid:\t\d+\t(\d+)`)

// CheckNetwork returns an error unless connections to a port of the server are in the agent's network namespace: its main
// process is, and its user listens there. The unit cannot read /proc/PID/ns, so a file of each namespace is compared.
func CheckNetwork(pid, port int) error {
	dir, listens := filepath.Join("/proc", strconv.Itoa(pid)), false
	process, err := ReadProcess("", pid)
	status, _, serr := files.Root{}.Read(filepath.Join(dir, "status"), maxSystemFile)
	own, oerr := statBelow("", "/proc/thread-self/net/tcp")
	theirs, terr := statBelow("", filepath.Join(dir, "net/tcp"))
	user := string(append(effectiveUser.FindSubmatch(status), nil, nil)[1])
	derr := eachSocket(diagListen, func(m []byte) {
		uid := binary.NativeEndian.Uint32(m[diagUser:])
		listens = listens || connection(m).Port == port && strconv.FormatUint(uint64(uid), 10) == user
	})
	switch err = errors.Join(err, serr, oerr, terr, derr); {
	case pid <= 0:
		return errors.New("the server's process is not known: set its statistics token")
	case err != nil:
		return fmt.Errorf("looking for the server's network: %w", err)
	case own.ID != theirs.ID:
		return errors.New("the server has a network of its own: set its statistics token")
	case !listens:
		return fmt.Errorf("the server's user does not listen at port %d: it starts, or has a network of its own: set its statistics token", port)
	case user == "0" && !process.Java(): // a client of docker, whose proxy is root's, too
		return errors.New("the server's main process is root's and not Java, so it may have a network of its own: set its statistics token")
	}
	return nil
}

// eachSocket visits the messages of sock_diag(7) about TCP sockets in some states.
func eachSocket(states uint32, visit func([]byte)) error {
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
	binary.NativeEndian.PutUint32(body[52:], states)
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
		if done, err := visitMessages(buf[:n], visit); done || err != nil {
			return err
		}
	}
}

func visitMessages(b []byte, visit func([]byte)) (done bool, err error) {
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
			visit(m.Data)
		}
	}
	return false, nil
}

// connection parses family, state, two bytes, local and remote port, local and remote address, both with room for IPv6.
func connection(b []byte) Connection {
	const source, destination = 8, 24
	own, from := netip.AddrFrom16([16]byte(b[source:])).Unmap(), netip.AddrFrom16([16]byte(b[destination:])).Unmap()
	if b[0] == unix.AF_INET {
		own, from = netip.AddrFrom4([4]byte(b[source:])), netip.AddrFrom4([4]byte(b[destination:]))
	}
	return Connection{
		Port: int(binary.BigEndian.Uint16(b[4:])), From: from, Local: from.IsLoopback() || from == own,
		Silent: silence(b[diagMessageSize:]),
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
