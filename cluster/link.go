// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/description"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/topology"
)

const (
	// followTime bounds the search for the primary of a set that the connection
	// string does not name.
	followTime = 3 * time.Second
	// followPause is the pause after such a search.
	followPause = time.Second
	// relinkEvery is how often a link is made anew because a server does not answer:
	// each new one costs a login, which an overloaded server can spare least.
	relinkEvery = 15 * time.Second
	// lostAfter is for how long no server was found until the driver's picture of the
	// cluster is thrown away: a set that was made anew counts its elections from the
	// first again, and the hosts of an SRV name may all have been exchanged.
	lostAfter = time.Minute
)

// replicaSet is a set as a member describes it.
type replicaSet struct {
	name  string
	hosts []string
}

// link is one client of the driver. A [Client] replaces it where the driver itself
// would stay with a server that is of no use.
type link struct {
	mongo *mongo.Client
	watch *watch
	// direct says that one host is used, whatever it is a member of, because nothing
	// else was named.
	direct bool
	opened time.Time
	// answered is how long after that a call last found a server.
	answered atomic.Int64
}

// lost reports a link over which no server will be found, by what became of a call: the
// driver forgets a server that says to be of another set, and waits for none then.
func (l *link) lost(err error) bool {
	search, searched := errors.AsType[topology.ServerSelectionError](err)
	age := time.Since(l.opened)
	switch {
	case !searched:
		l.answered.Store(int64(age))
		return false
	case errors.Is(err, context.Canceled):
		return false
	case len(search.Desc.Servers) == 0:
		return age >= relinkEvery
	}
	return age-time.Duration(l.answered.Load()) >= lostAfter
}

// linking guards the replacement of a link.
type linking struct {
	mu     sync.Mutex
	closed bool
	tried  time.Time // when a set was last searched for its primary
	// relinked is when a server that did not answer was last given up.
	relinked time.Time
	// old are links that are being closed.
	old sync.WaitGroup
}

// open makes a link. change, if not nil, adapts the driver's options.
func (c *Client) open(ctx context.Context, change func(*options.ClientOptions)) (*link, error) {
	l := &link{watch: newWatch(), opened: time.Now()}
	opts, err := c.driverOptions(ctx, l.watch)
	if err != nil {
		return nil, err
	}
	if change != nil {
		change(opts)
	}
	direct := opts.Direct != nil && *opts.Direct
	if c.options.Elections && !direct {
		opts.SetServerMonitoringMode("stream")
	}
	l.direct = direct && c.namesOne()
	l.mongo, err = mongo.Connect(opts)
	return l, err
}

// NamesSet reports whether the target names a replica set, or several hosts.
func (t Target) NamesSet() bool {
	return t.SRV() || len(t.Addresses()) > 1 || t.Option("replicaSet") != ""
}

// namesOne reports whether the connection string names one host and leaves open
// whether that is a member of a replica set.
func (c *Client) namesOne() bool {
	t := c.target
	return !t.SRV() && len(t.Addresses()) == 1 && t.Option("replicaSet") == "" && t.Option("directConnection") == "" &&
		t.Option("loadBalanced") != "true"
}

// OneNamed tells whether the connection string names one member of a replica set of
// several, as far as a call has shown, and which set of which hosts that is.
func (c *Client) OneNamed() (set string, hosts []string, one bool) {
	s := c.link.Load().watch.memberOf()
	return s.name, s.hosts, c.namesOne() && len(s.hosts) > 1
}

func (c *Client) db(name string) *mongo.Database { return c.link.Load().mongo.Database(name) }

// relink replaces the link that a call was made over, where another one promises
// more, and reports whether the call is to be repeated over it. err is what became
// of the call.
func (c *Client) relink(ctx context.Context, used *link, err error) bool {
	lost := used.lost(err)
	if ctx.Err() != nil && !timedOut(err) && !lost || err == nil && !used.lags() {
		return false
	}
	c.linking.mu.Lock()
	defer c.linking.mu.Unlock()
	switch {
	case c.linking.closed:
		return false
	case c.link.Load() != used:
		// Another call replaced it, and may have cut this one.
		return (errors.Is(err, mongo.ErrClientDisconnected) || errors.Is(err, topology.ErrPoolClosed)) && ctx.Err() == nil
	case used.direct:
		return c.follow(ctx, used, err)
	case lost || timedOut(err) && time.Since(c.linking.relinked) >= relinkEvery:
		// A server that hangs keeps its connections. Where members do not tell of an
		// election (before 4.4, DocumentDB; see Options.Elections), the driver would
		// ask them for a new primary only when it next looks after them.
		c.linking.relinked = time.Now()
		if l, err := c.open(context.WithoutCancel(ctx), nil); err == nil {
			c.replace(ctx, used, l)
		}
		return ctx.Err() == nil
	}
	return false
}

// timedOut reports a call that was sent and not answered in time.
func timedOut(err error) bool {
	return err != nil && !holds[topology.ServerSelectionError](err) && kindOf(err) == KindTimeout
}

// follow replaces the link to one member by one to its set, where that member is not
// the primary or does not answer, and the set has one.
func (c *Client) follow(ctx context.Context, used *link, err error) bool {
	set := used.watch.memberOf()
	if len(set.hosts) < 2 || time.Since(c.linking.tried) < followPause {
		return false
	}
	if !used.lags() && !(err != nil && mayBeElsewhere(kindOf(err))) {
		return false
	}
	defer func() { c.linking.tried = time.Now() }()
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), followTime)
	defer cancel()
	l, oerr := c.open(bound, func(o *options.ClientOptions) {
		o.SetDirect(false).SetReplicaSet(set.name).SetHosts(set.hosts).SetServerSelectionTimeout(followTime)
	})
	if oerr != nil {
		return false
	}
	if perr := l.mongo.Ping(bound, nil); perr != nil {
		c.log.DebugContext(ctx, "the replica set could not be followed", "set", set.name, "hosts", strings.Join(set.hosts, ","), "error", innermost(perr))
		c.discard(ctx, l)
		return false
	}
	c.log.InfoContext(ctx, "the address names one member of a replica set, which is not the primary: following the set",
		"host", c.target.hostList(), "set", set.name, "hosts", strings.Join(set.hosts, ","))
	c.replace(ctx, used, l)
	return ctx.Err() == nil
}

// mayBeElsewhere reports failures of one server that another member may not have.
func mayBeElsewhere(k Kind) bool {
	switch k {
	case KindLost, KindRefused, KindUnreachable, KindTimeout, KindNotPrimary:
		return true
	default:
		return false
	}
}

// memberOf is the set that the one server said to be a member of.
func (w *watch) memberOf() replicaSet {
	w.mu.Lock()
	defer w.mu.Unlock()
	return replicaSet{w.set.name, slices.Clone(w.set.hosts)}
}

// lags reports a link to one member that is not the primary: what is read there may
// be old.
func (l *link) lags() bool {
	if !l.direct {
		return false
	}
	l.watch.mu.Lock()
	defer l.watch.mu.Unlock()
	return len(l.watch.set.hosts) > 1 && l.watch.kind != description.ServerKindRSPrimary.String()
}

// replace puts a new link in the place of an old one. The lock is held.
func (c *Client) replace(ctx context.Context, old, now *link) {
	c.link.Store(now)
	c.discard(ctx, old)
}

// discard closes a link without waiting for it.
func (c *Client) discard(ctx context.Context, l *link) {
	c.linking.old.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = l.mongo.Disconnect(ctx) // nothing is left to be done about it
	})
}

// closeLinks says good-bye, and lets no new link be made. The driver waits for its own look at a server, without regard to
// any context, for as long as a connection may take to be made: what is left of that goes on by itself.
func (c *Client) closeLinks(ctx context.Context) error {
	c.linking.mu.Lock()
	c.linking.closed = true
	c.linking.mu.Unlock()
	// Also when ctx has ended: that is when most clients are closed.
	ctx = context.WithoutCancel(ctx)
	closed := make(chan error, 1)
	go func() {
		l := c.link.Load()
		bound, cancel := context.WithTimeout(ctx, l.watch.goodbye())
		defer cancel()
		err := l.mongo.Disconnect(bound)
		c.linking.old.Wait()
		closed <- err
	}()
	wait, cancel := context.WithTimeout(ctx, closeTimeout+closeTimeout/2)
	defer cancel()
	select {
	case err := <-closed:
		if errors.Is(err, mongo.ErrClientDisconnected) {
			return nil
		}
		return err
	case <-wait.Done():
		return wait.Err()
	}
}
