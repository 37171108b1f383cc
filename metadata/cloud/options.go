// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
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
	// by up to a half so that a fleet that boots together does not ask together.
	DefaultRetryWait = 100 * time.Millisecond
	// MaxRetryWait keeps a machine whose service comes up late from sleeping through the rest of its bound.
	MaxRetryWait = 2 * time.Second
	// MaxProbeTimeout bounds the network part of the detection, which runs on machines that are in no cloud at all.
	MaxProbeTimeout = time.Second
	// MaxBody is the largest answer that is read. The largest real one (user data) is 16 KiB.
	MaxBody = 1 << 20
)

// Options are the settings of detection and of every provider. The zero value works on a real machine.
type Options struct {
	// Root is put before every path that is read; "" is the real root. With a Root the machine asked about is not the one
	// we run on, so the network is probed only at addresses given in Endpoints.
	Root string
	// Endpoints replaces the address of a provider's metadata service, as an origin: "aws" → "http://127.0.0.1:1338".
	Endpoints map[string]string
	// Disabled names providers whose service must not be asked (the AWS SDK's AWS_EC2_METADATA_DISABLED, for one).
	Disabled []string
	// NoNetwork makes Detect decide by files alone.
	NoNetwork bool
	// Known is the cloud that this machine is known to be in, as of an earlier time; "" where nothing is known. Detect stays
	// with it where nothing names a cloud now: a service that does not answer is no proof that there is none.
	Known string
	// APIProxy finds the proxy for a provider's calls to its cloud's API, where it makes any; nil uses none. The metadata
	// are never asked by one.
	APIProxy func(*http.Request) (*url.URL, error)
	// Log gets one line per retry and per oddity; nil logs nothing.
	Log *slog.Logger

	// Timeout bounds one Instance call, AttemptTimeout one request, ProbeTimeout the network part of Detect.
	Timeout, AttemptTimeout, ProbeTimeout time.Duration
	// RetryWait is the first wait between two tries.
	RetryWait time.Duration

	// Interfaces lists the addresses of a network interface; nil asks the kernel, which below a Root is not the machine
	// asked about and therefore an error.
	Interfaces func(name string) ([]netip.Addr, error)
	// DialContext replaces the dialer, Transport the whole HTTP transport: for tests.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	Transport   http.RoundTripper
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
	if o.ProbeTimeout <= 0 || o.ProbeTimeout > MaxProbeTimeout {
		o.ProbeTimeout = MaxProbeTimeout
	}
	if o.RetryWait <= 0 {
		o.RetryWait = DefaultRetryWait
	}
	if o.Interfaces == nil {
		o.Interfaces = InterfaceAddresses
		if o.Root != "" {
			o.Interfaces = func(name string) ([]netip.Addr, error) {
				return nil, fmt.Errorf("the addresses of interface %s below another root cannot be read", name)
			}
		}
	}
	return o
}

// Path puts the root before an absolute path.
func (o Options) Path(abs string) string { return filepath.Join(o.Root, abs) }

// ReadFile reads the start of a file of the kernel's; below a root that somebody made it may be anything.
func (o Options) ReadFile(abs string) ([]byte, error) {
	f, err := os.Open(o.Path(abs))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxBody))
}

// IsDisabled says whether the service of a provider must not be asked.
func (o Options) IsDisabled(provider string) bool { return slices.Contains(o.Disabled, provider) }

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

// InterfaceAddresses lists the addresses of one interface of this machine in the kernel's order.
func InterfaceAddresses(name string) ([]netip.Addr, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	addrs, err := ifc.Addrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of interface %s: %w", name, err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}
