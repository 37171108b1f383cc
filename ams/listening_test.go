// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestListeningPorts(t *testing.T) {
	const est, listen = "01", "0A"
	v4 := connectionsHeader +
		socket(0, "0.0.0.0:5080", "0.0.0.0:0", listen) +
		socket(1, "127.0.0.1:5554", "0.0.0.0:0", listen) +
		socket(2, "0.0.0.0:22", "0.0.0.0:0", listen) + // another process
		socket(3, "10.0.0.5:1935", "203.0.113.7:50001", est)
	v6 := connectionsHeader + socket(4, "[::]:5080", "[::]:0", listen) + socket(5, "[::]:1935", "[::]:0", listen)
	fds := map[string]string{"proc/net/tcp": v4, "proc/net/tcp6": v6}
	for i, name := range []string{"/dev/null", "socket:[4000]", "socket:[4001]", "socket:[4003]", "socket:[4004]", "socket:[4005]", "socket:[9]"} {
		fds[fmt.Sprintf("proc/77/fd/%d", i)] = "-> " + name
	}
	got, err := ListeningPorts(plant(t, fds), 77)
	if want := []int{1935, 5080, 5554}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}

	// Unknown is not nowhere.
	if got, err := ListeningPorts(plant(t, fds), 78); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process that is gone: %v, %v", got, err)
	}
	delete(fds, "proc/net/tcp")
	delete(fds, "proc/net/tcp6")
	if got, err := ListeningPorts(plant(t, fds), 77); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no list: %v, %v", got, err)
	}
	var many strings.Builder
	many.WriteString(connectionsHeader)
	for i := range mostListening + 1 {
		many.WriteString(socket(i, fmt.Sprintf("127.0.0.1:%d", 10000+i), "0.0.0.0:0", listen))
	}
	fds["proc/net/tcp"] = many.String()
	if got, err := ListeningPorts(plant(t, fds), 77); !errors.Is(err, errManyListening) {
		t.Errorf("too many: %v, %v", got, err)
	}
	fds["proc/net/tcp"] = connectionsHeader + "   0: 0500000A:13D8 00000000:0000 0A\n   1: 0500000A 00000000:0000 0A 0 0 0 0 0 7\n   2: x\n"
	if got, err := ListeningPorts(plant(t, fds), 77); err != nil || len(got) != 0 {
		t.Errorf("lines that make no sense: %v, %v", got, err)
	}
}

// The running kernel writes what is read here.
func TestListeningPortsOfThisProcess(t *testing.T) {
	var want []int
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		want = append(want, l.Addr().(*net.TCPAddr).Port)
	}
	got, err := ListeningPorts("/", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range want {
		if !slices.Contains(got, port) {
			t.Errorf("%d is not in %v", port, got)
		}
	}
}
