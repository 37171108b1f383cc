// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/internal/plain"
)

const (
	// callLimit: the server is local, so a longer call is stuck.
	callLimit = 3 * time.Second
	// maxHeader replaces Go's 10 MB: the server's header has 500 bytes.
	maxHeader = 64 << 10
	// maxBody: the statistics with eight GPUs have 4 kB.
	maxBody = 64 << 10
	// maxText is in bytes: the server's user controls errors and values, for thousands of applications.
	maxText = 256
	// maxIdle is for the applications of a usual server, polled together.
	maxIdle = 16
	// tokenHeader is the server's spelling.
	tokenHeader = "ProxyAuthorization"
)

// NewHTTPClient returns a client without proxy and redirects. With conns it keeps connections: connecting is most of a
// call's cost. Else each call connects, so no connection is from before a restart. Other machines fail with
// errNotThisMachine.
func NewHTTPClient(conns *ConnCount) *http.Client {
	t := &http.Transport{
		DialContext:            dial,
		DisableKeepAlives:      conns == nil,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        10 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
	}
	if conns != nil {
		t.DialContext = conns.dial
	}
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// ConnCount counts a client's connections.
type ConnCount struct{ open, lost atomic.Int64 }

// Open returns the number of open connections.
func (c *ConnCount) Open() int { return int(c.open.Load()) }

// Lost returns how often the last connection closed. If unchanged, the server was not restarted.
func (c *ConnCount) Lost() int { return int(c.lost.Load()) }

func (c *ConnCount) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.open.Add(1)
	return &countedConn{Conn: conn, count: c}, nil
}

type countedConn struct {
	net.Conn
	count *ConnCount
	once  sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		if c.count.open.Add(-1) == 0 {
			c.count.lost.Add(1)
		}
	})
	return c.Conn.Close()
}

// Refused reports whether no process listens at base. Applications do not notice it.
func Refused(ctx context.Context, base string) bool {
	conn, err := dial(ctx, "tcp", strings.TrimPrefix(base, "http://"))
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

type reply struct {
	code int
	body []byte
}

func (r reply) status() string { return fmt.Sprintf("%d %s", r.code, http.StatusText(r.code)) }

// get calls base, an [Installation.BaseURL]. It sends no X-Forwarded-For, which the server's address filters would check.
// Errors contain neither URL nor token.
func get(ctx context.Context, client *http.Client, base, path, token string) (reply, error) {
	if client == nil {
		client = NewHTTPClient(nil)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return reply{}, err
	}
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	var body []byte
	resp, err := client.Do(req)
	if err == nil {
		defer resp.Body.Close()
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody))
	}
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	if err != nil {
		return reply{}, &callError{err}
	}
	return reply{resp.StatusCode, body}, nil
}

type callError struct{ err error }

func (e *callError) Error() string { return plain.Truncate(e.err.Error(), maxText) }
func (e *callError) Unwrap() error { return e.err }

func hungUp(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// errNotThisMachine: the server's user owns red5.properties and must not decide where root connects.
var errNotThisMachine = errors.New("http.host is no address of this machine; it is not asked")

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, a) // the resolver would drop a zone
	} else if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return nil, err
	}
	here, err := HostInterfaces("")
	for _, a := range addrs {
		a = a.Unmap()
		own := slices.ContainsFunc(here, func(in Interface) bool { return in.Addr == a })
		if a.Zone() == "" && (own || a.IsLoopback()) { // a zone selects the interface to send by
			// Dial the checked address: the name may resolve differently next time.
			return (&net.Dialer{Timeout: callLimit}).DialContext(ctx, network, net.JoinHostPort(a.String(), port))
		}
	}
	return nil, cmp.Or(err, fmt.Errorf("connecting to %s: %w", host, errNotThisMachine))
}

const livenessPath = "/rest/v2/liveness"

// LivenessState is a liveness call's result.
type LivenessState string

// The states of a server.
const (
	Live LivenessState = "live"
	// LiveStarting: not listening, or 403 or 503 while its console starts or its database is away.
	LiveStarting LivenessState = "starting"
	// LiveBroken: 500, because the server's hostname does not resolve.
	LiveBroken LivenessState = "broken"
	// liveNoEndpoint: a release before 2.5.1, or a later one until its console starts.
	liveNoEndpoint LivenessState = "no-endpoint"
	// LiveUnknown: no response in time, or not Ant Media Server's.
	LiveUnknown LivenessState = "unknown"
)

// Liveness is a liveness call's response.
type Liveness struct {
	State  LivenessState `json:"state"`
	Code   int           `json:"code,omitempty"` // of HTTP; 0 = no response
	Host   string        `json:"host,omitempty"` // as the server names itself
	Status string        `json:"status,omitempty"`
	Detail string        `json:"detail,omitempty"`
}

func (l Liveness) String() string {
	if l.Detail == "" {
		return string(l.State)
	}
	return string(l.State) + ": " + l.Detail
}

// CheckLiveness makes one call.
func CheckLiveness(ctx context.Context, client *http.Client, base string) Liveness {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := get(ctx, client, base, livenessPath, "")
	switch {
	case err == nil:
		return answer(r)
	case errors.Is(err, syscall.ECONNREFUSED):
		return Liveness{State: LiveStarting, Detail: "no process listens yet"}
	case hungUp(err):
		return Liveness{State: LiveStarting, Detail: "it hung up"}
	case errors.Is(err, context.DeadlineExceeded):
		return Liveness{State: LiveUnknown, Detail: fmt.Sprintf("no answer within %s", callLimit)}
	}
	return Liveness{State: LiveUnknown, Detail: err.Error()}
}

func answer(r reply) Liveness {
	l := Liveness{State: LiveUnknown, Code: r.code, Detail: "it answers " + r.status()}
	switch l.Code {
	case http.StatusOK:
		var fields map[string]any
		if err := json.Unmarshal(r.body, &fields); err != nil {
			l.Detail = "it answers 200, but not as Ant Media Server does"
			return l
		}
		host, _ := fields["host"].(string)
		status, _ := fields["status"].(string)
		l.State, l.Host, l.Status, l.Detail = Live, plain.Truncate(host, maxText), plain.Truncate(status, maxText), ""
	case http.StatusForbidden, http.StatusServiceUnavailable:
		l.State = LiveStarting
	case http.StatusInternalServerError:
		l.State, l.Detail = LiveBroken, l.Detail+": its own hostname does not resolve"
	case http.StatusNotFound:
		l.State, l.Detail = liveNoEndpoint, "it answers, without a liveness call"
	}
	return l
}

// versionPath is open to this machine below an application, unless its filters refuse it. The console's needs a token.
const versionPath = "/rest/v2/version"

// errNoVersion may be an application's filter: by address, or by a token of its own.
var errNoVersion = errors.New("the answer is not the server's version")

// AskRelease returns the release of the running server, of a serving application or, with an [Installation.ServerToken],
// of the console (app ""). It has no build: the server reads that from its files of now.
func AskRelease(ctx context.Context, client *http.Client, base, app, token string) (r Release, _ error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	path := versionPath
	if app != "" {
		path = "/" + url.PathEscape(app) + versionPath
	}
	var fields struct{ VersionName string }
	answer, err := get(ctx, client, base, path, token)
	switch {
	case err != nil:
	case answer.code != http.StatusOK:
		err = fmt.Errorf("%w: %s", errNoVersion, answer.status())
	case json.Unmarshal(answer.body, &fields) != nil || len(fields.VersionName) > maxVersion:
		err = errNoVersion
	default:
		r, err = ParseRelease(fields.VersionName)
	}
	if err != nil {
		return Release{}, fmt.Errorf("asking for the version: %s: %w", base+path, err)
	}
	return r, nil
}

const statisticsPath = "/rest/v2/system-resources"

// errNotStatistics may be a refused token: the server refuses tokens in its first seconds and while its database is away.
var errNotStatistics = errors.New("the answer is not the server's statistics")

// Statistics are of one server, not its cluster; nil if the release lacks them.
type Statistics struct {
	Streams *int
	// Viewers are of the known kinds, without RTMP (not counted by the server). Complete: all kinds are known.
	Viewers  *int
	Complete bool
}

// ReadStatistics makes one call with an [Installation.ServerToken].
func ReadStatistics(ctx context.Context, client *http.Client, base, token string) (s Statistics, _ error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := get(ctx, client, base, statisticsPath, token)
	switch {
	case err != nil:
	case r.code != http.StatusOK:
		err = fmt.Errorf("%w: %s", errNotStatistics, r.status())
	case len(r.body) == maxBody:
		err = fmt.Errorf("%w: it is longer than %d bytes", errNotStatistics, maxBody)
	default:
		s, err = parseStatistics(r.body)
	}
	if err != nil {
		return Statistics{}, fmt.Errorf("asking for statistics: %s: %w", base+statisticsPath, err)
	}
	return s, nil
}

func parseStatistics(body []byte) (Statistics, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return Statistics{}, fmt.Errorf("%w: no JSON object", errNotStatistics)
	}
	s := Statistics{Streams: figure(fields["localLiveStreams"]), Complete: true}
	for _, kind := range []string{"localWebRTCViewers", "localHLSViewers", "localDASHViewers"} {
		switch n := figure(fields[kind]); {
		case n == nil:
			s.Complete = false
		case s.Viewers == nil:
			s.Viewers = n
		default:
			*s.Viewers += *n
		}
	}
	if s == (Statistics{}) {
		return s, fmt.Errorf("%w: no figure in it is known", errNotStatistics)
	}
	return s, nil
}

// figure parses a count, with or without quotes; -1 is unknown.
func figure(raw json.RawMessage) *int {
	f, err := strconv.ParseFloat(strings.Trim(string(raw), `" `), 64)
	if err != nil || !(f >= 0 && f <= math.MaxInt32) { // not NaN
		return nil
	}
	n := int(f)
	return &n
}
