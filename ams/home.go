// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/files"
)

// Home is a folder that a service, or its process, names.
type Home struct {
	Dir string `json:"dir"`
	// Source says where: "WorkingDirectory=", "/proc/12/cwd".
	Source string `json:"source"`
}

// homeVariable names the installation in the vendor's unit and scripts.
const homeVariable = "ANTMEDIA_HOME"

// serverJar is what the server's process has open.
const serverJar = "ant-media-server.jar"

// unitHomes are the folders in a unit's properties.
func unitHomes(p map[string]any) []Home {
	var homes []Home
	add := func(dir, source string) {
		if filepath.IsAbs(dir) {
			homes = append(homes, Home{Dir: filepath.Clean(dir), Source: source})
		}
	}
	add(unitVariable(p, homeVariable), homeVariable)
	// "-" lets a folder that is not there pass.
	add(strings.TrimPrefix(text(p, "WorkingDirectory"), "-"), "WorkingDirectory=")
	// Each command is its path, its arguments and how its last run went.
	commands, _ := p["ExecStart"].([][]any)
	for _, c := range commands {
		if len(c) < 2 {
			continue
		}
		args, _ := c[1].([]string)
		for _, arg := range args {
			if filepath.IsAbs(arg) {
				add(filepath.Dir(arg), "ExecStart=")
			}
		}
	}
	return homes
}

// processFolder is the folder that a process works in; none where that cannot be read.
func processFolder(root string, pid int) []Home {
	cwd, err := os.Readlink(filepath.Join(root, "/proc", strconv.Itoa(pid), "cwd"))
	if err != nil || !filepath.IsAbs(cwd) {
		return nil
	}
	return []Home{{Dir: cwd, Source: fmt.Sprintf("/proc/%d/cwd", pid)}}
}

// processJar is the folder of the server's jar that a process has open; none where that cannot be read.
func processJar(root string, pid int) (homes []Home) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := files.Root{Path: root}.Folder(dir)
	if err != nil {
		return nil
	}
	defer fds.Close()
	_ = fds.Each(func(name string) bool {
		open, err := os.Readlink(filepath.Join(root, dir, name))
		if err != nil || filepath.Base(open) != serverJar {
			return true
		}
		homes = append(homes, Home{Dir: filepath.Dir(open), Source: dir})
		return false
	})
	return homes
}

// OtherTree reports which installation a service runs, where that is known and is
// not this one. What the service starts next counts before what runs now: a
// restart is part of every proof. Folders without a server prove nothing, and where a
// unit names two servers the process tells.
func (in *Installation) OtherTree(root string, st State) (Home, bool) {
	if h, other, known := in.other(root, st.Homes); known {
		return h, other
	}
	return in.ProcessOfOther(root, st.MainPID)
}

// ProcessOfOther reports which installation a process of the server works in, where that is known and
// is not this one.
func (in *Installation) ProcessOfOther(root string, pid int) (Home, bool) {
	if pid <= 0 {
		return Home{}, false
	}
	homes := processFolder(root, pid)
	if _, other, known := in.other(root, homes); known && !other {
		return Home{}, false // whatever it has open, which are hundreds of files
	}
	h, other, _ := in.other(root, append(homes, processJar(root, pid)...))
	return h, other
}

// other reports whether folders are all of another installation; known where they tell.
func (in *Installation) other(root string, homes []Home) (h Home, other, known bool) {
	trees := slices.DeleteFunc(slices.Clone(homes), func(h Home) bool { return !holdsServer(root, h.Dir) })
	others := slices.DeleteFunc(slices.Clone(trees), func(h Home) bool { return in.is(root, h.Dir) })
	switch {
	case len(trees) > 0 && len(others) == 0:
		return Home{}, false, true
	case len(trees) > 0 && len(others) == len(trees):
		return trees[0], true, true
	}
	return Home{}, false, false
}

// holdsServer reports whether a folder is an installation.
func holdsServer(root, dir string) bool {
	for _, name := range []string{"conf/jee-container.xml", "webapps"} {
		if _, err := statBelow(root, filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// is reports whether a folder is this installation, by whichever name.
func (in *Installation) is(root, dir string) bool {
	a, err := statBelow(root, dir)
	if err != nil {
		return false
	}
	b, err := statBelow(in.Root, in.Dir)
	return err == nil && a.ID == b.ID
}

// MayRun reports whether a process works in this installation's folder, as the server
// does, or whether that cannot be known. A tree without a /proc, or with an empty one as an
// image's, is looked at from this machine.
func (in *Installation) MayRun(root string) bool {
	proc, err := files.Root{Path: root}.Folder("/proc")
	if errors.Is(err, fs.ErrNotExist) && root != "" {
		root = ""
		proc, err = files.Root{}.Folder("/proc")
	}
	if err != nil {
		return true
	}
	defer proc.Close()
	seen, may := false, false
	err = proc.Each(func(pid string) bool {
		if _, err := strconv.Atoi(pid); err != nil {
			return true
		}
		cwd, err := os.Readlink(filepath.Join(root, "/proc", pid, "cwd"))
		switch {
		case errors.Is(err, fs.ErrPermission):
			comm, err := readProc(root, filepath.Join("/proc", pid, "comm"))
			may = err != nil || strings.TrimSpace(string(comm)) == "java"
		case err != nil: // it has ended
		case in.is(root, cwd):
			may = true
		default:
			seen = true
		}
		return !may
	})
	if !may && err == nil && !seen && root != "" {
		return in.MayRun("")
	}
	return may || err != nil || !seen
}
