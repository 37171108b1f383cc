// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"crypto/rand"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxTTL is the longest life of a token, in seconds.
const maxTTL = 21600

// Tokens are the session tokens that the metadata services of AWS and Alibaba Cloud hand out.
type Tokens struct {
	Header, TTLHeader string
	// Optional answers requests without a token, too (HttpTokens=optional).
	Optional bool

	mu    sync.Mutex
	until map[string]time.Time
}

// ExpireTokens makes every token that was handed out invalid.
func (t *Tokens) ExpireTokens() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.until)
}

// Answer answers a request for a token, or for an item. A status without a body is an error, whose page is the cloud's own.
func (t *Tokens) Answer(r *http.Request, items func() Items) (status int, body string) {
	version, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if path == "api/token" {
		return t.give(r, version)
	}
	worth := t.worth(r)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return http.StatusMethodNotAllowed, ""
	case worth != "good" && (worth != "none" || !t.Optional):
		return http.StatusUnauthorized, ""
	}
	if v, ok := items()[path]; ok && version == "latest" {
		return http.StatusOK, v
	}
	return http.StatusNotFound, ""
}

func (t *Tokens) give(r *http.Request, version string) (status int, token string) {
	ttl, err := strconv.Atoi(r.Header.Get(t.TTLHeader))
	switch {
	case r.Method != http.MethodPut:
		return http.StatusMethodNotAllowed, ""
	case version != "latest", r.Header.Get("X-Forwarded-For") != "": // a dated path; a proxy
		return http.StatusForbidden, ""
	case err != nil || ttl < 1 || ttl > maxTTL:
		return http.StatusBadRequest, ""
	}
	token = "AQAEA" + rand.Text() + rand.Text() + "=="
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.until == nil {
		t.until = map[string]time.Time{}
	}
	t.until[token] = time.Now().Add(time.Duration(ttl) * time.Second)
	return http.StatusOK, token
}

// worth of the token of a request: good, bad, or none.
func (t *Tokens) worth(r *http.Request) string {
	token := r.Header.Get(t.Header)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case token == "":
		return "none"
	case time.Now().Before(t.until[token]):
		return "good"
	default:
		return "bad"
	}
}

// keyLife is how long a key of a role is valid.
const keyLife = 6 * time.Hour

// Key is what the role of an instance gives to sign calls with, as the metadata services of AWS and Alibaba Cloud serve it.
type Key struct {
	ID, Secret, Token string
	Since, Until      time.Time
}

// Keys are all that one instance was given; the last is in force.
type Keys struct {
	// Prefix begins the id of each key.
	Prefix string

	mu  sync.Mutex
	all []Key
}

// Key returns the key in force; a new one if less than half of its life is left.
func (k *Keys) Key() Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if n := len(k.all); n == 0 || k.all[n-1].Until.Sub(now) < keyLife/2 {
		k.all = append(k.all, Key{
			ID: k.Prefix + rand.Text()[:16], Secret: rand.Text() + rand.Text(), Token: rand.Text() + rand.Text(), Since: now, Until: now.Add(keyLife),
		})
	}
	return k.all[len(k.all)-1]
}

// ExpireKeys makes all keys invalid for the API; the next request for one gets a new one.
func (k *Keys) ExpireKeys() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.all {
		k.all[i].Until = time.Time{}
	}
}

// Find returns the key with an id.
func (k *Keys) Find(id string) (Key, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.all {
		if key.ID == id {
			return key, true
		}
	}
	return Key{}, false
}
