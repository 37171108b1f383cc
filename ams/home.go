// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"os"
	"path/filepath"
	"strconv"
)

// OtherTree returns the other installation that a service runs, or "". The unit's folder comes first: verification includes
// a restart.
func (in *Installation) OtherTree(st State) string {
	cwd, _ := os.Readlink(filepath.Join(in.Root, "/proc", strconv.Itoa(st.MainPID), "cwd"))
	for _, dir := range []string{st.WorkingDirectory, cwd} {
		if !filepath.IsAbs(dir) || !in.holdsServer(dir) {
			continue
		}
		runs, err := statBelow(in.Root, dir)
		here, herr := statBelow(in.Root, in.Dir)
		if err == nil && herr == nil && runs.ID == here.ID {
			return ""
		}
		return dir
	}
	return ""
}

func (in *Installation) holdsServer(dir string) bool {
	for _, name := range []string{containerName, webappsName} {
		if _, err := statBelow(in.Root, filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}
