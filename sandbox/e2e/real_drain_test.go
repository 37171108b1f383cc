// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/sandbox/realams"
)

// A drain waits for a publisher and three viewers of a real server, and stops it when
// the last of them has left (issue 11, story 6).
func TestRealDrain(t *testing.T) {
	t.Parallel()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	n, d := readyNode(t, w)

	publisher, players := watched(t, w, n.Node, 3)
	n.sessions(1, 3)
	if out, code := n.Run(t, bins.agent, "leave"); code != 3 || !strings.Contains(out, "published") {
		t.Errorf("a leave with streams on the server: exit %d\n%s", code, out)
	}

	// An edited port applies at the server's next start. Until then the viewers are unknown, and the drain waits.
	port := func(number string) {
		n.MustRun(t, "sed", "-i", "s/^http.port=.*/http.port="+number+"/", nodeHome+"/conf/red5.properties")
	}
	port("5099")
	drain := n.Start(t, bins.agent, "drain", "--reason", "test")
	n.drains(drain, "1 publisher left, viewers not known")
	wait(15 * time.Second) // the daemon looks at the files again after 10 s
	if v, err := viewAt(n.Path("/run/amsagent/control.sock")); err != nil || v.Sessions.Viewers != nil {
		t.Errorf("while the file names another port: %+v, %v", v.Sessions, err)
	}
	port("5080")
	n.drains(drain, "1 publisher, 3 viewers left")
	for _, p := range players {
		p.Signal(syscall.SIGTERM)
	}
	// The server counts a viewer until its session times out.
	n.drains(drain, "1 publisher, 0 viewers left")
	begin := time.Now()
	publisher.Signal(syscall.SIGTERM)
	if code, err := drain.Wait(time.Minute); err != nil || code != 0 {
		t.Fatalf("drain: exit %d, %v\n%s", code, err, drain.Output())
	}
	figure(t, "stopped and deregistered %s after the last session left", time.Since(begin).Round(100*time.Millisecond))
	if n.Server() != 0 {
		t.Error("the server runs after the drain")
	}
	if strings.Contains(drain.Output(), "cut") {
		t.Errorf("the drain cut a session:\n%s", drain.Output())
	}
	if out := n.MustRun(t, bins.agent, "nodes", "--all"); !strings.Contains(out, "left") {
		t.Errorf("nodes does not say that the node left:\n%s", out)
	}
	if d.Said("level=ERROR") > 0 {
		t.Errorf("a drain without a fault is no error:\n%s", d.Output())
	}
	d.end()
}

// drains waits until a drain reports a number of sessions, while the server still runs.
func (n *realNode) drains(drain *realams.Process, left string) {
	n.t.Helper()
	until(n.t, "the drain says "+left, func() string {
		select {
		case <-drain.Done():
			n.t.Fatalf("the drain ended:\n%s", drain.Output())
		default:
		}
		if !strings.Contains(drain.Output(), left) {
			return soFar(drain.Output())
		}
		return ""
	})
	if n.Server() == 0 {
		n.t.Errorf("the server does not run while the drain waits: %s", drain.Output())
	}
}

// sessions waits until status counts sessions.
func (n *realNode) sessions(publishers, viewers int) {
	n.t.Helper()
	want := fmt.Sprintf("%d publisher", publishers)
	until(n.t, fmt.Sprintf("status counts %d and %d", publishers, viewers), func() string {
		out, _ := n.Run(n.t, bins.agent, "status")
		if !strings.Contains(out, want) || !strings.Contains(out, fmt.Sprintf("%d viewer", viewers)) {
			return soFar(out)
		}
		return ""
	})
}
