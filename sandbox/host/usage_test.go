// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// TestReadUsage looks at this very process while it works and grows.
func TestReadUsage(t *testing.T) {
	before, err := ReadUsage(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if before.RSS < 1<<20 || before.Threads < 1 || before.FDs < 3 || before.Age < 0 || before.Age > time.Hour {
		t.Errorf("%+v", before)
	}
	const more = 32 << 20
	held := make([]byte, more)
	for i := range held {
		held[i] = byte(i)
	}
	sum := byte(0)
	for start := spent(t); spent(t)-start < 50*time.Millisecond; {
		for range 1000 {
			sum += held[int(sum)]
		}
	}
	after, err := ReadUsage(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(held)
	if grown := after.Anon - before.Anon; grown < more/2 {
		t.Errorf("it has grown by %d bytes, of %d", grown, more)
	}
	if took := after.CPU - before.CPU; took < 30*time.Millisecond || took > 10*time.Second {
		t.Errorf("it has spent %s", took)
	}
	if after.RSS < after.Anon {
		t.Errorf("%d bytes resident, of which %d are its own", after.RSS, after.Anon)
	}
	const nobody = 1 << 30
	if _, err := ReadUsage(nobody); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no process: %v", err)
	}
}

// spent is the processor time of this process.
func spent(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
