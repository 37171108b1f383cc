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

// Live lists known sessions that a restart would cut. It has no counts of connections: a load balancer's health checks
// would block every join.
type Live struct {
	// Streams are those in MongoDB, as database/id.
	Streams []string `json:"streams"`
	// Publishers and Viewers are the server's counts, and Complete if none is missing.
	Publishers int  `json:"publishers"`
	Viewers    int  `json:"viewers"`
	Complete   bool `json:"complete"`
}

// known returns nil if no session is known.
func (l Live) known() *Live {
	if l.Publishers == 0 && l.Viewers == 0 {
		return nil
	}
	return &l
}

// sessions uses MongoDB, if client is not nil, and the server. It returns an error if neither could count the
// streams.
func (m *Machine) sessions(ctx context.Context, install *ams.Installation, client *cluster.Client, address string) (Live, error) {
	live := Live{Streams: []string{}}
	var err error
	if client != nil {
		live.Streams, err = liveStreams(ctx, install, client, address)
		live.Publishers = len(live.Streams)
	}
	token, terr := install.ServerToken(time.Now())
	if terr != nil {
		return live, err
	}
	var s ams.Statistics
	var serr error
	m.whileSlow("asking Ant Media Server who is on it", func() {
		s, serr = ams.ReadStatistics(ctx, m.http(), install.BaseURL(), token)
	})
	if serr != nil {
		return live, err
	}
	if s.Viewers != nil {
		live.Viewers = *s.Viewers
	}
	if s.Streams != nil {
		live.Publishers, err = max(*s.Streams, live.Publishers), nil // the server's own count is enough
	}
	live.Complete = s.Complete && s.Streams != nil
	return live, err
}

func liveStreams(ctx context.Context, install *ams.Installation, client *cluster.Client, address string) ([]string, error) {
	// An application without a known database has no streams in MongoDB.
	names, _ := install.Databases()
	live := []string{}
	if len(names) == 0 {
		return live, nil
	}
	streams, err := client.LocalStreams(ctx, names, address, time.Now())
	if err != nil {
		return live, err
	}
	for _, d := range streams {
		for _, id := range d.IDs {
			live = append(live, d.Database+"/"+id)
		}
	}
	return live, nil
}

func sessionsFinding(live Live, err error, command string) (Finding, bool) {
	if err != nil {
		return Finding{ID: idSessions, Err: err, Text: "the streams of this node cannot be counted: " + err.Error(), Hint: command + " with --now to cut whatever is live"}, true
	}
	var on []string
	switch {
	case len(live.Streams) > 0:
		on = append(on, "published to this node: "+sample(live.Streams))
	case live.Publishers > 0:
		on = append(on, "published to this server: "+plural(live.Publishers, "stream"))
	}
	if live.Viewers > 0 {
		on = append(on, "connected to this node: "+plural(live.Viewers, "viewer"))
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
