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

// ErrLocked says that another amsagent holds the lock.
var ErrLocked = errors.New("another amsagent is at work on this machine")

// lockPoll is how often a waiting process tries again. A join holds the lock
// for seconds, so a tenth of a second is soon enough.
const lockPoll = 100 * time.Millisecond

// Lock is the right to change this machine's files. The kernel gives it back
// when the process ends, however it ends.
type Lock struct{ f *os.File }

// Lock takes the lock file at path below the root, waiting until ctx ends.
// waiting, if not nil, is called once when it has to wait. Nothing is written into the file: taking the lock to find that there is
// nothing to do writes no byte.
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

// Unlock gives the lock back.
func (l *Lock) Unlock() error { return l.f.Close() }
