// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

// sessions has no counts of connections: a load balancer's health checks would block every join.
type sessions struct {
	streams  []string // by name, from MongoDB
	unnamed  int      // the server's count
	viewers  int
	complete bool // counted by the server
}

// sessions uses MongoDB, if client is not nil, and the server. It returns an error if neither could count the
// streams.
func (m *Machine) sessions(ctx context.Context, install *ams.Installation, client *cluster.Client, address string) (sessions, error) {
	var found sessions
	var err error
	if client != nil {
		found.streams, err = liveStreams(ctx, install, client, address)
	}
	token, terr := install.ServerToken(time.Now())
	if terr != nil {
		return found, err
	}
	var s ams.Statistics
	var serr error
	m.whileSlow("asking Ant Media Server who is on it", func() {
		s, serr = ams.ReadStatistics(ctx, m.http(), install.BaseURL(), token)
	})
	if serr != nil {
		return found, err
	}
	if s.Viewers != nil {
		found.viewers = *s.Viewers
	}
	if s.Streams != nil {
		found.unnamed, err = *s.Streams, nil // the server's own count is enough
	}
	found.complete = s.Complete && s.Streams != nil
	return found, err
}

func liveStreams(ctx context.Context, install *ams.Installation, client *cluster.Client, address string) ([]string, error) {
	// An application without a known database has no streams in MongoDB.
	names, _ := install.Databases()
	if len(names) == 0 {
		return nil, nil
	}
	streams, err := client.LocalStreams(ctx, names, address, time.Now())
	if err != nil {
		return nil, err
	}
	var live []string
	for _, d := range streams {
		for _, id := range d.IDs {
			live = append(live, d.Database+"/"+id)
		}
	}
	return live, nil
}

// Live lists known sessions that a restart would cut.
type Live struct {
	// Streams are those in MongoDB, as database/id.
	Streams []string `json:"streams"`
	// Publishers and Viewers are the server's counts, and Complete if none is missing.
	Publishers int  `json:"publishers"`
	Viewers    int  `json:"viewers"`
	Complete   bool `json:"complete"`
}

// live returns nil if no session is known.
func (s sessions) live() *Live {
	if len(s.streams) == 0 && s.unnamed == 0 && s.viewers == 0 {
		return nil
	}
	return &Live{Streams: append([]string{}, s.streams...), Publishers: max(s.unnamed, len(s.streams)), Viewers: s.viewers, Complete: s.complete}
}

func sessionsFinding(live sessions, err error, command string) (Finding, bool) {
	if err != nil {
		return Finding{ID: idSessions, Err: err, Text: "the streams of this node cannot be counted: " + err.Error(), Hint: command + " with --now to cut whatever is live"}, true
	}
	var on []string
	switch {
	case len(live.streams) > 0:
		on = append(on, "published to this node: "+sample(live.streams))
	case live.unnamed > 0:
		on = append(on, "published to this server: "+plural(live.unnamed, "stream"))
	}
	if live.viewers > 0 {
		on = append(on, "connected to this node: "+plural(live.viewers, "viewer"))
	}
	if len(on) == 0 {
		return Finding{}, false
	}
	return Finding{ID: idSessions, Text: strings.Join(on, "; "), Hint: "wait until they end, or " + command + " with --now to cut them"}, true
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func sample(names []string) string {
	const few = 5
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}
