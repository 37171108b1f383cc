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

// The defaults of the bounds in Options.
const (
	// DefaultTimeout bounds one Instance call. A link-local service that has not answered for this time at boot is broken rather
	// than slow; the longest start that a cloud documents is of this order.
	DefaultTimeout = 20 * time.Second
	// DefaultAttemptTimeout bounds one request. The service answers in milliseconds, but one-second limits are
	// known to fail on busy hosts.
	DefaultAttemptTimeout = 2 * time.Second
	// DefaultRetryWait is the wait after the first failure. It doubles up to MaxRetryWait, each time shortened at random by up
	// to a half, so that the machines of a fleet do not retry together. Azure answers five requests a second.
	DefaultRetryWait = 250 * time.Millisecond
	// MaxRetryWait limits the wait, so that a service that starts late is found within the bound.
	MaxRetryWait = 2 * time.Second
	// MaxBody is the size of the largest accepted answer. The largest real one (user data) is 16 KiB.
	MaxBody = 1 << 20
)

// Options are the settings of detection and of every provider. The zero value works on a real machine.
type Options struct {
	// Root is put before every path that is read; "" is the real root.
	Root string
	// Endpoints replaces the address of a provider's metadata service, as an origin: "aws" → "http://127.0.0.1:1338".
	Endpoints map[string]string
	// Disabled names providers whose service must not be asked, for example because of the AWS SDK's AWS_EC2_METADATA_DISABLED.
	Disabled []string
	// Known is the cloud that was detected earlier on this machine; "" if unknown. Detect keeps it if no cloud is detected now:
	// a service may fail to answer.
	Known string
	// APIProxy returns the proxy for a provider's calls to the API of its cloud; nil means no proxy. The metadata service is
	// never called by a proxy.
	APIProxy func(*http.Request) (*url.URL, error)
	// Log gets one line per retry and per unexpected value; nil logs nothing.
	Log *slog.Logger

	// Timeout bounds one Instance call, AttemptTimeout one request.
	Timeout, AttemptTimeout time.Duration
	// RetryWait is the first wait between two tries.
	RetryWait time.Duration

	// Local returns the addresses that this machine sends from, the zero Addr if it has none. The default asks the kernel; with
	// a Root there is no address, because the kernel is that of another machine.
	Local func() (v4, v6 netip.Addr)
	// DialContext replaces the dialer, Transport the whole HTTP transport: for tests.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	Transport   http.RoundTripper
	// APITransport is the same for the calls of a cloud's API.
	APITransport http.RoundTripper
}

// WithDefaults returns o with all bounds and the logger set.
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

// Path prepends the root to an absolute path.
func (o Options) Path(abs string) string { return filepath.Join(o.Root, abs) }

// Endpoint returns the configured origin of a provider, "" if it is not set.
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

// source returns the address from which the kernel sends to another one, the zero Addr if there is no route or only a
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
