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
	// Token is nil for a service without session tokens.
	Token *Token
	// Check validates the header of a 200 answer, or is nil.
	Check func(http.Header) error
	// Ask replaces the request for an item, or is nil. It returns an *Error.
	Ask func(context.Context, Item) (http.Header, []byte, error)
	// Hints are remedies by HTTP status; 0: nothing accepts the connection.
	Hints map[int]string
	// Remedies if what answers is another cloud, does not answer the token request, or has no tokens.
	Foreign, Silent, NoTokens string

	opts Options
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
	c.opts, c.failing = o.WithDefaults(), new(atomic.Bool)
	rt := c.opts.Transport
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
	// Timeout bounds one request; 0 means [AttemptTimeout].
	Timeout time.Duration
	// Body is JSON to post, or nil.
	Body []byte
}

// Read retries until parse succeeds, an error is final, or ctx ends. The wait doubles up to [MaxRetryWait].
func Read[T any](ctx context.Context, c *Client, i Item, parse func([]byte) (T, error)) (T, error) {
	var found, zero T
	err := c.read(ctx, i, func(body []byte) (err error) {
		found, err = parse(body)
		return err
	})
	if err != nil {
		return zero, err
	}
	return found, nil
}

// Optional reads an item that may be absent; then the value is zero. Failures go to inst.Missing.
func Optional[T any](ctx context.Context, c *Client, inst *Instance, field string, i Item, parse func([]byte) (T, error)) T {
	v, err := Read(ctx, c, i, parse)
	if err != nil && !errors.Is(err, ErrNotFound) {
		inst.Miss(c.opts.Log, field, err)
	}
	return v
}

func (c *Client) read(ctx context.Context, i Item, parse func([]byte) error) error {
	wait := RetryWait
	var s series
	for n := 1; ; n++ {
		e := c.try(ctx, i, parse)
		if e == nil {
			if c.failing.Swap(false) {
				c.opts.Log.Info("metadata service answers again", "provider", c.Provider)
			}
			return nil
		}
		e.Attempts = n
		if err := ctx.Err(); err != nil {
			if s.last != nil && e.Status == 0 {
				s.last.Attempts, e = n, s.last // cut short; the previous error has the cause
			}
			e.Context = err
			return e
		}
		if s.ends(c, i, e) {
			return e
		}
		if !c.failing.Swap(true) {
			c.opts.Log.Warn("metadata service gave no usable answer, trying again",
				"provider", c.Provider, "item", i.Name, "error", e, "hint", e.Hint)
		}
		pause := wait/2 + rand.N(wait/2+1)
		wait = min(2*wait, MaxRetryWait)
		if !sleep.For(ctx, pause) {
			e.Context = ctx.Err()
			return e
		}
	}
}

// series is a series of failed attempts for one item.
type series struct {
	doubtful int
	last     *Error // of kind ErrNotReady
}

// ends reports whether this error is the last one.
func (s *series) ends(c *Client, i Item, e *Error) bool {
	absent := errors.Is(e.Kind, ErrNotFound) && i.Required
	switch {
	case errors.Is(e.Kind, ErrNotReady):
		s.last = e
	case absent, errors.Is(e.Kind, ErrBadAnswer) && e.Status == http.StatusOK:
		if s.doubtful++; s.doubtful < doubtfulAttempts {
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

func (c *Client) try(ctx context.Context, i Item, parse func([]byte) error) *Error {
	_, body, err := c.Once(ctx, i)
	if err == nil {
		if err = parse(body); err != nil {
			err = &Error{Kind: ErrBadAnswer, Status: http.StatusOK, Connected: true, Cause: err}
		}
	}
	return c.judge(i, err)
}

// Once requests an item for a caller that polls, again only for a rejected session token: it may have expired early. It
// returns [ErrNotFound] if the item is not set.
func (c *Client) Once(ctx context.Context, i Item) (http.Header, []byte, error) {
	h, body, e := c.once(ctx, i)
	if e != nil && e.Status == http.StatusUnauthorized {
		h, body, e = c.once(ctx, i)
	}
	if e != nil {
		return h, nil, e
	}
	return h, body, nil
}

func (c *Client) once(ctx context.Context, i Item) (h http.Header, body []byte, e *Error) {
	bound, cancel := context.WithTimeout(ctx, cmp.Or(i.Timeout, AttemptTimeout))
	defer cancel()
	h, body, err := c.Ask(bound, i)
	return h, body, c.judge(i, err)
}

// judge completes an error with the item and the hint.
func (c *Client) judge(i Item, err error) *Error {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Kind: ErrNotReady, Cause: err}
	}
	e.Provider, e.Item = c.Provider, i.Name
	switch status := e.Status; {
	case errors.Is(e.Kind, ErrNotThisCloud):
		e.Hint = cmp.Or(e.Hint, c.Foreign)
	case e.Token && e.Connected && status == 0 && errors.Is(e.Cause, context.DeadlineExceeded):
		e.Hint = c.Silent
	case e.Token && (status == http.StatusNotFound || status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented):
		e.Kind, e.Hint = ErrNotThisCloud, c.NoTokens
	case status != 0 || !e.Connected:
		e.Hint = c.Hints[status]
	}
	return e
}

func (c *Client) ask(ctx context.Context, i Item) (http.Header, []byte, error) {
	method := http.MethodGet
	if i.Body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, c.Origin+c.Path+i.Path, bytes.NewReader(i.Body))
	if err != nil {
		return nil, nil, err
	}
	if i.Body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	token := ""
	if c.Token != nil {
		if token, err = c.session(ctx); err != nil {
			return nil, nil, err
		}
		req.Header.Set(c.Token.Header, token)
	}
	h, body, err := c.Do(req)
	e, _ := errors.AsType[*Error](err)
	switch {
	case e != nil && e.Status == http.StatusUnauthorized && c.Token != nil:
		c.Token.drop(token)
	case err == nil && c.Check != nil:
		err = c.Check(h)
	}
	return h, body, err
}

// session holds the lock while it requests a token, so that concurrent callers share it.
func (c *Client) session(ctx context.Context) (string, error) {
	t := c.Token
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.value != "" && now.Before(t.until) {
		return t.value, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.Origin+c.Path+t.Path, http.NoBody)
	if err != nil {
		return "", err
	}
	req.Header.Set(t.TTL, strconv.Itoa(int(t.Lifetime/time.Second)))
	_, body, err := c.Do(req)
	if err != nil {
		return "", err
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

// Do returns header and body of a 200 answer, or an *Error without an item.
func (c *Client) Do(req *http.Request) (http.Header, []byte, error) {
	e := &Error{Token: req.Method == http.MethodPut}
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { e.Connected = true },
	}))
	for name, v := range c.Header {
		req.Header.Set(name, v)
	}
	log := c.opts.Log.With("method", req.Method, "host", req.URL.Host, "path", req.URL.Path)
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
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
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
