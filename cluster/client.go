// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
)

// Options are the settings of [Connect].
type Options struct {
	AppName string        // in the server's log
	Timeout time.Duration // of every call with retries; default 10 s
	MaxPool uint64        // per server, beside two for monitoring; default 2
	Log     *slog.Logger  // failed calls (debug), unreadable records
	Dialer  options.ContextDialer
	Now     func() time.Time // the local clock

	noLogin bool // ignore the credentials
}

const (
	defaultTimeout = 10 * time.Second
	defaultPool    = 2

	// connectTimeout leaves time to report a server that drops packets.
	connectTimeout = 3 * time.Second
	// idleLimit: the clouds' NAT gateways and load balancers silently drop idle connections from 240 s on.
	idleLimit    = 60 * time.Second
	closeTimeout = time.Second
)

// Client is a connection to one cluster's MongoDB, safe for concurrent use. The driver repeats failed reads, and writes to
// a replica set.
type Client struct {
	target  Target
	timeout time.Duration
	log     *slog.Logger
	now     func() time.Time

	mongo *mongo.Client
	watch *watch

	loggedBad sync.Map // ids
}

// Connect uses the network only for mongodb+srv (DNS).
//
// A single host without a replica set is used directly, as by AMS's Java driver. If it is no primary of its set, each call
// fails with [KindNotPrimary].
func Connect(ctx context.Context, t Target, o Options) (*Client, error) {
	const op = "preparing the connection to MongoDB"
	if t.IsZero() {
		return nil, &Error{Kind: KindConfig, Op: op, Err: errors.New("no address is given")}
	}
	c := &Client{
		target: t, timeout: cmp.Or(o.Timeout, defaultTimeout), log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), now: o.Now, watch: newWatch(),
	}
	if c.now == nil {
		c.now = time.Now
	}
	err := c.askDNS(ctx)
	if err == nil {
		c.mongo, err = mongo.Connect(c.driverOptions(o)) // it validates them
	}
	if err != nil {
		e := newError(op, err, t, nil)
		if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound && e.Kind == KindDNS {
			if _, err := net.DefaultResolver.LookupHost(ctx, t.Hosts()[0]); err == nil {
				e.Hint = "the name has an address, but no SRV record: write mongodb:// before it, not mongodb+srv://"
			}
		}
		if e.Kind == KindOther || e.Kind == KindTLS {
			e.Kind = KindConfig // only the string was checked
		}
		return nil, e
	}
	return c, nil
}

// askDNS precedes the driver's query, which ignores the context.
func (c *Client) askDNS(ctx context.Context) error {
	if !c.target.SRV() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	service := cmp.Or(c.target.option("srvServiceName"), "mongodb")
	name := c.target.Hosts()[0]
	if _, _, err := net.DefaultResolver.LookupSRV(ctx, service, "tcp", name); err != nil {
		return err
	}
	_, err := net.DefaultResolver.LookupTXT(ctx, name)
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return nil
	}
	return err
}

func (c *Client) driverOptions(o Options) *options.ClientOptions {
	opts := options.Client().ApplyURI(c.target.URI().Reveal())
	opts.SetAppName(o.AppName)
	opts.SetMinPoolSize(0)
	opts.SetMaxPoolSize(cmp.Or(o.MaxPool, defaultPool))
	opts.SetMaxConnIdleTime(idleLimit)
	opts.SetServerSelectionTimeout(c.timeout)
	if opts.ConnectTimeout == nil {
		// At most half: the cause must be known before the call ends.
		opts.SetConnectTimeout(min(connectTimeout, c.timeout/2))
	}
	opts.SetReadPreference(readpref.Primary())
	opts.SetWriteConcern(writeconcern.Majority())
	opts.SetServerMonitor(c.watch.servers())
	opts.SetPoolMonitor(c.watch.pools())
	opts.Dialer = o.Dialer
	if c.target.namesOne() {
		opts.SetDirect(true)
	}
	if opts.Direct != nil && *opts.Direct {
		// The driver would repeat a write to a secondary thousands of times a second.
		opts.SetRetryWrites(false)
	}
	if cfg := opts.TLSConfig; cfg != nil && !cfg.InsecureSkipVerify {
		// As AMS's driver. In a subnet without internet access, the OCSP request would hang.
		if opts.DisableCertificateRevocationCheck == nil && opts.DisableOCSPEndpointCheck == nil {
			opts.SetDisableOCSPEndpointCheck(true)
		}
		// Options of the Java driver only.
		if c.target.option("tlsAllowInvalidHostnames") == "true" || c.target.option("sslInvalidHostNameAllowed") == "true" {
			verifyChainOnly(cfg)
		}
	}
	if o.noLogin {
		opts.Auth = nil
	}
	return opts
}

func verifyChainOnly(cfg *tls.Config) {
	cfg.InsecureSkipVerify = true
	roots := cfg.RootCAs
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		between := x509.NewCertPool()
		for _, cert := range state.PeerCertificates[1:] {
			between.AddCert(cert)
		}
		_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
		if err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
		}
		return nil
	}
}

// Target returns the connection string.
func (c *Client) Target() Target { return c.target }

// Close takes at most a second. The driver ignores the context while it waits for a monitor.
func (c *Client) Close(ctx context.Context) error {
	// Most clients are closed after ctx has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- c.mongo.Disconnect(ctx) }()
	var err error
	select {
	case err = <-closed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil || errors.Is(err, mongo.ErrClientDisconnected) {
		return nil
	}
	return newError("closing the connection to MongoDB", err, c.target, nil)
}

// The server may have executed a failed call.
func (c *Client) call(ctx context.Context, op string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.notPrimary() // write nothing to a secondary
	if err == nil {
		err = do(ctx)
		// The result may be stale, and an arbiter refuses every password.
		if member := c.notPrimary(); member != nil && !errors.Is(err, context.Canceled) {
			err = member
		}
	}
	if err == nil {
		return nil
	}
	e := newError(op, err, c.target, c.watch)
	c.log.DebugContext(ctx, "call to MongoDB failed", "op", op, "kind", string(e.Kind), "host", e.Host, "error", e.Err.Error())
	return e
}

var errMember = errors.New("the address names one member")

// notPrimary fails if the only named host is in a replica set but no primary.
func (c *Client) notPrimary() error {
	d := c.watch.member()
	if !c.target.namesOne() || !strings.HasPrefix(d.Kind, "RS") || d.Kind == "RSPrimary" {
		return nil
	}
	hint := ""
	if len(d.Hosts) > 0 {
		hint = fmt.Sprintf("; name the set: mongodb://%s/?replicaSet=%s", strings.Join(d.Hosts, ","), d.SetName)
	}
	return fmt.Errorf("%w: it is %s%s", errMember, describe(d), hint)
}

func (c *Client) db(name string) *mongo.Database { return c.mongo.Database(name) }

const (
	findBatch = 1000
	// maxFound is far above a cluster's nodes or a node's streams.
	maxFound = 100_000
)

// ErrTooMany means that another program fills a collection.
var ErrTooMany = errors.New("too many documents")

// find calls read for each document, which it must not keep.
func find[T any](
	ctx context.Context, c *Client, op string, coll *mongo.Collection, filter bson.D, read func(bson.Raw) T, o *options.FindOptionsBuilder,
) ([]T, error) {
	found := []T{}
	err := c.call(ctx, op, func(ctx context.Context) error {
		cur, err := coll.Find(ctx, filter, options.Find().SetBatchSize(findBatch).SetLimit(maxFound+1), o)
		if err != nil {
			return err
		}
		defer func() { _ = cur.Close(ctx) }()
		for cur.Next(ctx) {
			if len(found) == maxFound {
				return fmt.Errorf("%s.%s: %w, more than %d match", coll.Database().Name(), coll.Name(), ErrTooMany, maxFound)
			}
			found = append(found, read(cur.Current))
		}
		return cur.Err()
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func (c *Client) updateMany(ctx context.Context, op string, coll *mongo.Collection, filter, update bson.D) error {
	return c.call(ctx, op, func(ctx context.Context) error {
		_, err := coll.UpdateMany(ctx, filter, update)
		return err
	})
}

func (c *Client) deleteMany(ctx context.Context, op string, coll *mongo.Collection, filter bson.D) error {
	return c.call(ctx, op, func(ctx context.Context) error {
		_, err := coll.DeleteMany(ctx, filter)
		return err
	})
}

// Ping checks that the server answers and accepts the credentials.
func (c *Client) Ping(ctx context.Context) error {
	return c.call(ctx, "asking MongoDB whether it is there", func(ctx context.Context) error {
		return c.db("admin").RunCommand(ctx, bson.D{{Key: "ping", Value: 1}}).Err()
	})
}

// ClockSkew returns how far the local clock is ahead of the server's, ± accuracy. AMS treats a node 20 s behind as dead.
func (c *Client) ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error) {
	start := time.Now() // c.now may be no monotonic clock
	server, err := c.ServerTime(ctx)
	trip := time.Since(start)
	if err != nil {
		return 0, 0, err
	}
	return c.now().Add(-trip / 2).Sub(server), trip/2 + time.Millisecond, nil
}

// ServerTime returns the server's clock.
func (c *Client) ServerTime(ctx context.Context) (time.Time, error) {
	const op = "reading MongoDB's clock"
	var reply bson.Raw
	err := c.call(ctx, op, func(ctx context.Context) (err error) {
		reply, err = c.db("admin").RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Raw()
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	server := timeField(reply, "localTime")
	if server.IsZero() {
		return time.Time{}, &Error{
			Kind: KindUnsupported, Op: op, Host: c.target.hostList(),
			Err: errors.New("its answer to hello has no localTime"),
		}
	}
	return server, nil
}

// nothing matches no document: no id is an empty object.
var nothing = bson.D{{Key: "_id", Value: bson.D{}}}

// CheckAccess checks the rights of join and leave, without a change.
func (c *Client) CheckAccess(ctx context.Context) error {
	if err := c.canRead(ctx, c.amsNodes()); err != nil {
		return err
	}
	change := bson.D{{Key: "$set", Value: bson.D{{Key: "x", Value: 1}}}}
	if err := c.updateMany(ctx, "checking the right to write "+registryDatabase+"."+nodesCollection, c.nodes(), nothing, change); err != nil {
		return err
	}
	return c.deleteMany(ctx, "checking the right to delete from "+amsDatabase+"."+amsCollection, c.amsNodes(), nothing)
}

// CheckRead checks the right to read these databases' streams.
func (c *Client) CheckRead(ctx context.Context, databases []string) error {
	var errs []error
	for _, name := range databases {
		errs = append(errs, c.canRead(ctx, c.db(name).Collection(broadcastCollection)))
	}
	return errors.Join(errs...)
}

func (c *Client) canRead(ctx context.Context, coll *mongo.Collection) error {
	return c.call(ctx, "checking the right to read "+coll.Database().Name()+"."+coll.Name(), func(ctx context.Context) error {
		err := coll.FindOne(ctx, nothing).Err()
		if errors.Is(err, mongo.ErrNoDocuments) {
			return nil
		}
		return err
	})
}

// ReplicaSet is zero for a single server.
type ReplicaSet struct {
	Name  string
	Hosts []string // data-bearing members, not hidden or passive
	// OneNamed: the connection string names one of several members, which AMS's driver keeps.
	OneNamed bool
}

// ReplicaSet returns what is known since the first answered call.
func (c *Client) ReplicaSet() ReplicaSet {
	d := c.watch.member()
	return ReplicaSet{d.SetName, d.Hosts, c.target.namesOne() && len(d.Hosts) > 1}
}

// Latency returns the median of n > 0 pings.
func (c *Client) Latency(ctx context.Context, n int) (time.Duration, error) {
	var trips []time.Duration
	for range n + 1 {
		start := time.Now()
		if err := c.Ping(ctx); err != nil {
			return 0, err
		}
		trips = append(trips, time.Since(start))
	}
	trips = trips[1:]
	slices.Sort(trips)
	return trips[n/2], nil
}

// OpenToAll reports whether the server lists its databases without a login.
func OpenToAll(ctx context.Context, t Target, o Options) (bool, error) {
	const op = "asking MongoDB without a password"
	o.noLogin = true
	c, err := Connect(ctx, t, o)
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close(ctx) }()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	// Any member of a set answers this.
	err = c.db("admin").RunCommand(ctx, bson.D{{Key: "listDatabases", Value: 1}, {Key: "nameOnly", Value: true}}).Err()
	if err == nil {
		return true, nil
	}
	switch e := newError(op, err, t, c.watch); e.Kind {
	case KindForbidden, KindAuth:
		return false, nil
	default:
		return false, e
	}
}
