// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func TestReadProcess(t *testing.T) {
	fields := strings.Repeat("1 ", 18) + "250050 " + strings.Repeat("2 ", 30)
	for name, c := range map[string]struct {
		files map[string]string
		want  Process
		err   string
	}{
		"java": {
			map[string]string{"proc/42/stat": "42 (java) S " + fields, "proc/stat": "cpu 1\nbtime 1700000000\nx\n", "proc/42/environ": "A=b\x00AMS_HOST_ADDRESS=10.0.0.5\x00AMS_HOST_ADDRESS=no\x00"},
			Process{Name: "java", HostAddress: "10.0.0.5"},
			"",
		},
		"a name to trip over": {
			map[string]string{"proc/42/stat": "42 (a) S 1 (b c) S " + fields, "proc/stat": "btime 1700000000\n"},
			Process{Name: "a) S 1 (b c"},
			"",
		},
		"not set":      {map[string]string{"proc/42/stat": "42 (java) S " + fields, "proc/stat": "btime 1700000000\n", "proc/42/environ": "XAMS_HOST_ADDRESS=1\x00"}, Process{Name: "java"}, ""},
		"gone":         {map[string]string{"proc/stat": "btime 1700000000\n"}, Process{}, "no such file or directory"},
		"no boot time": {map[string]string{"proc/42/stat": "42 (java) S " + fields, "proc/stat": "cpu\n"}, Process{}, "no start time"},
		"too short":    {map[string]string{"proc/42/stat": "42 (java) S 1 2", "proc/stat": "btime 1\n"}, Process{}, "no start time"},
		"no name":      {map[string]string{"proc/42/stat": "42 java S", "proc/stat": "btime 1\n"}, Process{}, "no name"},
		"no number":    {map[string]string{"proc/42/stat": "42 (java) S " + strings.ReplaceAll(fields, "250050", "-1"), "proc/stat": "btime 1\n"}, Process{}, "start time"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadProcess(plant(t, c.files), 42)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			c.want.Started = time.Unix(1700000000, 0).Add(2500500 * time.Millisecond)
			if err != nil || !got.Started.Equal(c.want.Started) {
				t.Errorf("started %s, want %s; %v", got.Started, c.want.Started, err)
			}
			if got.Started = c.want.Started; got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if _, err := ReadProcess("", pid); err == nil {
			t.Errorf("process %d: %v", pid, err)
		}
	}
	me, err := ReadProcess("", os.Getpid())
	if err != nil || time.Since(me.Started) < -2*time.Second || time.Since(me.Started) > time.Hour {
		t.Errorf("this process: %+v, %v", me, err)
	}
}

func TestEditedAfter(t *testing.T) {
	started := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	root := plant(t, map[string]string{"before": "", "same": "", "after": "", "long": "", "link": "-> /after", "loop": "-> loop"})
	for name, at := range map[string]time.Duration{"before": -time.Hour, "same": time.Second, "after": 3 * time.Second, "long": 48 * time.Hour} {
		must.OK(t, os.Chtimes(filepath.Join(root, name), time.Time{}, started.Add(at)))
	}
	for path, want := range map[string]bool{"/before": false, "/same": false, "/after": true, "/gone": false, "/link": true, "/long": true, "/loop": false} {
		must.Equal(t, path, EditedAfter(root, path, started), want)
	}
}

// Verification applies to the tree that the service runs.
func TestOtherTree(t *testing.T) {
	root := plant(t, map[string]string{
		"opt/a/conf/jee-container.xml": "", "opt/a/webapps/": "", "opt/b/conf/jee-container.xml": "", "opt/b/webapps/": "",
		"opt/current": "-> a", "proc/12/cwd": "-> /opt/b", "proc/13/cwd": "-> /",
	})
	in := &Installation{Root: root, Dir: "/opt/a"}
	for _, tt := range []struct {
		name string
		st   State
		want string // "" if not another tree
	}{
		{"nothing is known", State{}, ""},
		{"its own folder", State{WorkingDirectory: "/opt/a"}, ""},
		{"its own folder by a link", State{WorkingDirectory: "/opt/current"}, ""},
		{"a folder without a server", State{WorkingDirectory: "/"}, ""},
		{"a folder without a server, and the process works in another one", State{MainPID: 12, WorkingDirectory: "/"}, "/opt/b"},
		{"another one", State{WorkingDirectory: "/opt/b"}, "/opt/b"},
		{"the process works in another one", State{MainPID: 12}, "/opt/b"},
		{"the process works elsewhere", State{MainPID: 13}, ""},
		{"the next start is of this one", State{MainPID: 12, WorkingDirectory: "/opt/a"}, ""},
		{"no such process", State{MainPID: 14}, ""},
	} {
		must.Equal(t, tt.name, in.OtherTree(tt.st), tt.want)
	}
}
