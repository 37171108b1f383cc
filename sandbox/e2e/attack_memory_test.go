// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

const (
	// memoryApps is how many applications have settings as large as are read: with more the change would be refused.
	memoryApps = 60
	// unitMemory is the MemoryMax= of each unit, in KiB.
	unitMemory = 256 << 10
)

// TestAttackMemory: the settings of all applications have the maximum size, half of them with the maximum number of lines. No
// command uses more memory than its unit may.
func TestAttackMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root and a second user")
	}
	n := newCrashNode(t, 1, crashNodeOptions{shm: true})
	live := filepath.Join(n.StandIn.Tree.Dir, "webapps/LiveApp")
	settingsOf := func(app string) string { return filepath.Join(app, "WEB-INF/red5-web.properties") }
	appDir := func(i int) string { return filepath.Join(n.StandIn.Tree.Dir, "webapps", fmt.Sprintf("App%02d", i)) }
	settings, err := os.ReadFile(settingsOf(live))
	must.OK(t, err)
	room := conf.MaxSettings - 4096 - len(settings) // the join adds to it
	dense := []byte(strings.Repeat("a\n", room/2))
	long := append(bytes.Repeat([]byte("#"), room-1), '\n')
	for i := range memoryApps {
		app := appDir(i)
		fill := dense
		if i%2 == 1 {
			fill = long
		}
		if err := errors.Join(
			os.CopyFS(app, os.DirFS(live)), os.WriteFile(settingsOf(app), append(bytes.Clone(fill), settings...), 0o644),
			filepath.WalkDir(app, func(name string, _ os.DirEntry, err error) error {
				return errors.Join(err, os.Lchown(name, amsOwner, amsOwner))
			}),
		); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) {
		t.Helper()
		cmd, out, errs := n.start(args...)
		err := cmd.Run()
		if err != nil && args[0] != "status" {
			t.Fatalf("%v: %v\n%s%.2000s", args, err, out, errs)
		}
		// No less than this test's own process has, from which it began.
		most := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
		t.Logf("%v took %d KiB", args, most)
		if most > unitMemory {
			t.Errorf("%v took %d KiB, and a unit has %d", args, most, unitMemory)
		}
	}
	run("join")
	n.proved(t)
	for i := range memoryApps { // all of them are written again
		name := settingsOf(appDir(i))
		b, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(b, []byte("db.type=mongodb")) {
			t.Fatalf("%s is not a node's: %v", name, err)
		}
		must.OK(t, os.WriteFile(name, bytes.Replace(b, []byte("db.type=mongodb"), []byte("db.type=mapdb"), 1), 0o644))
	}
	run("status")
	run("converge", "--before-start", "--root", n.Path("/"))
	run("leave")
}
