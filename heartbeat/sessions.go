// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

const (
	whatPublishers = "publishers"
	whatViewers    = "viewers"

	// askEvery: a query scans a collection of each application. openEvery: the list of applications needs many files.
	// drainEvery replaces both during a drain.
	askEvery   = 30 * time.Second
	peersTime  = 2 * askEvery
	openEvery  = 2 * time.Minute
	drainEvery = 5 * time.Second
	// mongoTime bounds the queries of a count: a shutdown cannot wait longer.
	mongoTime = time.Second
	// serverTime bounds a query to the service manager and a connection to the server.
	serverTime = time.Second
	// silentAfter is twice the usual idle timeout. Players send requests every few seconds, WebRTC clients every three.
	silentAfter = 2 * time.Minute
)

// Streams returns a node's streams and its neighbours. [cluster.Client] is one.
type Streams interface {
	LocalStreams(ctx context.Context, databases []string, address string, now time.Time) ([]cluster.DatabaseStreams, error)
	AMSNodes(ctx context.Context) ([]cluster.AMSNode, error)
}

// sessionCounter counts by the server's statistics, its stream documents and the connections to its ports. Publishers are
// the largest count, viewers the statistics'; if these lack kinds, the larger count.
type sessionCounter struct {
	SamplerOptions
	// Connections is [ams.EachConnection]; nil if they cannot be counted.
	Connections func(visit func(ams.Connection)) error
	// Network is [ams.CheckNetwork].
	Network func(pid, port int) error

	mu        sync.Mutex
	install   *ams.Installation
	looked    time.Time
	published streamCount
	pid       int   // of the server
	network   error // of Network
	checked   time.Time
	peers     map[netip.Addr]bool // other nodes, which fetch streams as viewers do
	peersSeen time.Time
}

type streamCount struct {
	publishers int
	err        error
	at         time.Time
	of         string // the node's address
	from       Streams
}

type connected struct {
	viewers, rtmp, idle, peers, rtmpPeers int
}

// count returns nil for unknown counts, with a reason.
func (c *sessionCounter) count(ctx context.Context, openEvery, askEvery time.Duration) (cluster.Sessions, map[string]error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.open(openEvery); err != nil {
		return cluster.Sessions{}, map[string]error{whatPublishers: err, whatViewers: err}
	}
	e := evidence{edge: c.Edge()}
	token, err := c.install.ServerToken(time.Now())
	if e.statsErr = err; err == nil {
		e.stats, e.statsErr = ams.ReadStatistics(ctx, nil, c.install.BaseURL(), token)
	}
	e.published, e.mongoErr = c.askMongo(ctx, askEvery)
	if e.found, e.connErr = c.connections(); e.connErr == nil {
		e.connErr = c.checkNetwork(ctx, openEvery)
	}
	if e.statsErr != nil && (e.connErr != nil || e.found.viewers == 0) {
		// A server whose port was edited uses the old one until its restart.
		bound, cancel := context.WithTimeout(ctx, serverTime)
		defer cancel()
		if ams.Refused(bound, c.install.BaseURL()) {
			if st, err := c.State(bound); e.found.rtmp == 0 && err == nil && st.Dead() {
				zero := 0
				return cluster.Sessions{Publishers: &zero, Viewers: &zero, By: cluster.CountedByService, PublishersBy: cluster.CountedByService}, nil
			}
			e.connErr = errors.New("no process listens at the server's port, and the server was not stopped")
		}
	}
	return e.sessions()
}

type evidence struct {
	stats     ams.Statistics
	statsErr  error
	published int // by MongoDB
	mongoErr  error
	found     connected
	connErr   error
	edge      bool
}

func (e evidence) sessions() (s cluster.Sessions, missing map[string]error) {
	missing = map[string]error{}
	if s.Publishers, s.PublishersBy = e.publishers(); s.Publishers == nil {
		missing[whatPublishers] = errors.Join(e.mongoErr, e.statsErr, e.connErr)
	}
	if s.Viewers, s.By = e.viewers(); s.Viewers == nil {
		missing[whatViewers] = errors.Join(e.statsErr, e.connErr)
	} else if s.Publishers != nil && e.connErr == nil {
		// The server counts no RTMP viewers, but streams that an edge fetched.
		publishers := e.published
		if !e.edge {
			publishers = *s.Publishers
		}
		n := *s.Viewers + max(0, e.found.rtmp-publishers)
		s.Viewers = &n
	}
	if e.connErr == nil {
		peers := e.found.rtmpPeers
		if s.By == cluster.CountedByConnections || s.PublishersBy == cluster.CountedByConnections {
			s.Idle, peers = &e.found.idle, peers+e.found.peers
		}
		s.Peers = &peers
	}
	return s, missing
}

// publishers uses connections only without statistics.
func (e evidence) publishers() (*int, cluster.CountedBy) {
	encoders := e.found.rtmp
	if e.edge {
		encoders = 0
	}
	switch streams := e.stats.Streams; {
	case streams != nil && (e.mongoErr != nil || *streams >= e.published):
		return streams, cluster.CountedByAMS
	case streams == nil && e.connErr == nil && (e.mongoErr != nil || encoders > e.published):
		return &encoders, cluster.CountedByConnections
	case e.mongoErr == nil:
		return &e.published, cluster.CountedByMongoDB
	}
	return nil, ""
}

// viewers returns the count without RTMP viewers.
func (e evidence) viewers() (n *int, by cluster.CountedBy) {
	n = e.stats.Viewers
	switch {
	case e.stats.Complete, e.connErr == nil && n != nil && *n > e.found.viewers:
		return n, cluster.CountedByAMS
	case e.connErr == nil:
		return &e.found.viewers, cluster.CountedByConnections
	}
	return nil, ""
}

func (c *sessionCounter) open(every time.Duration) (err error) {
	if c.install == nil || time.Since(c.looked) >= every || c.install.Outdated() {
		c.install, err = c.Open()
		c.looked = time.Now()
	}
	return err
}

// connections only estimates viewers: panel users count, too, and a load balancer may share or keep connections.
func (c *sessionCounter) connections() (n connected, err error) {
	if c.Connections == nil {
		return n, errors.New("the connections of this machine are not counted")
	}
	if err := c.install.ServerErr; err != nil {
		return n, err
	}
	ports, local, peers := c.install.Ports, 0, c.peers
	if time.Since(c.peersSeen) > peersTime {
		peers = nil // one may have died
	}
	err = c.Connections(func(is ams.Connection) {
		rtmp := is.Port == ports.RTMP || is.Port == ports.RTMPS
		switch {
		case !rtmp && is.Port != ports.HTTP && is.Port != ports.HTTPS:
		case is.Silent >= silentAfter && is.Local: // a proxy or a check keeps most of these open
		case is.Silent >= silentAfter:
			n.idle++
		case rtmp && peers[is.From] && !is.Local:
			n.rtmpPeers++
		case rtmp:
			n.rtmp++ // an encoder may run on this machine
		case is.Local:
			local++
		case peers[is.From]:
			n.peers++
		default:
			n.viewers++
		}
	})
	if n.viewers == 0 {
		n.viewers = max(0, local-c.Own()) // all viewers come through a local proxy
	}
	return n, err
}

// checkNetwork returns why connections are not counted. If the service manager does not answer, the last known process counts.
func (c *sessionCounter) checkNetwork(ctx context.Context, every time.Duration) error {
	if c.network != nil {
		every = min(every, askEvery)
	}
	if time.Since(c.checked) >= every {
		bound, cancel := context.WithTimeout(ctx, serverTime)
		defer cancel()
		st, err := c.State(bound)
		if err == nil {
			c.pid = st.MainPID
		}
		if c.network = c.Network(c.pid, c.install.Ports.HTTP); c.network != nil {
			c.network = errors.Join(c.network, err)
		}
		c.checked = time.Now()
	}
	return c.network
}

// askMongo does not repeat a failure within mongoTime: the next count may have waited for this one.
func (c *sessionCounter) askMongo(ctx context.Context, every time.Duration) (n int, _ error) {
	from, address := c.Streams()
	last := c.published
	if last.err != nil {
		every = mongoTime
	}
	if last.of == address && last.from == from && time.Since(last.at) < every {
		return last.publishers, last.err
	}
	if from == nil || address == "" {
		return 0, errors.New("this machine is not a cluster node")
	}
	bound, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	n, err := c.streams(bound, from, address)
	if ctx.Err() == nil { // a count that was cut off says nothing about MongoDB
		c.published = streamCount{n, err, time.Now(), address, from}
	}
	return n, err
}

// On failure, streams keeps the known addresses of other nodes for peersTime. A dead one's may be a load balancer's by now.
func (c *sessionCounter) streams(ctx context.Context, from Streams, address string) (n int, _ error) {
	if nodes, err := from.AMSNodes(ctx); err == nil {
		c.peers, c.peersSeen = make(map[netip.Addr]bool, len(nodes)), time.Now()
		for _, n := range nodes {
			if a, err := netip.ParseAddr(n.IP); err == nil && n.Fresh(time.Now()) && time.Since(n.LastUpdate) > -askEvery {
				c.peers[a.Unmap()] = true
			}
		}
	}
	databases, err := c.install.Databases()
	if err != nil || len(databases) == 0 { // a server without applications has no streams
		return 0, err
	}
	found, err := from.LocalStreams(ctx, databases, address, time.Now())
	if err != nil {
		return 0, err
	}
	for _, d := range found {
		n += len(d.IDs)
	}
	return n, nil
}
