// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

const (
	whatPublishers = "publishers"
	whatViewers    = "viewers"

	// How long MongoDB's count of publishers is good for: it is a query of every
	// application's streams, by every node, and AMS's broadcast collection is
	// scanned for it. Rarely while the server itself reports its streams, more often
	// while only its connections are known.
	mongoEvery      = 30 * time.Second
	publishersEvery = 10 * time.Second
	// drainEvery is the same while a node drains and the server reports its streams.
	drainEvery = 5 * time.Second
	// mongoRetry is how long a MongoDB that did not answer is not asked again,
	// where something else counts the publishers.
	mongoRetry = 5 * time.Second
	// connectionsEvery is the same for connections: the kernel walks its whole table
	// for it.
	connectionsEvery = 10 * time.Second
	// rtmpEvery is the same while the server tells all but who watches by RTMP.
	rtmpEvery = time.Minute
	// publishersTime bounds the query, besideTime where the count is known without
	// it, and the query of the other nodes: a MongoDB that is away must not hold a node
	// that shuts down.
	publishersTime = 2 * time.Second
	besideTime     = time.Second
	// installEvery is after how long the installation is looked at again, which opens
	// a jar and every application's file; drainInstall is the same while a node drains.
	installEvery = 2 * time.Minute
	drainInstall = 10 * time.Second
	// peersEvery is the same for the other nodes.
	peersEvery = time.Minute
	// refusedFor is how long a server that refused our token is left alone.
	refusedFor = time.Minute
	// stateEvery is how often the service manager is asked about a server that does
	// not answer, stateTime how long.
	stateEvery = 10 * time.Second
	stateTime  = time.Second
	// dialTime bounds the look where the server listens.
	dialTime = time.Second
)

// errNotMember says that nobody can be asked for this node's streams.
var errNotMember = errors.New("this machine is not a cluster node")

// Streams tells what is published to a node, and who its neighbours are.
// [cluster.Client] is one.
type Streams interface {
	LocalStreams(ctx context.Context, databases []string, address string, now time.Time) ([]cluster.DatabaseStreams, error)
	AMSNodes(ctx context.Context) ([]cluster.AMSNode, error)
}

// SessionCounter counts the sessions of this node. The server is asked first: its
// own statistics where it lets us ask for them, else the connections to its
// ports. MongoDB says by AMS's own rule what is published here. Of two counts the
// larger one is used; what nothing can count is unknown, never 0. It is for one
// caller at a time.
type SessionCounter struct {
	// Open looks at the installation.
	Open func() (*ams.Installation, error)
	// Streams is where to look for publishers, with this node's address; nil and
	// "" while this machine is not a cluster node.
	Streams func() (Streams, string)
	// State asks the service manager for the server: one that does not run has no
	// sessions. nil asks nobody.
	State func(ctx context.Context) (ams.State, error)
	// Edge tells that nothing is published to this node, so that who is connected to the RTMP port
	// watches; nil is never.
	Edge func() bool
	// Root is what /proc is below.
	Root string
	// Own is how many connections to the server are the agent's own at this moment:
	// while it hangs they are there for seconds. nil: none.
	Own func() int
	Now func() time.Time

	mu      sync.Mutex
	server  server
	listens place // where it did when it could be looked at last
	looked  time.Time

	publishers    *int // by MongoDB
	publishersErr error
	counted       time.Time
	of            string  // the address they were counted for
	from          Streams // where they were counted

	peers   map[netip.Addr]bool
	peersAt time.Time // when they were last asked for
	peersOf Streams   // whom; nil after an answer that was none
	refused time.Time

	connected   connected // when they were counted last
	connectedAt time.Time

	dead   bool // by the service manager
	deadAt time.Time
}

// connected is who is connected to the server: to the ports of viewers, and to those of RTMP.
type connected struct{ viewers, rtmp int }

// server is what the files say of the server, without what is not needed here.
type server struct {
	err error
	place
	databases    []string
	databasesErr error
	key          ams.ServerKey
	keyErr       error
}

// place is where a server listens.
type place struct {
	base     string
	ports    ams.Ports
	portsErr error
}

// left reports whether the server that listened at p listens at to by now. A port that is
// another one says so: that of HTTP where it is one of them.
func (p place) left(ctx context.Context, to place) bool {
	if p.base != to.base {
		return !ams.Refused(ctx, to.base) || ams.Refused(ctx, p.base)
	}
	host := p.base[:strings.LastIndexByte(p.base, ':')]
	for _, port := range [][2]int{
		{p.ports.HTTPS, to.ports.HTTPS}, {p.ports.RTMP, to.ports.RTMP}, {p.ports.RTMPS, to.ports.RTMPS},
	} {
		was, is := port[0], port[1]
		if was != is && ams.Refused(ctx, fmt.Sprintf("%s:%d", host, is)) && !ams.Refused(ctx, fmt.Sprintf("%s:%d", host, was)) {
			return false
		}
	}
	return true
}

func lookAt(open func() (*ams.Installation, error)) server {
	in, err := open()
	if err != nil {
		return server{err: err}
	}
	s := server{place: place{base: in.BaseURL()}}
	s.databases, s.databasesErr = in.Databases()
	s.key, s.keyErr = in.ServerKey()
	s.ports, s.portsErr = in.Ports()
	return s
}

// look looks at the server again. One that runs listens at the ports of its start, whatever
// its files say by now: those count until somebody listens at a new one, or nobody at the
// one before.
func (c *SessionCounter) look(ctx context.Context) server {
	s, was := lookAt(c.Open), c.listens
	if s.err != nil || s.portsErr != nil {
		return s
	}
	if was.base != "" && s.place != was {
		bound, cancel := context.WithTimeout(ctx, dialTime)
		defer cancel()
		if !was.left(bound, s.place) || ctx.Err() != nil {
			s.place = was
		}
	}
	c.listens = s.place
	return s
}

// CountNow is Count without what was counted, or refused, moments ago: who drains
// a node wants to know. A server that starts refuses the same call that it answers
// a second later, and connections are a poor count beside its own.
func (c *SessionCounter) CountNow(ctx context.Context) (cluster.Sessions, []Missing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connectedAt, c.refused, c.deadAt = time.Time{}, time.Time{}, time.Time{}
	return c.count(ctx, true)
}

// Count counts. What could not be counted is nil, with its reason.
func (c *SessionCounter) Count(ctx context.Context) (cluster.Sessions, []Missing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count(ctx, false)
}

func (c *SessionCounter) count(ctx context.Context, draining bool) (cluster.Sessions, []Missing) {
	now := time.Now()
	if c.Now != nil {
		now = c.Now()
	}
	every := installEvery
	if draining {
		every = drainInstall
	}
	if c.server.err != nil || !within(every, c.looked, now) {
		c.server, c.looked = c.look(ctx), now
		c.refused = time.Time{} // the settings may let us ask now
	}
	if err := c.server.err; err != nil {
		return cluster.Sessions{}, []Missing{{whatPublishers, err}, {whatViewers, err}}
	}

	var s cluster.Sessions
	var missing []Missing
	stats, statsErr := c.askServer(ctx, now)
	viewers, complete := stats.Viewers()
	told := statsErr == nil && complete && stats.LocalStreams != nil
	every = connectionsEvery
	if told {
		every = rtmpEvery // who watches by RTMP, alone, is not told
	}
	found, connErr := c.connections(ctx, now, every)
	if connErr != nil {
		connErr = errors.Join(statsErr, connErr)
	}
	encoders, players := found.rtmp, 0
	if c.Edge != nil && c.Edge() {
		encoders, players = 0, found.rtmp
	}
	if statsErr != nil && (connErr != nil || found == connected{}) && c.serverIsDead(ctx, now, draining || connErr != nil) {
		return none(cluster.CountedByService), nil
	}

	own, by := stats.LocalStreams, cluster.CountedByAMS
	if own == nil && connErr == nil {
		own, by = &encoders, cluster.CountedByConnections
	}
	var publishersErr error
	s.Publishers, s.PublishersBy, publishersErr = c.countPublishers(ctx, now, own, by, draining)
	if players > 0 && !c.counted.IsZero() && c.publishersErr == nil {
		// Who publishes to an edge all the same is no viewer, too. The server's own count has the streams that it fetched.
		players = max(0, players-*c.publishers)
	}

	switch {
	case statsErr == nil && complete:
		s.Viewers, s.By = viewers, cluster.CountedByAMS
	case connErr == nil && viewers != nil && *viewers > found.viewers:
		// Some kinds are all that this release tells of; who watches them need not be connected now.
		s.Viewers, s.By = viewers, cluster.CountedByAMS
	case connErr == nil:
		n := found.viewers + players
		s.Viewers, s.By = &n, cluster.CountedByConnections
	default:
		missing = append(missing, Missing{whatViewers, connErr})
	}

	if publishersErr != nil {
		missing = append(missing, Missing{whatPublishers, errors.Join(publishersErr, connErr)})
	}
	if s.By == cluster.CountedByAMS { // which does not count who watches by RTMP
		if s.Publishers != nil {
			// Each stream has one connection at most, and one that comes another way has none.
			players += max(0, encoders-*s.Publishers)
		}
		n := *s.Viewers + players
		s.Viewers = &n
	}
	return s, missing
}

// within reports whether something was done no longer ago than that; zero is never. A
// clock that was set back since tells nothing.
func within(d time.Duration, done, now time.Time) bool {
	age := now.Sub(done)
	return !done.IsZero() && age >= 0 && age < d
}

func none(by cluster.CountedBy) cluster.Sessions {
	publishers, viewers := 0, 0
	return cluster.Sessions{Publishers: &publishers, Viewers: &viewers, By: by, PublishersBy: by}
}

// countPublishers is the larger of the server's own count, nil if there is none,
// and MongoDB's.
func (c *SessionCounter) countPublishers(
	ctx context.Context, now time.Time, own *int, by cluster.CountedBy, draining bool,
) (*int, cluster.CountedBy, error) {
	found, err := c.askMongo(ctx, now, own != nil, by == cluster.CountedByAMS, draining)
	switch {
	case err != nil && own == nil:
		return nil, "", err
	case err != nil: // the server's own count is enough
		return own, by, nil //nolint:nilerr // as said
	case own == nil:
		return found, cluster.CountedByMongoDB, nil
	}
	// A count by connections alone is an estimate; one that MongoDB confirms is none.
	if *own > *found || by == cluster.CountedByAMS && *own == *found {
		return own, by, nil
	}
	return found, cluster.CountedByMongoDB, nil
}

// askMongo is how many streams MongoDB has for this node. known tells that the number is known without MongoDB, exact
// that the server itself reported it.
func (c *SessionCounter) askMongo(ctx context.Context, now time.Time, known, exact, draining bool) (*int, error) {
	streams, address := c.Streams()
	if streams == nil || address == "" {
		c.counted = time.Time{}
		return nil, errNotMember
	}
	every, bound := publishersEvery, publishersTime
	switch {
	case c.publishersErr != nil && known:
		every = mongoRetry
	case c.publishersErr != nil:
		every = 0
	case !known || !exact:
		if draining {
			every = 0
		}
	case draining:
		every = drainEvery
	default:
		every = mongoEvery
	}
	if known {
		bound = besideTime
	}
	if c.of == address && c.from == streams && within(every, c.counted, now) {
		return c.publishers, c.publishersErr
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	c.publishers, c.publishersErr = publishersOf(ctx, streams, c.server, address, now)
	c.counted, c.of, c.from = now, address, streams
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

// serverIsDead asks the service manager about a server that does not answer. Its
// answer is kept for a moment, but for who drains; unknown tells that nothing else
// counts the sessions.
func (c *SessionCounter) serverIsDead(ctx context.Context, now time.Time, unknown bool) bool {
	if c.State == nil {
		return false
	}
	if within(stateEvery, c.deadAt, now) {
		return c.dead
	}
	if !unknown {
		return false // zero by connections says enough
	}
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	st, err := c.State(ctx)
	c.dead, c.deadAt = err == nil && st.Dead(), now
	return c.dead
}

// connections counts who is connected to the server. It is an estimate, and
// better than nothing.
func (c *SessionCounter) connections(ctx context.Context, now time.Time, every time.Duration) (connected, error) {
	if c.server.portsErr != nil {
		return connected{}, c.server.portsErr
	}
	if err := ctx.Err(); err != nil {
		return connected{}, err // AMS was not given the time to answer
	}
	if within(every, c.connectedAt, now) {
		return c.connected, nil
	}
	c.readPeers(ctx, now)
	ports := c.server.ports
	rtmp := []int{ports.RTMP, ports.RTMPS}
	own := 0
	if c.Own != nil {
		own = c.Own()
	}
	found, err := ams.CountConnections(c.Root, append(ports.Viewers(), rtmp...), func(a netip.Addr) bool { return c.peers[a] })
	if err != nil {
		return connected{}, err
	}
	viewers, local := 0, 0
	for _, p := range ports.Viewers() {
		viewers += found.ByPort[p]
		local += found.LocalByPort[p]
	}
	if viewers == 0 {
		// Where a proxy on this machine stands before AMS, everybody comes through it.
		viewers = max(0, local-own)
	}
	n := connected{viewers: viewers}
	for _, p := range rtmp {
		// Nothing checks the health of this port by keeping a connection, and an
		// encoder may run on this machine.
		n.rtmp += found.ByPort[p] + found.LocalByPort[p]
	}
	c.connected, c.connectedAt = n, now
	return n, nil
}

// askServer asks AMS for what it says of itself, where it lets us.
func (c *SessionCounter) askServer(ctx context.Context, now time.Time) (ams.Statistics, error) {
	if within(refusedFor, c.refused, now) {
		return ams.Statistics{}, errRefused
	}
	s, err := ams.Statistics{}, c.server.keyErr
	if err == nil {
		s, err = ams.ReadStatistics(ctx, nil, c.server.base, c.server.key.Token(now))
	}
	switch {
	case err == nil:
		c.refused = time.Time{}
	case errors.Is(err, ams.ErrNoServerToken), errors.Is(err, ams.ErrForbidden), errors.Is(err, ams.ErrNoStatistics):
		c.refused = now
	}
	return s, err
}

// errRefused: the server refused a moment ago.
var errRefused = errors.New("the server refused to report its statistics a moment ago")

// readPeers learns the addresses of the other nodes, which fetch streams as
// viewers do. Where they cannot be read, those known stay.
func (c *SessionCounter) readPeers(ctx context.Context, now time.Time) {
	streams, _ := c.Streams()
	wait := peersEvery
	if c.peersOf == nil {
		wait = publishersEvery // who does not answer is not asked at every beat
	}
	if streams == nil || (c.peersOf == nil || c.peersOf == streams) && within(wait, c.peersAt, now) {
		return
	}
	c.peersAt, c.peersOf = now, nil
	ctx, cancel := context.WithTimeout(ctx, besideTime)
	defer cancel()
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
