// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amsagent/amsagent/internal/sleep"
)

// UserAgent begins every User-Agent header, so that an operator finds the agent in a cloud's logs.
const UserAgent = "amsagent"

const (
	// A failed connection allows more attempts: a network interface set up again at boot hides the service for some 300 ms.
	optionalAttempts    = 3
	unreachableAttempts = 5
	// For answers that cannot be right, such as a page of a half-started service.
	doubtfulAttempts = 3
)

// Client reads the metadata service of this machine. It is safe for concurrent use after [New].
type Client struct {
	Provider string
	// Origin is the cloud's own; [Options.Endpoints] overrides it. Path precedes each item's.
	Origin, Path string
	Header       map[string]string
	// Echo is the header of requests that each 200 answer repeats, or "".
	Echo string
	// Token is nil for a service without session tokens.
	Token *Token
	// Ask replaces the request for an item, or is nil.
	Ask func(context.Context, Item) (http.Header, []byte, *Error)
	// Hints are remedies by HTTP status; 0: nothing accepts the connection.
	Hints map[int]string
	// Remedies if what answers is another cloud, does not answer the token request, or has no tokens.
	Foreign, Silent, NoTokens string

	// Options are those of [New], with defaults.
	Options Options

	http *http.Client
	// failing limits logs to the first failure in a row.
	failing *atomic.Bool
}

// New prepares a client without a request.
func New(c Client, o Options) (*Client, error) {
	origin, err := o.Endpoint(c.Provider)
	if err != nil {
		return nil, err
	}
	c.Origin = cmp.Or(origin, c.Origin)
	c.Options, c.failing = o.WithDefaults(), new(atomic.Bool)
	rt := c.Options.Transport
	if rt == nil {
		rt = &http.Transport{
			// Not ProxyFromEnvironment: a cron or cloud-init environment's proxy would get the session token.
			Proxy: nil, DisableCompression: true,
			// A link-local address connects within a second or is absent.
			DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
			MaxIdleConnsPerHost: 4, IdleConnTimeout: 10 * time.Second,
			TLSHandshakeTimeout: time.Second, MaxResponseHeaderBytes: 64 << 10,
		}
	}
	c.http = &http.Client{Transport: naming{rt}, CheckRedirect: noRedirect}
	if c.Ask == nil {
		c.Ask = c.ask
	}
	return &c, nil
}

// Name implements [Provider] for those that embed a client.
func (c *Client) Name() string { return c.Provider }

// Token describes session tokens: a PUT of Path with the lifetime in header TTL; later requests use Header.
type Token struct {
	Path, TTL, Header string
	Lifetime          time.Duration

	mu    sync.Mutex
	value string
	until time.Time
}

// tokenEarly is the renewal margin: the service's clock differs.
const tokenEarly = 10 * time.Minute

// Item is a metadata item.
type Item struct {
	Name, Path string
	// Required items exist on every machine and are retried until the context ends.
	Required bool
	// Timeout bounds one request; 0 means attemptTimeout.
	Timeout time.Duration
	// Body is JSON to post, or nil.
	Body []byte
}

// Read retries until parse succeeds, an error is final, or ctx ends.
func Read[T any](ctx context.Context, c *Client, i Item, parse func([]byte) (T, error)) (found T, err error) {
	err = c.read(ctx, i, func(body []byte) (err error) {
		found, err = parse(body)
		return err
	})
	if err != nil {
		return *new(T), err
	}
	return found, nil
}

// Optional reads an item that may be absent; then the value is zero. Failures go to inst.Missing.
func Optional[T any](ctx context.Context, c *Client, inst *Instance, field string, i Item, parse func([]byte) (T, error)) T {
	v, err := Read(ctx, c, i, parse)
	if err != nil && !errors.Is(err, ErrNotFound) {
		inst.Miss(c.Options.Log, field, err)
	}
	return v
}

func (c *Client) read(ctx context.Context, i Item, parse func([]byte) error) error {
	wait, doubtful := retryWait, 0
	var last *Error // of kind ErrNotReady
	for n := 1; ; n++ {
		e := c.try(ctx, i, parse)
		if e == nil {
			return nil
		}
		e.Attempts = n
		if err := ctx.Err(); err != nil {
			if last != nil && e.Status == 0 {
				last.Attempts, e = n, last // cut short; the previous error has the cause
			}
			e.Context = err
			return e
		}
		if c.final(i, e, &doubtful) {
			return e
		}
		if errors.Is(e.Kind, ErrNotReady) {
			last = e
		}
		if !c.failing.Swap(true) {
			c.Options.Log.Warn("metadata service gave no usable answer, trying again",
				"provider", c.Provider, "item", i.Name, "error", e, "hint", e.Hint)
		}
		pause := wait/2 + rand.N(wait/2+1)
		wait = min(2*wait, maxRetryWait)
		if !sleep.For(ctx, pause) {
			e.Context = ctx.Err()
			return e
		}
	}
}

func (c *Client) try(ctx context.Context, i Item, parse func([]byte) error) *Error {
	_, body, e := c.get(ctx, i)
	if e != nil {
		return e
	}
	if err := parse(body); err != nil {
		return &Error{Provider: c.Provider, Item: i.Name, Kind: ErrBadAnswer, Status: http.StatusOK, Connected: true, Cause: err}
	}
	if c.failing.Swap(false) {
		c.Options.Log.Info("metadata service answers again", "provider", c.Provider)
	}
	return nil
}

// final reports whether an item is not asked for again. It counts doubtful answers.
func (c *Client) final(i Item, e *Error, doubtful *int) bool {
	absent := i.Required && errors.Is(e.Kind, ErrNotFound)
	switch {
	case errors.Is(e.Kind, ErrNotReady):
	case absent, errors.Is(e.Kind, ErrBadAnswer) && e.Status == http.StatusOK:
		if *doubtful++; *doubtful < doubtfulAttempts {
			break
		}
		if absent {
			e.Kind, e.Hint = ErrNotThisCloud, cmp.Or(e.Hint, c.Foreign)
		}
		return true
	default:
		return true
	}
	limit := optionalAttempts
	if !e.Connected {
		limit = unreachableAttempts
	}
	return !i.Required && e.Attempts >= limit
}

// Once requests an item for a caller that polls, again only for a rejected session token. It returns [ErrNotFound] if the
// item is not set.
func (c *Client) Once(ctx context.Context, i Item) (http.Header, []byte, error) {
	h, body, e := c.get(ctx, i)
	if e != nil {
		return h, nil, e
	}
	return h, body, nil
}

func (c *Client) get(ctx context.Context, i Item) (h http.Header, body []byte, e *Error) {
	for range 2 {
		bound, cancel := context.WithTimeout(ctx, cmp.Or(i.Timeout, attemptTimeout))
		h, body, e = c.Ask(bound, i)
		cancel()
		if e == nil {
			return h, body, nil
		}
		if e.Status != http.StatusUnauthorized { // of a session token that expired early
			break
		}
	}
	e.Provider, e.Item = c.Provider, i.Name
	c.advise(e)
	return h, nil, e
}

// advise sets the hint.
func (c *Client) advise(e *Error) {
	switch status := e.Status; {
	case errors.Is(e.Kind, ErrNotThisCloud):
		e.Hint = c.Foreign
	case e.Token && e.Connected && status == 0 && errors.Is(e.Cause, context.DeadlineExceeded):
		e.Hint = c.Silent
	case e.Token && slices.Contains([]int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented}, status):
		e.Kind, e.Hint = ErrNotThisCloud, c.NoTokens
	case status != 0 || !e.Connected:
		e.Hint = c.Hints[status]
	}
}

func (c *Client) ask(ctx context.Context, i Item) (http.Header, []byte, *Error) {
	method, header := http.MethodGet, map[string]string{}
	if i.Body != nil {
		method, header["Content-Type"] = http.MethodPost, "application/json"
	}
	token := ""
	if c.Token != nil {
		var e *Error
		if token, e = c.session(ctx); e != nil {
			return nil, nil, e
		}
		header[c.Token.Header] = token
	}
	h, body, e := c.send(ctx, method, i.Path, header, i.Body)
	switch {
	case e == nil && h.Get(c.Echo) != c.Header[c.Echo]:
		e = &Error{
			Kind: ErrNotThisCloud, Status: http.StatusOK, Connected: true,
			Cause: fmt.Errorf("the answer carries no header %s: %s", c.Echo, c.Header[c.Echo]),
		}
	case e != nil && e.Status == http.StatusUnauthorized && c.Token != nil:
		c.Token.drop(token)
	}
	return h, body, e
}

func (c *Client) send(ctx context.Context, method, path string, header map[string]string, body []byte) (http.Header, []byte, *Error) {
	req, err := http.NewRequestWithContext(ctx, method, c.Origin+c.Path+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, &Error{Kind: ErrNotReady, Cause: err}
	}
	for name, v := range header {
		req.Header.Set(name, v)
	}
	return c.Do(req)
}

// session holds the lock while it requests a token, so that concurrent callers share it.
func (c *Client) session(ctx context.Context) (string, *Error) {
	t := c.Token
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.value != "" && now.Before(t.until) {
		return t.value, nil
	}
	_, body, e := c.send(ctx, http.MethodPut, t.Path, map[string]string{t.TTL: strconv.Itoa(int(t.Lifetime / time.Second))}, nil)
	if e != nil {
		return "", e
	}
	token := strings.TrimSpace(string(body))
	if token == "" || len(token) > 1024 || strings.ContainsFunc(token, notInToken) {
		return "", &Error{
			Kind: ErrBadAnswer, Status: http.StatusOK, Connected: true, Token: true,
			Cause: errors.New("the answer to the token request is no session token"),
		}
	}
	t.value, t.until = token, now.Add(t.Lifetime-tokenEarly)
	return token, nil
}

func (t *Token) drop(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.value == token {
		t.value = ""
	}
}

// notInToken rejects what breaks a header, or is HTML.
func notInToken(r rune) bool { return r <= ' ' || r > '~' || r == '<' || r == '>' }

// Do returns header and body of a 200 answer, or an error without an item.
func (c *Client) Do(req *http.Request) (http.Header, []byte, *Error) {
	e := &Error{Token: req.Method == http.MethodPut}
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { e.Connected = true },
	}))
	for name, v := range c.Header {
		req.Header.Set(name, v)
	}
	log := c.Options.Log.With("method", req.Method, "host", req.URL.Host, "path", req.URL.Path)
	resp, err := c.http.Do(req)
	if err != nil {
		log.Debug("metadata request failed", "error", err)
		e.Kind, e.Cause = ErrNotReady, shortCause(err, e.Connected)
		return nil, nil, e
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	log.Debug("metadata answer", "status", resp.StatusCode, "bytes", len(body))
	e.Connected, e.Status = true, resp.StatusCode
	switch status := resp.StatusCode; {
	case len(body) > MaxBody:
		e.Kind, e.Cause = ErrBadAnswer, fmt.Errorf("the answer is larger than %d bytes", MaxBody)
	case status == http.StatusOK && err != nil:
		// The connection failed, not the service.
		e.Kind, e.Cause = ErrNotReady, errors.New("the answer was cut short")
	case status == http.StatusOK:
		return resp.Header, body, nil
	case status == http.StatusNotFound:
		e.Kind = ErrNotFound
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		e.Kind = ErrForbidden
	case status == http.StatusGone, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500:
		e.Kind = ErrNotReady
	default:
		e.Kind = ErrBadAnswer
	}
	return resp.Header, nil, e
}

// noRedirect keeps tokens and signatures from other hosts.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

type naming struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (n naming) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", strings.TrimSpace(UserAgent+" "+req.UserAgent()))
	return n.next.RoundTrip(req)
}

func shortCause(err error, connected bool) error {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		if connected {
			return fmt.Errorf("connected, and no answer in time: %w", context.DeadlineExceeded)
		}
		return fmt.Errorf("no connection in time: %w", context.DeadlineExceeded)
	}
	return WireCause(err)
}

// WireCause removes net/http's layers from an error.
func WireCause(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}
