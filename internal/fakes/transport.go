// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"syscall"
	"testing/iotest"
	"time"
)

// Transport reaches a service in memory: each request calls Handler in a goroutine of its own, so that an answer may hang.
type Transport struct {
	http.Handler
	// Clock is the service's, for the header Date. The default is time.Now; without a time there is no header.
	Clock func() time.Time
}

// RoundTrip implements http.RoundTripper. A connection that the service cuts is ECONNRESET before the answer, and
// io.ErrUnexpectedEOF in it.
func (t Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	r, w, cut := req.Clone(req.Context()), httptest.NewRecorder(), make(chan bool, 1)
	if r.Body == nil {
		r.Body = http.NoBody
	}
	if r.Host == "" {
		r.Host = r.URL.Host
	}
	if t.Clock == nil {
		t.Clock = time.Now
	}
	if now := t.Clock(); !now.IsZero() {
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	}
	// A silent service differs from an absent one by this.
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	go func() {
		defer func() {
			p := recover()
			if err, ok := p.(error); p != nil && (!ok || !errors.Is(err, http.ErrAbortHandler)) {
				panic(p)
			}
			cut <- p != nil
		}()
		defer r.Body.Close()
		t.ServeHTTP(w, r)
	}()
	select {
	case <-req.Context().Done():
		return nil, req.Context().Err()
	case early := <-cut:
		if err := req.Context().Err(); err != nil {
			return nil, err
		}
		if early && w.Body.Len() == 0 {
			return nil, syscall.ECONNRESET
		}
		resp := w.Result()
		resp.Request = req
		if early {
			resp.Body = io.NopCloser(io.MultiReader(resp.Body, iotest.ErrReader(io.ErrUnexpectedEOF)))
		}
		return resp, nil
	}
}
