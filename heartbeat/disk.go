// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
)

// volume is the state of a file system.
type volume struct {
	total, used, avail uint64 // bytes; what is neither used nor available is reserved for root
	err                error
}

// readVolume asks the kernel about the volume of the installation. Where that
// is on a network share whose server is gone it hangs, links in the path too,
// and no deadline helps: only [ask] may call it.
//
// Not by gopsutil, which counts in f_bsize where the kernel counts in f_frsize;
// they differ on FUSE.
func (s *Sampler) readVolume(context.Context) volume {
	path, err := s.opts.AMSDir, error(nil)
	if s.opts.Root != "" {
		// Links are followed inside the root.
		if path, err = securejoin.SecureJoin(filepath.Clean(s.opts.Root), path); err != nil {
			return volume{err: fmt.Errorf("measuring the volume of %s: %w", s.opts.AMSDir, err)}
		}
	}
	var st syscall.Statfs_t
	for {
		if err = s.statfs(path, &st); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return volume{err: fmt.Errorf("measuring the volume of %s: %w", path, err)}
	}
	v, err := newVolume(st)
	if err != nil {
		v.err = fmt.Errorf("measuring the volume of %s: %w", path, err)
	}
	return v
}

func newVolume(st syscall.Statfs_t) (volume, error) {
	unit := max(st.Frsize, 0)
	if unit == 0 {
		unit = max(st.Bsize, 0)
	}
	switch {
	case unit == 0 || st.Blocks == 0:
		return volume{}, errors.New("this file system has no size")
	case st.Bfree > st.Blocks || st.Bavail > st.Blocks:
		return volume{}, errors.New("this file system says that more is free than there is")
	case st.Blocks > math.MaxUint64/uint64(unit):
		return volume{}, errors.New("this file system has no size that can be true")
	}
	return volume{
		total: st.Blocks * uint64(unit),
		used:  (st.Blocks - st.Bfree) * uint64(unit),
		avail: st.Bavail * uint64(unit),
	}, nil
}

// percent is what df shows: of what others than root can have, the part in use,
// rounded up. A volume that is full for AMS is 100, whatever is reserved.
func (v volume) percent() *int {
	all := v.used + v.avail
	if all == 0 {
		return nil
	}
	p := math.Ceil(float64(v.used) / float64(all) * 100)
	return whole(&p)
}
