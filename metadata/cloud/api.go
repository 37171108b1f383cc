// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Bounds of a call of a cloud's API.
const (
	// CallTimeout bounds one call with its retries.
	CallTimeout = 10 * time.Second
	// Leaves time for another attempt on a silent connection.
	callAttemptTimeout = 4 * time.Second
	CallAttempts       = 3
	dialTimeout        = 2 * time.Second
)

// APIClient is a client for a cloud's API.
type APIClient struct {
	// Endpoint is the configured origin, or "".
	Endpoint string
	HTTP     *http.Client
}

// API returns a client for the named endpoint, without a request.
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

// Hosts rotates addresses until one accepts a connection.
type Hosts struct {
	current   atomic.Int32
	connected atomic.Bool
}

// Current returns an index that grows without bound: take it modulo the number of addresses.
func (h *Hosts) Current() int32 { return h.current.Load() }

// Note records whether an address accepted a connection, unless another call has moved on.
func (h *Hosts) Note(used int32, connected bool) {
	if connected && !h.connected.Swap(true) {
		h.current.Store(used)
	} else if !connected && !h.connected.Load() {
		h.current.CompareAndSwap(used, used+1)
	}
}

// Calling completes the error of a call. A [DeniedError] already names the action.
func Calling(action string, err error) error {
	if _, denied := errors.AsType[*DeniedError](err); denied {
		return err
	}
	return fmt.Errorf("calling %s: %w", action, err)
}

// Unreachable returns the error of a call that got no answer.
func Unreachable(api string, cause error) error {
	return fmt.Errorf("the %s API %w: %w", api, ErrUnreachable, WireCause(cause))
}

// ErrUnreachable is in the error of an API that does not answer.
var ErrUnreachable = errors.New("cannot be reached")
