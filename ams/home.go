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
	// Source is the origin: "WorkingDirectory=", "/proc/12/cwd".
	Source string `json:"source"`
}

// homeVariable names the installation in the vendor's unit and scripts.
const homeVariable = "ANTMEDIA_HOME"

// serverJar is open in the server's process.
const serverJar = "ant-media-server.jar"

// unitHomes returns the folders in a unit's properties.
func unitHomes(p map[string]any) []Home {
	var homes []Home
	add := func(dir, source string) {
		if filepath.IsAbs(dir) {
			homes = append(homes, Home{Dir: filepath.Clean(dir), Source: source})
		}
	}
	add(unitVariable(p, homeVariable), homeVariable)
	// "-" makes a missing folder no error.
	add(strings.TrimPrefix(text(p, "WorkingDirectory"), "-"), "WorkingDirectory=")
	// Each command is a path, arguments and its last result.
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

// processFolder returns a process's working directory, if readable.
func processFolder(root string, pid int) []Home {
	cwd, err := os.Readlink(filepath.Join(root, "/proc", strconv.Itoa(pid), "cwd"))
	if err != nil || !filepath.IsAbs(cwd) {
		return nil
	}
	return []Home{{Dir: cwd, Source: fmt.Sprintf("/proc/%d/cwd", pid)}}
}

// processJar returns the folder of the server's jar that a process has open, if readable.
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

// OtherTree reports which installation a service runs, if it is known and not this one. The unit counts before the
// running process: verification includes a restart. Folders without a server are ignored, and if a unit names two
// servers the process decides.
func (in *Installation) OtherTree(root string, st State) (Home, bool) {
	if h, other, known := in.other(root, st.Homes); known {
		return h, other
	}
	return in.ProcessOfOther(root, st.MainPID)
}

// ProcessOfOther reports which installation a process of the server works in, if it is known and not this one.
func (in *Installation) ProcessOfOther(root string, pid int) (Home, bool) {
	if pid <= 0 {
		return Home{}, false
	}
	homes := processFolder(root, pid)
	if _, other, known := in.other(root, homes); known && !other {
		return Home{}, false // without reading its open files, which are hundreds
	}
	h, other, _ := in.other(root, append(homes, processJar(root, pid)...))
	return h, other
}

// other reports whether all folders are another installation's; not known if they disagree.
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

// is reports whether a folder is this installation, under any name.
func (in *Installation) is(root, dir string) bool {
	a, err := statBelow(root, dir)
	if err != nil {
		return false
	}
	b, err := statBelow(in.Root, in.Dir)
	return err == nil && a.ID == b.ID
}

// MayRun reports whether a process, such as the server, may work in this installation's folder. It is true if that
// cannot be known. For a tree whose /proc is missing or empty, as in an image, it checks this machine's.
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
