// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// TestRealBeans runs a server whose AMS document comes late, under a second id, under another address, or not at all after MongoDB was
// away. The agent reports it in its status and log, and restarts nothing.
func TestRealBeans(t *testing.T) {
	t.Parallel()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	n := newRealNode(t, w, realRelease())

	// The service command starts the server with an address of no interface: the join does not wait for the document.
	const given = "/usr/local/sbin/given-service"
	n.write(given, "#!/bin/sh\nAMS_HOST_ADDRESS=10.77.0.99 exec "+realams.Service+` "$@"`)
	n.MustRun(t, "chmod", "755", given)
	said, code := n.Run(t, n.joinArgs(w.URI(), "--service-command", given)...)
	if code != 1 || !strings.Contains(said, "[AMS-NOT-SEEN]") || !strings.Contains(said, "cause: Ant Media Server was started with AMS_HOST_ADDRESS=10.77.0.99, and not with "+n.Address+"\n") ||
		!strings.Contains(said, "hint: whatever starts the server has to pass AMS_HOST_ADDRESS="+n.Address+" on to it") ||
		!strings.Contains(said, "the files were put back and Ant Media Server is stopped, as before") {
		t.Fatalf("join: exit %d\n%s", code, said)
	}
	before := n.Asked()

	// A late document: all applications serve, and the join waits.
	n.misbehave("no-row", "")
	join := n.Start(t, n.joinArgs(w.URI(), "--timeout", "10m")...)
	n.WaitServed(t, realApps(n.Release)...)
	select {
	case <-join.Done():
		t.Fatalf("the join ended without a document of the server:\n%s", join.Output())
	case <-time.After(30 * time.Second):
	}
	n.behave()
	if code, err := join.Wait(time.Minute); err != nil || code != 0 {
		t.Fatalf("join: exit %d, %v\n%s", code, err, join.Output())
	}
	if out := join.Output(); !strings.Contains(out, "waiting for Ant Media Server to appear in the cluster as "+n.Address) || !strings.Contains(out, "liveness: live") {
		t.Errorf("the join does not say for what it waits:\n%s", out)
	}
	asked := n.Asked()
	if !slices.Equal(asked[len(before):], []string{"start"}) {
		t.Errorf("the join asked the service for %v, want one start", asked[len(before):])
	}
	d := n.daemon()
	d.ready()

	// Another id: the other nodes see this one by its new document.
	n.misbehave("id", "0123456789abcdef0123456789abcdef")
	d.says(0, "does not write its document")
	n.behave()

	// Another address: the other nodes cannot reach this one.
	n.misbehave("address", "10.77.0.99")
	n.says("AMS-NOT-SEEN", "missing or old")
	d.says(1, "does not write its document")
	n.behave()
	d.says(1, "writes its document again")
	n.silent("AMS-NOT-SEEN")

	// MongoDB was away, and the server does not come back to the cluster.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	must.OK(t, w.Mongo.Member(0).Stop())
	n.misbehave("no-row", "")
	until(t, "/readyz does not answer 200", func() string {
		if d.readyz() == http.StatusOK {
			return "ready"
		}
		return ""
	})
	must.OK(t, w.Mongo.Member(0).Start(ctx))
	d.ready() // viewers are served again
	n.says("AMS-NOT-SEEN", "look at /var/log/antmedia/ant-media-server.log")
	d.says(2, "does not write its document")
	n.behave()
	d.says(2, "writes its document again")
	n.silent("AMS-NOT-SEEN")
	n.asked("the daemon", asked)

	d.end()
	if out := n.MustRun(t, bins.agent, "leave", "--now"); !strings.Contains(out, "left: this machine is standalone") {
		t.Errorf("leave says: %s", out)
	}
	// Both documents of this node are gone.
	if out := n.MustRun(t, bins.agent, "nodes", "--mongo", "file:/run/mongo"); strings.Contains(out, "ams-stale") {
		t.Errorf("nodes after the leave:\n%s", out)
	}
}

// misbehave makes the server's cluster bean do it from its next document on, and behave
// ends that.
func (n *realNode) misbehave(how, value string) {
	n.t.Helper()
	n.MustRun(n.t, "sh", "-c", `mkdir -p /run/amsagent-test-beans && printf '%s' "$2" >"/run/amsagent-test-beans/$1"`, "sh", how, value)
}

func (n *realNode) behave() {
	n.t.Helper()
	n.MustRun(n.t, "rm", "-r", "/run/amsagent-test-beans")
}

// says waits until status has a disagreement with an id, which names something.
func (n *realNode) says(id, what string) {
	n.t.Helper()
	until(n.t, "status says "+id+" of "+what, func() string {
		out, _ := n.Run(n.t, bins.agent, "status")
		if i := strings.Index(out, id); i < 0 || !strings.Contains(out[i:], what) {
			return soFar(out)
		}
		return ""
	})
}

// silent waits until status has no disagreement with an id.
func (n *realNode) silent(id string) {
	n.t.Helper()
	until(n.t, "status does not say "+id, func() string {
		if out, _ := n.Run(n.t, bins.agent, "status"); strings.Contains(out, id) {
			return soFar(out)
		}
		return ""
	})
}

// says waits until the daemon's log has a text so often, and not more often.
func (d *realDaemon) says(count int, what string) {
	d.n.t.Helper()
	until(d.n.t, what, func() string {
		if d.Said(what) < count {
			return soFar(d.Output())
		}
		return ""
	})
	if got := d.Said(what); got != count {
		d.n.t.Errorf("the daemon says %d times %q, want %d:\n%s", got, what, count, d.Output())
	}
}
