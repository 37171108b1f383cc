// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

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

	mu    sync.Mutex
	until map[string]time.Time
}

// ExpireTokens makes every token that was handed out invalid.
func (t *Tokens) ExpireTokens() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.until)
}

// Give answers a PUT on the path of the token: a token, or the status of a refusal.
func (t *Tokens) Give(r *http.Request) (token string, status int) {
	ttl, err := strconv.Atoi(r.Header.Get(t.TTLHeader))
	switch {
	case r.Method != http.MethodPut:
		return "", http.StatusMethodNotAllowed
	case !strings.HasPrefix(r.URL.Path, "/latest/"), r.Header.Get("X-Forwarded-For") != "": // a dated path; a proxy
		return "", http.StatusForbidden
	case err != nil || ttl < 1 || ttl > maxTTL:
		return "", http.StatusBadRequest
	}
	token = "AQAEA" + rand.Text() + rand.Text() + "=="
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.until == nil {
		t.until = map[string]time.Time{}
	}
	t.until[token] = time.Now().Add(time.Duration(ttl) * time.Second)
	return token, http.StatusOK
}

// Admits reports whether a request has a good token, or none if plain requests are answered, too.
func (t *Tokens) Admits(r *http.Request, plain bool) bool {
	worth := t.worth(r)
	return worth == "good" || worth == "none" && plain
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
