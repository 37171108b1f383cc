// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package realams_test

import (
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// What a node may take, so that many of them run on one machine: the memory of its server, and
// what it writes, to its memory too.
const (
	maxMemory  = 500 << 20
	maxWritten = 20 << 20
)

// A node as the installer leaves it starts as a standalone server, is seen by a
// viewer on the network, and ends by its service command and by a signal. It takes little.
func TestRealNode(t *testing.T) {
	w := realams.New(t, realams.Options{})
	n := w.Node(t, realams.Newest)
	if out, code := n.Run(t, realams.Service, "status"); code != 3 || !strings.HasPrefix(out, "inactive") {
		t.Errorf("the status before the start is %d: %s", code, out)
	}
	begin := time.Now()
	n.MustRun(t, realams.Service, "start")
	n.WaitServed(t, "LiveApp")
	t.Logf("LiveApp serves after %s", time.Since(begin).Round(100*time.Millisecond))
	if got := realams.Status(w.HTTP(5*time.Second), "http://"+n.Address+":5080/LiveApp/"); got != http.StatusOK {
		t.Errorf("a viewer gets %d", got)
	}
	u, err := proc.ReadUsage(n.Server())
	must.OK(t, err)
	var disk unix.Statfs_t
	must.OK(t, unix.Statfs(n.Path("/mnt"), &disk))
	written := (disk.Blocks - disk.Bfree) * uint64(disk.Bsize)
	t.Logf("the server takes %d MiB, and the node has written %.1f MiB", u.RSS>>20, float64(written)/(1<<20))
	if u.RSS >= maxMemory || written >= maxWritten || written == 0 {
		t.Errorf("the server takes %d bytes, want less than %d; the node has written %d, want less than %d", u.RSS, maxMemory, written, maxWritten)
	}
	begin = time.Now()
	n.MustRun(t, realams.Service, "stop")
	t.Logf("the server stopped within %s", time.Since(begin).Round(100*time.Millisecond))
	if n.Server() != 0 {
		t.Error("the server runs after a stop")
	}
	n.MustRun(t, realams.Service, "start")
	n.Signal(t, syscall.SIGKILL)
	// A busy machine takes a while to end a process of that size.
	out, code := n.Run(t, realams.Service, "status")
	for until := time.Now().Add(time.Minute); code != 3 && time.Now().Before(until); out, code = n.Run(t, realams.Service, "status") {
		<-time.After(50 * time.Millisecond)
	}
	if code != 3 {
		t.Errorf("the status after a kill is %d: %s", code, out)
	}
	if got, want := n.Asked(), []string{"start", "stop", "start"}; !slices.Equal(got, want) {
		t.Errorf("the service was asked for %v, want %v", got, want)
	}
}
