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
	// callLimit: the server is on this machine, so a longer call is stuck.
	callLimit = 3 * time.Second
	// maxHeader replaces Go's 10 MB: the server's header has 500 bytes.
	maxHeader = 64 << 10
	// maxBody: the statistics with eight GPUs have 4 kB.
	maxBody = 64 << 10
	// maxText bounds an error or a value in bytes: the server's user controls them, for thousands of applications.
	maxText = 256
	// maxIdle is one connection for each application of a usual server, polled together.
	maxIdle = 16
	// tokenHeader is the server's name for it.
	tokenHeader = "ProxyAuthorization"
)

// NewHTTPClient returns a client without proxy and redirects. With conns it keeps connections, because connecting is most
// of a call's cost; else it makes a new one for each call, so that none is from before a restart. For other machines it
// returns [ErrNotThisMachine].
func NewHTTPClient(conns *ConnCount) *http.Client {
	t := &http.Transport{
		DialContext:            dialThisMachine,
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

// ConnCount counts the connections of a client.
type ConnCount struct{ open, lost atomic.Int64 }

// Open returns the number of open connections.
func (c *ConnCount) Open() int { return int(c.open.Load()) }

// Lost returns how often the last connection closed. If unchanged, the server was not restarted.
func (c *ConnCount) Lost() int { return int(c.lost.Load()) }

func (c *ConnCount) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := dialThisMachine(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.open.Add(1)
	return &countedConn{Conn: conn, closed: sync.OnceFunc(c.close)}, nil
}

func (c *ConnCount) close() {
	if c.open.Add(-1) == 0 {
		c.lost.Add(1)
	}
}

type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Refused reports whether no process listens at base. Applications do not notice it.
func Refused(ctx context.Context, base string) bool {
	conn, err := dialThisMachine(ctx, "tcp", strings.TrimPrefix(base, "http://"))
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

// get sends no X-Forwarded-For, which the server's address filters would check. Errors contain neither URL nor token.
func get(ctx context.Context, client *http.Client, address, token string) (reply, error) {
	if client == nil {
		client = NewHTTPClient(nil)
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

type callError struct{ err error }

func (e *callError) Error() string { return plain.Truncate(e.err.Error(), maxText) }
func (e *callError) Unwrap() error { return e.err }

func hungUp(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// ErrNotThisMachine means that http.host of red5.properties is another machine's address. The server's user owns the file
// and must not decide where root connects.
var ErrNotThisMachine = errors.New("http.host is no address of this machine; it is not asked")

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
			// Dial the checked address: the name may resolve to another one next time.
			return dialer.DialContext(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
		}
	}
	return nil, fmt.Errorf("connecting to %s: %w", host, ErrNotThisMachine)
}

// A zone selects the interface to send by.
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
