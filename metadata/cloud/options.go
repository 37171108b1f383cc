// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The bounds that apply where Options leaves them zero.
const (
	// DefaultTimeout bounds one Instance call. A link-local service that has not answered for so long at boot is broken
	// rather than late; the longest wait a cloud documents for its own start is of this order.
	DefaultTimeout = 20 * time.Second
	// DefaultAttemptTimeout bounds one request. The service answers in milliseconds, but one-second limits are
	// known to fail on busy hosts.
	DefaultAttemptTimeout = 2 * time.Second
	// DefaultRetryWait is the wait after the first failure; it doubles up to MaxRetryWait, each time shortened at random
	// by up to a half so that a fleet that boots together does not ask together. Azure answers five requests in a second.
	DefaultRetryWait = 250 * time.Millisecond
	// MaxRetryWait keeps a machine whose service comes up late from sleeping through the rest of its bound.
	MaxRetryWait = 2 * time.Second
	// MaxBody is the largest answer that is read. The largest real one (user data) is 16 KiB.
	MaxBody = 1 << 20
)

// Options are the settings of detection and of every provider. The zero value works on a real machine.
type Options struct {
	// Root is put before every path that is read; "" is the real root.
	Root string
	// Endpoints replaces the address of a provider's metadata service, as an origin: "aws" → "http://127.0.0.1:1338".
	Endpoints map[string]string
	// Disabled names providers whose service must not be asked (the AWS SDK's AWS_EC2_METADATA_DISABLED, for one).
	Disabled []string
	// Known is the cloud that this machine is known to be in, as of an earlier time; "" if unknown. Detect stays
	// with it if nothing names a cloud now: a service that does not answer is no proof that there is none.
	Known string
	// APIProxy finds the proxy for a provider's calls to its cloud's API, if it makes any; without it there is no proxy. The metadata
	// are never asked by one.
	APIProxy func(*http.Request) (*url.URL, error)
	// Log gets one line per retry and per oddity; nil logs nothing.
	Log *slog.Logger

	// Timeout bounds one Instance call, AttemptTimeout one request.
	Timeout, AttemptTimeout time.Duration
	// RetryWait is the first wait between two tries.
	RetryWait time.Duration

	// Local returns the addresses that this machine sends from, the zero Addr if it has none; by default the kernel is asked, which
	// below a Root is not the machine asked about: then there is no address.
	Local func() (v4, v6 netip.Addr)
	// DialContext replaces the dialer, Transport the whole HTTP transport: for tests.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	Transport   http.RoundTripper
	// APITransport is the same for the calls of a cloud's API.
	APITransport http.RoundTripper
}

// WithDefaults returns o with every bound and the logger set.
func (o Options) WithDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.AttemptTimeout <= 0 {
		o.AttemptTimeout = DefaultAttemptTimeout
	}
	if o.RetryWait <= 0 {
		o.RetryWait = DefaultRetryWait
	}
	if o.Local == nil {
		o.Local = func() (v4, v6 netip.Addr) { return source("udp4", "192.0.2.1:9"), source("udp6", "[2001:db8::1]:9") }
		if o.Root != "" {
			o.Local = func() (v4, v6 netip.Addr) { return v4, v6 }
		}
	}
	return o
}

// Path puts the root before an absolute path.
func (o Options) Path(abs string) string { return filepath.Join(o.Root, abs) }

// Endpoint returns the origin set for a provider, "" where none is set.
func (o Options) Endpoint(provider string) (string, error) {
	v := o.Endpoints[provider]
	if v == "" {
		return "", nil
	}
	u, err := url.Parse(v)
	switch {
	case err != nil:
		return "", fmt.Errorf("metadata endpoint of %s: %w", provider, err)
	case (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "",
		u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "", u.User != nil:
		return "", fmt.Errorf("metadata endpoint of %s: %q is not an origin such as http://127.0.0.1:1338", provider, u.Redacted())
	}
	return u.Scheme + "://" + u.Host, nil
}

// source returns the address that the kernel sends from to another one, the zero Addr if there is no route or only a
// link-local address. Connecting a UDP socket sends nothing.
func source(network, to string) netip.Addr {
	c, err := new(net.Dialer).DialContext(context.Background(), network, to)
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	from, err := netip.ParseAddrPort(c.LocalAddr().String())
	if a := from.Addr().Unmap(); err == nil && a.IsGlobalUnicast() {
		return a
	}
	return netip.Addr{}
}

// Booted returns when this machine was started, by its own clock.
func Booted() time.Time {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(ts.Nano()))
}
