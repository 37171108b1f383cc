// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

const (
	whatPublishers = "publishers"
	whatViewers    = "viewers"

	// publishersEvery is how long a count of publishers is good for: it is a
	// query of every application's streams, by every node.
	publishersEvery = 10 * time.Second
	// connectionsEvery is the same for viewers by connections: the kernel walks its
	// whole table for it.
	connectionsEvery = 10 * time.Second
	// publishersTime bounds it: a MongoDB that is away must leave time to ask AMS.
	publishersTime = 2 * time.Second
	// lookEvery is after how long the installation and the other nodes are
	// looked at again.
	lookEvery = time.Minute
	// refusedFor is how long a server that refused our token is left alone.
	refusedFor = time.Minute
)

// errNotMember says that nobody can be asked for this node's streams.
var errNotMember = errors.New("this machine is no node of a cluster")

// Streams tells what is published to a node, and who its neighbours are.
// [cluster.Client] is one.
type Streams interface {
	LocalStreams(ctx context.Context, databases []string, address string, now time.Time) ([]cluster.DatabaseStreams, error)
	AMSNodes(ctx context.Context) ([]cluster.AMSNode, error)
}

// SessionCounter counts the sessions of this node: publishers by AMS's own rule
// for what is live here, viewers by AMS's statistics where it lets us ask for
// them, else by connections. It is for one caller at a time.
type SessionCounter struct {
	// Open looks at the installation.
	Open func() (*ams.Installation, error)
	// Streams is where to look for publishers, with this node's address; nil and
	// "" while this machine is no node.
	Streams func() (Streams, string)
	// Root is what /proc is below.
	Root string
	// HTTP reaches AMS on this machine; nil is the usual client.
	HTTP *http.Client
	Now  func() time.Time

	mu     sync.Mutex
	server server
	looked time.Time

	publishers    *int
	publishersErr error
	counted       time.Time
	of            string  // the address they were counted for
	from          Streams // where they were counted

	peers   map[netip.Addr]bool
	peersAt time.Time // when they were last asked for
	peersOf Streams   // whom; nil after an answer that was none
	refused time.Time

	connected   int // connections, when they were counted last
	connectedAt time.Time
}

// server is what the files say of the server, without what is not needed here.
type server struct {
	err          error
	base         string
	databases    []string
	databasesErr error
	ports        []int
	portsErr     error
	key          ams.ServerKey
	keyErr       error
}

func lookAt(open func() (*ams.Installation, error)) server {
	in, err := open()
	if err != nil {
		return server{err: err}
	}
	s := server{base: in.BaseURL()}
	s.databases, s.databasesErr = in.Databases()
	s.key, s.keyErr = in.ServerKey()
	ports, err := in.Ports()
	s.ports, s.portsErr = ports.Viewers(), err
	return s
}

// CountNow is Count without what was counted, or refused, moments ago: who drains
// a node wants to know. A server that starts refuses the same call that it answers
// a second later, and connections are a poor count beside its own.
func (c *SessionCounter) CountNow(ctx context.Context) (cluster.Sessions, []Missing) {
	c.mu.Lock()
	c.counted, c.connectedAt, c.refused = time.Time{}, time.Time{}, time.Time{}
	c.mu.Unlock()
	return c.Count(ctx)
}

// Count counts. What could not be counted is nil, with its reason.
func (c *SessionCounter) Count(ctx context.Context) (cluster.Sessions, []Missing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.Now != nil {
		now = c.Now()
	}
	if age := now.Sub(c.looked); c.looked.IsZero() || c.server.err != nil || age < 0 || age >= lookEvery {
		c.server, c.looked = lookAt(c.Open), now
	}
	if err := c.server.err; err != nil {
		return cluster.Sessions{}, []Missing{{whatPublishers, err}, {whatViewers, err}}
	}
	var s cluster.Sessions
	var missing []Missing
	var err error
	if s.Publishers, err = c.countPublishers(ctx, now); err != nil && !errors.Is(err, errNotMember) {
		// AMS itself knows what it takes in, also while MongoDB is away.
		if own, serr := c.statistics(ctx, now); serr == nil && own.LocalStreams != nil {
			s.Publishers, err = own.LocalStreams, nil
		}
	}
	if err != nil {
		missing = append(missing, Missing{whatPublishers, err})
	}
	if s.Viewers, s.By, err = c.countViewers(ctx, now); err != nil {
		missing = append(missing, Missing{whatViewers, err})
	}
	return s, missing
}

func (c *SessionCounter) countPublishers(ctx context.Context, now time.Time) (*int, error) {
	streams, address := c.Streams()
	if streams == nil || address == "" {
		c.counted = time.Time{}
		return nil, errNotMember
	}
	if age := now.Sub(c.counted); c.of == address && c.from == streams && age >= 0 && age < publishersEvery {
		return c.publishers, c.publishersErr
	}
	bound, cancel := context.WithTimeout(ctx, publishersTime)
	defer cancel()
	c.publishers, c.publishersErr = publishersOf(bound, streams, c.server, address, now)
	c.counted, c.of, c.from = now, address, streams
	if c.publishersErr != nil {
		c.counted = time.Time{} // look again at the next beat
	}
	return c.publishers, c.publishersErr
}

func publishersOf(ctx context.Context, streams Streams, s server, address string, now time.Time) (*int, error) {
	if s.databasesErr != nil {
		return nil, s.databasesErr
	}
	n := 0
	if len(s.databases) == 0 {
		return &n, nil // a server without applications serves nobody
	}
	found, err := streams.LocalStreams(ctx, s.databases, address, now)
	if err != nil {
		return nil, err
	}
	for _, d := range found {
		n += len(d.IDs)
	}
	return &n, nil
}

// countViewers asks AMS where that is possible. The connections are an estimate,
// and better than nothing.
func (c *SessionCounter) countViewers(ctx context.Context, now time.Time) (*int, cluster.CountedBy, error) {
	var asked error
	if since := now.Sub(c.refused); c.refused.IsZero() || since < 0 || since >= refusedFor {
		n, err := c.askServer(ctx, now)
		if err == nil {
			c.refused = time.Time{}
			return n, cluster.CountedByAMS, nil
		}
		if asked = err; errors.Is(err, ams.ErrNoServerToken) || errors.Is(err, ams.ErrForbidden) || errors.Is(err, ams.ErrNoStatistics) {
			c.refused = now
		}
	}
	if c.server.portsErr != nil {
		return nil, "", errors.Join(asked, c.server.portsErr)
	}
	if err := ctx.Err(); err != nil {
		return nil, "", errors.Join(asked, err) // AMS was not given the time to answer
	}
	if age := now.Sub(c.connectedAt); !c.connectedAt.IsZero() && age >= 0 && age < connectionsEvery {
		n := c.connected
		return &n, cluster.CountedByConnections, nil
	}
	c.readPeers(ctx, now)
	found, err := ams.CountConnections(c.Root, c.server.ports, func(a netip.Addr) bool { return c.peers[a] })
	if err != nil {
		return nil, "", errors.Join(asked, err)
	}
	n := found.Total
	if n == 0 {
		// Where a proxy on this machine stands before AMS, everybody comes through it.
		n = found.Local
	}
	c.connected, c.connectedAt = n, now
	return &n, cluster.CountedByConnections, nil
}

// statistics asks AMS for what it says of itself, where it lets us.
func (c *SessionCounter) statistics(ctx context.Context, now time.Time) (ams.Statistics, error) {
	if c.server.keyErr != nil {
		return ams.Statistics{}, c.server.keyErr
	}
	return ams.ReadStatistics(ctx, c.HTTP, c.server.base, c.server.key.Token(now))
}

func (c *SessionCounter) askServer(ctx context.Context, now time.Time) (*int, error) {
	s, err := c.statistics(ctx, now)
	if err != nil {
		return nil, err
	}
	n, complete := s.Viewers()
	if !complete {
		return nil, fmt.Errorf("%w: it does not tell every kind of viewer", ams.ErrNoStatistics)
	}
	return n, nil
}

// readPeers learns the addresses of the other nodes, which fetch streams as
// viewers do. Where they cannot be read, those known stay.
func (c *SessionCounter) readPeers(ctx context.Context, now time.Time) {
	streams, _ := c.Streams()
	wait := lookEvery
	if c.peersOf == nil {
		wait = publishersEvery // who does not answer is not asked at every beat
	}
	if age := now.Sub(c.peersAt); streams == nil ||
		(!c.peersAt.IsZero() && (c.peersOf == nil || c.peersOf == streams) && age >= 0 && age < wait) {
		return
	}
	c.peersAt, c.peersOf = now, nil
	nodes, err := streams.AMSNodes(ctx)
	if err != nil {
		return
	}
	c.peersOf, c.peers = streams, make(map[netip.Addr]bool, len(nodes))
	for _, n := range nodes {
		if a, err := netip.ParseAddr(n.IP); err == nil {
			c.peers[a.Unmap()] = true
		}
	}
}
