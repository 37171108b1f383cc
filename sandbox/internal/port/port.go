// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package port finds TCP ports for servers that are stopped and started again.
package port

import (
	"errors"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// Below the kernel's ephemeral ports (32768 and up by default): any connection may take
	// one of those between a stop and a start.
	first = 20000
	count = 12000
	// tries is many times what a machine has listening in there.
	tries = 500
)

// taken counts the ports that this process has tried, and holds a mark for each that it has handed out: an abstract
// socket, which other processes see as long as this one lives.
var taken struct {
	sync.Mutex
	n     int
	marks []net.Listener
}

// Free returns a port of the loopback interface without a listener. It returns each port once, also
// among processes, as long as this one runs.
func Free() (int, error) {
	taken.Lock()
	defer taken.Unlock()
	for range tries {
		taken.n++
		n := first + (os.Getpid()*97+taken.n)%count
		mark, err := net.Listen("unix", "@amsagent-sandbox-port-"+strconv.Itoa(n))
		if err != nil {
			continue
		}
		if bind(n) != nil {
			_ = mark.Close()
			continue
		}
		taken.marks = append(taken.marks, mark)
		return n, nil
	}
	return 0, errors.New("finding a free port: all that were tried are taken")
}

// bind returns an error if a port of the loopback interface has a listener. It does not listen itself: a child started
// meanwhile would inherit the listener.
func bind(n int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Port: n, Addr: [4]byte{127, 0, 0, 1}})
}
