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

// maxSaid is how many bytes of an error or of a word of an answer are kept. Who
// answers decides how long these are: the server's user, for thousands of
// applications.
const maxSaid = 256

// reply is the answer to one call.
type reply struct {
	code             int
	status, location string // at most maxSaid bytes of each
	body             []byte
}

// call sends a request and reads at most limit bytes of the answer's body. A nil
// client is [NewHTTPClient]'s. Its error does not name the URL.
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
	return reply{resp.StatusCode, plain.Truncate(resp.Status, maxSaid), plain.Truncate(resp.Header.Get("Location"), maxSaid), body}, nil
}

// callError is why a call was not answered, in at most maxSaid bytes.
type callError struct{ err error }

func (e *callError) Error() string { return plain.Truncate(e.err.Error(), maxSaid) }
func (e *callError) Unwrap() error { return e.err }
