// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/internal/plain"
)

const (
	livenessPath = "/rest/v2/liveness"
	// livenessLimit bounds one call. The server is on this machine; a longer call is stuck, and the next one will show.
	livenessLimit = 3 * time.Second
	// maxHeader bounds the response header, for which Go allows 10 MB: the server's has 500 bytes.
	maxHeader = 64 << 10
)

// LivenessState is the result of one liveness call.
type LivenessState string

// The states.
const (
	Live LivenessState = "live"
	// LiveStarting: no process listens yet, or the server answers 403 or 503, for example while its console starts or
	// its database is away. It does not depend on credentials.
	LiveStarting LivenessState = "starting"
	// LiveBroken: the server answers 500, because its own hostname does not resolve.
	LiveBroken LivenessState = "broken"
	// LiveNoEndpoint: the server responds and does not know the call (before 2.5.1; later releases only until their
	// console starts).
	LiveNoEndpoint LivenessState = "no-endpoint"
	// LiveUnknown: no response in time, or one that is not Ant Media Server's.
	LiveUnknown LivenessState = "unknown"
)

// Liveness is the response to one liveness call.
type Liveness struct {
	State  LivenessState `json:"state"`
	Code   int           `json:"code,omitempty"` // of HTTP; 0 = no response
	Host   string        `json:"host,omitempty"` // the server's name of itself
	Status string        `json:"status,omitempty"`
	Detail string        `json:"detail,omitempty"`
}

func (l Liveness) String() string {
	if l.Detail == "" {
		return string(l.State)
	}
	return string(l.State) + ": " + l.Detail
}

// NewHTTPClient returns a client for the server on this machine: no proxy, whatever the environment, no redirects, and a
// new connection for each call, so that none is left over from before a restart. It fails with [ErrNotThisMachine] for
// other machines.
func NewHTTPClient() *http.Client {
	return newHTTPClient(&http.Transport{DialContext: dialThisMachine, DisableKeepAlives: true})
}

// ConnCount counts the connections of a client.
type ConnCount struct{ open, lost atomic.Int64 }

// Open returns the number of open connections.
func (c *ConnCount) Open() int { return int(c.open.Load()) }

// Lost returns how often the last connection closed: if it has not changed, the server was not restarted in between.
func (c *ConnCount) Lost() int { return int(c.lost.Load()) }

func (c *ConnCount) close() {
	if c.open.Add(-1) == 0 {
		c.lost.Add(1)
	}
}

// pollingConns is the number of connections a polling client keeps: one for each application of a usual server, as all
// are polled at the same time.
const pollingConns = 16

// NewPollingClient is [NewHTTPClient] for calls every second: it keeps its connections, as connecting is most of the
// cost of a call.
func NewPollingClient(conns *ConnCount) *http.Client {
	return newHTTPClient(&http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialThisMachine(ctx, network, address)
			if err != nil {
				return nil, err
			}
			conns.open.Add(1)
			return &countedConn{Conn: conn, closed: sync.OnceFunc(conns.close)}, nil
		},
		MaxIdleConnsPerHost: pollingConns,
		IdleConnTimeout:     10 * time.Second,
	})
}

func newHTTPClient(t *http.Transport) *http.Client {
	t.MaxResponseHeaderBytes = maxHeader
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// countedConn calls closed when it is closed.
type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Refused reports whether no process listens at the server's port. base is [Installation.BaseURL]. It sends no request,
// so applications do not notice it.
func Refused(ctx context.Context, base string) bool {
	conn, err := dialThisMachine(ctx, "tcp", strings.TrimPrefix(base, "http://"))
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// CheckLiveness makes one liveness call to base, an [Installation.BaseURL]. A nil client means [NewHTTPClient]. The
// request has no X-Forwarded-For: with one, the server's address filters would check that address.
func CheckLiveness(ctx context.Context, client *http.Client, base string) Liveness {
	ctx, cancel := context.WithTimeout(ctx, livenessLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+livenessPath, nil)
	if err != nil {
		return Liveness{State: LiveUnknown, Detail: err.Error()}
	}
	req.Header.Set("Accept", "application/json")
	r, err := call(client, req, maxBody)
	if err != nil {
		return noAnswer(err)
	}
	return answer(r)
}

func noAnswer(err error) Liveness {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Liveness{State: LiveStarting, Detail: "no process listens yet"}
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Liveness{State: LiveStarting, Detail: "it hung up"}
	case errors.Is(err, ErrNotThisMachine):
		return Liveness{State: LiveUnknown, Detail: ErrNotThisMachine.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return Liveness{State: LiveUnknown, Detail: fmt.Sprintf("no answer within %s", livenessLimit)}
	}
	return Liveness{State: LiveUnknown, Detail: err.Error()}
}

func answer(r reply) Liveness {
	l := Liveness{Code: r.code}
	switch l.Code {
	case http.StatusOK:
		var fields map[string]any
		if err := json.Unmarshal(r.body, &fields); err != nil {
			l.State, l.Detail = LiveUnknown, "it answers 200, but not as Ant Media Server does"
			return l
		}
		l.State = Live
		host, _ := fields["host"].(string)
		status, _ := fields["status"].(string)
		l.Host, l.Status = plain.Truncate(host, maxText), plain.Truncate(status, maxText)
	case http.StatusForbidden, http.StatusServiceUnavailable:
		l.State, l.Detail = LiveStarting, "it answers "+r.status
	case http.StatusInternalServerError:
		l.State, l.Detail = LiveBroken, "it answers "+r.status+": its own hostname does not resolve"
	case http.StatusNotFound:
		l.State, l.Detail = LiveNoEndpoint, "it answers, without a liveness call"
	default:
		l.State, l.Detail = LiveUnknown, "it answers "+r.status
		if r.location != "" {
			l.Detail += ", leading to " + r.location
		}
	}
	return l
}
