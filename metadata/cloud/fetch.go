// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"fmt"
	"io"
	"net/http"
)

// StatusError is an answer other than 200. Inside of Do it is the status that counts, which Do sees by itself; the body is
// for a provider that can learn from it.
type StatusError struct {
	Status int
	Body   []byte
}

// Error implements error. The body is left out: error pages come from anyone.
func (e *StatusError) Error() string { return fmt.Sprintf("HTTP %d", e.Status) }

// Fetch makes one request by a client of HTTPClient, inside of Do, and returns head and body of a 200. Any other status is a
// *StatusError.
func Fetch(client *http.Client, req *http.Request) (http.Header, []byte, error) {
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode != http.StatusOK:
		return resp.Header, nil, &StatusError{Status: resp.StatusCode, Body: body}
	case err != nil:
		return resp.Header, nil, err
	}
	return resp.Header, body, nil
}
