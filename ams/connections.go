// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"slices"
	"time"
)

// Connections is what [CountConnections] counted.
type Connections struct {
	// Total are the established connections from other machines.
	Total int `json:"total"`
	// ByPort are the same by our port; a port without one is not in it.
	ByPort map[int]int `json:"by_port,omitempty"`
	// Local are those from this machine itself, which are not counted: health
	// checks and the agent. Where a proxy on this machine stands before the
	// server, the viewers are here and Total says nothing about them.
	Local int `json:"local,omitempty"`
	// LocalByPort are the same by our port.
	LocalByPort map[int]int `json:"local_by_port,omitempty"`
	// Excluded are those from the addresses that the caller did not want.
	Excluded int `json:"excluded,omitempty"`
	// Silent are those, from wherever, on which nobody has said anything for two
	// minutes. Known only of the running kernel.
	Silent int `json:"silent,omitempty"`
	// Unread are lines that no sense could be made of.
	Unread int `json:"unread,omitempty"`
}

const (
	// The kernel hands out a page at a time; a few of them in a buffer that stays
	// the same however many connections there are.
	connectionsBuffer = 16 << 10
	// Of its list only what is established counts: a closed tab leaves the others.
	stateEstablished = "01"
)

// errNotConnections: the file is not what the kernel writes.
var errNotConnections = errors.New("it is not a list of connections")

// CountConnections counts the established TCP connections to the ports of the
// machine below root. Connections from this machine are left out, and those from addresses for which exclude is true (nil excludes
// none): give it the other nodes of the cluster, which fetch streams on the same
// ports. An address of IPv4 is given to exclude as one, however it arrived.
//
// It is an estimate of the viewers, and knows nothing of what a connection is
// for. How it is wrong:
//
//   - Connections are counted, not addresses: a company behind one address is
//     many viewers. A player of HLS or DASH keeps one or two connections open, a
//     few at times, so these viewers are counted too high.
//   - WebRTC's media are UDP, but each of its clients holds one websocket: viewers
//     are counted well, and publishers are counted as viewers.
//   - Users of the web panel, callers of the REST API and health checks of a load
//     balancer count while they are connected. So do players that have ended
//     within the last seconds, as the server keeps a connection for a while.
//   - Behind a load balancer or a CDN the connections are the balancer's, which
//     may use one for many viewers (HTTP/2, reused connections) or keep some
//     without any. The server ends none of these, so that they are not counted once
//     they are silent for two minutes. No viewer is: a player asks every few
//     seconds, and the server's own WebRTC client says something every three, since
//     balancers end what is silent for a minute or so.
//   - Only the network namespace of the caller is seen: a server in a container
//     with its own has no connections here.
//
// So it is good for "are there any left", and for a trend. AMS's own statistics
// are better wherever they can be had: [ReadStatistics].
//
// The running kernel is asked by netlink, as ss does. Its text in /proc/net/tcp
// and tcp6 is read where that is not possible: below another root, or where
// netlink is forbidden. The text costs far more, whatever is in it: for each of
// the two files the kernel searches its whole table of connections twice. Either
// way what comes is taken as a stream, and the memory does not grow with it.
func CountConnections(root string, ports []int, exclude func(netip.Addr) bool) (Connections, error) {
	ports = slices.Compact(slices.Sorted(slices.Values(ports))) // asked twice is counted twice
	c := counter{ports: ports, exclude: exclude}
	if realRoot(root) && c.ask() == nil {
		return c.Connections, nil
	}
	found := false
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		err := c.file(root, path)
		switch {
		// Where IPv6 is switched off, its list is not there.
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return Connections{}, fmt.Errorf("counting connections: %s: %w", shown(root, path), err)
		}
		found = true
	}
	if !found {
		return Connections{}, fmt.Errorf("counting connections: %s: %w", shown(root, "/proc/net/tcp"), fs.ErrNotExist)
	}
	return c.Connections, nil
}

type counter struct {
	Connections
	ports   []int
	exclude func(netip.Addr) bool
	silence time.Duration // 0 is silentAfter
}

// silentAfter is twice what balancers usually bear.
const silentAfter = 2 * time.Minute

func (c *counter) file(root, path string) error {
	f, _, err := openBelow(root, path)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.read(f)
}

func (c *counter) read(from io.Reader) error {
	r := bufio.NewReaderSize(from, connectionsBuffer)
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		whole := err == nil
		for errors.Is(err, bufio.ErrBufferFull) { // longer than any the kernel writes
			_, err = r.ReadSlice('\n')
		}
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return err
		}
		switch {
		case first && !bytes.Contains(line, []byte("local_address")):
			return errNotConnections // an empty one too: no list is not an empty list
		case !first && len(line) > 0 && (!whole || !c.line(line)):
			c.Unread++
		}
		if end {
			return nil
		}
	}
}

// line takes one line of the list: number, our address, the other's, the state,
// and more that does not matter. false where it is not one.
func (c *counter) line(b []byte) bool {
	_, b = cutWord(b)
	here, b := cutWord(b)
	there, b := cutWord(b)
	state, _ := cutWord(b)
	if len(state) != 2 {
		return false
	}
	if string(state) != stateEstablished {
		return true
	}
	hex, portHex, ok := bytes.Cut(here, []byte(":"))
	if !ok {
		return false
	}
	port, ok := hexNumber(portHex)
	if !ok {
		return false
	}
	if !slices.Contains(c.ports, int(port)) {
		return true
	}
	own, ok := hexAddress(hex)
	if !ok {
		return false
	}
	hex, _, _ = bytes.Cut(there, []byte(":"))
	other, ok := hexAddress(hex)
	if !ok {
		return false
	}
	c.count(int(port), own, other)
	return true
}

func (c *counter) count(port int, own, other netip.Addr) {
	switch {
	case other.IsLoopback() || other == own:
		c.Local++
		if c.LocalByPort == nil {
			c.LocalByPort = make(map[int]int)
		}
		c.LocalByPort[port]++
	case c.exclude != nil && c.exclude(other):
		c.Excluded++
	default:
		c.Total++
		if c.ByPort == nil {
			c.ByPort = make(map[int]int)
		}
		c.ByPort[port]++
	}
}

// cutWord cuts the first word off. It is written out because bytes.Fields would
// allocate for each of a hundred thousand lines.
func cutWord(b []byte) (word, rest []byte) {
	for len(b) > 0 && b[0] == ' ' {
		b = b[1:]
	}
	i := 0
	for i < len(b) && b[i] != ' ' && b[i] != '\n' {
		i++
	}
	return b[:i], b[i:]
}

// hexNumber reads up to eight hexadecimal digits.
func hexNumber(b []byte) (n uint32, ok bool) {
	if len(b) == 0 || len(b) > 8 {
		return 0, false
	}
	for _, d := range b {
		switch {
		case d >= '0' && d <= '9':
			d -= '0'
		case d >= 'A' && d <= 'F':
			d -= 'A' - 10
		case d >= 'a' && d <= 'f':
			d -= 'a' - 10
		default:
			return 0, false
		}
		n = n<<4 | uint32(d)
	}
	return n, true
}

// hexAddress reads an address as the kernel writes it: as numbers of four bytes in
// the machine's own order, one for IPv4 and four for IPv6.
func hexAddress(hex []byte) (netip.Addr, bool) {
	var a [16]byte
	if len(hex) != 8 && len(hex) != 32 {
		return netip.Addr{}, false
	}
	for i := 0; i < len(hex); i += 8 {
		n, ok := hexNumber(hex[i : i+8])
		if !ok {
			return netip.Addr{}, false
		}
		binary.NativeEndian.PutUint32(a[i/2:], n)
	}
	if len(hex) == 8 {
		return netip.AddrFrom4([4]byte(a[:4])), true
	}
	return netip.AddrFrom16(a).Unmap(), true
}
