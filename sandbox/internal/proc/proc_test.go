// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestChild(t *testing.T) {
	for children, one := range map[string]bool{"": false, "cat <&3 &": true, "cat <&3 & cat <&3 &": false} {
		// Its children live until the pipe is closed.
		cmd := exec.Command("sh", "-c", "exec 3<&0; "+children+" echo ready; read -r _")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		child, err := Child(cmd.Process.Pid)
		if (err == nil) != one {
			t.Errorf("%q: %d, %v", children, child, err)
		}
		if err == nil {
			parent(t, child, cmd.Process.Pid)
		}
		_ = in.Close()
		_ = cmd.Wait()
		if child, err := Child(cmd.Process.Pid); err == nil {
			t.Errorf("%q: a process that has ended has the child %d", children, child)
		}
	}
}

// parent checks whose child a process is.
func parent(t *testing.T, pid, want int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil || !strings.Contains(string(b), "\nPPid:\t"+strconv.Itoa(want)+"\n") {
		t.Errorf("%v; it is no child of %d:\n%s", err, want, b)
	}
}
