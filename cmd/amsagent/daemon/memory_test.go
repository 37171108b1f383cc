// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProgramPages(t *testing.T) {
	const maps = `00400000-00a1a000 r-xp 00000000 fe:00 10400353                           /usr/bin/amsagent (deleted)
00a1a000-00ff5000 r--p 0061a000 fe:00 10400353                           /usr/bin/amsagent (deleted)
00ff5000-01063000 rw-p 00bf5000 fe:00 10400353                           /usr/bin/amsagent (deleted)
01063000-030ae000 rw-p 00000000 00:00 0 
3753d2c00000-3753d3400000 rw-p 00000000 00:00 0                          [anon: Go: heap]
7fd14fe24000-7fd14fe88000 r--p 00000000 fe:00 4711                       /usr/lib/libc.so.6
7fd150061000-7fd150063000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
torn
`
	want := program{{0x400000, 0xa1a000}, {0xa1a000, 0xff5000}}
	if diff := cmp.Diff(want, programPages(maps), cmp.AllowUnexported(pages{})); diff != "" {
		t.Errorf("the pages to drop (-want +got):\n%s", diff)
	}
	if got := programPages(""); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

// TestRest: less of the program is mapped, and it runs on.
func TestRest(t *testing.T) {
	before := mapped(t)
	ownProgram().rest()
	after := mapped(t)
	if after >= before {
		t.Errorf("%d kB of files are mapped, and were %d kB before", after, before)
	}
	t.Logf("mapped of files: %d kB, then %d kB", before, after)
}

// TestSplit: the program is mapped in small parts, and all of it.
func TestSplit(t *testing.T) {
	if os.Getpagesize() >= chunk {
		t.Skip("one page is as much as a part")
	}
	size := func(p program) (sum, most uintptr) {
		for _, r := range p {
			sum += r.to - r.from
			most = max(most, r.to-r.from)
		}
		return sum, most
	}
	all, _ := size(ownProgram())
	for range 2 { // also again
		ownProgram().split()
		// What is no whole part, at both ends, stays with its neighbour.
		if sum, most := size(ownProgram()); sum != all || most >= 3*chunk {
			t.Errorf("%d bytes in parts of up to %d, and were %d", sum, most, all)
		}
	}
}

func mapped(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssFile:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Skip("this kernel does not tell what is mapped of files")
	return 0
}
