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

// sessions is who is on the server that runs here. A command that restarts it once asks for no estimate: what connections
// tell would keep a machine behind a load balancer, whose health checks they are, from ever joining.
type sessions struct {
	streams  []string // published to it, by name, where the cluster's memory was read
	unnamed  int      // published to it, by its own count
	viewers  int
	complete bool // the server itself told all of this
}

// sessions asks the cluster's memory for the streams of an address, where there is a client, and the server itself where it
// lets us. The error says that the streams of a node could not be counted.
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
	n, complete := s.Viewers()
	if n != nil {
		found.viewers = *n
	}
	if s.LocalStreams != nil {
		found.unnamed, err = *s.LocalStreams, nil // it knows itself
	}
	found.complete = complete && s.LocalStreams != nil
	return found, err
}

func liveStreams(ctx context.Context, install *ams.Installation, client *cluster.Client, address string) ([]string, error) {
	// An application whose database is not known has none in the cluster.
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

// Live is who would be cut by a restart, as far as that is known.
type Live struct {
	// Streams are published to this node by the cluster's memory, as database/id.
	Streams []string `json:"streams"`
	// Publishers and Viewers are the server's own count; Complete tells that it told all of it.
	Publishers int  `json:"publishers"`
	Viewers    int  `json:"viewers"`
	Complete   bool `json:"complete"`
}

// live is nil where nobody is known to be on the server.
func (s sessions) live() *Live {
	if len(s.streams) == 0 && s.unnamed == 0 && s.viewers == 0 {
		return nil
	}
	return &Live{Streams: append([]string{}, s.streams...), Publishers: max(s.unnamed, len(s.streams)), Viewers: s.viewers, Complete: s.complete}
}

// sessionsFinding is why a command may not go on.
func sessionsFinding(live sessions, err error, command string) (Finding, bool) {
	if err != nil {
		return Finding{ID: IDSessions, Err: err, Text: "the streams of this node cannot be counted: " + err.Error(), Hint: command + " with --now to cut whatever is live"}, true
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
	return Finding{ID: IDSessions, Text: strings.Join(on, "; "), Hint: "wait until they end, or " + command + " with --now to cut them"}, true
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// sample names the first few of many.
func sample(names []string) string {
	const few = 5
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}
