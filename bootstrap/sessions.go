// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
)

// Live lists known sessions that a restart would cut. Connections count only on a node: before, a load balancer's health
// checks would block a join.
type Live struct {
	// Streams are those in MongoDB, as database/id.
	Streams []string `json:"streams"`
	// Publishers and Viewers are the server's counts, or on a node the daemon's. Complete: none is missing.
	Publishers int  `json:"publishers"`
	Viewers    int  `json:"viewers"`
	Complete   bool `json:"complete"`
	// Peers are connections of other nodes, by the daemon.
	Peers int `json:"peers,omitempty"`
}

// known returns nil if no session is known.
func (l Live) known() *Live {
	if l.Publishers == 0 && l.Viewers == 0 && l.Peers == 0 {
		return nil
	}
	return &l
}

// add adds the daemon's count.
func (l *Live) add(n cluster.Sessions) {
	for to, from := range map[*int]*int{&l.Publishers: n.Publishers, &l.Viewers: n.Viewers, &l.Peers: n.Peers} {
		if from != nil {
			*to = max(*to, *from)
		}
	}
	l.Complete = l.Complete || n.IsEmpty()
}

// checkSessions returns the sessions that a restart would cut, and a finding if there are any or they are unknown. An
// unknown count is refused on a node, else a warning. The daemon's count is used only if counts.
func (m *Machine) checkSessions(ctx context.Context, command string, node, counts bool, install *ams.Installation, client *cluster.Client, address string) (live *Live, f Finding, refuse bool) {
	own, err := Live{Streams: []string{}}, errors.New("the installation cannot be read")
	if install != nil {
		own, err = m.sessions(ctx, install, client, address)
	}
	count, cerr := cluster.Sessions{}, errors.New("the daemon was not asked")
	if m.Sessions != nil {
		count, cerr = m.askSessions(ctx, counts)
	}
	if counts {
		own.add(count)
	}
	n, known := count.Total()
	switch {
	case count.IsEmpty(), !counts && known && n == 0:
		err = nil
	case err == nil && !own.Complete && own.known() == nil:
		text := "a restart may cut sessions: " + count.Left()
		if cerr != nil {
			text += ": " + cerr.Error()
		}
		return nil, newFinding(Bad, idSessions, "start the daemon, or set the server's statistics token, so that they are counted; "+command+" with --now cuts whatever is live", "%s", text), node
	}
	f, refuse = sessionsFinding(own, err, command)
	return own.known(), f, refuse
}

// connectionLooks is how often connections must be 0: a viewer of HLS has none between two requests. A drain does the same.
const connectionLooks = 10

// askSessions returns the daemon's count. With sure, it looks again if no connection is seen.
func (m *Machine) askSessions(ctx context.Context, sure bool) (count cluster.Sessions, err error) {
	m.whileSlow("looking for connections of viewers", func() {
		for look := 1; ; look++ {
			count, err = m.Sessions(ctx)
			n, known := count.Total()
			unsure := sure && count.By == cluster.CountedByConnections && known && n == 0 && !count.HasPeers()
			if !unsure || look == connectionLooks || !sleep.For(ctx, time.Second) {
				return
			}
		}
	})
	return count, err
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
		for {
			s, serr = ams.ReadStatistics(ctx, m.http(), install.BaseURL(), token)
			if serr == nil || !m.isYoung(ctx) || !sleep.For(ctx, time.Second) {
				return
			}
		}
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

// isYoung reports whether the server started so lately that it may refuse tokens yet, or not listen.
func (m *Machine) isYoung(ctx context.Context) bool {
	st, err := m.Service.State(ctx)
	started := m.serverStarted(st)
	return err == nil && st.Running() && !started.IsZero() && time.Since(started) < usualStart
}

// CheckCount returns a finding if nothing can count the viewers of this machine's server.
func CheckCount(st ams.State, install *ams.Installation) (f Finding, found bool) {
	if _, err := install.ServerToken(time.Now()); err == nil || st.Dead() {
		return f, false
	}
	err := ams.CheckNetwork(st.MainPID, install.Ports.HTTP)
	return warningOf(IDCount, "server.jwtServerControlEnabled=true and a secret in server.jwtServerSecretKey of red5.properties; then restart the server",
		"viewers cannot be counted, so a drain waits until its deadline: %v", err), err != nil
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
		return failure(idSessions, fmt.Errorf("the streams of this node cannot be counted: %w", err), command+" with --now to cut whatever is live"), true
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
	if live.Peers > 0 {
		on = append(on, plural(live.Peers, "connection")+" of other nodes")
	}
	if len(on) == 0 {
		return Finding{}, false
	}
	return newFinding(Bad, idSessions, "wait until they end, or "+command+" with --now to cut them", "%s", strings.Join(on, "; ")), true
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
