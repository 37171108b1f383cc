// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
// waiting, if not nil, is called once when it has to wait, with what the holder
// wrote about itself. about is written into the file for the next who waits.
func (s *Store) Lock(ctx context.Context, path, about string, waiting func(holder string)) (*Lock, error) {
	real, err := s.resolve(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(real, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	told := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		holder := readHolder(f)
		if !told && waiting != nil {
			waiting(holder)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%w (%s): %w", ErrLocked, holder, context.Cause(ctx)), f.Close())
		case <-time.After(lockPoll):
		}
	}
	// For people only: a failure to write it changes nothing.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(about+"\n"), 0)
	}
	return &Lock{f}, nil
}

func readHolder(f *os.File) string {
	buf := make([]byte, 200)
	n, _ := f.ReadAt(buf, 0)
	return strings.TrimSpace(string(buf[:n]))
}

// Unlock gives the lock back.
func (l *Lock) Unlock() error { return l.f.Close() }
