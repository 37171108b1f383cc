// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Where nobody can say which process is the server's, the one that was is, for
// as long as it runs. Its control group with it: the memory must not jump.
func TestProcessNobodyTells(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/cgroup2-memorymax.txtar")
	var refused error
	s := m.sampler()
	s.opts.AMSPID = func(context.Context) (int, error) { return m.pid, refused }
	s.Sample(t.Context())
	refused = errors.New("the bus is gone")
	m.now = m.now.Add(5 * time.Second)
	m.look(t, 2)
	got := s.Sample(t.Context())
	if got.AMS == nil || got.AMS.CPU == nil || *got.AMS.CPU != 20 || missing(got, whatAMS, refused) {
		t.Errorf("%v, missing %v", got.AMS, got.Missing)
	}
	if *got.Load.Mem != 50 {
		t.Errorf("memory %d", *got.Load.Mem)
	}
	// Another process has its number now.
	stat := filepath.Join(m.dir, "2/proc/812/stat")
	b, err := os.ReadFile(stat)
	if err = errors.Join(err, os.WriteFile(stat, bytes.ReplaceAll(b, []byte(" 0 50 "), []byte(" 0 51 ")), 0o644)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := s.Sample(t.Context()); got.AMS != nil || !missing(got, whatAMS, refused) || *got.Load.Mem != 20 {
			t.Errorf("%v, memory %d, missing %v", got.AMS, *got.Load.Mem, got.Missing)
		}
	}
}

// Another process of the same number is in another control group.
func TestProcessNumberReusedElsewhere(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/cgroup2-memorymax.txtar")
	s := m.sampler()
	if got := s.Sample(t.Context()); *got.Load.Mem != 50 {
		t.Fatalf("memory %d", *got.Load.Mem)
	}
	for name, replace := range map[string][2]string{
		"2/proc/812/stat":   {" 0 50 ", " 0 51 "},
		"2/proc/812/cgroup": {"0::/system.slice/antmedia.service", "0::/user.slice"},
	} {
		name = filepath.Join(m.dir, name)
		b, err := os.ReadFile(name)
		b = bytes.ReplaceAll(b, []byte(replace[0]), []byte(replace[1]))
		if err = errors.Join(err, os.WriteFile(name, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	m.look(t, 2)
	if got := s.Sample(t.Context()); *got.Load.Mem != 20 {
		t.Errorf("memory %d", *got.Load.Mem)
	}
}

// A service that does not run is no failure, and its successor starts from
// nothing.
func TestProcessRestarts(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/linux-6.8-vm.txtar")
	pid, asked := 812, 0
	s := m.sampler()
	s.opts.AMSPID = func(context.Context) (int, error) { asked++; return pid, nil }
	stat := filepath.Join(m.dir, "root/proc/812/stat")
	b, err := os.ReadFile(stat)
	if err != nil {
		t.Fatal(err)
	}
	reused := bytes.Replace(b, []byte(" 3400 "), []byte(" 9900 "), 1) // its start
	if bytes.Equal(b, reused) {
		t.Fatalf("not in %q", b)
	}
	for i, step := range []struct {
		pid        int
		stat       []byte // nil: there is no such process
		runs, cpus bool
		asked      int
	}{
		{812, b, true, false, 1},
		{812, b, true, true, 1}, // it is the one that was told of
		{0, nil, false, false, 2},
		{0, nil, false, false, 3},
		{812, b, true, false, 4},
		{812, b, true, true, 4},
		{812, reused, true, false, 5}, // another one, of the same number
		{0, reused, true, true, 5},    // whoever is asked is late, and it runs
		{4711, nil, false, false, 6},
	} {
		pid = step.pid
		_ = os.Remove(stat)
		if step.stat != nil {
			if err := os.WriteFile(stat, step.stat, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got := s.Sample(t.Context())
		if (got.AMS != nil) != step.runs || step.runs && (got.AMS.CPU != nil) != step.cpus || missing(got, whatAMS, nil) || asked != step.asked {
			t.Errorf("step %d: %v, missing %v, asked %d times", i, got.AMS, got.Missing, asked)
		}
		for _, m := range got.Missing {
			if m.What == whatAMS {
				t.Errorf("step %d: missing %v", i, m.Err)
			}
		}
		m.now = m.now.Add(5 * time.Second)
	}

	// One that lives is not the main process for ever.
	pid = 812
	if err := os.WriteFile(stat, b, 0o644); err != nil {
		t.Fatal(err)
	}
	asked = 0
	for range int(2 * pidEvery / (5 * time.Second)) {
		s.Sample(t.Context())
		m.now = m.now.Add(5 * time.Second)
	}
	if asked != 2 {
		t.Errorf("asked %d times in %s", asked, 2*pidEvery)
	}
}

func FuzzParseProcessStat(f *testing.F) {
	f.Add([]byte("812 (java) S 1 812 812 0 -1 4194304 95000 0 12 0 40000 8000 0 0 20 0 120 0 3400 5000000000 250000 18446744073709551615 1"))
	f.Add([]byte("812 (java) S 1 (x y) S"))
	f.Add([]byte(")("))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseProcessStat(b)
		if err != nil && st != (processStat{}) {
			t.Errorf("%v with %v", st, err)
		}
		if st.threads < 0 || st.pages > 1<<48 || st.ticks > 1<<63 {
			t.Errorf("%+v", st)
		}
	})
}

func FuzzParseControlGroup(f *testing.F) {
	f.Add([]byte("0::/system.slice/antmedia.service\n"))
	f.Add([]byte("5:memory:/docker/4f1e\n0::/\n"))
	f.Add([]byte("0::/../../etc\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		g := parseControlGroup(b, "memory")
		if g.version != 0 && (g.path == "" || g.path[0] != '/' || bytes.Contains([]byte(g.path), []byte("/../"))) {
			t.Errorf("path %q", g.path)
		}
		// It must not leave the tree, nor take long.
		g.read(t.TempDir(), false)
		g.lowest(t.TempDir(), cpuQuota)
	})
}

func TestParseControlGroup(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]controlGroup{
		"":                                     {},
		"0::/\n":                               {version: 2, path: "/"},
		"0::/system.slice/a:b.service\n":       {version: 2, path: "/system.slice/a:b.service"},
		"0::/../../x\n":                        {version: 2, path: "/x"},
		"0::/kubepods.slice/pod1/cri-1.scope":  {version: 2, path: "/kubepods.slice/pod1/cri-1.scope", container: true},
		"9:cpu,memory:/lxc/a\n0::/\n":          {version: 1, path: "/lxc/a", container: true},
		"0::/a\n9:memory:/b\n":                 {version: 1, path: "/b"},
		"9:memory2:/b\n":                       {},
		"1:name=systemd:/x\n0::/init.scope\n":  {version: 2, path: "/init.scope"},
		"garbage\n::::\n0::no\n\n:memory:\n":   {},
		"3:memory:/docker/1\r\n2:pids:/docker": {version: 1, path: "/docker/1\r", container: true},
	} {
		if diff := cmp.Diff(want, parseControlGroup([]byte(in), "memory"), cmp.AllowUnexported(controlGroup{})); diff != "" {
			t.Errorf("%q -want +got:\n%s", in, diff)
		}
	}
}
