// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Home is a folder that a service, or its process, names.
type Home struct {
	Dir string `json:"dir"`
	// Source is the origin: "WorkingDirectory=", "/proc/12/cwd".
	Source string `json:"source"`
}

// unitHomes returns the working directory in a unit's properties.
func unitHomes(p map[string]any) []Home {
	// "-" makes a missing folder no error.
	dir := strings.TrimPrefix(text(p, "WorkingDirectory"), "-")
	if !filepath.IsAbs(dir) {
		return nil
	}
	return []Home{{Dir: filepath.Clean(dir), Source: "WorkingDirectory="}}
}

// OtherTree reports which installation a service runs, if it is known and not this one. The unit counts before the
// running process: verification includes a restart.
func (in *Installation) OtherTree(st State) (Home, bool) {
	for _, h := range st.Homes {
		if in.holdsServer(h.Dir) {
			return in.other(h)
		}
	}
	return in.ProcessOfOther(st.MainPID)
}

// ProcessOfOther reports which installation a process works in, if it is known and not this one.
func (in *Installation) ProcessOfOther(pid int) (Home, bool) {
	link := filepath.Join("/proc", strconv.Itoa(pid), "cwd")
	dir, err := os.Readlink(filepath.Join(in.Root, link))
	if err != nil || !in.holdsServer(dir) {
		return Home{}, false
	}
	return in.other(Home{Dir: dir, Source: link})
}

// holdsServer reports whether a folder is an installation.
func (in *Installation) holdsServer(dir string) bool {
	for _, name := range []string{containerName, webappsName} {
		if _, err := statBelow(in.Root, filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// other returns a folder that is not this installation, under any name.
func (in *Installation) other(h Home) (Home, bool) {
	a, err := statBelow(in.Root, h.Dir)
	b, berr := statBelow(in.Root, in.Dir)
	if err == nil && berr == nil && a.ID == b.ID {
		return Home{}, false
	}
	return h, true
}
