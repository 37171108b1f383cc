// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

// TestLockIsReleased: also while a child has the descriptor, as each one has between fork and exec.
func TestLockIsReleased(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := lockFile(path)
	must.OK(t, err)
	if _, err := lockFile(path); !errors.Is(err, ErrRunning) {
		t.Errorf("a second daemon: %v", err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	must.OK(t, err)
	child := -1
	for _, entry := range fds {
		if to, _ := os.Readlink(filepath.Join("/proc/self/fd", entry.Name())); to != path {
			continue
		}
		n, err := strconv.Atoi(entry.Name())
		must.OK(t, err)
		child, err = unix.Dup(n)
		must.OK(t, err)
		break
	}
	defer func() { must.OK(t, unix.Close(child)) }()
	release()
	release, err = lockFile(path)
	must.OK(t, err)
	release()
}
