// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockFile takes the lock that keeps a second daemon away. The kernel releases it when the process ends, however it
// ends. The file at pidPath, if one is named, holds the daemon's pid for people and programs; the lock file itself is
// for root alone, because any descriptor on it, even a read-only one, is enough to take or delay the lock.
//
// It returns a [RunningError] if another process holds the lock.
func lockFile(path, pidPath string) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	// An earlier version made it readable for everyone.
	if err := f.Chmod(0o600); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(runningError(pidPath), f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	// Daemons before this one wrote their pid into it.
	_ = f.Truncate(0)
	remove := writePID(pidPath)
	return func() {
		remove()
		_ = f.Close()
	}, nil
}

// writePID writes the pid of this process. A failure is not reported: nothing but people and [Stopped] depends on the file.
func writePID(path string) (remove func()) {
	if path == "" {
		return func() {}
	}
	staged := path + ".new"
	_ = os.Remove(staged)
	err := os.WriteFile(staged, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600)
	if err == nil {
		err = errors.Join(os.Chmod(staged, 0o644), os.Rename(staged, path))
	}
	if err != nil {
		_ = os.Remove(staged)
		return func() {}
	}
	return func() { _ = os.Remove(path) }
}

// Stopped reports whether the daemon has ended in order, and taken its pid file with it. It is for users who may not open
// the control socket, which stays.
func Stopped(pidPath string) bool {
	_, err := os.Lstat(pidPath)
	return errors.Is(err, os.ErrNotExist)
}

// runningError names the daemon of the pid file.
func runningError(pidPath string) *RunningError {
	e := &RunningError{}
	if b, err := os.ReadFile(pidPath); err == nil && len(b) <= 16 {
		e.PID, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	return e
}

// RunningError says that another daemon runs on this machine.
type RunningError struct{ PID int }

func (e *RunningError) Error() string {
	if e.PID == 0 {
		return "another amsagent daemon runs on this machine"
	}
	return fmt.Sprintf("another amsagent daemon runs on this machine, with pid %d", e.PID)
}
