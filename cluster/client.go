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
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/description"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/topology"
)

// Dialer opens connections. *net.Dialer is one.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Options are the settings of [Connect]. The zero value is usable.
type Options struct {
	// AppName is what the server's own log calls us.
	AppName string
	// Timeout bounds every call, its retries included. Default 10 s.
	Timeout time.Duration
	// MaxPool is the number of connections for calls, per server; the driver
	// keeps one more to watch the server. Default 2.
	MaxPool int
	// Elections lets the members of a replica set tell of an election at once, over
	// one more connection to each: a call that waits for a primary that hangs then
	// goes to the new one. Without it they are asked every 30 s.
	Elections bool
	// Log gets a line for every attempt that failed. Default: none.
	Log *slog.Logger
	// Dialer replaces the network. Default: *net.Dialer.
	Dialer Dialer
	// Now is the local clock. Default: time.Now.
	Now func() time.Time
}

const (
	defaultTimeout = 10 * time.Second
	defaultPool    = 2

	// maxAttempts counts the first one too. Three reach past one election
	// and one connection that was cut; what lasts longer is not transient.
	maxAttempts = 3
	// firstPause is doubled before each further attempt; jitter halves it at
	// most, so that 200 nodes do not come back in step after an election.
	firstPause = 200 * time.Millisecond

	// watchInterval is how often the driver looks after an idle server; it
	// does so at once when a call needs a server or has failed on one.
	watchInterval = 30 * time.Second
	// idleLimit drops connections before the NAT gateways and load balancers
	// of the clouds forget them without a word (from 240 s on).
	idleLimit = 60 * time.Second
	// closeTimeout bounds the good-bye to a server that may be dead.
	closeTimeout = time.Second
)

// Client talks to one cluster. Its methods may be called from any goroutine,
// and each is bounded by [Options.Timeout] and by its context, whichever ends
// first.
type Client struct {
	target  Target
	options Options
	timeout time.Duration
	log     *slog.Logger
	now     func() time.Time

	link    atomic.Pointer[link]
	linking linking
	// elected is the election of the primary that took the last beat; nil is not
	// known.
	elected atomic.Pointer[bson.ObjectID]
}

// watch keeps the last failure to hear from each server, and the last one for
// which the driver dropped its connections to it.
type watch struct {
	mu      sync.Mutex
	failed  map[string]error
	cleared map[string]error
	// heard tells that a server is known at this moment.
	heard bool
	// kind is what the server said last that it is; set is its replica set.
	kind string
	set  replicaSet
	// primary is the last one that was seen; calls end the attempts that may wait for its answer.
	primary string
	calls   map[context.Context]context.CancelCauseFunc
}

// errElected ends an attempt: another member is the primary now.
var errElected = errors.New("another member was elected")

func newWatch() *watch {
	return &watch{failed: make(map[string]error), cleared: make(map[string]error), calls: make(map[context.Context]context.CancelCauseFunc)}
}

// untilElected returns a context that ends when another member than before is the primary:
// the driver would wait for a primary that hangs until the call's whole time is up. done
// frees it, and reports whether it ended for that.
func (w *watch) untilElected(ctx context.Context) (bound context.Context, done func() bool) {
	bound, end := context.WithCancelCause(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls[bound] = end
	return bound, func() bool {
		end(nil)
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.calls, bound)
		return errors.Is(context.Cause(bound), errElected)
	}
}

// elected ends the calls to the former primary. The driver has chosen the new one for
// all further ones before it tells.
func (w *watch) elected(servers []event.ServerDescription) {
	i := slices.IndexFunc(servers, func(d event.ServerDescription) bool {
		return d.Kind == description.ServerKindRSPrimary.String()
	})
	if i < 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := servers[i].Addr.String()
	if w.primary != "" && w.primary != now {
		for _, end := range w.calls {
			end(errElected)
		}
	}
	w.primary = now
}

// pools hears why connections were dropped. A call that waited for one of them
// is told only that another call failed, in an error that cannot be unwrapped.
func (w *watch) pools() *event.PoolMonitor {
	return &event.PoolMonitor{Event: func(e *event.PoolEvent) {
		if e.Type != event.ConnectionPoolCleared {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.cleared[e.Address] = e.Error
	}}
}

// cause returns the error behind err where another call has met it.
func (w *watch) cause(err error) error {
	var refused driver.RetryablePoolError
	if !errors.As(err, &refused) {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for host, why := range w.cleared {
		if why != nil && strings.Contains(err.Error(), "connection pool for "+host+" was cleared") {
			return why
		}
	}
	// The driver tells those who wait a moment before it tells us why. This
	// call was not sent, so it may be repeated as after a cut.
	return fmt.Errorf("%w: %w", net.ErrClosed, err)
}

func (w *watch) monitor() *event.ServerMonitor {
	return &event.ServerMonitor{
		ServerHeartbeatFailed: func(e *event.ServerHeartbeatFailedEvent) {
			w.mu.Lock()
			defer w.mu.Unlock()
			host, why := hostOf(e.ConnectionID), e.Failure
			if errors.Is(why, context.Canceled) {
				// The driver ended its own look at the server when a call failed:
				// what that call met is the reason, and no caller gave up.
				why = w.cleared[host]
			}
			w.failed[host] = why
		},
		ServerHeartbeatSucceeded: func(e *event.ServerHeartbeatSucceededEvent) {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.failed, hostOf(e.ConnectionID))
		},
		ServerDescriptionChanged: func(e *event.ServerDescriptionChangedEvent) {
			w.mu.Lock()
			defer w.mu.Unlock()
			d := e.NewDescription
			if d.Kind == description.UnknownStr {
				return
			}
			w.kind = d.Kind
			if d.SetName != "" && len(d.Hosts) > 0 {
				w.set = replicaSet{d.SetName, slices.Clone(d.Hosts)}
			}
		},
		TopologyDescriptionChanged: func(e *event.TopologyDescriptionChangedEvent) {
			w.hears(e.NewDescription.Servers)
			w.elected(e.NewDescription.Servers)
		},
	}
}

func (w *watch) hears(servers []event.ServerDescription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = slices.ContainsFunc(servers, func(d event.ServerDescription) bool { return d.Kind != description.UnknownStr })
}

// goodbye is how long the servers are given to hear that the client goes.
func (w *watch) goodbye() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.heard {
		return closeTimeout / 20 // it would wait for one of them
	}
	return closeTimeout
}

// standalone reports whether the server has nobody to wait for with a write.
func (w *watch) standalone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kind == description.ServerKindStandalone.String()
}

func (w *watch) recent() map[string]error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.failed)
}

// Connect prepares a client. It asks DNS for a mongodb+srv URI and otherwise
// opens no connection before the first call: [Client.Ping] tells whether the
// server is there. Close the client in any case.
//
// AMS and we must see the same server, so where a single host is named without
// a replica set, it is used directly: that is what AMS's Java driver does. Where that
// host turns out to be a member of a set and not its primary, the client follows
// the set: see [ServerFacts.OneNamed].
func Connect(ctx context.Context, t Target, o Options) (*Client, error) {
	const op = "preparing the connection to MongoDB"
	if t.IsZero() {
		return nil, &Error{Kind: KindConfig, Op: op, Err: errors.New("no address is given")}
	}
	c := newClient(t, o)
	l, err := c.open(ctx, nil)
	if err != nil {
		e := newError(op, err, t, nil)
		if e.Kind == KindOther || e.Kind == KindTLS {
			e.Kind = KindConfig // nothing but the string was looked at
		}
		return nil, e
	}
	c.link.Store(l)
	return c, nil
}

// newClient is a client without a link.
func newClient(t Target, o Options) *Client {
	c := &Client{target: t, options: o, timeout: o.Timeout, log: o.Log, now: o.Now}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	return c
}

func (c *Client) driverOptions(ctx context.Context, w *watch) (*options.ClientOptions, error) {
	o := c.options
	opts, err := applyURI(ctx, c.target, c.timeout)
	if err != nil {
		return nil, err
	}
	opts.SetAppName(o.AppName)
	opts.SetMinPoolSize(0)
	opts.SetMaxPoolSize(uint64(max(o.MaxPool, 0)))
	if o.MaxPool <= 0 {
		opts.SetMaxPoolSize(defaultPool)
	}
	opts.SetMaxConnIdleTime(idleLimit)
	opts.SetServerSelectionTimeout(c.timeout)
	// Half of it, so that the reason why a server does not answer is known
	// before the search for a server ends.
	opts.SetConnectTimeout(c.timeout / 2)
	opts.SetHeartbeatInterval(watchInterval)
	opts.SetServerMonitoringMode("poll") // one connection to watch, not two
	opts.SetReadPreference(readpref.Primary())
	opts.SetWriteConcern(writeconcern.Majority())
	opts.SetServerMonitor(w.monitor())
	opts.SetPoolMonitor(w.pools())
	opts.SetMonitor(noteAnswers())
	if o.Dialer != nil {
		opts.SetDialer(o.Dialer)
	}
	if opts.Direct == nil && !c.target.SRV() && len(opts.Hosts) == 1 && opts.ReplicaSet == nil &&
		(opts.LoadBalanced == nil || !*opts.LoadBalanced) {
		opts.SetDirect(true)
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

// Close says good-bye and closes all connections, in about a second at most. While no server is
// known it does not wait for one.
func (c *Client) Close(ctx context.Context) error {
	if err := c.closeLinks(ctx); err != nil {
		return newError("closing the connection to MongoDB", err, c.target, nil)
	}
	return nil
}

// lastAnswer keeps the last "not me, not now" that a call got from a server.
type lastAnswer struct {
	mu  sync.Mutex
	err error
}

type lastAnswerKey struct{}

func (l *lastAnswer) get() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// noteAnswers hands such an answer to the call that it is for.
func noteAnswers() *event.CommandMonitor {
	return &event.CommandMonitor{Failed: func(ctx context.Context, e *event.CommandFailedEvent) {
		// What ended with the call's own time is no answer.
		if l, ok := ctx.Value(lastAnswerKey{}).(*lastAnswer); ok && kindOf(e.Failure) == KindNotPrimary {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.err = e.Failure
		}
	}}
}

// call runs one exchange with the server, bounded, and again if it failed in
// a way that passes. So do must be repeatable: an attempt that failed may have
// been carried out by the server, with only the answer lost.
func (c *Client) call(ctx context.Context, op string, do func(context.Context) error) error {
	return c.attempts(ctx, op, maxAttempts, do)
}

// once is call without a second attempt at the same server, for what the next one replaces.
func (c *Client) once(ctx context.Context, op string, do func(context.Context) error) error {
	return c.attempts(ctx, op, 1, do)
}

// unrepeated is once for what may not be repeated: no other server is asked, either.
func (c *Client) unrepeated(ctx context.Context, op string, do func(context.Context) error) error {
	return c.attempts(ctx, op, 0, do)
}

func (c *Client) attempts(ctx context.Context, op string, most int, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	last := new(lastAnswer)
	ctx = context.WithValue(ctx, lastAnswerKey{}, last)
	pause := firstPause
	for attempt := 1; ; attempt++ {
		l := c.link.Load()
		bound, done := l.watch.untilElected(ctx)
		if most == 0 {
			bound = ctx
		}
		err := do(bound)
		elected := done() && err != nil && ctx.Err() == nil
		if most > 0 && (elected || c.relink(ctx, l, err)) {
			attempt-- // that was no fault of the server that is asked now
			continue
		}
		if err == nil {
			return nil
		}
		e := newError(op, l.watch.cause(err), c.target, l.watch.recent())
		if told := last.get(); told != nil && e.Kind == KindTimeout {
			// The driver repeats what a server refuses for a moment until the
			// time is up, and then tells the time only.
			e = newError(op, told, c.target, nil)
		}
		again := attempt < most && passes(e.Kind, err) && ctx.Err() == nil
		c.log.DebugContext(ctx, "call to MongoDB failed", "op", op, "attempt", attempt, "again", again,
			"kind", string(e.Kind), "host", e.Host, "error", e.Err.Error())
		if !again {
			return e
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		pause *= 2
		select {
		case <-ctx.Done():
			timer.Stop()
			return e
		case <-timer.C:
		}
	}
}

// passes reports failures that a moment later may be gone. A search for a
// server is none: the driver has repeated it for as long as it was given.
func passes(k Kind, err error) bool {
	if holds[topology.ServerSelectionError](err) {
		return false
	}
	switch k {
	case KindLost, KindRefused, KindUnreachable, KindNotPrimary:
		return true
	default:
		return false
	}
}

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
		broadcasts := func() *mongo.Collection { return c.db(name).Collection(broadcastCollection) }
		_, err := find(ctx, c, "checking the right to read "+name+"."+broadcastCollection, broadcasts, nothing, bson.D{{Key: "_id", Value: 1}},
			func(bson.Raw) struct{} { return struct{}{} })
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// hostList names the hosts for a message.
func (t Target) hostList() string { return strings.Join(hostsOf(t), ", ") }
