// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/internal/plain"
)

const (
	// callLimit bounds one call. The server is on this machine; a longer call is stuck, and the next one will show.
	callLimit = 3 * time.Second
	// maxHeader bounds the response header, for which Go allows 10 MB: the server's has 500 bytes.
	maxHeader = 64 << 10
	// maxBody bounds the part of a response that is read: the statistics of a server with eight GPUs have 4 kB.
	maxBody = 64 << 10
	// maxText bounds the bytes kept of an error or a value. The server's user controls their length, for thousands of
	// applications.
	maxText = 256
	// tokenHeader is the server's own name for it.
	tokenHeader = "ProxyAuthorization"
)

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

// reply is the response to one call: at most maxBody bytes of it.
type reply struct {
	code int
	body []byte
}

// status returns the code with its name, as in 404 Not Found.
func (r reply) status() string { return fmt.Sprintf("%d %s", r.code, http.StatusText(r.code)) }

// get makes one call. A nil client means [NewHTTPClient]. The request has no X-Forwarded-For: with one, the server's
// address filters would check that address. Errors contain neither the URL nor the token.
func get(ctx context.Context, client *http.Client, address, token string) (reply, error) {
	if client == nil {
		client = NewHTTPClient()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return reply{}, err
	}
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	resp, err := client.Do(req)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	if err != nil {
		return reply{}, &callError{err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return reply{}, &callError{err}
	}
	return reply{resp.StatusCode, body}, nil
}

// callError is the reason why a call failed, in at most maxText bytes.
type callError struct{ err error }

func (e *callError) Error() string { return plain.Truncate(e.err.Error(), maxText) }
func (e *callError) Unwrap() error { return e.err }

// hungUp reports whether the server closed the connection within a call.
func hungUp(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// ErrNotThisMachine says that http.host of red5.properties is not an address of this machine. The file belongs to the server's
// user, and must not decide where root connects to.
var ErrNotThisMachine = errors.New("http.host is no address of this machine; it is not asked")

// dialThisMachine connects only to the loopback and to the addresses of this machine's interfaces.
func dialThisMachine(ctx context.Context, network, address string) (net.Conn, error) {
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
	dialer := net.Dialer{Timeout: callLimit}
	for _, a := range addrs {
		own, err := thisMachine(a)
		switch {
		case err != nil:
			return nil, err
		case own:
			// Dial the checked address: a name may resolve to another one the next time.
			return dialer.DialContext(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
		}
	}
	return nil, fmt.Errorf("connecting to %s: %w", host, ErrNotThisMachine)
}

// thisMachine reports whether an address is the loopback's or an interface's. An address with a zone is neither: the
// zone selects the interface to send by.
func thisMachine(a netip.Addr) (bool, error) {
	if a.Zone() != "" {
		return false, nil
	}
	if a = a.Unmap(); a.IsLoopback() {
		return true, nil
	}
	list, err := HostInterfaces("")
	return slices.ContainsFunc(list, func(in Interface) bool { return slices.Contains(in.Addrs, a) }), err
}
