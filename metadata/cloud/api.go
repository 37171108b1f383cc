// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"net"
	"net/http"
	"net/url"
	"time"
)

// The bounds of a call of a cloud's API.
const (
	// CallTimeout bounds one call with its retries. Who waits for the answer is on its way out.
	CallTimeout = 10 * time.Second
	// CallAttemptTimeout bounds one try, so that a connection that went silent leaves time for another.
	CallAttemptTimeout = 4 * time.Second
	// CallAttempts are made at most, the second after CallWait at most.
	CallAttempts = 3
	CallWait     = 400 * time.Millisecond
)

// APIOptions are the settings of a cloud's API; the zero value works.
type APIOptions struct {
	// Endpoint is the origin of the API; "" makes it of what the metadata tell.
	Endpoint string
	// Proxy finds the proxy for a request to the API, which unlike the metadata is often reached by one; nil uses none.
	Proxy func(*http.Request) (*url.URL, error)
	// Timeout bounds one call with its retries; 0 is CallTimeout.
	Timeout time.Duration
	// Transport replaces the HTTP transport, for tests.
	Transport http.RoundTripper
}

// Open checks the settings of the API of this name and returns them with their defaults, and a client. dial bounds the making
// of a connection.
func (o APIOptions) Open(name string, dial time.Duration) (APIOptions, *http.Client, error) {
	// The same rules as for the addresses of the metadata.
	var err error
	if o.Endpoint, err = (Options{Endpoints: map[string]string{name: o.Endpoint}}).Endpoint(name); err != nil {
		return o, nil, err
	}
	if o.Timeout <= 0 {
		o.Timeout = CallTimeout
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy:                  o.Proxy,
			DialContext:            (&net.Dialer{Timeout: dial}).DialContext,
			TLSHandshakeTimeout:    dial,
			ResponseHeaderTimeout:  CallAttemptTimeout,
			IdleConnTimeout:        30 * time.Second,
			MaxIdleConnsPerHost:    2,
			MaxResponseHeaderBytes: 64 << 10,
		}
	}
	return o, &http.Client{
		Transport: naming{o.Transport},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			// A redirect would carry the signature to whoever the answer names.
			return http.ErrUseLastResponse
		},
	}, nil
}
