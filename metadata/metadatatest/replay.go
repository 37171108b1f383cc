// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"encoding/json"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// Exchange is one request and its answer, as a file of testdata/metadata holds it.
type Exchange struct {
	Request  struct{ Method, Path string }
	Response struct {
		Status int
		Header map[string]string
		Body   string
	}
}

// Load reads the exchanges of one machine. A file without a request is skipped.
func Load(t *testing.T, fsys fs.FS) []Exchange {
	t.Helper()
	names, err := fs.Glob(fsys, "*.json")
	must.OK(t, err)
	var out []Exchange
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		must.OK(t, err)
		var ex Exchange
		if err := json.Unmarshal(b, &ex); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if ex.Request.Method != "" {
			out = append(out, ex)
		}
	}
	if len(out) == 0 {
		t.Fatal("no exchanges")
	}
	return out
}

// Replay is an http.RoundTripper that answers from exchanges and never from the network; the rest is a 404.
type Replay struct {
	exchanges []Exchange

	mu    sync.Mutex
	asked map[string]int
}

// NewReplay returns the transport that plays the exchanges.
func NewReplay(exchanges []Exchange) *Replay {
	return &Replay{exchanges: exchanges, asked: map[string]int{}}
}

// RoundTrip implements http.RoundTripper.
func (r *Replay) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.asked[req.Method+" "+req.URL.RequestURI()]++
	r.mu.Unlock()
	resp := &http.Response{StatusCode: http.StatusNotFound, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody, Request: req}
	for _, ex := range r.exchanges {
		if ex.Request.Method == req.Method && ex.Request.Path == req.URL.RequestURI() {
			resp.StatusCode, resp.Body = ex.Response.Status, io.NopCloser(strings.NewReader(ex.Response.Body))
			for k, v := range ex.Response.Header {
				resp.Header.Set(k, v)
			}
		}
	}
	return resp, nil
}

// Asked returns how often each "METHOD path" was requested.
func (r *Replay) Asked() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.asked)
}
