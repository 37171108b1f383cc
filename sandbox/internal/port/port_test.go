// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package port

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
)

// listen takes a port that is handed out.
func listen(t *testing.T) (int, net.Listener) {
	t.Helper()
	n, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n)))
	if err != nil {
		t.Fatal(err)
	}
	return n, l
}

// TestFreeWhileProgramsStart: a program inherits all that is open for a moment.
func TestFreeWhileProgramsStart(t *testing.T) {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 8 {
		work.Go(func() {
			for ctx.Err() == nil {
				_ = exec.CommandContext(ctx, "/bin/true").Run() // it is ended with the test
			}
		})
	}
	for range 1000 {
		_, l := listen(t)
		// As it is: closed without a connection, it is free again.
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestFreeOfAListener: no port is handed out on which somebody listens.
func TestFreeOfAListener(t *testing.T) {
	n, l := listen(t)
	defer func() { _ = l.Close() }()
	if bind(n) == nil {
		t.Errorf("port %d is called free", n)
	}
}

// TestFreeBesideAnother: what one process has handed out and nobody listens on yet, no other process hands out.
func TestFreeBesideAnother(t *testing.T) {
	const variable = "SANDBOX_TEST_PORT_OF"
	if text := os.Getenv(variable); text != "" {
		had, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		// The first that this process tries is the other's.
		taken.n = had - first - os.Getpid()*97%count - 1 + count
		if n, err := Free(); err != nil || n == had {
			t.Errorf("%d after %d, %v", n, had, err)
		}
		return
	}
	n, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestFreeBesideAnother$")
	cmd.Env = append(os.Environ(), variable+"="+strconv.Itoa(n))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
