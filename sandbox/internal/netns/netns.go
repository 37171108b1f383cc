// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package netns makes sockets in the network of another process. Linux only, as root.
package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dial connects from the network namespace of a process.
func Dial(ctx context.Context, pid int, network, address string) (conn net.Conn, err error) {
	err = in(pid, func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in the network namespace of a process.
func Listen(ctx context.Context, pid int, network, address string) (l net.Listener, err error) {
	err = in(pid, func() error {
		l, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// in calls f, which makes a socket, in the network namespace of a process.
//
// A socket belongs to the namespace of the thread that makes it. The thread goes back
// and is used again: did it end, the kernel would kill the processes that it started
// (Pdeathsig).
func in(pid int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("opening the own network namespace: %w", err)
	}
	defer own.Close()
	theirs, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns/net"))
	if err != nil {
		return fmt.Errorf("opening the network namespace of process %d: %w", pid, err)
	}
	defer theirs.Close()
	if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace of process %d: %w", pid, err)
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic("a thread is lost in another network namespace: " + err.Error())
		}
	}()
	return f()
}
