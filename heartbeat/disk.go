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
	total, used, avail uint64 // bytes; what is neither used nor available is reserved for root
	err                error
}

// readVolume asks the kernel about the volume of the installation. On a network share whose server is gone it hangs.
//
// Not by gopsutil, which counts in f_bsize where the kernel counts in f_frsize; they differ on FUSE.
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

// percent is what df shows: of what others than root can have, the part in use, rounded up.
func (v volume) percent() *int {
	if v.used+v.avail == 0 {
		return nil
	}
	p := math.Ceil(float64(v.used) / float64(v.used+v.avail) * 100)
	return whole(&p)
}
