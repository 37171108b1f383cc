// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
)

// Dialer opens connections. *net.Dialer is one.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Options are the settings of [Connect]. The zero value is usable.
type Options struct {
	// AppName is what the server's own log calls us.
	AppName string
	// Timeout bounds every call, the driver's retries included. Default 10 s.
	Timeout time.Duration
	// MaxPool is the number of connections for calls, per server; the driver
	// keeps two more to watch the server. Default 2.
	MaxPool int
	// Log gets a line for every call that failed. Default: none.
	Log *slog.Logger
	// Dialer replaces the network. Default: *net.Dialer.
	Dialer Dialer
	// Now is the local clock. Default: time.Now.
	Now func() time.Time
}

const (
	defaultTimeout = 10 * time.Second
	defaultPool    = 2

	// connectTimeout is how long a server may take to accept a connection, unless the connection string says it. A
	// server that drops packets is known as the cause after that.
	connectTimeout = 3 * time.Second
	// idleLimit drops connections before the NAT gateways and load balancers
	// of the clouds forget them without a word (from 240 s on).
	idleLimit = 60 * time.Second
	// closeTimeout bounds the disconnection from a server that may be dead.
	closeTimeout = time.Second
)

// Client talks to one cluster. Its methods may be called from any goroutine,
// and each is bounded by [Options.Timeout] and by its context, whichever ends
// first. The driver alone repeats what failed: reads, and writes to a replica set.
type Client struct {
	target  Target
	timeout time.Duration
	log     *slog.Logger
	now     func() time.Time

	mongo *mongo.Client
	watch *watch
}

// Connect prepares a client. It asks DNS for a mongodb+srv URI and otherwise
// opens no connection before the first call: [Client.Ping] tells whether the
// server is there. Close the client in any case.
//
// AMS and we must see the same server, so where a single host is named without
// a replica set, it is used directly: that is what AMS's Java driver does. Where that
// host is a member of a set and not its primary, each call fails with [KindNotPrimary].
func Connect(ctx context.Context, t Target, o Options) (*Client, error) {
	return connectWith(ctx, t, o, func(*options.ClientOptions) {})
}

func connectWith(ctx context.Context, t Target, o Options, change func(*options.ClientOptions)) (*Client, error) {
	const op = "preparing the connection to MongoDB"
	if t.IsZero() {
		return nil, &Error{Kind: KindConfig, Op: op, Err: errors.New("no address is given")}
	}
	c := &Client{target: t, timeout: o.Timeout, log: o.Log, now: o.Now, watch: newWatch()}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	opts, err := c.driverOptions(ctx, o)
	if err == nil {
		change(opts)
		c.mongo, err = mongo.Connect(opts)
	}
	if err != nil {
		e := newError(op, err, t, nil)
		if e.Kind == KindOther || e.Kind == KindTLS {
			e.Kind = KindConfig // nothing but the string was looked at
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
	opts.SetMaxPoolSize(defaultPool)
	if o.MaxPool > 0 {
		opts.SetMaxPoolSize(uint64(o.MaxPool))
	}
	opts.SetMaxConnIdleTime(idleLimit)
	opts.SetServerSelectionTimeout(c.timeout)
	if opts.ConnectTimeout == nil {
		// Half of the call's time at most, so that the cause is known before it ends.
		opts.SetConnectTimeout(min(connectTimeout, c.timeout/2))
	}
	opts.SetReadPreference(readpref.Primary())
	opts.SetWriteConcern(writeconcern.Majority())
	opts.SetServerMonitor(c.watch.servers())
	opts.SetPoolMonitor(c.watch.pools())
	if o.Dialer != nil {
		opts.SetDialer(o.Dialer)
	}
	if c.target.namesOne() {
		opts.SetDirect(true)
	}
	if opts.Direct != nil && *opts.Direct {
		// There is no other server to repeat a write on: a member that is not the primary would be asked some thousand
		// times a second until the call's time is up.
		opts.SetRetryWrites(false)
	}
	if cfg := opts.TLSConfig; cfg != nil {
		if allowsAnyName(c.target) && !cfg.InsecureSkipVerify {
			verifyChainOnly(cfg)
		}
		// Java does not ask the CA about revocation either, and in a subnet
		// without a way out the question would hang.
		if opts.DisableCertificateRevocationCheck == nil && opts.DisableOCSPEndpointCheck == nil && !cfg.InsecureSkipVerify {
			opts.SetDisableOCSPEndpointCheck(true)
		}
	}
	return opts, opts.Validate()
}

// NamesSet reports whether the target names a replica set, or several hosts.
func (t Target) NamesSet() bool {
	return t.SRV() || len(t.Addresses()) > 1 || t.Option("replicaSet") != ""
}

// namesOne reports whether the connection string names one host and leaves open
// whether that is a member of a replica set.
func (t Target) namesOne() bool {
	return !t.NamesSet() && len(t.Addresses()) == 1 && t.Option("directConnection") == "" && t.Option("loadBalanced") != "true"
}

// applyURI lets the driver read the URI, which for mongodb+srv asks DNS
// without regard to any context: the goroutine ends when the resolver gives up.
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

// allowsAnyName reports options of the Java driver that ours does not know.
func allowsAnyName(t Target) bool {
	return t.Option("tlsAllowInvalidHostnames") == "true" || t.Option("sslInvalidHostNameAllowed") == "true"
}

// verifyChainOnly keeps the check of the certificate and drops the one of the
// host name, as the options ask for.
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

// Target returns where the client connects to.
func (c *Client) Target() Target { return c.target }

// Close ends all connections, in a second at most. The driver waits for its own look at a server, whatever the context
// says: what is left of that goes on by itself.
func (c *Client) Close(ctx context.Context) error {
	// Also when ctx has ended: that is when most clients are closed.
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

// call runs one exchange with the server, bounded. After an error the server may have carried it out, with only the answer
// lost.
func (c *Client) call(ctx context.Context, op string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.notPrimary()
	if err == nil {
		err = do(ctx)
	}
	if err == nil {
		err = c.notPrimary() // what was read may be old
	}
	if err == nil {
		return nil
	}
	e := newError(op, err, c.target, c.watch)
	c.log.DebugContext(ctx, "call to MongoDB failed", "op", op, "kind", string(e.Kind), "host", e.Host, "error", e.Err.Error())
	return e
}

// notPrimaryError says that the one host that is named is another member of a replica set than its primary.
type notPrimaryError struct{ set, primary, hosts string }

func (e *notPrimaryError) Error() string {
	s := "it is a member of the replica set " + e.set
	if e.primary != "" {
		s += ", of which " + e.primary + " is the primary"
	}
	return s + "; name the set: mongodb://" + e.hosts + "/?replicaSet=" + e.set
}

// notPrimary returns an error where one host is named, as for AMS, and that is a member of a set that takes no writes.
func (c *Client) notPrimary() error {
	if !c.target.namesOne() {
		return nil
	}
	d := c.watch.only()
	if len(d.Hosts) < 2 || d.Kind == kindPrimary {
		return nil
	}
	return &notPrimaryError{set: d.SetName, primary: d.Primary.String(), hosts: strings.Join(d.Hosts, ",")}
}

// OneNamed tells whether the connection string names one member of a replica set of
// several, as far as a call has shown, and which set of which hosts that is.
func (c *Client) OneNamed() (set string, hosts []string, one bool) {
	d := c.watch.only()
	return d.SetName, d.Hosts, c.target.namesOne() && len(d.Hosts) > 1
}

func (c *Client) db(name string) *mongo.Database { return c.mongo.Database(name) }

// Ping proves that the server answers and, where the connection string has
// credentials, that it accepts them. What the user may do there is
// [Client.CheckAccess]'s question.
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

// ClockSkew returns how far the local clock is ahead of the server's (behind:
// negative), and how exact that is: the answer lies within ± the second value.
// AMS takes every node for dead whose clock is 20 s behind its own.
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
		start := time.Now() // monotonic: a duration, not the local clock
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

// CheckAccess tries, without changing anything, each right that joining and
// leaving need: to read and delete AMS's node documents and to write our
// registry. It also finds a server that takes no writes.
func (c *Client) CheckAccess(ctx context.Context) error {
	// Matches no document: AMS's ids and cloud ids are never empty objects.
	nothing := bson.D{{Key: "_id", Value: bson.D{}}}
	err := c.call(ctx, "checking the right to read "+amsDatabase+"."+amsCollection, func(ctx context.Context) error {
		err := c.amsNodes().FindOne(ctx, nothing).Err()
		if errors.Is(err, mongo.ErrNoDocuments) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	err = c.call(ctx, "checking the right to write "+registryDatabase+"."+nodesCollection, func(ctx context.Context) error {
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

// CheckRead tries the right to read the streams of applications, whose databases these
// are. Without it the publishers of a node are not known.
func (c *Client) CheckRead(ctx context.Context, databases []string) error {
	nothing := bson.D{{Key: "_id", Value: bson.D{}}}
	var errs []error
	for _, name := range databases {
		_, err := find(ctx, c, "checking the right to read "+name+"."+broadcastCollection, c.db(name).Collection(broadcastCollection), nothing,
			func(bson.Raw) struct{} { return struct{}{} }, options.Find())
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// hostList names the hosts for a message.
func (t Target) hostList() string { return strings.Join(hostsOf(t), ", ") }
