// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"fmt"
	"slices"
)

const (
	stateListening = "0A"
	// mostListening bounds the sockets that are looked at: a server has ten or so.
	mostListening = 1024
)

// errManyListening: more sockets listen on this machine than any server needs.
var errManyListening = fmt.Errorf("more than %d sockets listen", mostListening)

// ListeningPorts are the TCP ports that a process listens at, in order, whatever its
// configuration says by now. Only the network namespace of the caller is seen.
func ListeningPorts(root string, pid int) ([]int, error) {
	ports, err := listeningPorts(root, pid)
	if err != nil {
		return nil, fmt.Errorf("looking where process %d listens: %w", pid, err)
	}
	return ports, nil
}

func listeningPorts(root string, pid int) ([]int, error) {
	listening := map[string]int{} // ports by the name that the process has for the socket
	if _, err := readSockets(root, func(line []byte) bool {
		inode, port, ok := listeningSocket(line)
		if inode != "" && len(listening) <= mostListening {
			listening["socket:["+inode+"]"] = port
		}
		return ok
	}); err != nil {
		return nil, err
	}
	if len(listening) > mostListening {
		return nil, errManyListening
	}
	var ports []int
	err := eachOpen(root, pid, func(open string) bool {
		if port, ok := listening[open]; ok {
			ports = append(ports, port)
		}
		return true
	})
	slices.Sort(ports)
	return slices.Compact(ports), err
}

// listeningSocket takes inode and port from a line of the list; "" where the socket does not
// listen. false where the line is none.
func listeningSocket(line []byte) (inode string, port int, ok bool) {
	_, b := cutWord(line)
	here, b := cutWord(b)
	_, b = cutWord(b)
	state, b := cutWord(b)
	if string(state) != stateListening {
		return "", 0, len(state) == 2
	}
	var word []byte
	for range 6 { // queues, timer, retransmissions, user, timeout, inode
		word, b = cutWord(b)
	}
	_, port, ok = hexPort(here)
	return string(word), port, ok && len(word) > 0
}
