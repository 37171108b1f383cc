// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"syscall"
)

// volume is the state of a file system.
type volume struct {
	total, used, avail uint64 // bytes; the rest is reserved for root
	err                error
}

// readVolume reads the size of the installation's volume. It hangs on a network share whose server is gone.
//
// gopsutil counts in f_bsize, the kernel in f_frsize; they differ on FUSE.
func (s *Sampler) readVolume() volume {
	path := filepath.Join("/", s.opts.Root, s.opts.AMSDir)
	var st syscall.Statfs_t
	err := s.statfs(path, &st)
	unit := uint64(max(st.Frsize, 0))
	switch {
	case err != nil:
	case unit == 0 || st.Blocks == 0:
		err = errors.New("this file system has no size")
	case st.Bfree > st.Blocks || st.Bavail > st.Blocks || st.Blocks > math.MaxUint64/unit:
		err = errors.New("this file system has no size that can be true")
	}
	if err != nil {
		return volume{err: fmt.Errorf("measuring the volume of %s: %w", path, err)}
	}
	return volume{total: st.Blocks * unit, used: (st.Blocks - st.Bfree) * unit, avail: st.Bavail * unit}
}

// percent is that of df: the used part of what users other than root can have, rounded up.
func (v volume) percent() *int {
	if v.used+v.avail == 0 {
		return nil
	}
	p := math.Ceil(float64(v.used) / float64(v.used+v.avail) * 100)
	return whole(&p)
}
