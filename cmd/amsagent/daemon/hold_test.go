// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// TestHold holds by the control socket, as a command does, and ends the connection, as the kernel does for one that is
// killed. The node is ready again then, unless it left meanwhile.
func TestHold(t *testing.T) {
	t.Parallel()
	joined := &bootstrap.State{Phase: bootstrap.PhaseJoined}
	p := &fakeMachine{state: joined}
	d := newTestDaemon(p, new(notified), nil)
	enter := func() {
		d.view.setPhase(bootstrap.PhaseJoined)
		d.view.change(func(v *View) { v.State, v.Proved = cluster.StateActive, true })
	}
	enter()
	path := freshSocket(t)
	l, err := listenUnix(t.Context(), path, nil)
	must.OK(t, err)
	go d.serveHTTP(t.Context(), l, d.controlHandler(), commandTime)

	hold := func(command string) net.Conn {
		t.Helper()
		c, err := net.Dial("unix", path)
		must.OK(t, err)
		body := `{"command":"` + command + `"}`
		_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", PathHold, len(body), body)
		must.OK(t, err)
		for r := bufio.NewReader(c); ; {
			line, err := r.ReadString('\n')
			must.OK(t, err)
			if strings.HasPrefix(line, "{") {
				return c
			}
		}
	}
	ready := func(want bool, why string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; <-time.After(10 * time.Millisecond) {
			v := d.view.get()
			if v.Ready == want && strings.Contains(v.NotReady, why) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("ready is %v: %q, want %v: %q", v.Ready, v.NotReady, want, why)
			}
		}
	}

	ready(true, "")
	first := hold("leave")
	if v := d.view.get(); v.Ready || !strings.Contains(v.NotReady, "amsagent leave is at work") {
		t.Fatalf("%v %q", v.Ready, v.NotReady)
	}
	second := hold("join")
	<-time.After(requestTime + 500*time.Millisecond) // longer than a request may take
	ready(false, "amsagent join is at work")
	_ = second.Close()
	<-time.After(100 * time.Millisecond)
	ready(false, "is at work")
	_ = first.Close()
	ready(true, "")

	third := hold("leave")
	p.set(nil)
	_ = third.Close()
	ready(false, "not a cluster node")
	d.view.setPhase("")
	ready(false, "not a cluster node")
	p.set(joined)
	enter()
	ready(true, "")
}
