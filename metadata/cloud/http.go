// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"
)

// errTooLarge ends the reading of an answer that no metadata service gives.
var errTooLarge = fmt.Errorf("the answer is larger than %d bytes", MaxBody)

// HTTPClient returns the client that every provider uses: no proxy, no redirect, bounded bodies, and each request noted in
// the Attempt of its context.
func (o Options) HTTPClient() *http.Client {
	next := o.Transport
	if next == nil {
		next = o.newTransport()
	}
	return &http.Client{
		Transport: &transport{next: next, log: o.WithDefaults().Log},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			// A redirect would carry the session token to whoever the answer names.
			return http.ErrUseLastResponse
		},
	}
}

func (o Options) newTransport() *http.Transport {
	dial := o.DialContext
	if dial == nil {
		// A link-local address that does not take a connection within a second is not there.
		dial = (&net.Dialer{Timeout: time.Second}).DialContext
	}
	return &http.Transport{
		// Nil is the point: the usual ProxyFromEnvironment would send link-local requests, and the session token with
		// them, to the proxy of a cron or cloud-init environment.
		Proxy:                  nil,
		DialContext:            dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        10 * time.Second,
		ResponseHeaderTimeout:  o.AttemptTimeout,
		TLSHandshakeTimeout:    time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// Attempt is what one try saw on the wire. It is kept beside the errors because a library between us and the wire
// replaces errors by its own: the AWS SDK's, for one, has no way back to the cause.
type Attempt struct {
	mu        sync.Mutex
	method    string
	connected bool
	status    int
	err       error
}

type attemptKey struct{}

// withAttempt returns a context whose requests are noted in the Attempt.
func withAttempt(ctx context.Context) (context.Context, *Attempt) {
	a := &Attempt{}
	return context.WithValue(ctx, attemptKey{}, a), a
}

// AttemptOf returns the Attempt of a context, as a Fetch is given one; nil where it has none.
func AttemptOf(ctx context.Context) *Attempt {
	a, _ := ctx.Value(attemptKey{}).(*Attempt)
	return a
}

func (a *Attempt) began(method string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.method, a.connected, a.status, a.err = method, false, 0, nil
}

func (a *Attempt) failed(err error) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

// failure is what went wrong on the wire in the last request of this try, nil if nothing did.
func (a *Attempt) failure() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

func (a *Attempt) gotConn() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.connected = true
}

func (a *Attempt) answered(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.connected, a.status = true, status
}

// Method of the last request of this try.
func (a *Attempt) Method() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.method
}

// Connected says whether the last request of this try reached somebody.
func (a *Attempt) Connected() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.connected
}

// Status of the last answer of this try, 0 for none.
func (a *Attempt) Status() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

type transport struct {
	next http.RoundTripper
	log  *slog.Logger
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	a := AttemptOf(req.Context())
	if a != nil {
		a.began(req.Method)
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			GotConn: func(httptrace.GotConnInfo) { a.gotConn() },
		}))
	}
	resp, err := t.next.RoundTrip(named(req))
	log := t.log.With("method", req.Method, "host", req.URL.Host, "path", req.URL.Path)
	if err != nil {
		log.Debug("metadata request failed", "error", err)
		a.failed(err)
		return nil, err
	}
	if a != nil {
		a.answered(resp.StatusCode)
	}
	resp.Body = &boundedBody{body: resp.Body, left: MaxBody, attempt: a, closed: func(size int) {
		log.Debug("metadata answer", "status", resp.StatusCode, "bytes", size)
	}}
	return resp, nil
}

// UserAgent is how every request of ours begins to say who asks: who looks at a log of a cloud finds us by it.
const UserAgent = "amsagent"

// named gives a request our name, in front of that of a library. The request itself stays as it is, as a RoundTripper promises.
func named(req *http.Request) *http.Request {
	was := req.Header.Get("User-Agent")
	if strings.HasPrefix(was, UserAgent) {
		return req
	}
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", strings.TrimSpace(UserAgent+" "+was))
	return req
}

// naming makes every request say who asks.
type naming struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (n naming) RoundTrip(req *http.Request) (*http.Response, error) {
	return n.next.RoundTrip(named(req))
}

// CloseIdleConnections is what http.Client.CloseIdleConnections looks for.
func (n naming) CloseIdleConnections() { (&transport{next: n.next}).CloseIdleConnections() }

// CloseIdleConnections is what http.Client.CloseIdleConnections looks for.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// boundedBody fails instead of ending at the bound: an answer cut there could still look whole.
type boundedBody struct {
	body    io.ReadCloser
	left    int
	attempt *Attempt
	// closed gets the number of bytes that were read, once.
	closed func(size int)
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLarge
	}
	// One byte more than allowed is asked for, to tell "exactly at the bound" from "beyond".
	if len(p) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.body.Read(p)
	if b.left -= n; b.left < 0 {
		b.attempt.failed(errTooLarge)
		return 0, errTooLarge
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.attempt.failed(err)
	}
	return n, err
}

// Close implements io.Closer. What is left of a small answer is read first so that the connection can be used again.
func (b *boundedBody) Close() error {
	defer func() {
		if b.closed != nil {
			b.closed(MaxBody - b.left)
			b.closed = nil
		}
	}()
	if b.left >= 0 {
		n, err := io.CopyN(io.Discard, b.body, int64(min(b.left, 4<<10)))
		b.left -= int(n)
		if err != nil && !errors.Is(err, io.EOF) {
			return errors.Join(err, b.body.Close())
		}
	}
	return b.body.Close()
}
