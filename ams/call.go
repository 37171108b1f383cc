// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/amsagent/amsagent/internal/plain"
)

// maxText bounds the bytes kept of an error or a header. The server's user controls their length, for thousands of
// applications.
const maxText = 256

// reply is the response to one call.
type reply struct {
	code             int
	status, location string // at most maxText bytes of each
	body             []byte
}

// call sends a request and reads at most limit bytes of the response body. A nil client means [NewHTTPClient]. Errors do
// not contain the URL.
func call(client *http.Client, req *http.Request, limit int64) (reply, error) {
	if client == nil {
		client = NewHTTPClient()
	}
	resp, err := client.Do(req)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return reply{}, &callError{err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return reply{}, &callError{err}
	}
	return reply{resp.StatusCode, plain.Truncate(resp.Status, maxText), plain.Truncate(resp.Header.Get("Location"), maxText), body}, nil
}

// callError is the reason why a call failed, in at most maxText bytes.
type callError struct{ err error }

func (e *callError) Error() string { return plain.Truncate(e.err.Error(), maxText) }
func (e *callError) Unwrap() error { return e.err }
