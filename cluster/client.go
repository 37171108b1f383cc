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

// Options are the settings of [Connect]. The zero value is usable.
type Options struct {
	AppName string        // in the server's log
	Timeout time.Duration // of every call, including the driver's retries; default 10 s
	MaxPool uint64        // connections for calls, per server, beside two that monitor it; default 2
	Log     *slog.Logger  // gets a line for every failed call, and one for each record that cannot be read
	Dialer  options.ContextDialer
	Now     func() time.Time // the local clock

	noLogin bool // connect without the user and password of the connection string
}

const (
	defaultTimeout = 10 * time.Second
	defaultPool    = 2

	// connectTimeout applies unless the connection string sets it. After that, a server that drops packets is known as the cause.
	connectTimeout = 3 * time.Second
	// idleLimit drops connections before the clouds' NAT gateways and load balancers drop them silently (from 240 s on).
	idleLimit = 60 * time.Second
	// closeTimeout bounds the disconnection from a server that may be dead.
	closeTimeout = time.Second
)

// Client is a connection to the MongoDB of one cluster. Its methods are safe for concurrent use, and each is bounded by
// [Options.Timeout]. The driver repeats failed reads, and failed writes to a replica set.
type Client struct {
	target  Target
	timeout time.Duration
	log     *slog.Logger
	now     func() time.Time

	mongo *mongo.Client
	watch *watch

	loggedBad sync.Map // ids of the records that cannot be read, each of which is logged once
}

// Connect prepares a client. It looks up a mongodb+srv URI in DNS, and otherwise opens no connection before the first call.
//
// A single host without a replica set is used directly, as AMS's Java driver does. If that host is a member of a set but not the
// primary, each call fails with [KindNotPrimary].
func Connect(ctx context.Context, t Target, o Options) (*Client, error) {
	const op = "preparing the connection to MongoDB"
	if t.IsZero() {
		return nil, &Error{Kind: KindConfig, Op: op, Err: errors.New("no address is given")}
	}
	c := &Client{target: t, timeout: cmp.Or(o.Timeout, defaultTimeout), log: o.Log, now: o.Now, watch: newWatch()}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	opts, err := c.driverOptions(ctx, o)
	if err == nil {
		c.mongo, err = mongo.Connect(opts)
	}
	if err != nil {
		e := newError(op, err, t, nil)
		if e.Kind == KindOther || e.Kind == KindTLS {
			e.Kind = KindConfig // only the string was checked so far
		}
		return nil, e
	}
	return c, nil
}

func (c *Client) driverOptions(ctx context.Context, o Options) (*options.ClientOptions, error) {
	opts, err := applyURI(ctx, c.target, c.timeout)
	if err != nil {
		return nil, err
	}
	opts.SetAppName(o.AppName)
	opts.SetMinPoolSize(0)
	opts.SetMaxPoolSize(cmp.Or(o.MaxPool, defaultPool))
	opts.SetMaxConnIdleTime(idleLimit)
	opts.SetServerSelectionTimeout(c.timeout)
	if opts.ConnectTimeout == nil {
		// At most half of the call's time, so that the cause is known before the call ends.
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
		// The driver would send the write to a member that is not the primary some thousand times a second until the call
		// times out.
		opts.SetRetryWrites(false)
	}
	if cfg := opts.TLSConfig; cfg != nil && !cfg.InsecureSkipVerify {
		// As in AMS's driver. In a subnet without internet access, the OCSP request would hang.
		if opts.DisableCertificateRevocationCheck == nil && opts.DisableOCSPEndpointCheck == nil {
			opts.SetDisableOCSPEndpointCheck(true)
		}
		// Only the Java driver knows these options.
		if c.target.option("tlsAllowInvalidHostnames") == "true" || c.target.option("sslInvalidHostNameAllowed") == "true" {
			verifyChainOnly(cfg)
		}
	}
	if o.noLogin {
		opts.Auth = nil
	}
	return opts, opts.Validate()
}

// applyURI parses the URI with the driver. For mongodb+srv the driver ignores the context: the goroutine ends when the
// resolver gives up.
func applyURI(ctx context.Context, t Target, timeout time.Duration) (*options.ClientOptions, error) {
	read := func() (*options.ClientOptions, error) {
		opts := options.Client().ApplyURI(t.URI().Reveal())
		return opts, opts.Validate()
	}
	if !t.SRV() {
		return read()
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type result struct {
		opts *options.ClientOptions
		err  error
	}
	done := make(chan result, 1)
	go func() {
		opts, err := read()
		done <- result{opts, err}
	}()
	select {
	case r := <-done:
		return r.opts, r.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, fmt.Errorf("asking DNS for the hosts of %s: %w", t.Hosts()[0], ctx.Err())
		}
		return nil, &net.DNSError{Err: "no answer in time", Name: "_mongodb._tcp." + t.Hosts()[0], IsTimeout: true}
	}
}

// verifyChainOnly checks the certificate, but not the host name.
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

// Close closes all connections within a second. The driver ignores the context while it waits for a monitor of a server; that
// monitor ends later.
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

// call runs a command with a timeout. After an error, the server may have executed the command.
func (c *Client) call(ctx context.Context, op string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.notPrimary() // write nothing there
	if err == nil {
		err = do(ctx)
	}
	if err == nil {
		err = c.notPrimary() // the result may be stale
	}
	if err == nil {
		return nil
	}
	e := newError(op, err, c.target, c.watch)
	c.log.DebugContext(ctx, "call to MongoDB failed", "op", op, "kind", string(e.Kind), "host", e.Host, "error", e.Err.Error())
	return e
}

// notPrimaryError means that the only named host is a member of a replica set, but not its primary.
type notPrimaryError struct{ set, primary, hosts string }

func (e *notPrimaryError) Error() string {
	s := "it is a member of the replica set " + e.set
	if e.primary != "" {
		s += ", of which " + e.primary + " is the primary"
	}
	return s + "; name the set: mongodb://" + e.hosts + "/?replicaSet=" + e.set
}

// notPrimary returns an error if the only named host is a member of a replica set and takes no writes.
func (c *Client) notPrimary() error {
	if !c.target.namesOne() {
		return nil
	}
	d := c.watch.member()
	if len(d.Hosts) < 2 || d.Kind == kindPrimary {
		return nil
	}
	return &notPrimaryError{set: d.SetName, primary: d.Primary.String(), hosts: strings.Join(d.Hosts, ",")}
}

func (c *Client) db(name string) *mongo.Database { return c.mongo.Database(name) }

const (
	// findBatch is the number of documents in one reply.
	findBatch = 1000
	// maxFound is far above the nodes of a cluster, or the streams of a node.
	maxFound = 100_000
)

// ErrTooMany means that a collection has more documents than expected: another program fills it.
var ErrTooMany = errors.New("too many documents")

// find reads all matching documents. It fails with [ErrTooMany] beyond maxFound.
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
			found = append(found, read(slices.Clone(cur.Current)))
		}
		return cur.Err()
	})
	return found, err
}

// Ping checks that the server answers and accepts the credentials.
func (c *Client) Ping(ctx context.Context) error {
	return c.call(ctx, "asking MongoDB whether it is there", func(ctx context.Context) error {
		return c.db("admin").RunCommand(ctx, bson.D{{Key: "ping", Value: 1}}).Err()
	})
}

// ServerTime returns the server's clock.
func (c *Client) ServerTime(ctx context.Context) (time.Time, error) {
	t, _, err := c.serverTime(ctx)
	return t, err
}

// ClockSkew returns how far the local clock is ahead of the server's (negative: behind), within ± accuracy. AMS treats a node
// whose clock is 20 s behind its own as dead.
func (c *Client) ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error) {
	server, trip, err := c.serverTime(ctx)
	if err != nil {
		return 0, 0, err
	}
	return c.now().Add(-trip / 2).Sub(server), trip/2 + time.Millisecond, nil
}

func (c *Client) serverTime(ctx context.Context) (server time.Time, trip time.Duration, err error) {
	const op = "reading MongoDB's clock"
	var reply bson.Raw
	err = c.call(ctx, op, func(ctx context.Context) error {
		start := time.Now() // not c.now: a duration needs the monotonic clock
		var err error
		reply, err = c.db("admin").RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Raw()
		trip = time.Since(start)
		return err
	})
	if err != nil {
		return time.Time{}, 0, err
	}
	server = timeField(reply, "localTime")
	if server.IsZero() {
		return time.Time{}, 0, &Error{
			Kind: KindUnsupported, Op: op, Host: c.target.hostList(),
			Err: errors.New("its answer to hello has no localTime"),
		}
	}
	return server, trip, nil
}

// nothing matches no document: AMS's ids and cloud ids are never empty objects.
var nothing = bson.D{{Key: "_id", Value: bson.D{}}}

// CheckAccess checks, without changing anything, the rights that join and leave need, and that the server takes writes.
func (c *Client) CheckAccess(ctx context.Context) error {
	if err := c.canRead(ctx, c.amsNodes()); err != nil {
		return err
	}
	err := c.call(ctx, "checking the right to write "+registryDatabase+"."+nodesCollection, func(ctx context.Context) error {
		_, err := c.nodes().UpdateOne(ctx, nothing, bson.D{{Key: "$set", Value: bson.D{{Key: "x", Value: 1}}}})
		return err
	})
	if err != nil {
		return err
	}
	return c.call(ctx, "checking the right to delete from "+amsDatabase+"."+amsCollection, func(ctx context.Context) error {
		_, err := c.amsNodes().DeleteOne(ctx, nothing)
		return err
	})
}

// CheckRead checks the right to read the streams of the applications with these databases.
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
