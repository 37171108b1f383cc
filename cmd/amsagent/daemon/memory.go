// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
)

// rest gives back the memory of work that comes seldom, like starting or comparing
// files: its garbage, and the pages of the program that are mapped for it.
func rest() {
	debug.FreeOSMemory()
	unmap()
}

// unmap drops the pages of the program.
//
// The kernel maps sixteen of them for each one that is used, and counts them all as
// ours, for ever: all 12 MB after some minutes, of which less than 7 are used.
// Dropping the read-only mappings writes nothing and reads nothing: the pages stay
// in the file cache, whence the next use maps them again in a microsecond.
func unmap() {
	maps, err := os.ReadFile("/proc/self/maps") // of the process, whatever the root
	if err != nil {
		return
	}
	for _, p := range programPages(string(maps)) {
		// What fails leaves all as it was.
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, p.from, p.to-p.from, syscall.MADV_DONTNEED)
	}
}

// pages are a range of addresses.
type pages struct{ from, to uintptr }

// programPages finds the mappings of the program that cannot be written to. Those
// that can hold what was written. A static program is the first file in the list.
func programPages(maps string) []pages {
	var found []pages
	program := ""
	for line := range strings.Lines(maps) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasPrefix(f[5], "/") {
			continue
		}
		if program == "" {
			program = f[5]
		}
		if f[5] != program || (f[1] != "r-xp" && f[1] != "r--p") {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		a, aerr := strconv.ParseUint(from, 16, strconv.IntSize)
		b, berr := strconv.ParseUint(to, 16, strconv.IntSize)
		if aerr == nil && berr == nil && a < b {
			found = append(found, pages{uintptr(a), uintptr(b)})
		}
	}
	return found
}
