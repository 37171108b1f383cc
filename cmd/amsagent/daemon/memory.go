// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// program are the parts of the process that are mapped from the program's file and
// cannot be written to.
type program []pages

// ownProgram finds them. Where the kernel does not tell, there are none.
func ownProgram() program {
	maps, err := os.ReadFile("/proc/self/maps") // of the process, whatever the root
	if err != nil {
		return nil
	}
	return programPages(string(maps))
}

// chunk is how much of the program the kernel may map for one page of it.
const chunk = 16 << 10

// split lets the kernel map less of the program that is not used.
//
// For each page that is used for the first time it maps those around it as well,
// 64 kB of them, and counts all as ours: 10 MB after a few beats, of which a minute
// uses 5. It never goes beyond a mapping, so there are many of them now. Two side by
// side have to differ in something, or they are one: every second one is left out of
// core dumps, where a program's code is not written anyway. Each costs the kernel
// two hundred bytes.
func (p program) split() {
	if os.Getpagesize() >= chunk {
		return
	}
	for _, r := range p {
		for at := (r.from + 2*chunk - 1) &^ (2*chunk - 1); at+chunk <= r.to; at += 2 * chunk {
			_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, at, chunk, unix.MADV_DONTDUMP)
		}
	}
}

// unmap drops the pages of the program. That writes nothing and reads nothing: they
// stay in the file cache, whence the next use maps them again in a microsecond.
func (p program) unmap() {
	for _, r := range p {
		// What fails leaves all as it was.
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, r.from, r.to-r.from, syscall.MADV_DONTNEED)
	}
}

// rest gives back the memory of work that comes seldom, like starting or comparing
// files: its garbage, and the pages of the program that are mapped for it.
func (p program) rest() {
	collect()
	p.unmap()
}

// collect gives back the garbage. By itself the runtime lets a minute's lie for some
// minutes, and keeps the memory for longer.
func collect() { debug.FreeOSMemory() }

// pages are a range of addresses.
type pages struct{ from, to uintptr }

// programPages finds the mappings of the program that cannot be written to. Those
// that can hold what was written. A static program is the first file in the list.
func programPages(maps string) program {
	var found program
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
