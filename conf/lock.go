// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked reports that another process holds the lock.
var ErrLocked = errors.New("another amsagent is at work on this machine")

// lockPoll is the period of attempts. A join holds the lock for seconds.
const lockPoll = 100 * time.Millisecond

// Lock is the right to change this machine's files. The kernel releases it when the process ends.
type Lock struct{ f *os.File }

// Lock locks the file at path below the root. It calls waiting once, if not nil, before it waits, and returns
// [ErrLocked] when ctx ends. It writes nothing into the file.
func (s *Store) Lock(ctx context.Context, path string, waiting func()) (*Lock, error) {
	d, err := s.makeFolder(filepath.Dir(path), 0o755)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	f, err := d.LockFile(filepath.Base(path), 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%w: %w", ErrLocked, context.Cause(ctx)), f.Close())
		case <-time.After(lockPoll):
		}
	}
	return &Lock{f}, nil
}

// Unlock releases the lock, also that of a child between fork and exec, which has the descriptor, too.
func (l *Lock) Unlock() error {
	return errors.Join(unix.Flock(int(l.f.Fd()), unix.LOCK_UN), l.f.Close())
}
