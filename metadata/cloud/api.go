// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// The bounds of a call of a cloud's API.
const (
	// CallTimeout bounds one call with its retries: the caller is on its way out.
	CallTimeout = 10 * time.Second
	// callAttemptTimeout bounds one try, so that a connection that went silent leaves time for another.
	callAttemptTimeout = 4 * time.Second
	// CallAttempts are made at most.
	CallAttempts = 3
	// dialTimeout bounds the making of a connection.
	dialTimeout = 2 * time.Second
)

// APIClient is what is needed to call a cloud's API.
type APIClient struct {
	// Endpoint is the origin of the API as the settings say it; "" derives it from the metadata.
	Endpoint string
	HTTP     *http.Client
}

// API opens the API whose endpoint has this name in the settings. It makes no request.
func (o Options) API(name string) (APIClient, error) {
	endpoint, err := o.Endpoint(name)
	if err != nil {
		return APIClient{}, err
	}
	rt := o.APITransport
	if rt == nil {
		rt = &http.Transport{
			Proxy:                  o.APIProxy,
			DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout:    dialTimeout,
			ResponseHeaderTimeout:  callAttemptTimeout,
			IdleConnTimeout:        30 * time.Second,
			MaxIdleConnsPerHost:    2,
			MaxResponseHeaderBytes: 64 << 10,
		}
	}
	return APIClient{Endpoint: endpoint, HTTP: &http.Client{Transport: naming{rt}, Timeout: callAttemptTimeout, CheckRedirect: noRedirect}}, nil
}

// Hosts counts through the addresses of one service until one has taken a connection, which is kept.
type Hosts struct {
	current   atomic.Int32
	connected atomic.Bool
}

// Current is the number of the address in use, beginning at 0; it may be any number of times beyond the last.
func (h *Hosts) Current() int32 { return h.current.Load() }

// Note notes whether an address took a connection. Another call may have moved on meanwhile.
func (h *Hosts) Note(used int32, connected bool) {
	if connected && !h.connected.Swap(true) {
		h.current.Store(used)
	} else if !connected && !h.connected.Load() {
		h.current.CompareAndSwap(used, used+1)
	}
}

// UnreachableError is that an API does not answer.
type UnreachableError struct {
	Action, API string
	Cause       error
}

// Error implements error.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("calling %s: %s cannot be reached: %v", e.Action, e.API, e.Cause)
}

// Unwrap gives errors.Is and errors.As the cause.
func (e *UnreachableError) Unwrap() error { return e.Cause }
