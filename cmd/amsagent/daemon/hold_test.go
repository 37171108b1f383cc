// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
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

	hold := func(command string) (release func()) {
		t.Helper()
		release, err := NewClient(path, nil).Hold(t.Context(), HoldRequest{Command: command})
		must.OK(t, err)
		return release
	}
	ready := func(want bool, why string) {
		t.Helper()
		must.Until(t, fmt.Sprintf("ready is %v %q", want, why), func() bool {
			v := d.view.get()
			return v.Ready == want && strings.Contains(v.NotReady, why)
		})
	}

	ready(true, "")
	first := hold("leave")
	if v := d.view.get(); v.Ready || !strings.Contains(v.NotReady, "amsagent leave is at work") {
		t.Fatalf("%v %q", v.Ready, v.NotReady)
	}
	second := hold("join")
	<-time.After(requestTime + 500*time.Millisecond) // longer than a request may take
	ready(false, "amsagent join is at work")
	second()
	<-time.After(100 * time.Millisecond)
	ready(false, "is at work")
	first()
	ready(true, "")

	third := hold("leave")
	p.set(nil)
	third()
	ready(false, "not a cluster node")
	d.view.setPhase("")
	ready(false, "not a cluster node")
	p.set(joined)
	enter()
	ready(true, "")
}
