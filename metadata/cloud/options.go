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

// Bounds of requests.
const (
	// Timeout bounds one Instance call. Clouds document starts of this order; a longer silence is a fault.
	Timeout = 20 * time.Second
	// attemptTimeout bounds one request. One second is known to fail on busy hosts.
	attemptTimeout = 2 * time.Second
	// retryWait doubles up to maxRetryWait, minus up to half at random, so that a fleet does not retry together.
	// Azure answers five requests a second.
	retryWait = 250 * time.Millisecond
	// maxRetryWait finds a late service in time.
	maxRetryWait = 2 * time.Second
	// MaxBody bounds an answer in bytes. The largest real one, user data, has 16 KiB.
	MaxBody = 1 << 20
)

// Options configure detection and providers. The zero value works on a real machine.
type Options struct {
	// Root precedes every path; "" is the real root.
	Root string
	// Endpoints overrides origins: "aws" → "http://127.0.0.1:1338".
	Endpoints map[string]string
	// Disabled providers are not called, for example by AWS_EC2_METADATA_DISABLED.
	Disabled []string
	// Known is the cloud of an earlier detection, the fallback of Detect.
	Known string
	// APIProxy is the proxy for API calls only, or nil.
	APIProxy func(*http.Request) (*url.URL, error)
	Log      *slog.Logger

	// Local returns the addresses that this machine sends from. The default asks the kernel, but not with a Root, which is
	// another machine's.
	Local func() (v4, v6 netip.Addr)
	// For tests.
	Transport    http.RoundTripper
	APITransport http.RoundTripper
}

// WithDefaults sets the logger and Local.
func (o Options) WithDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Local == nil {
		o.Local = func() (v4, v6 netip.Addr) { return source("udp4", "192.0.2.1:9"), source("udp6", "[2001:db8::1]:9") }
		if o.Root != "" {
			o.Local = func() (v4, v6 netip.Addr) { return v4, v6 }
		}
	}
	return o
}

// Path prepends Root.
func (o Options) Path(abs string) string { return filepath.Join(o.Root, abs) }

// Endpoint returns the configured origin, or "".
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

// source returns the kernel's source address, without link-local ones. Connecting a UDP socket sends nothing.
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

// booted returns the boot time by the local clock.
func booted() time.Time {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(ts.Nano()))
}
