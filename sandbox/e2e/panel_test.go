// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/sandbox/tree"
)

// TestPanelSavesMeanwhile lets the web panel save settings, a hundred times a
// second, while the machine joins and leaves: it reads the file, changes one
// value, empties the file and writes it, as AMS does. None of its savings may be
// lost, and no file may ever be torn: each saving counts one up, so a lost one
// shows.
func TestPanelSavesMeanwhile(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	tr, err := tree.Write(root, tree.Options{Host: "node", HostResolves: true})
	if err != nil {
		t.Fatal(err)
	}
	file := tr.Conf("red5.properties")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	original := string(b) + "panel.counter=0\n"
	if err := os.WriteFile(file, []byte(original), 0o644); err != nil {
		t.Fatal(err)
	}
	counter := regexp.MustCompile(`(?m)^panel\.counter=(\d+)$`)
	saves := 0
	save := func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		m := counter.FindSubmatch(b)
		if m == nil {
			return fmt.Errorf("after %d savings the file is torn: %q", saves, b)
		}
		if n, err := strconv.Atoi(string(m[1])); err != nil || n != saves {
			return fmt.Errorf("%d savings, and the file counts %s", saves, m[1])
		}
		saves++
		b = counter.ReplaceAll(b, fmt.Appendf(nil, "panel.counter=%d", saves))
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		if _, err := f.Write(b); err != nil {
			return err
		}
		return f.Close()
	}
	ctx, stop := context.WithCancel(t.Context())
	var panel sync.WaitGroup
	panel.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := save(); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	done, refused := 0, 0
	for i := range 30 {
		args := []string{"join", "--mongo", "10.0.2.4"}
		if i%2 == 1 {
			args = []string{"leave"}
		}
		out, err := exec.Command(bins.agent, append(args, "--root", root, "--offline")...).CombinedOutput()
		switch {
		case err == nil:
			done++
		case bytes.Contains(out, []byte("changed by somebody else meanwhile")):
			refused++ // it says so, and changed nothing
		default:
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	stop()
	panel.Wait()
	t.Logf("%d savings, %d commands done, %d gave way to a saving", saves, done, refused)
	if done == 0 || saves < 50 {
		t.Errorf("%d commands and %d savings: they hardly met", done, saves)
	}
	if out, err := exec.Command(bins.agent, "leave", "--root", root, "--offline").CombinedOutput(); err != nil {
		t.Fatalf("the last leave: %v\n%s", err, out)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(original, "panel.counter=0", fmt.Sprintf("panel.counter=%d", saves), 1)
	// Who read the file before a command replaced it and wrote it after that has
	// the last word about our values: nobody can tell his writing from a wish.
	// Online, leave looks again when the server has been restarted.
	if string(got) != want && string(got) != strings.Replace(want, "clusterdb.host=localhost", "clusterdb.host=10.0.2.4", 1) {
		t.Errorf("at the end (-want +got):\n%s", cmp.Diff(want, string(got)))
	}
}
