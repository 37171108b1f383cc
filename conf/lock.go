// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
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
// waiting, if not nil, is called once when it has to wait, with who holds the
// lock. Nothing is written into the file: taking the lock to find that there is
// nothing to do writes no byte.
func (s *Store) Lock(ctx context.Context, path string, waiting func(holder string)) (*Lock, error) {
	d, err := s.makeFolder(filepath.Dir(path), 0o755)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	f, err := d.LockFile(filepath.Base(path), 0o600)
	if err != nil {
		return nil, err
	}
	holder := ""
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		if holder == "" {
			if holder = s.holderOf(f); waiting != nil {
				waiting(holder)
			}
		}
		select {
		case <-ctx.Done():
			// Another process may hold it by now.
			return nil, errors.Join(fmt.Errorf("%w (%s): %w", ErrLocked, s.holderOf(f), context.Cause(ctx)), f.Close())
		case <-time.After(lockPoll):
		}
	}
	return &Lock{f}, nil
}

// maxLocks bounds what is read of /proc/locks: any user makes as many locks as he
// likes, and a line has 60 bytes.
const maxLocks = 1 << 20

// LockHolder asks the kernel which process holds the lock on f. It is for people
// only: across containers the kernel names no process, or one that is 0 here.
func LockHolder(f *os.File) (pid int, known bool) { return lockHolder(files.Root{}, f) }

func lockHolder(root files.Root, f *os.File) (pid int, known bool) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0, false
	}
	locks, _, _, err := root.Open("/proc/locks")
	if err != nil {
		return 0, false
	}
	defer locks.Close()
	return holderIn(locks, fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino))
}

// holderIn finds who holds the lock of a file in the kernel's list.
func holderIn(locks io.Reader, file string) (pid int, known bool) {
	// 1: FLOCK  ADVISORY  WRITE 4711 fe:00:131 0 EOF
	lines := bufio.NewScanner(io.LimitReader(locks, maxLocks))
	for lines.Scan() {
		// A process that waits has "->" in the second column.
		if w := strings.Fields(lines.Text()); len(w) > 5 && w[1] == "FLOCK" && w[5] == file {
			pid, err := strconv.Atoi(w[4])
			return pid, err == nil
		}
	}
	return 0, false
}

func (s *Store) holderOf(f *os.File) string {
	if pid, known := lockHolder(files.Root{Hook: s.hook}, f); known {
		return "pid " + strconv.Itoa(pid)
	}
	return "its process is not known"
}

// Unlock gives the lock back.
func (l *Lock) Unlock() error { return l.f.Close() }
