// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package port finds TCP ports for servers that are stopped and started again.
package port

import (
	"errors"
	"net"
	"os"
	"strconv"
	"sync/atomic"
)

const (
	// Below the ports that the kernel gives to connections (32768 and up, unless
	// somebody has set it otherwise): one of those may be taken by anybody's
	// connection between a stop and a start.
	first = 20000
	count = 12000
	// tries is many times what a machine has listening in there.
	tries = 500
)

// taken counts the ports that this process has handed out.
var taken atomic.Uint32

// Free finds a port of the loopback interface where nobody listens, and hands out
// none twice. Other processes begin elsewhere in the range.
func Free() (int, error) {
	for range tries {
		n := first + (os.Getpid()*97+int(taken.Add(1)))%count
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n)))
		if err != nil {
			continue
		}
		return n, l.Close()
	}
	return 0, errors.New("finding a free port: all that were tried are taken")
}
