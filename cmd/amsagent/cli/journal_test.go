// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// While journald is stopped its socket is there, and its queue fills.
func TestJournalThatNobodyReads(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ended := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			err = sendLine(socket, "antmedia.service", "a line")
		}
		ended <- err
	}()
	select {
	case err = <-ended:
	case <-time.After(10 * time.Second):
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the writer waits: %v", err)
	}
}
