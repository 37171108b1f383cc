// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
)

// quick is longer than any healthy local call, and short enough for a test.
const quick = 3 * time.Second

// driverDefault is less than the driver's default server selection timeout, 30 s.
const driverDefault = 25 * time.Second

func connect(t *testing.T, uri string, o Options) *Client {
	t.Helper()
	target, err := ParseTarget(uri)
	must.OK(t, err)
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	c, err := Connect(t.Context(), target, o)
	must.OK(t, err)
	t.Cleanup(func() {
		must.Equal(t, "Close", c.Close(context.Background()), nil)
	})
	return c
}

// checkError checks the type, kind and host of an error, and that it has no secrets.
func checkError(t *testing.T, err error, kind Kind, host string) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("error is %T (%v), want *Error", err, err)
	}
	if e.Kind != kind || KindOf(fmt.Errorf("wrapped: %w", err)) != kind {
		t.Errorf("kind = %s, want %s (%v)", e.Kind, kind, err)
	}
	must.Equal(t, fmt.Sprintf("host in %v", err), e.Host, host)
	for e := err; e != nil; e = errors.Unwrap(e) {
		for how, out := range printouts(e) {
			if strings.Contains(out, secretMark) {
				t.Errorf("%s shows the password: %s", how, out)
			}
		}
	}
	return e
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func (f dialFunc) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return f(ctx, network, address)
}

// atOnce runs do concurrently for every index: these tests wait for timeouts, and parallel subtests are limited to the number
// of CPUs.
func atOnce(n int, do func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { do(i) })
	}
	all.Wait()
}

// closedPort returns an address that refuses connections during the test: the port is bound, so that no other process gets it.
func closedPort(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must.OK(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	must.OK(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := syscall.Getsockname(fd)
	must.OK(t, err)
	return fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
}

func TestNetworkErrors(t *testing.T) {
	t.Parallel()
	closed := closedPort(t)

	dialError := func(err error) options.ContextDialer {
		return dialFunc(func(_ context.Context, network, address string) (net.Conn, error) {
			// A dialer may put its arguments into the error.
			return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%w (using %s)", err, secretMark)}
		})
	}
	tests := []struct {
		name, uri string
		dialer    options.ContextDialer
		kind      Kind
		host      string
		text      string
	}{
		{
			"refused", "mongodb://u:" + secretMark + "@" + closed + "/", nil, KindRefused, closed,
			"asking MongoDB whether it is there: MongoDB at " + closed + " refused the connection: dial tcp " + closed + ": connect: connection refused",
		},
		{
			"dns", "mongodb://u:" + secretMark + "@db.invalid/", dialError(&net.DNSError{Err: "no such host", Name: "db.invalid", IsNotFound: true}),
			KindDNS, "db.invalid:27017", "DNS does not find MongoDB at db.invalid:27017",
		},
		{
			"no route", "mongodb://u:" + secretMark + "@10.0.2.4/", dialError(syscall.EHOSTUNREACH), KindUnreachable, "10.0.2.4:27017",
			"MongoDB at 10.0.2.4:27017 cannot be reached",
		},
		{"several", "mongodb://u:" + secretMark + "@h1,h2,h3/", dialFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "h2:27017" {
				return dialError(syscall.ECONNREFUSED).DialContext(ctx, network, address)
			}
			return dialError(syscall.ENETUNREACH).DialContext(ctx, network, address)
		}), KindRefused, "h2:27017", "h3:27017: dial tcp: network is unreachable"},
	}
	errs, took := make([]error, len(tests)), make([]time.Duration, len(tests))
	atOnce(len(tests), func(i int) {
		c := connect(t, tests[i].uri, Options{Timeout: quick, Dialer: tests[i].dialer})
		start := time.Now()
		errs[i] = c.Ping(t.Context())
		took[i] = time.Since(start)
	})
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := errs[i]
			if took[i] > driverDefault {
				t.Errorf("it took %s, the limit is %s", took[i], quick)
			}
			e := checkError(t, err, tt.kind, tt.host)
			must.Contain(t, "error", e.Error(), tt.text)
			if tt.kind == KindRefused && tt.dialer == nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("errors.Is does not find the deadline below %v", err)
			}
		})
	}
}

func TestServerErrors(t *testing.T) {
	t.Parallel()
	rs := func(hello ...bson.E) []bson.E { return append(hello, bson.E{Key: "setName", Value: "rs0"}) }
	tests := []struct {
		name    string
		query   string
		hello   []bson.E
		answer  func(name string, cmd bson.Raw) (bson.D, error)
		timeout time.Duration
		kind    Kind
		text    string
	}{
		{name: "wrong password", answer: func(string, bson.Raw) (bson.D, error) {
			return fakemongo.Failure(18, "AuthenticationFailed", "Authentication failed for "+secretMark), nil
		}, kind: KindAuth, text: "refused the user name or the password: AuthenticationFailed: Authentication failed for ***"},
		{name: "no such mechanism", answer: func(string, bson.Raw) (bson.D, error) {
			return fakemongo.Failure(334, "MechanismUnavailable", "mechanism PLAIN is not enabled"), nil
		}, kind: KindUnsupported, text: "does not implement it: MechanismUnavailable"},
		{name: "Atlas, wrong password", answer: func(string, bson.Raw) (bson.D, error) {
			return fakemongo.Failure(8000, "AtlasError", "bad auth : Authentication failed."), nil
		}, kind: KindAuth, text: "bad auth"},
		{
			name: "no right", answer: always(fakemongo.Failure(13, "Unauthorized", "not authorized on admin")),
			kind: KindForbidden, text: "Unauthorized: not authorized on admin",
		},
		{
			name: "unknown command", answer: always(fakemongo.Failure(238, "NotImplemented", "ping is not implemented yet")),
			kind: KindUnsupported, text: "does not implement it",
		},
		{
			name: "secondary", hello: rs(bson.E{Key: "secondary", Value: true}), answer: always(fakemongo.Failure(10107, "NotWritablePrimary", "not primary")),
			kind: KindNotPrimary, text: "not the primary",
		},
		{
			name: "another replica set", query: "&replicaSet=rs1", hello: rs(bson.E{Key: "isWritablePrimary", Value: true}, bson.E{Key: "hosts", Value: bson.A{"10.0.2.4:27017"}}),
			answer: always(fakemongo.OK()), timeout: quick, kind: KindConfig, text: "no server belongs to replica set rs1",
		},
		{
			name: "some other error", answer: always(fakemongo.Failure(2, "BadValue", "bad "+secretMark)),
			kind: KindOther, text: "answered with an error: BadValue: bad ***",
		},
		{
			name: "never answers", answer: func(string, bson.Raw) (bson.D, error) { return nil, fakemongo.ErrHang },
			timeout: quick, kind: KindTimeout, text: "did not answer in time",
		},
		{
			name: "always cut", answer: func(string, bson.Raw) (bson.D, error) { return nil, nil },
			kind: KindLost, text: "was cut",
		},
		{
			name: "server stops it for taking too long", answer: always(fakemongo.Failure(50, "MaxTimeMSExpired", "operation exceeded time limit")),
			kind: KindTimeout, text: "MaxTimeMSExpired",
		},
	}
	errs, hosts := make([]error, len(tests)), make([]string, len(tests))
	atOnce(len(tests), func(i int) {
		tt := tests[i]
		s := fakemongo.Start(t, nil)
		s.Answer = tt.answer
		if tt.hello != nil {
			s.SetHello(tt.hello...)
		}
		hosts[i] = s.Addr()
		// The fake has no users, so a login works only if it has to fail.
		uri := "mongodb://" + s.Addr() + "/?tls=false&tlsCertificateKeyFilePassword=" + secretMark + tt.query
		if tt.kind == KindAuth || tt.name == "no such mechanism" {
			uri = "mongodb://u:" + secretMark + "@" + s.Addr() + "/"
		}
		errs[i] = connect(t, uri, Options{Timeout: tt.timeout}).Ping(t.Context())
	})
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := checkError(t, errs[i], tt.kind, hosts[i])
			must.Contain(t, "error", e.Error(), tt.text)
		})
	}
}

func always(reply bson.D) func(string, bson.Raw) (bson.D, error) {
	return func(string, bson.Raw) (bson.D, error) { return reply, nil }
}

// A call that waits for a connection while another call loses its connection fails with [KindLost].
func TestCallWaitsForOneThatIsCut(t *testing.T) {
	s := fakemongo.Start(t, nil)
	var calls atomic.Int64
	s.Answer = func(string, bson.Raw) (bson.D, error) {
		if calls.Add(1)%2 == 1 {
			return nil, nil // the connection ends
		}
		return fakemongo.OK(), nil
	}
	c := connect(t, s.Addr(), Options{MaxPool: 1})
	errs := make([]error, 32)
	atOnce(len(errs), func(i int) { errs[i] = c.Ping(t.Context()) })
	for _, err := range errs {
		if err != nil && KindOf(err) != KindLost {
			t.Error(err)
		}
	}
}

func TestCanceled(t *testing.T) {
	s := fakemongo.Start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	s.Answer = func(string, bson.Raw) (bson.D, error) { cancel(); return nil, fakemongo.ErrHang }
	c := connect(t, s.Addr(), Options{})
	err := c.Ping(ctx)
	checkError(t, err, KindCanceled, s.Addr())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("errors.Is does not find context.Canceled below %v", err)
	}
}

// The driver cancels its monitor of a server when a call to it fails. That is not the caller's cancellation.
func TestCanceledByTheDriver(t *testing.T) {
	t.Parallel()
	target, err := ParseTarget("mongodb://db1:27017")
	must.OK(t, err)
	gone := fmt.Errorf("looking: %w", context.Canceled)
	for name, tt := range map[string]struct {
		met  error
		kind Kind
	}{
		"the call was cut": {io.EOF, KindLost},
		"nothing is known": {nil, KindTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatch()
			w.pools().Event(&event.PoolEvent{Type: event.ConnectionPoolCleared, Address: "db1:27017", Error: tt.met})
			w.servers().ServerHeartbeatFailed(&event.ServerHeartbeatFailedEvent{ConnectionID: "db1:27017[-7]", Failure: gone})
			if e := newError("asking", context.DeadlineExceeded, target, w); e.Kind != tt.kind {
				t.Errorf("kind %s, want %s: %v", e.Kind, tt.kind, e)
			}
		})
	}
}

func TestServerClock(t *testing.T) {
	s := fakemongo.Start(t, nil)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, offset := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
		s.SetHello(bson.E{Key: "isWritablePrimary", Value: true}, bson.E{Key: "localTime", Value: at})
		c := connect(t, s.Addr(), Options{Now: func() time.Time { return at.Add(offset) }})
		got, err := c.ServerTime(t.Context())
		if err != nil || !got.Equal(at) {
			t.Errorf("ServerTime = %v, %v, want %v", got, err, at)
		}
		skew, accuracy, err := c.ClockSkew(t.Context())
		if err != nil || (skew-offset).Abs() > accuracy {
			t.Errorf("ClockSkew = %v ± %v, %v, want %v", skew, accuracy, err, offset)
		}
	}
	s.SetHello(bson.E{Key: "isWritablePrimary", Value: true})
	c := connect(t, s.Addr(), Options{})
	_, err := c.ServerTime(t.Context())
	checkError(t, err, KindUnsupported, s.Addr())
}

// selfSigned returns a server certificate for a name or address, and a file to trust it.
func selfSigned(t *testing.T, name string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.OK(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if ip := net.ParseIP(name); ip != nil {
		template.DNSNames, template.IPAddresses = nil, []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must.OK(t, err)
	file := filepath.Join(t.TempDir(), "ca.pem")
	must.OK(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

func TestTLS(t *testing.T) {
	t.Parallel()
	cert, ca := selfSigned(t, "db.example.com")
	secure := func(l net.Listener) net.Listener {
		return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})
	}
	good, goodCA := selfSigned(t, "127.0.0.1")
	named := func(l net.Listener) net.Listener {
		return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{good}})
	}
	tests := []struct {
		name, query string
		wrap        func(net.Listener) net.Listener
		kind        Kind   // "" means it works
		text        string // in the error, or its hint
	}{
		{"right", "tlsCAFile=" + goodCA, named, "", ""},
		{"unknown CA", "tls=true", named, KindTLS, "certificate signed by unknown authority"},
		{"another name", "tlsCAFile=" + ca, secure, KindTLS, "127.0.0.1"},
		{"another name, allowed", "tlsAllowInvalidHostnames=true&tlsCAFile=" + ca, secure, "", ""},
		{"another name, allowed, unknown CA", "tls=true&sslInvalidHostNameAllowed=true", secure, KindTLS, "unknown authority"},
		{"anything goes", "tls=true&tlsInsecure=true", secure, "", ""},
		{"TLS to a plain server", "tls=true&tlsInsecure=true", nil, KindLost, "take tls=true out"},
		{"plain to a TLS server", "appName=x", secure, KindLost, "add tls=true"},
		{"no such CA file", "tlsCAFile=/nonexistent/ca.pem", secure, KindConfig, "the connection string cannot be used"},
	}
	errs, hosts := make([]error, len(tests)), make([]string, len(tests))
	atOnce(len(tests), func(i int) {
		tt := tests[i]
		s := fakemongo.Start(t, tt.wrap)
		hosts[i] = s.Addr()
		target, err := ParseTarget("mongodb://" + s.Addr() + "/?" + tt.query)
		if err != nil {
			errs[i] = err
			return
		}
		timeout := 10 * time.Second
		if tt.kind != "" {
			timeout = 2 * quick
		}
		c, err := Connect(t.Context(), target, Options{Timeout: timeout})
		if err == nil {
			defer func() { _ = c.Close(context.Background()) }()
			err = c.Ping(t.Context())
		}
		errs[i] = err
	})
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.kind == "" {
				must.OK(t, errs[i])
				return
			}
			e := checkError(t, errs[i], tt.kind, hosts[i])
			must.Contain(t, "error and hint", e.Error()+e.Hint, tt.text)
		})
	}
}

func TestConnectRefusesNothing(t *testing.T) {
	_, err := Connect(t.Context(), Target{}, Options{})
	checkError(t, err, KindConfig, "")
}

// Commands set write concern and read preference explicitly, whatever the server's defaults or the URI.
func TestCommandsOnTheWire(t *testing.T) {
	s := fakemongo.Start(t, nil)
	s.SetHello(bson.E{Key: "isWritablePrimary", Value: true}, bson.E{Key: "localTime", Value: time.Now()})
	s.Answer = func(name string, _ bson.Raw) (bson.D, error) {
		if name == "find" {
			return findReply(), nil
		}
		return fakemongo.OK(bson.E{Key: "n", Value: 1}, bson.E{Key: "value", Value: bson.D{{Key: "_id", Value: "i-1"}}}), nil
	}
	c := connect(t, "mongodb://"+s.Addr()+"/?w=0&readPreference=secondary&readConcernLevel=local", Options{AppName: "test"})
	n := Node{ID: "i-1", State: StateActive, Reason: "verified"}
	_, err := c.Register(t.Context(), n, RegisterOptions{})
	must.OK(t, err)
	must.OK(t, c.Heartbeat(t.Context(), n, Heartbeat{Seq: 1}))
	for _, want := range []struct{ command, path, value string }{
		{"find", "readConcern level", "majority"},
		{"findAndModify", "writeConcern w", "majority"},
		{"findAndModify", "update $set reason", "verified"},
		{"findAndModify", "$db", "amsagent"},
		{"update", "writeConcern w", "1"},
	} {
		sent := s.Sent(want.command)
		if len(sent) != 1 {
			t.Fatalf("%d times %s, want 1", len(sent), want.command)
		}
		v, err := sent[0].LookupErr(strings.Fields(want.path)...)
		if err != nil || !strings.Contains(v.String(), `"`+want.value+`"`) {
			t.Errorf("%s: %s is %v, want %s", want.command, want.path, v, want.value)
		}
	}
}

// The driver would repeat it until the call's end, thousands of times a second.
func TestWriteToASecondaryIsNotRepeated(t *testing.T) {
	s := fakemongo.Start(t, nil)
	s.SetHello(bson.E{Key: "secondary", Value: true}, bson.E{Key: "setName", Value: "rs0"}, bson.E{Key: "setVersion", Value: 1},
		bson.E{Key: "hosts", Value: bson.A{s.Addr(), "other:27017"}}, bson.E{Key: "me", Value: s.Addr()},
		bson.E{Key: "logicalSessionTimeoutMinutes", Value: 30})
	s.Answer = func(string, bson.Raw) (bson.D, error) {
		return append(fakemongo.Failure(10107, "NotWritablePrimary", "not primary"), bson.E{Key: "errorLabels", Value: bson.A{"RetryableWriteError"}}), nil
	}
	c := connect(t, "mongodb://"+s.Addr()+"/?directConnection=true", Options{Timeout: time.Second})
	err := c.Heartbeat(t.Context(), Node{ID: "i-1"}, Heartbeat{Seq: 1})
	if n := len(s.Sent("update")); KindOf(err) != KindNotPrimary || n != 1 {
		t.Errorf("%d writes, %v", n, err)
	}
}

// A server gives the same error for a user without the right and without a login.
func TestForbiddenWithoutLogin(t *testing.T) {
	forbidden := mongo.CommandError{Code: 13, Name: "Unauthorized", Message: "command find requires authentication"}
	for address, want := range map[string]string{
		"10.0.2.4": "MongoDB at 10.0.2.4:27017 asks for a login, and the address has none",
		"mongodb://u:" + secretMark + "@10.0.2.4/": "MongoDB at 10.0.2.4:27017 does not allow it to this user",
	} {
		target, err := ParseTarget(address)
		must.OK(t, err)
		e := newError("reading the nodes", forbidden, target, nil)
		e.Host = "10.0.2.4:27017"
		if e.Kind != KindForbidden || e.Summary() != want {
			t.Errorf("%s %q, want %q", e.Kind, e.Summary(), want)
		}
	}
}

// A DNS timeout for mongodb+srv:// is a DNS error, not one of a server.
func TestSRVWithoutAnswer(t *testing.T) {
	target, err := ParseTarget("mongodb+srv://u:" + secretMark + "@cluster0.invalid/")
	must.OK(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, err = Connect(ctx, target, Options{})
	checkError(t, err, KindDNS, "_mongodb._tcp.cluster0.invalid")
}

// A name with an address and without an SRV record wants mongodb://.
func TestSRVOfAPlainName(t *testing.T) {
	was := net.DefaultResolver
	defer func() { net.DefaultResolver = was }()
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go answerA(far)
		return near, nil
	}}
	target, err := ParseTarget("mongodb+srv://db.example.net/")
	must.OK(t, err)
	_, err = Connect(t.Context(), target, Options{})
	must.Contain(t, "hint", checkError(t, err, KindDNS, "_mongodb._tcp.db.example.net").Hint, "write mongodb://")
}

// answerA is a DNS server, as by TCP, that has nothing but addresses.
func answerA(conn net.Conn) {
	defer conn.Close()
	for {
		size := make([]byte, 2)
		if _, err := io.ReadFull(conn, size); err != nil {
			return
		}
		query := make([]byte, int(size[0])<<8+int(size[1]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(query) != nil {
			return
		}
		m.Response, m.Additionals = true, nil
		switch q := m.Questions[0]; q.Type {
		case dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{10, 0, 2, 4}},
			}}
		case dnsmessage.TypeAAAA:
		default:
			m.RCode = dnsmessage.RCodeNameError
		}
		reply, err := m.Pack()
		if err != nil {
			return
		}
		if _, err := conn.Write(append([]byte{byte(len(reply) >> 8), byte(len(reply))}, reply...)); err != nil {
			return
		}
	}
}
