// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package imds is what the metadata services of AWS and Alibaba Cloud have in common: session tokens, and a record of the
// requests with what their tokens are worth.
package imds

import (
	"crypto/rand"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/books"
)

// maxTTL is the longest life of a token, in seconds.
const maxTTL = 21600

// Sessions are the tokens that a service gave out, and the requests that it got.
type Sessions struct {
	Header, TTLHeader string
	Log               *slog.Logger

	requests books.Record[Request]
	mu       sync.Mutex
	until    map[string]time.Time
}

// Request is one line of the record.
type Request struct {
	Seq    int       `json:"seq"`
	Time   time.Time `json:"time"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	Token  string    `json:"token"`         // good, bad, none
	TTL    string    `json:"ttl,omitempty"` // asked for
	Status int       `json:"status"`        // 0: no answer
}

// Requests is the record of the last few thousand requests, oldest first.
func (s *Sessions) Requests() []Request { return s.requests.All() }

// ExpireTokens makes every session token that was given out invalid.
func (s *Sessions) ExpireTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.until)
}

// Give gives a token to a PUT of the token's path, or says with which status it does not.
func (s *Sessions) Give(r *http.Request) (token string, status int) {
	ttl, err := strconv.Atoi(r.Header.Get(s.TTLHeader))
	switch {
	case r.Method != http.MethodPut:
		return "", http.StatusMethodNotAllowed
	case !strings.HasPrefix(r.URL.Path, "/latest/"), r.Header.Get("X-Forwarded-For") != "": // a dated path; a proxy
		return "", http.StatusForbidden
	case err != nil || ttl < 1 || ttl > maxTTL:
		return "", http.StatusBadRequest
	}
	token = "AQAEA" + rand.Text() + rand.Text() + "=="
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[string]time.Time{}
	}
	s.until[token] = time.Now().Add(time.Duration(ttl) * time.Second)
	return token, http.StatusOK
}

// Admits reports whether a request has a good token, or none where plain ones are answered, too.
func (s *Sessions) Admits(r *http.Request, plain bool) bool {
	token := s.token(r)
	return token == "good" || token == "none" && plain
}

// token is what the token of a request is worth: good, bad, or none.
func (s *Sessions) token(r *http.Request) string {
	t := r.Header.Get(s.Header)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case t == "":
		return "none"
	case time.Now().Before(s.until[t]):
		return "good"
	default:
		return "bad"
	}
}

// Record puts a request down.
func (s *Sessions) Record(r *http.Request) (seq int) {
	token := s.token(r)
	s.Log.Info("request", "method", r.Method, "path", r.URL.Path, "token", token)
	return s.requests.Add(func(seq int) Request {
		return Request{Seq: seq, Time: time.Now(), Method: r.Method, Path: r.URL.Path, Token: token, TTL: r.Header.Get(s.TTLHeader)}
	})
}

// Answered adds the status of the answer to the record.
func (s *Sessions) Answered(seq, status int) {
	s.requests.Change(seq, func(r *Request) { r.Status = status })
}
