// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
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

// UserAgent is how every request begins to say who asks: an operator finds us by it in a log of the cloud.
const UserAgent = "amsagent"

const (
	// optionalAttempts bounds the tries for an item that a node can live without, unreachableAttempts those if the connection
	// fails: a network interface that is set up a second time at boot takes the service away for some 300 ms.
	optionalAttempts    = 3
	unreachableAttempts = 5
	// doubtfulAttempts bounds the tries where an answer cannot be right (a page of a half-started service, say), or where the
	// item that every machine of the cloud has is not found.
	doubtfulAttempts = 3
)

// Client reads the metadata service of this machine. New opens it; then it is safe for use by several goroutines.
type Client struct {
	Provider string
	// Base is put before each path.
	Base string
	// Header goes with each request.
	Header map[string]string
	// Token is nil for a service without session tokens.
	Token *Token
	// Check looks at the head of each good answer; it may be nil.
	Check func(http.Header) error
	// Judge may change kind and hint of the error of one failed request; it may be nil.
	Judge func(*Error)
	// Foreign is the hint where what every machine of this cloud has is not found.
	Foreign string
	// Ask takes the place of the request for one path; nil is GET below Base. It returns an *Error.
	Ask func(ctx context.Context, path string) (http.Header, []byte, error)

	opts Options
	http *http.Client
	// failing: a try has failed since the last good answer, and was logged.
	failing *atomic.Bool
}

// New prepares a client with the options of its provider. It makes no request.
func New(c Client, o Options) *Client {
	c.opts, c.failing = o.WithDefaults(), new(atomic.Bool)
	rt := c.opts.Transport
	if rt == nil {
		dial := c.opts.DialContext
		if dial == nil {
			// A link-local address that does not take a connection within a second is not there.
			dial = (&net.Dialer{Timeout: time.Second}).DialContext
		}
		rt = &http.Transport{
			// Nil is the point: the usual ProxyFromEnvironment would send link-local requests, and the session token with
			// them, to the proxy of a cron or cloud-init environment.
			Proxy: nil, DialContext: dial, DisableCompression: true,
			MaxIdleConnsPerHost: 4, IdleConnTimeout: 10 * time.Second,
			TLSHandshakeTimeout: time.Second, MaxResponseHeaderBytes: 64 << 10,
		}
	}
	c.http = &http.Client{Transport: naming{rt}, CheckRedirect: noRedirect}
	if c.Ask == nil {
		c.Ask = c.get
	}
	return &c
}

// Token says how a service gives out session tokens: by a PUT of Path, with the lifetime in seconds in the header TTL, to be
// sent back in Header.
type Token struct {
	Path, TTL, Header string
	Lifetime          time.Duration

	mu    sync.Mutex
	value string
	until time.Time
}

// tokenEarly: a token is renewed so long before its end, which is counted by the service's clock and not by ours.
const tokenEarly = 10 * time.Minute

// Item is one item of a metadata service.
type Item struct {
	// Name says in words what is read.
	Name, Path string
	// Required: every machine of this cloud has it, so it is asked for until the context ends.
	Required bool
	// Timeout bounds one request; 0 is that of the options.
	Timeout time.Duration
}

// Read asks for an item until parse takes the answer, the error is final, or the context ends. Each try has its own deadline;
// the waits double, up to [MaxRetryWait].
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

// Optional reads an item of an instance that many machines do not have; then it is the zero value. One that cannot be read is
// named in inst.Missing by its field, with the reason in the notes.
func Optional[T any](ctx context.Context, c *Client, inst *Instance, field string, i Item, parse func([]byte) (T, error)) T {
	v, err := Read(ctx, c, i, parse)
	if err != nil && !errors.Is(err, ErrNotFound) {
		inst.Miss(c.opts.Log, field, err)
	}
	return v
}

func (c *Client) read(ctx context.Context, i Item, parse func([]byte) error) error {
	wait := c.opts.RetryWait
	doubtful, renewed := 0, false
	var last *Error // of kind ErrNotReady
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
			if last != nil && e.Status == 0 {
				last.Attempts, e = n, last // this try was cut short: the one before says what is wrong
			}
			e.Context = err
			return e
		}
		pause := wait/2 + rand.N(wait/2+1)
		switch {
		case e.Status == http.StatusUnauthorized && !renewed:
			// The session token ended or was lost, and has been dropped. A second refusal in a row is meant.
			renewed, pause = true, 0
		case errors.Is(e.Kind, ErrNotReady):
			last, renewed = e, false
		case errors.Is(e.Kind, ErrBadAnswer) && e.Status == http.StatusOK, errors.Is(e.Kind, ErrNotFound) && i.Required:
			if doubtful++; doubtful >= doubtfulAttempts {
				return c.final(i, e)
			}
		default:
			return c.final(i, e)
		}
		most := optionalAttempts
		if !e.Connected {
			most = unreachableAttempts
		}
		if !i.Required && n >= most {
			return e
		}
		if !c.failing.Swap(true) {
			c.opts.Log.Warn("metadata service gave no usable answer, trying again",
				"provider", c.Provider, "item", i.Name, "error", e, "hint", e.Hint)
		}
		if pause == 0 {
			continue
		}
		wait = min(2*wait, MaxRetryWait)
		if !sleep.For(ctx, pause) {
			e.Context = ctx.Err()
			return e
		}
	}
}

// final is the error of an item that is not asked for again.
func (c *Client) final(i Item, e *Error) *Error {
	if i.Required && errors.Is(e.Kind, ErrNotFound) {
		e.Kind, e.Hint = ErrNotThisCloud, cmp.Or(e.Hint, c.Foreign)
	}
	return e
}

// Once asks for an item once, for a caller that looks again anyway: twice where the service refused the session token. The
// error matches [ErrNotFound] for an item that is not set.
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
	bound, cancel := context.WithTimeout(ctx, cmp.Or(i.Timeout, c.opts.AttemptTimeout))
	defer cancel()
	h, body, err := c.Ask(bound, i.Path)
	return h, body, c.judge(i, err)
}

func (c *Client) try(ctx context.Context, i Item, parse func([]byte) error) *Error {
	_, body, e := c.once(ctx, i)
	if e != nil {
		return e
	}
	if err := parse(body); err != nil {
		return c.judge(i, &Error{Kind: ErrBadAnswer, Status: http.StatusOK, Connected: true, Cause: err})
	}
	return nil
}

// judge names the item in the error of one request.
func (c *Client) judge(i Item, err error) *Error {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Kind: ErrNotReady, Cause: err}
	}
	e.Provider, e.Item = c.Provider, i.Name
	if c.Judge != nil {
		c.Judge(e)
	}
	return e
}

// get asks for one path.
func (c *Client) get(ctx context.Context, path string) (http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Base+path, http.NoBody)
	if err != nil {
		return nil, nil, err
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
		c.Token.drop(token) // it ended early or was lost
	case err == nil && c.Check != nil:
		err = c.Check(h)
	}
	return h, body, err
}

// session gives the token in force, or a new one. A caller that comes while one is being fetched waits for that one.
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
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.Base+t.Path, http.NoBody)
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

// notInToken is what would break out of a header, or is a page of something else.
func notInToken(r rune) bool { return r <= ' ' || r > '~' || r == '<' || r == '>' }

// Do makes one request and returns head and body of an answer of 200. Everything else is an *Error without an item; its Token
// marks a PUT, which asks for a session token.
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
		// The head came and the rest did not: the line's fault, not the answer's.
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

// noRedirect: a redirect would carry the session token, or the signature, to the host that the answer names.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// naming makes each request say who asks, in front of the name of a library.
type naming struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (n naming) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", strings.TrimSpace(UserAgent+" "+req.UserAgent()))
	return n.next.RoundTrip(req)
}

// shortCause replaces the nested texts of the libraries by what an operator needs.
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

// WireCause takes the layers of net/http off what ended a call of a cloud's API.
func WireCause(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}
