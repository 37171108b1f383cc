// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// TestRealSessions counts a publisher and viewers of a real server without a token for the server's statistics, and without MongoDB.
// Without sessions the count is 0, and never unknown (issue 23, 2.6).
func TestRealSessions(t *testing.T) {
	t.Parallel()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	n := newRealNode(t, w, realRelease())
	n.join(w.URI())
	n.WaitServed(t, realApps(n.Release)...)
	d := n.daemon()
	d.ready()
	n.counts("an idle server", 0, 0)

	publisher, players := watched(t, w, n.Node, 2)
	n.counts("without a token", 1, 2)

	must.OK(t, w.Mongo.Member(0).Kill())
	wait(20 * time.Second) // several counts later
	n.counts("without a token and without MongoDB", 1, 1)
	for _, p := range append(players, publisher) {
		if _, err := p.Stop(30 * time.Second); err != nil {
			t.Error(err)
		}
	}
	n.counts("an idle server without MongoDB", 0, 0)
	d.end()
}

// TestRealRTMPViewer: an RTMP viewer, which is in none of the server's statistics, is counted within a minute, and at once during a
// drain.
func TestRealRTMPViewer(t *testing.T) {
	t.Parallel()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	n, d := readyNode(t, w)
	n.counts("an idle server", 0, 0)
	publisher := w.Publish(t, n.Node, "LiveApp", "stream1")
	n.counts("an encoder", 1, 0)
	player := n.playRTMP("stream1")
	n.counts("an encoder and a player by RTMP", 1, 1)
	if _, err := player.Stop(30 * time.Second); err != nil {
		t.Error(err)
	}
	n.counts("the player has ended", 1, 0)
	if _, err := publisher.Stop(30 * time.Second); err != nil {
		t.Error(err)
	}
	n.counts("an idle server again", 0, 0)
	d.end()
}

// counts waits until the daemon counts exactly so many publishers, and at least so many viewers; 0 viewers is exact.
func (n *realNode) counts(when string, publishers, viewers int) {
	n.t.Helper()
	until(n.t, "the count of "+when, func() string {
		v, err := viewAt(n.Path("/run/amsagent/control.sock"))
		if err != nil {
			return err.Error()
		}
		s := v.Sessions
		said := fmt.Sprintf("%s publishers by %s, %s viewers by %s", told(s.Publishers), s.PublishersBy, told(s.Viewers), s.By)
		if s.Publishers == nil || *s.Publishers != publishers || s.Viewers == nil || *s.Viewers < viewers || viewers == 0 && *s.Viewers != 0 {
			return soFar(said)
		}
		n.t.Logf("%s: %s", when, said)
		return ""
	})
}

func told(n *int) string {
	if n == nil {
		return "unknown"
	}
	return fmt.Sprint(*n)
}
