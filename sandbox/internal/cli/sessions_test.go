// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/tree"
)

func TestAMSCtlSessions(t *testing.T) {
	t.Parallel()
	tr, err := tree.Write(filepath.Join(t.TempDir(), "r"), tree.Options{})
	must.OK(t, err)
	for name, flags := range map[string][]string{
		"the state folder's file": nil,
		"a file of one's own":     {"--stats", filepath.Join(t.TempDir(), "my stats.json")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			wrapper := filepath.Join(dir, "ams")
			args := append([]string{
				"amsctl", "--state", filepath.Join(dir, "state"), "--root", tr.Dir, "--http-port", "-1", "--local-address", "10.1.1.1",
				"--die-with", strconv.Itoa(os.Getpid()), "--stream-wait", "10ms", "--write-wrapper", wrapper,
			}, flags...)
			if status, out, stderr := run(t, sandbox(t, args...)); status != 0 {
				t.Fatalf("exit %d, %s%s", status, out, stderr)
			}
			call := func(want int, args ...string) string {
				t.Helper()
				cmd := exec.Command(wrapper, args...)
				cmd.Env = append(os.Environ(), environment...)
				status, out, stderr := run(t, cmd)
				if status != want {
					t.Fatalf("%q: exit %d, want %d\n%s%s", args, status, want, out, stderr)
				}
				return out + stderr
			}
			t.Cleanup(func() { call(0, "stop") })
			stats := func(want fakeams.Stats) {
				t.Helper()
				var got fakeams.Stats
				must.OK(t, json.Unmarshal([]byte(call(0, "stats")), &got))
				must.NoDiff(t, "statistics", got, want)
			}

			must.Contain(t, "publish", call(1, "publish", "LiveApp", "s1"), "does not run")
			call(1, "stats") // never started
			call(0, "start")
			call(0, "publish", "LiveApp", "s1")
			call(0, "view", "LiveApp", "s1")
			call(0, "view", "LiveApp", "s1", "-n", "3", "--kind=hls", "--connect")
			call(0, "view", "--kind", "dash", "LiveApp", "-n=2", "s1")
			stats(fakeams.Stats{
				State: fakeams.Up, Live: fakeams.Counts{Publishers: 1, Viewers: 6}, Served: fakeams.Counts{Publishers: 1, Viewers: 6},
			})
			call(0, "unview", "LiveApp", "s1", "--kind", "hls", "-n", "2")
			call(0, "unview", "LiveApp", "s1", "--kind", "dash")
			call(1, "unview", "LiveApp", "s1", "--kind", "dash")
			call(0, "unpublish", "LiveApp", "s1")
			must.Contain(t, "unpublish", call(1, "unpublish", "LiveApp", "s1"), "no stream")
			call(1, "publish", "Nobody", "s1")
			for _, bad := range [][]string{
				{"publish", "LiveApp"},
				{"view", "LiveApp", "s1", "s2"},
				{"view", "LiveApp", "s1", "-n", "-1"},
				{"unpublish", "LiveApp", "s1", "-n", "1"},
				{"unview", "LiveApp", "s1", "--connect"},
				{"stats", "now"},
			} {
				call(2, bad...)
			}
			left := fakeams.Stats{
				State: fakeams.Up, Live: fakeams.Counts{Viewers: 2},
				Served: fakeams.Counts{Publishers: 1, Viewers: 6}, Left: fakeams.Counts{Publishers: 1, Viewers: 4},
			}
			stats(left)

			call(0, "stop")
			left.State, left.Live, left.Cut = fakeams.Stopped, fakeams.Counts{}, fakeams.Counts{Viewers: 2}
			stats(left)

			// A start counts anew, and what a kill ended was cut.
			call(0, "start")
			stats(fakeams.Stats{State: fakeams.Up})
			call(0, "publish", "LiveApp", "s2")
			var said struct{ PID int }
			must.OK(t, json.Unmarshal([]byte(call(0, "info")), &said))
			must.OK(t, syscall.Kill(said.PID, syscall.SIGKILL))
			must.Until(t, "the end", func() bool {
				cmd := exec.Command(wrapper, "status")
				cmd.Env = append(os.Environ(), environment...)
				_, out, _ := run(t, cmd)
				return out == "failed\n"
			})
			stats(fakeams.Stats{State: fakeams.Killed, Served: fakeams.Counts{Publishers: 1}, Cut: fakeams.Counts{Publishers: 1}})
		})
	}
}
