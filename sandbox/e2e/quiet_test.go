// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// changes are the system calls that change a file system.
const changes = "write,pwrite64,writev,pwritev,ftruncate,truncate,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat,chmod,fchmod,fchmodat,chown,fchown,fchownat,symlinkat,setxattr,fsetxattr"

// TestSecondJoinWritesNothing watches every system call of a join that has
// nothing to do: none changes anything below the machine's root, and the service
// is asked for its state only.
func TestSecondJoinWritesNothing(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: its system calls are not watched")
	}
	n := newSingle(t, "127.0.0.91")
	n.Must("join")
	info, err := n.StandIn.Service.Info()
	must.OK(t, err)

	trace := filepath.Join(t.TempDir(), "trace")
	// -y names the file behind each descriptor.
	cmd := exec.Command(strace, "-f", "-qq", "-y", "-o", trace, "-e", "trace="+changes+",openat", n.Agent, "join")
	cmd.Env = n.Cmd().Env
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(lastResult(string(out)), "nothing to do") {
		t.Fatalf("the second join: %v\n%s", err, out)
	}
	b, err := os.ReadFile(trace)
	must.OK(t, err)
	seen := 0
	create := regexp.MustCompile(`O_(WRONLY|RDWR|TRUNC)`)
	begun := map[string]string{} // by thread: a call during which another thread made one is on two lines
	for line := range strings.Lines(string(b)) {
		seen++
		thread, _, _ := strings.Cut(line, " ")
		if first, ok := strings.CutSuffix(strings.TrimSpace(line), "<unfinished ...>"); ok {
			begun[thread] = first
			continue
		}
		if strings.Contains(line, " resumed>") {
			line = begun[thread] + line
		}
		if !strings.Contains(line, n.Path("/")) {
			continue
		}
		if strings.Contains(line, "openat(") && (!create.MatchString(line) || strings.Contains(line, "/run/amsagent/lock")) {
			continue // reading; or the lock, in which nothing is written
		}
		t.Errorf("it changed something: %s", strings.TrimSpace(line))
	}
	if seen == 0 {
		t.Error("strace saw nothing: this test proves nothing")
	}
	if now, err := n.StandIn.Service.Info(); err != nil || string(now) != string(info) {
		t.Errorf("the service was restarted: %s, %v; before: %s", now, err, info)
	}
}

// lastResult drops the log lines before the result.
func lastResult(out string) string {
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "time=") {
			return line
		}
	}
	return ""
}
