// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"errors"
	"fmt"
	"math"
	"syscall"
)

// readDisk measures as df does: the used part of what users other than root can have, rounded up.
func readDisk(path string) (used *int, err error) {
	var st syscall.Statfs_t
	if err = syscall.Statfs(path, &st); err == nil {
		used, err = usedPercent(st)
	}
	if err != nil {
		err = fmt.Errorf("measuring the volume of %s: %w", path, err)
	}
	return used, err
}

func usedPercent(st syscall.Statfs_t) (*int, error) {
	if st.Bfree > st.Blocks || st.Blocks-st.Bfree+st.Bavail == 0 {
		return nil, errors.New("this file system has no size")
	}
	used := st.Blocks - st.Bfree
	return percent(math.Ceil(float64(used)/float64(used+st.Bavail)*100), 100), nil
}
