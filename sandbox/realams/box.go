// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realams

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/netns"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// box holds a set of namespaces. Its first process is a shell that reads from a
// pipe: it ends, and with it every process in the box and every mount, when the test
// closes the pipe or ends in any way.
type box struct {
	name string
	cmd  *exec.Cmd
	pipe io.Closer
	pid  int // of the shell, as seen from here
}

// newBox makes namespaces and runs a script in them, as root of the box.
func newBox(t testing.TB, name, script string, args ...string) *box {
	t.Helper()
	argv := append([]string{
		"--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child",
		"bash", "-c", "set -euo pipefail\nip link set lo up\n" + script + "\necho box-is-up\nwhile read -r _; do :; done", "bash",
	}, args...)
	b := &box{name: name, cmd: exec.Command("unshare", argv...)}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	in, err := b.cmd.StdinPipe()
	must.OK(t, err)
	out, err := b.cmd.StdoutPipe()
	must.OK(t, err)
	var stderr bytes.Buffer
	b.cmd.Stderr, b.pipe = &stderr, in
	if err := b.cmd.Start(); err != nil {
		t.Fatalf("making the namespaces of %s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = b.pipe.Close()
		_ = b.cmd.Wait()
	})
	for lines := bufio.NewScanner(out); ; {
		if !lines.Scan() {
			_ = b.pipe.Close()
			_ = b.cmd.Wait()
			t.Fatalf("making the namespaces of %s: %s", name, stderr.String())
		}
		if lines.Text() == "box-is-up" {
			break
		}
	}
	if b.pid, err = proc.Child(b.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return b
}

// path is a file of the box, as seen from here.
func (b *box) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(b.pid), "root", name)
}

// command is a program in all namespaces of the box, with the environment of a login
// on a server.
func (b *box) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(b.pid), "--all", "--wd=/", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "NO_COLOR=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// netPrefix is put before a command that is to use the network of the box, and
// nothing else of it.
func (b *box) netPrefix() []string {
	return []string{"nsenter", "--target", strconv.Itoa(b.pid), "--net", "--"}
}

// dial connects from a place in the network of the box.
func (b *box) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return netns.Dial(ctx, b.pid, network, address)
}
