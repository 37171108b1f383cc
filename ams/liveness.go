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
	// livenessLimit bounds one call. The server is on this machine; what takes
	// longer is stuck, and the next call will tell.
	livenessLimit = 3 * time.Second
	livenessBody  = 64 << 10
	// maxHeader bounds the header of an answer, where Go takes 10 MB: the server's has
	// 500 bytes.
	maxHeader = 64 << 10
)

// LivenessState is what one liveness call tells.
type LivenessState string

// The states.
const (
	Live LivenessState = "live"
	// LiveStarting: nobody listens yet, or the server answers 403 or 503, as it
	// does while its console comes up or its database is away. It says nothing
	// about credentials.
	LiveStarting LivenessState = "starting"
	// LiveBroken: the server answers 500, because its own hostname does not resolve.
	LiveBroken LivenessState = "broken"
	// LiveNoEndpoint: the server answers and does not know the call (before 2.5.1;
	// for a moment also later ones, until their console is there).
	LiveNoEndpoint LivenessState = "no-endpoint"
	// LiveUnknown: no answer in time, or one that is not Ant Media Server's.
	LiveUnknown LivenessState = "unknown"
)

// Liveness is the answer to one liveness call.
type Liveness struct {
	State  LivenessState `json:"state"`
	Code   int           `json:"code,omitempty"` // of HTTP; 0 = no answer
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

// NewHTTPClient is a client for the server on this machine: no proxy, whatever
// the environment says, no redirects, and a new connection for each call, so
// that one left over from before a restart tells nothing. It connects to this
// machine only: anything else is [ErrNotThisMachine].
func NewHTTPClient() *http.Client {
	return newHTTPClient(&http.Transport{DialContext: dialThisMachine, DisableKeepAlives: true})
}

// ConnCount counts the connections of a client.
type ConnCount struct{ open, lost atomic.Int64 }

// Open is how many connections the client has now.
func (c *ConnCount) Open() int { return int(c.open.Load()) }

// Lost is how often the client was left without a connection: where it is the same as before,
// no server was restarted in between.
func (c *ConnCount) Lost() int { return int(c.lost.Load()) }

func (c *ConnCount) close() {
	if c.open.Add(-1) == 0 {
		c.lost.Add(1)
	}
}

// pollingConns is how many connections a polling client keeps: a server has that many applications at most, but for odd ones,
// and all of them are asked at the same time.
const pollingConns = 16

// NewPollingClient is [NewHTTPClient] for who asks every second: it keeps its
// connections for the next calls, as making one is most of what a call costs.
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

// countedConn tells when it is closed.
type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Refused reports whether nobody listens at the port of the server at base, as
// [Installation.BaseURL] gives it. It is no request: no application hears of it.
func Refused(ctx context.Context, base string) bool {
	conn, err := dialThisMachine(ctx, "tcp", strings.TrimPrefix(base, "http://"))
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// CheckLiveness asks the server at base, as [Installation.BaseURL] gives it,
// once. A nil client is [NewHTTPClient]'s. The request carries no
// X-Forwarded-For: with one, the server's address filters would judge somebody
// else's address instead of ours.
func CheckLiveness(ctx context.Context, client *http.Client, base string) Liveness {
	ctx, cancel := context.WithTimeout(ctx, livenessLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+livenessPath, nil)
	if err != nil {
		return Liveness{State: LiveUnknown, Detail: err.Error()}
	}
	req.Header.Set("Accept", "application/json")
	r, err := call(client, req, livenessBody)
	if err != nil {
		return noAnswer(err)
	}
	return answer(r)
}

func noAnswer(err error) Liveness {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Liveness{State: LiveStarting, Detail: "nobody listens yet"}
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
		var told map[string]any
		if err := json.Unmarshal(r.body, &told); err != nil {
			l.State, l.Detail = LiveUnknown, "it answers 200, but not as Ant Media Server does"
			return l
		}
		l.State = Live
		host, _ := told["host"].(string)
		status, _ := told["status"].(string)
		l.Host, l.Status = plain.Truncate(host, maxSaid), plain.Truncate(status, maxSaid)
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
